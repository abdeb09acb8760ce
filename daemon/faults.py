"""The table of every fault that Tower can name.

One code (`TWRnnn`) means the same thing in the command line, in conditions, in Kubernetes `Status` answers, in logs
and in the docs; all of them take their texts from here. Ranges: 1xx server, configuration, store, ports; 2xx tunnel,
link, enrolment, agent; 3xx the member's apiserver; 4xx callers and policy; 5xx certificates; 6xx command line and admin
API.

A code is never given a second meaning: what is no longer raised is deleted, and its number stays free.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_COULD_NOT_CHECK: Final = 3


@dataclass(frozen=True, slots=True)
class Fault:
    """One entry: what people read about it and how machines see it."""

    code: str
    title: str
    meaning: str
    cause: str
    mend: str
    http_status: int
    """What an HTTP peer (caller or admin client) is answered with when this fault ends its request."""
    reason: str
    """CamelCase, for conditions and details; a `Status` carries the apiserver's word for the HTTP status."""

    def mend_for(self, cluster: str) -> str:
        """The mend of a fault of this cluster (empty: not known): its commands can be run as they stand."""
        return of_cluster(self.mend, cluster)


def of_cluster(mend: str, cluster: str) -> str:
    """A mend with the cluster's name where CLUSTER stands for it; as it is where the name is not known."""
    return re.sub(r"\bCLUSTER\b", cluster or "CLUSTER", mend)


class TowerError(Exception):
    """A failure with a code: `message` says what, where and why; `mend` says what to do about it."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        mend: str | None = None,
        exit_code: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.fault = fault(code)
        self.message = message
        self.mend = mend or self.fault.mend
        self.exit_code = exit_code if exit_code is not None else EXIT_USAGE if code == "TWR601" else EXIT_FAILED
        self.retry_after = retry_after
        super().__init__(message)

    def about(self, cluster: str) -> TowerError:
        """The same error, its mend with the name of the cluster that it is about."""
        self.mend = of_cluster(self.mend, cluster)
        return self

    @property
    def code(self) -> str:
        return self.fault.code

    @property
    def http_status(self) -> int:
        return self.fault.http_status

    @property
    def reason(self) -> str:
        return self.fault.reason

    def __str__(self) -> str:
        return f"{self.code}: {self.message}; mend: {self.mend}"


def cannot_listen(what: str, error: OSError, *, key: str) -> TowerError:
    """TWR103 for an address that could not be bound, with the mend for its cause; `key` is where it is configured."""
    if error.errno is None or isinstance(error, socket.gaierror):
        why = str(error.strerror or error)
    else:
        why = os.strerror(error.errno)
    mend = f"stop what listens there (`ss -ltnp` names it), or set another `{key}`"
    if isinstance(error, socket.gaierror):
        mend = f"set another `{key}`: an address of this machine (`ip address` shows them), or a name that leads to one"
    elif error.errno in (errno.EACCES, errno.EPERM):
        mend = (
            f"a port below 1024 takes a right that uid {os.geteuid()} has not: have systemd listen there "
            f"(`ListenStream=` of the .socket unit) and hand it in, or set another `{key}`"
        )
    elif error.errno == errno.EADDRNOTAVAIL:
        mend = f"set `{key}` to an address of this machine (`ip address` shows them), or leave its host out for all"
    return TowerError("TWR103", f"{what} cannot be listened on: {why}", mend=mend)


def fault(code: str) -> Fault:
    """The entry of `code`. Raises KeyError for a code that the table does not hold."""
    return FAULTS[code]


_TABLE: Final = (
    # 1xx: server, configuration, store, ports
    Fault(
        "TWR101",
        "The configuration is not valid",
        "A key is unknown, missing, or has a value of the wrong kind.",
        "A misspelt key, a value with the wrong unit, or a file written for another program or version.",
        "correct what the message names; `tower-server config show`, or `tower-agent config show`, then prints what is "
        "in force and where it comes from",
        500,
        "InvalidConfiguration",
    ),
    Fault(
        "TWR102",
        "The configuration file cannot be read",
        "The file that was named does not exist, may not be read, or is not YAML.",
        "A wrong path, missing permission for the user the process runs as, or a syntax error.",
        "check the path and its owner, or correct the line that the message names",
        500,
        "ConfigurationUnreadable",
    ),
    Fault(
        "TWR103",
        "An address cannot be listened on",
        "The process could not bind one of its listeners.",
        "Another process holds the port, the address is not one of this machine, or the port needs privileges.",
        "stop the other process (`ss -ltnp` names it), or configure another address",
        500,
        "AddressUnavailable",
    ),
    Fault(
        "TWR104",
        "A file that the process needs cannot be used",
        "A key, certificate, token or state file is missing, unreadable, malformed, or open to other users.",
        "A wrong path, wrong owner or mode, or a file cut short.",
        "check the path, its owner and its mode (keys: 0600), or restore the file",
        500,
        "FileUnusable",
    ),
    Fault(
        "TWR105",
        "The store cannot be used",
        "Records could not be read or written.",
        "The disk is full, read-only or failing, the directory is not writable, or the file is damaged.",
        "make room or repair the disk that holds the state directory; if the file is damaged, restore a backup: "
        "`tower-server restore FILE --replace`",
        503,
        "StoreUnavailable",
    ),
    Fault(
        "TWR106",
        "The store was written by a newer version",
        "The schema number of the file is higher than this program knows; it refuses to touch it.",
        "The program was downgraded after the newer one had migrated the file.",
        "run the newer version again, or restore the backup made before the upgrade: `tower-server restore FILE "
        "--replace`",
        500,
        "StoreTooNew",
    ),
    Fault(
        "TWR107",
        "The state directory is in use",
        "Another process holds the lock of the state directory.",
        "A second server was started on the same directory.",
        "stop the other process, or give this one a state directory of its own",
        500,
        "StateInUse",
    ),
    Fault(
        "TWR108",
        "The record was changed by someone else",
        "An update expected a version that is no longer the current one.",
        "Two writers at once.",
        "read the record again and repeat the change",
        409,
        "Conflict",
    ),
    Fault(
        "TWR109",
        "No port is free",
        "Every port of the configured range is allocated or held by another process.",
        "More clusters than ports, or a foreign service inside the range.",
        "delete clusters that are gone (`towerctl delete cluster NAME`), or widen `ports.range` and restart the server",
        507,
        "PortsExhausted",
    ),
    Fault(
        "TWR110",
        "The port of a cluster cannot be listened on",
        "The port is allocated to the cluster but the listener could not be opened; it is tried again.",
        "Another process took the port while the server was away.",
        "stop the process that holds the port (`ss -ltnp` names it); the server then opens it by itself",
        503,
        "PortUnavailable",
    ),
    Fault(
        "TWR111",
        "The server has no public URL",
        "A join command cannot be printed, because the server does not know under which URL agents reach it.",
        "`public_url` is not set, and a Kubernetes host publishes no address of the tunnel port.",
        "set `public_url: wss://HOST:8443` (a name or address that members can dial) in the server's configuration, "
        "and restart it",
        409,
        "NoPublicUrl",
    ),
    Fault(
        "TWR112",
        "The program failed unexpectedly",
        "A task ended by an error that no code describes.",
        "A defect in Tower, or the machine ran out of something (memory, disk, processes).",
        "the error and its traceback stand in the log just before; report it with the lines around it",
        500,
        "InternalError",
    ),
    Fault(
        "TWR113",
        "The server is stopping",
        "New work is refused while the process drains.",
        "A restart or an upgrade is under way.",
        "try again in a moment; agents and callers come back by themselves",
        503,
        "ServerStopping",
    ),
    Fault(
        "TWR114",
        "A Kubernetes apiserver does not answer",
        "Objects could not be read or written: no connection, no answer in time, or an answer that is an error of its "
        "own.",
        "The apiserver is down or overloaded, or the network, a proxy or a firewall between is.",
        "see whether it answers from here: `kubectl get --raw /readyz`; a server that runs goes on trying and loses "
        "nothing, a start has to be repeated, as systemd and Kubernetes do by themselves",
        503,
        "KubernetesUnreachable",
    ),
    Fault(
        "TWR115",
        "A Kubernetes apiserver forbids a request",
        "The apiserver did not accept the credential, or its RBAC does not allow what was asked.",
        "A Role or binding that was not applied or was changed, or a token that is no longer valid.",
        "where it answered 403 to what the message names, apply the rights again: for a server the overlay that it was "
        "installed by (`kubectl apply -k deploy/overlays/public`; the chart: `helm upgrade`), for an agent `towerctl "
        "manifest CLUSTER --rbac-only`; where it answered 401, renew the credential",
        500,
        "KubernetesForbids",
    ),
    Fault(
        "TWR116",
        "A Kubernetes apiserver refused a request",
        "The object is not there, not served, not valid, or another writer was first.",
        "A missing namespace or CRD, a webhook that refuses, or objects changed by hand.",
        "do what the apiserver's own words in the message ask for",
        500,
        "KubernetesRefused",
    ),
    Fault(
        "TWR117",
        "The process has no file descriptor left",
        "This process has reached its limit of open files, so it can neither open nor accept a connection.",
        "A limit that is too low for the number of callers, or callers that never close their connections.",
        "raise the limit (`LimitNOFILE=` of the systemd unit, or `ulimit -n`); it also clears as connections end",
        503,
        "DescriptorsExhausted",
    ),
    Fault(
        "TWR118",
        "Another server of this host does not answer",
        "The store lists another server, but its replica port cannot be reached or sends no heartbeat.",
        "That server is down or restarting, announces an address that this one cannot reach, is cut off by a network "
        "policy, has a clock that is minutes off, or belongs to another host.",
        "if it should be running, see its log and check `replica.listen` and `replica.address` in its configuration; "
        "meanwhile the other servers take over its agents and callers",
        503,
        "ReplicaDown",
    ),
    Fault(
        "TWR120",
        "A Cluster resource asks for something impossible",
        "A field, an annotation or the name of the Cluster resource cannot be put into effect.",
        "A typing error, a port outside the host's range, or a name too long to make the name of a Service from.",
        "correct what the message names (`kubectl edit cluster NAME`); the cluster is looked at again at once",
        422,
        "InvalidCluster",
    ),
    Fault(
        "TWR121",
        "The port belongs to another cluster",
        "A Cluster resource asks for a port that is already allocated to another cluster.",
        "Two resources name the same port, as Go Tower sometimes left them.",
        "remove the port from the spec of one of the two; a free one is then allocated to it",
        409,
        "PortTaken",
    ),
    Fault(
        "TWR122",
        "The host's apiserver refuses a write to the Cluster resource",
        "The ports, endpoints, kubeconfig and conditions on the resource stay as they were; the tunnel is not touched.",
        "An admission webhook: that of KubeSphere 3.4 refuses every change while the member is down.",
        "repair or delete the webhook that the message names; the controller goes on trying",
        503,
        "WriteRefused",
    ),
    Fault(
        "TWR123",
        "One member is registered under two names",
        "Two clusters report the same uid of their kube-system namespace.",
        "The same member was joined twice, or was made as a copy of another one's disks.",
        "delete the cluster that you do not need (`towerctl delete cluster NAME`); both go on working until then",
        409,
        "DuplicateMember",
    ),
    Fault(
        "TWR124",
        "The member belongs to another host",
        "Another host accepted this member earlier, and nothing in the member says that the two are to share it.",
        "It was joined to a second host by accident, or a host that is gone left its mark (a ConfigMap) in it.",
        "delete the cluster on the other host or, if that host is gone, delete the ConfigMap that the message names",
        409,
        "OwnedByAnotherHost",
    ),
    Fault(
        "TWR125",
        "The member's KubeSphere does not fit the host's",
        "The console of the host could not use the member: its ks-apiserver is missing or takes no token of the host.",
        "No ks-apiserver runs in the member, or the two have different secrets for their tokens.",
        "set `jwtSecret` in the ConfigMap kubesphere-system/kubesphere-config of the member to the host's, and restart "
        "its ks-apiserver",
        409,
        "KubeSphereDiffers",
    ),
    Fault(
        "TWR126",
        "The member's Kubernetes is too old",
        "Its apiserver lacks what agents and callers are known to need.",
        "The member was never upgraded.",
        "upgrade the member's control plane; callers still get through, but some requests may fail",
        409,
        "VersionTooOld",
    ),
    Fault(
        "TWR127",
        "The federation of a cluster cannot be set up",
        "kubefed does not have this member; tunnels and callers are not touched.",
        "kubefed is not installed on the host, a right is missing, or an object that Tower did not make has the name.",
        "correct what the message names; the controller then tries again by itself",
        409,
        "FederationFailed",
    ),
    # 2xx: tunnel, link, enrolment, agent
    Fault(
        "TWR200",
        "The cluster has never connected",
        "The cluster was added, but no agent of it has ever opened a tunnel.",
        "The join command was not run yet, or the agent cannot reach the server.",
        "run the join command in the member (`towerctl create token CLUSTER` prints a new one); if it was run, run "
        "`tower-agent check` there",
        503,
        "NeverConnected",
    ),
    Fault(
        "TWR201",
        "The cluster has no tunnel",
        "No agent of the cluster holds a tunnel now, so nothing can reach its apiserver.",
        "The agent stopped, its network or way out is cut, or its machine is gone.",
        "in the member: see whether the agent runs, then `tower-agent check`",
        503,
        "TunnelDown",
    ),
    Fault(
        "TWR202",
        "The cluster has fewer tunnels than expected",
        "The cluster is served, but by fewer tunnels than it should have.",
        "One of several agent replicas stopped or cannot connect.",
        "look for the missing agent with `towerctl get agents`, and run `tower-agent check` beside it",
        503,
        "Degraded",
    ),
    Fault(
        "TWR203",
        "The agent was refused",
        "The last handshake of an agent of this cluster was refused.",
        "Its identity expired, was revoked, belongs to another cluster, or its clock is wrong.",
        "correct the clock of the member; else `towerctl create token CLUSTER` and join again",
        401,
        "AuthFailed",
    ),
    Fault(
        "TWR204",
        "The enrolment token is not known",
        "The server holds no such token, or its secret does not match.",
        "A token of another server, a mistyped one, or one whose cluster was deleted.",
        "make a new one with `towerctl create token CLUSTER` and join with that",
        401,
        "TokenUnknown",
    ),
    Fault(
        "TWR205",
        "The enrolment token has expired",
        "The token was right, but its lifetime is over.",
        "The join command was run too late.",
        "make a new one with `towerctl create token CLUSTER` and join with that",
        401,
        "TokenExpired",
    ),
    Fault(
        "TWR206",
        "The enrolment token was used up",
        "The token was right, but other keys were enrolled with it already.",
        "The same join command was run on a second machine, or someone else used the token.",
        "if you did not use it yourself, revoke the agent that did (`towerctl get agents`, `towerctl revoke agent "
        "NAME`); then `towerctl create token CLUSTER`",
        401,
        "TokenUsed",
    ),
    Fault(
        "TWR207",
        "The enrolment token is malformed",
        "The text is not a Tower token, or part of it is missing.",
        "A line break or a missing end when it was copied.",
        "copy the whole token (it starts with twr1.) and hand it over by standard input or a file",
        400,
        "TokenMalformed",
    ),
    Fault(
        "TWR208",
        "The enrolment token was revoked",
        "An operator revoked the token before it was used.",
        "`towerctl revoke token`, or the cluster was deleted.",
        "ask the operator of the host for a new token (`towerctl create token CLUSTER`)",
        401,
        "TokenRevoked",
    ),
    Fault(
        "TWR209",
        "The agent was revoked",
        "This identity may not connect any more, and its tunnels were closed.",
        "`towerctl revoke agent`.",
        "if that was not intended: `towerctl create token CLUSTER` and join again",
        403,
        "AgentRevoked",
    ),
    Fault(
        "TWR210",
        "The server's name does not resolve",
        "The agent cannot find an address for the server (or for the proxy on the way).",
        "A wrong name in the URL, or a DNS server that is down (one of several: lookups are slow) or does not know it.",
        "try `time getent hosts NAME` in the member; correct the URL or the DNS (/etc/resolv.conf)",
        502,
        "NameNotResolved",
    ),
    Fault(
        "TWR211",
        "The server cannot be reached by TCP",
        "The connection was refused, is not answered, or has no route.",
        "The server is not running, a firewall drops it, or the port is wrong.",
        "check that the server listens and that the way out of the member is open for that address and port",
        502,
        "Unreachable",
    ),
    Fault(
        "TWR212",
        "The proxy refuses the way out",
        "The HTTP proxy cannot be reached or refused to connect to the server.",
        "A wrong HTTPS_PROXY, missing proxy credentials, or a rule of the proxy.",
        "allow CONNECT to the server in the proxy, correct HTTPS_PROXY, or exempt the server by NO_PROXY",
        502,
        "ProxyRefused",
    ),
    Fault(
        "TWR213",
        "TLS with the server fails",
        "The TLS handshake of the link did not complete.",
        "Something else than the tower answers on that port, a middle box breaks TLS, or full packets are lost.",
        "check the address and port; see what answers with `openssl s_client -connect HOST:PORT`; where nothing does, "
        "look for a firewall or an MTU too large for the way (`ping -M do -s 1372 HOST`)",
        502,
        "TlsFailed",
    ),
    Fault(
        "TWR214",
        "The server's TLS chain is not the expected one",
        "The certificate chain of the link ends at another authority than the one that is trusted.",
        "A TLS-inspecting proxy in the way, or a load balancer with a certificate of its own.",
        "exempt the server in the proxy, or trust its authority with `--ca-file FILE`",
        502,
        "ChainMismatch",
    ),
    Fault(
        "TWR215",
        "The tunnel path answers with another HTTP status",
        "The WebSocket upgrade was not accepted.",
        "A proxy or load balancer in the way that does not pass WebSockets, or a wrong URL.",
        "pass Upgrade through at the hop that answered, or correct the URL",
        502,
        "UpgradeRefused",
    ),
    Fault(
        "TWR216",
        "The peers do not speak the same subprotocol",
        "The WebSocket opened but not with the tunnel's subprotocol.",
        "Another service listens there, or the versions are too far apart.",
        "check the URL; bring server and agent to versions that fit each other",
        400,
        "SubprotocolMismatch",
    ),
    Fault(
        "TWR217",
        "The tunnel handshake failed",
        "The peer did not prove who it is, did not answer in time, or broke the handshake's rules.",
        "A certificate of another host or cluster, a wrong clock, a replayed handshake, or a link that is too slow or "
        "loses full packets.",
        "act on the reason that the message gives; if the identity belongs to another host, join again; where no "
        "answer came, look for an MTU too large for the way (`ping -M do -s 1372 HOST`)",
        401,
        "HandshakeFailed",
    ),
    Fault(
        "TWR218",
        "Server and agent have no protocol version in common",
        "Each side names the versions of the tunnel protocol that it speaks, and no version is on both lists.",
        "One of the two programs is too old for the other.",
        "upgrade the older side (`towerctl get agents` shows versions)",
        400,
        "VersionMismatch",
    ),
    Fault(
        "TWR219",
        "The peer broke the protocol",
        "A malformed or forbidden frame arrived; the tunnel was closed, others were not touched.",
        "A defect in the peer, something in the way that changes bytes, or an attack.",
        "the agent reconnects by itself; if it repeats, compare versions and look at what lies between",
        502,
        "ProtocolViolation",
    ),
    Fault(
        "TWR220",
        "The peer went past a limit",
        "More streams, credit or bytes than agreed arrived; the tunnel was closed, others were not touched.",
        "A defect in the peer, or an attack.",
        "the agent reconnects by itself; if it repeats, look at that agent",
        502,
        "LimitExceeded",
    ),
    Fault(
        "TWR221",
        "Too many handshakes at once",
        "The server admits handshakes at a bounded rate; this one was told to come back later.",
        "Many agents reconnect at once after an outage.",
        "nothing to do: the agent comes back by itself after the time that the server told it",
        429,
        "HandshakesThrottled",
    ),
    Fault(
        "TWR222",
        "The peer fell silent",
        "Nothing arrived on the link for as long as a peer may be silent, not even the answer to a ping.",
        "The link was cut without notice, or the peer is frozen or overloaded.",
        "the agent reconnects by itself; if it repeats, look for idle timeouts on the way",
        503,
        "PeerSilent",
    ),
    Fault(
        "TWR223",
        "The server's authority is not the one in the token",
        "The chain that the server showed at enrolment does not end at the fingerprint of the token; nothing was sent.",
        "The URL leads to another server, or something in the way answers in its place.",
        "compare the two fingerprints; take a token from the server that you mean",
        502,
        "FingerprintMismatch",
    ),
    Fault(
        "TWR224",
        "The enrolment failed",
        "The server answered the enrolment with something that cannot be used.",
        "Something in the way changed the answer, or the versions are too far apart.",
        "join again (the same token with the same key gets the same answer); compare versions",
        502,
        "EnrolmentFailed",
    ),
    Fault(
        "TWR225",
        "The agent has no identity",
        "The agent was started but was never enrolled with this host.",
        "`tower-agent join` was not run, or the state directory is another one.",
        "name the state directory (`--state-dir`) or Secret (`--identity-secret`) that was joined; if none was, run "
        "the join command that `towerctl add cluster NAME` printed, or one of `towerctl create token NAME`",
        401,
        "NotEnrolled",
    ),
    Fault(
        "TWR226",
        "The service is not declared",
        "The stream asks for a service that the member's owner did not declare.",
        "A misspelt service name, or one that the owner does not offer.",
        "declare it under `services:` in the agent's configuration, or ask for one that is there",
        404,
        "ServiceNotDeclared",
    ),
    Fault(
        "TWR227",
        "The outer transport is not allowed",
        "The link's TLS does not reach the tower server itself, and the configuration does not allow that here.",
        "A ws:// URL without `insecure_transport`, or a raw service over a link whose TLS a proxy or balancer ends.",
        "use wss:// and have every proxy pass TLS through to the server, or accept it in the agent's configuration: a "
        "ws:// link with `insecure_transport: true`, raw services with `raw_services_over_foreign_tls: true`",
        400,
        "TransportNotAllowed",
    ),
    Fault(
        "TWR228",
        "No agent runs on this machine",
        "The way to the server is fine, but no agent answers as ready at this machine's `health_address`.",
        "The agent was never started, has stopped, or says in /readyz what it still waits for.",
        "start it (`tower-agent run`, or its service) and see its log; if the agent runs elsewhere (a pod, another "
        "machine), ignore this",
        503,
        "AgentNotServing",
    ),
    Fault(
        "TWR229",
        "The cluster comes and goes",
        "It was lost several times within minutes. Callers are served whenever it is up, but its conditions in "
        "Kubernetes stay at not ready until it has been up for a while, so that nothing acts on each turn.",
        "A bad link, an agent or an apiserver that crashes again and again, or two agents that replace each other.",
        "see what happened and why with `towerctl describe cluster CLUSTER`, and correct that",
        503,
        "Flapping",
    ),
    Fault(
        "TWR230",
        "The host refused the registration",
        "A host that speaks kubesphere-v1 rejected what this agent registered with.",
        "The cluster's name or token is not the one in the host's Cluster resource, or the host could not issue.",
        "compare name and token with `spec.connection.token` on the host, then see the host's log",
        401,
        "RegistrationRefused",
    ),
    Fault(
        "TWR231",
        "Sending a credential to the host was not agreed to",
        "In the dialect kubesphere-v1 the host acts in the member with a credential that the agent sends it, in full.",
        "`dialect: kubesphere-v1` without `kubesphere_v1.ship_credential`.",
        "make a ServiceAccount that may do no more than the host should, run the agent with it (or name its "
        "kubeconfig), and add `--ship-credential`",
        400,
        "CredentialNotShipped",
    ),
    Fault(
        "TWR240",
        "A Go agent is not known",
        "The name or the token of a registration in the dialect kubesphere-v1 is wrong; which of them is not said.",
        "A cluster that was deleted or has no such token, or a token that was replaced.",
        "give the agent the name and token of the cluster: `towerctl create legacy-token CLUSTER` makes a token, and "
        "that of a Cluster resource is its `spec.connection.token`",
        401,
        "LegacyAgentUnknown",
    ),
    Fault(
        "TWR241",
        "A Go agent may not come back",
        "The cluster has native agents, so a token alone registers no Go agent beside them.",
        "A Go agent that still runs after the cluster has moved, or a move without an open window.",
        "delete the Go agent, or open a window for the move: `towerctl create legacy-window CLUSTER`",
        403,
        "LegacyWindowClosed",
    ),
    Fault(
        "TWR242",
        "A Go agent's registration cannot be used",
        "What the agent sent in `config` is malformed, too large, or holds no usable credential.",
        "A kubeconfig without inline certificate and key, an address that is none, or another program than an agent.",
        "the agent's log names the field; correct its kubeconfig or its flags and restart it",
        400,
        "LegacyRegistrationBad",
    ),
    # 3xx: the member's apiserver
    Fault(
        "TWR301",
        "The member's apiserver refuses connections",
        "The tunnel is fine; the agent cannot connect to the apiserver.",
        "The member's control plane is down, or its address changed.",
        "repair the member's control plane, or correct its address in the agent's kubeconfig; Tower is not the cause",
        502,
        "ApiserverDown",
    ),
    Fault(
        "TWR302",
        "The member's apiserver is not ready",
        "The apiserver answers, but its /readyz does not say ok.",
        "The control plane is starting, or one of its checks (etcd, for one) fails.",
        "see `kubectl get --raw '/readyz?verbose'` in the member",
        503,
        "ApiserverNotReady",
    ),
    Fault(
        "TWR303",
        "The member's apiserver does not answer in time",
        "The tunnel is fine; the apiserver did not answer within the deadline.",
        "The control plane is overloaded, or its network drops packets.",
        "look at the load of the member's control plane and the network between agent and apiserver",
        504,
        "ApiserverTimeout",
    ),
    Fault(
        "TWR304",
        "The member's apiserver shows a certificate that is not trusted",
        "TLS between agent and apiserver fails: nothing was sent.",
        "The certificate has run out (or a clock is wrong); the CA in the agent's kubeconfig or ServiceAccount is not "
        "the apiserver's; or the name does not fit.",
        "if it has expired, renew the apiserver's certificate (or correct the clocks); else correct "
        "`certificate-authority` or `tls-server-name` in the agent's kubeconfig",
        502,
        "ApiserverUntrusted",
    ),
    Fault(
        "TWR305",
        "The apiserver refuses the agent's own credential",
        "The apiserver answered 401 or 403 to the agent itself; kubectl then says You must be logged in to the server.",
        "The ServiceAccount or its token is gone or expired, or the ClusterRole is not bound.",
        "apply the agent's rights again (`towerctl manifest CLUSTER --rbac-only`, with `--policy FILE` where the "
        "member has a policy of its own), or renew the agent's kubeconfig; restart a Go agent, which reads its token "
        "only once",
        502,
        "CredentialRefused",
    ),
    Fault(
        "TWR306",
        "The apiserver's answer cannot be relayed",
        "The answer is not HTTP, is cut short, or answers an upgrade in a way that is not safe to pass on.",
        "Something else than an apiserver listens there, or it was stopped in the middle of an answer.",
        "check the server address in the agent's kubeconfig; try again",
        502,
        "BadAnswer",
    ),
    Fault(
        "TWR307",
        "The agent's policy and the member's RBAC differ",
        "The policy lets the host act as users or groups that the member's RBAC does not (or the other way round).",
        "One of the two was changed by hand.",
        "render both from one policy file and apply them: `towerctl manifest CLUSTER --no-token --image IMAGE --policy "
        "FILE`; for an agent outside of the cluster `towerctl manifest CLUSTER --rbac-only --policy FILE`, and the "
        "same file as its `policy_file`",
        503,
        "PolicyDrift",
    ),
    Fault(
        "TWR308",
        "There is no recent probe",
        "The server has had no answer to a request of its own lately, so it does not know whether one would get "
        "through.",
        "The tunnel has just opened, or probes hang.",
        "wait a few seconds for the next probe; if this stays, see the server's log for probe errors",
        503,
        "ProbeStale",
    ),
    Fault(
        "TWR309",
        "The access to the apiserver is not usable",
        "The kubeconfig or ServiceAccount of the process cannot be read or lacks something.",
        "A wrong path or context, a failing exec plugin, or no ServiceAccount mounted.",
        "correct `kubeconfig:` (the server's is `store.kubeconfig:`); try it with `kubectl --kubeconfig FILE version`",
        500,
        "AccessUnusable",
    ),
    Fault(
        "TWR310",
        "A declared service cannot be reached",
        "The tunnel is fine; the agent cannot connect to the address of that service.",
        "The service is down, or its declared address is wrong.",
        "correct its address under `services:` in the agent's configuration, or repair the service",
        502,
        "ServiceDown",
    ),
    Fault(
        "TWR311",
        "The agent's Secret cannot be used",
        "The Secret that keeps the agent's identity cannot be read or updated.",
        "It was not created, or the Role that allows get and update on it is not bound.",
        "apply the manifest again: `towerctl manifest CLUSTER --no-token --image IMAGE`",
        500,
        "SecretUnusable",
    ),
    # 4xx: callers and policy
    Fault(
        "TWR401",
        "The caller shows no credential",
        "Neither a client certificate nor a bearer token came with the request.",
        "A kubeconfig without credentials, or an Authorization scheme other than Bearer.",
        "use a kubeconfig from `towerctl kubeconfig CLUSTER`, or a token of the member",
        401,
        "NoCredential",
    ),
    Fault(
        "TWR402",
        "The caller's certificate has expired",
        "The client certificate is of this tower but outside its time of validity.",
        "It was not renewed, or a clock is wrong.",
        "get a new one: `towerctl kubeconfig CLUSTER`",
        401,
        "CallerExpired",
    ),
    Fault(
        "TWR403",
        "The caller's certificate was revoked",
        "The client certificate, or its user, is on this tower's revocation list.",
        "`towerctl revoke caller`, or the certificate was revoked by its number.",
        "`towerctl credential CLUSTER --refresh` where the kubeconfig names that plugin; else ask the host's operator "
        "for a new one",
        401,
        "CallerRevoked",
    ),
    Fault(
        "TWR404",
        "The caller's certificate is of the wrong kind",
        "The certificate is of this tower, but not one for callers.",
        "An agent's or a server's certificate was used as a client certificate.",
        "use a kubeconfig from `towerctl kubeconfig CLUSTER`",
        401,
        "CallerNotClient",
    ),
    Fault(
        "TWR405",
        "The caller may not impersonate",
        "A certificate caller sent Impersonate-* headers, which the member's policy does not allow it.",
        "`kubectl --as` with a certificate of the tower.",
        "leave --as out, or let the member's owner allow it by `may_impersonate` in the policy",
        403,
        "ImpersonationForbidden",
    ),
    Fault(
        "TWR406",
        "The member's policy does not admit the caller",
        "The user or a group of the certificate is not one that the member's owner lets the host act as.",
        "The owner has not named that user or group yet.",
        "the member's owner adds it to the policy file and applies `towerctl manifest CLUSTER --no-token --image IMAGE "
        "--policy FILE`",
        403,
        "PolicyForbids",
    ),
    Fault(
        "TWR407",
        "The caller's name is not usable",
        "The user or a group of the certificate is empty or holds control characters.",
        "A certificate that was made by hand, perhaps to smuggle a header into the request.",
        "use a certificate made by `towerctl kubeconfig CLUSTER`",
        403,
        "NameNotUsable",
    ),
    Fault(
        "TWR408",
        "The request came too slowly",
        "The request's head was not complete within the deadline, or the body of a caller who is not known yet came "
        "too slowly.",
        "A stalled client, or an attack.",
        "try again; look at the network between caller and host",
        408,
        "HeadTimeout",
    ),
    Fault(
        "TWR409",
        "The request is malformed",
        "The request breaks HTTP's rules in a way that two servers could read differently; nothing was passed on.",
        "A defective client, or an attempt to smuggle a request.",
        "correct the client",
        400,
        "MalformedRequest",
    ),
    Fault(
        "TWR410",
        "The request's head is too large",
        "More than 64 KiB or more fields than allowed.",
        "A very large token or cookie, or an attack.",
        "send a smaller head",
        431,
        "HeadTooLarge",
    ),
    Fault(
        "TWR411",
        "Too many streams",
        "The tunnel carries as many streams as it may, or its backlog of unanswered opens is full.",
        "Very many watches or connections at once, or a caller that does not close them.",
        "try again later; `towerctl get streams` shows who holds them",
        429,
        "TooManyStreams",
    ),
    Fault(
        "TWR412",
        "The buffer budget is used up",
        "The tunnel or the process has no memory left to reserve for another stream.",
        "Many slow readers at once, or some thousands of connections: one that is idle takes 16 KiB too.",
        "try again later; `towerctl get streams` shows who holds them; if the machine has the memory, raise "
        "`memory.tunnel` or `memory.process`",
        429,
        "BudgetExhausted",
    ),
    Fault(
        "TWR413",
        "The caller does not speak TLS",
        "The TLS handshake with the caller failed, or it sent plain HTTP.",
        "http:// in place of https://, a client that does not trust the tower's CA, or a foreign certificate.",
        "use https:// and a kubeconfig from `towerctl kubeconfig CLUSTER`",
        400,
        "CallerTlsFailed",
    ),
    # 5xx: certificates
    Fault(
        "TWR501",
        "The tower CA cannot be used",
        "The CA in the store is missing a part, is damaged, or its key does not fit.",
        "Files of two installations were mixed, or a restore was incomplete.",
        "restore the CA from a backup (`tower-server restore FILE --replace`; with a Kubernetes store the Secret "
        "tower-secret-authority); a new CA means that every member joins again",
        500,
        "AuthorityUnusable",
    ),
    Fault(
        "TWR502",
        "A certificate is outside its time of validity",
        "A certificate of the tower has expired or is not valid yet.",
        "Renewal failed for longer than its life, or a clock is wrong.",
        "correct the clocks; an expired agent identity renews by itself within its grace",
        401,
        "CertificateExpired",
    ),
    Fault(
        "TWR503",
        "A certificate expires soon",
        "Less than a tenth of its life is left and it was not renewed.",
        "The agent cannot reach the server, or renewals are refused.",
        "see why renewals fail in the agent's log; replace a CA by three steps, the first of which is `towerctl rotate "
        "authority start`",
        503,
        "CertificateExpiring",
    ),
    Fault(
        "TWR504",
        "A renewal failed",
        "The identity or serving certificate could not be renewed; it is tried again.",
        "The tunnel is down, or the server refused the request.",
        "read the reason in the message; if the agent was revoked, join again",
        503,
        "RenewalFailed",
    ),
    Fault(
        "TWR505",
        "The certificate request is refused",
        "The request asks for something that the server does not sign, or its signature is wrong.",
        "Another cluster's name, CA rights, a weak key, or a lifetime above the limit.",
        "ask for what the server grants: its answer names the field",
        400,
        "RequestRefused",
    ),
    Fault(
        "TWR506",
        "The revocation list is refused",
        "The list is not signed by this tower, or its number is lower than the one in force.",
        "An old backup of the server was restored, or an attack.",
        "after a restore, revoke again what was revoked since that backup: the first revocation makes a list that "
        "agents take, and until then they keep the one they have; if nothing was restored, look for an intruder",
        400,
        "RevocationsRefused",
    ),
    Fault(
        "TWR507",
        "The peer's certificate is not trusted",
        "The chain does not lead to this tower's CA by the right issuer and role.",
        "A certificate of another tower, of another cluster, or of another kind.",
        "join again, or use the certificate made for that purpose",
        401,
        "Untrusted",
    ),
    Fault(
        "TWR508",
        "The revocation list is stale",
        "The server signs and sends the list anew every hour; the one that the agent has is older than three hours.",
        "Something between agent and server withholds it, an older copy of the server was restored (TWR506), or the "
        "clocks are hours apart.",
        "see the agent's log for TWR506 and correct the clocks; else find out who ends the link's TLS on the way",
        503,
        "RevocationsStale",
    ),
    Fault(
        "TWR509",
        "The announcement of another tower CA is refused",
        "The server announced another CA to trust, but no root that the agent trusts has signed the announcement.",
        "An old backup of the server was restored after its CA had been rotated, or whatever ends the link's TLS on "
        "the way forges messages.",
        "after a restore, join the agent again with a new token of that server; else find out what ends the link's TLS",
        403,
        "TrustRefused",
    ),
    Fault(
        "TWR510",
        "The rotation of the CA cannot go on yet",
        "Some agents have not followed the last step, and the next one would lock them out.",
        "They are not connected, or have not renewed their certificates yet.",
        "bring them back (`towerctl describe authority` lists them) or revoke them (`towerctl revoke agent NAME`); "
        "with --force they are locked out and must join again",
        409,
        "RotationIncomplete",
    ),
    # 6xx: command line and admin API
    Fault(
        "TWR601",
        "The command line is wrong",
        "An argument is missing, unknown, or contradicts another.",
        "A typing error, or a command of another version.",
        "see --help of the command",
        400,
        "Usage",
    ),
    Fault(
        "TWR602",
        "The server's admin API cannot be reached",
        "The command could not connect to the server's admin socket, or it did not answer in time.",
        "The server is not running, the socket path is another one, or you may not open it.",
        "start tower-server on this machine, name its socket with --socket, or run as a user who may open it",
        503,
        "AdminUnreachable",
    ),
    Fault(
        "TWR603",
        "There is no such object",
        "Nothing of that kind has that name.",
        "A typing error, or it was deleted.",
        "list what is there: `towerctl get clusters` (or tunnels, streams, agents, tokens)",
        404,
        "NotFound",
    ),
    Fault(
        "TWR604",
        "The object exists already",
        "Another object of that kind has that name.",
        "It was added before.",
        "use the one that is there, delete it first, or choose another name",
        409,
        "AlreadyExists",
    ),
    Fault(
        "TWR605",
        "The request is not valid",
        "The admin API cannot accept the request as it is.",
        "A name that is not a DNS label, an unknown or missing field, or JSON that cannot be read.",
        "correct what the message names",
        400,
        "InvalidRequest",
    ),
    Fault(
        "TWR606",
        "The request is too large",
        "The body is larger than the admin API reads.",
        "Something else than a Tower client sent it.",
        "send a smaller body",
        413,
        "RequestTooLarge",
    ),
    Fault(
        "TWR607",
        "The request does not come from a command line",
        "The Host or Origin of the request is not one of the admin API.",
        "A web page that tries to reach the socket, or a forwarded port.",
        "use towerctl",
        403,
        "OriginForbidden",
    ),
    Fault(
        "TWR608",
        "The wait timed out",
        "What --wait waited for did not happen in the time given.",
        "It takes longer than that, or something keeps it from happening.",
        "see what is missing with `towerctl describe cluster CLUSTER`, or give --wait more time",
        504,
        "WaitTimedOut",
    ),
    Fault(
        "TWR609",
        "There is no such code",
        "The code is not one of Tower's, or not of this version.",
        "A typing error, or a message of another version.",
        "`towerctl explain` without a code lists all of them",
        404,
        "UnknownCode",
    ),
    Fault(
        "TWR610",
        "The kubeconfig cannot be written",
        "The kubeconfig file could not be read, merged or written.",
        "It is not YAML, belongs to someone else, or its directory does not exist.",
        "correct the file, or name another one with --file",
        500,
        "KubeconfigUnusable",
    ),
    Fault(
        "TWR611",
        "The server's answer is not understood",
        "The admin API answered with something that this command does not know.",
        "Command and server are of different versions, or another program listens on the socket.",
        "use the towerctl of the server's version; check --socket",
        502,
        "AnswerNotUnderstood",
    ),
    Fault(
        "TWR612",
        "The admin API has no such call",
        "The path or method is not part of the admin API.",
        "Command and server are of different versions.",
        "use the towerctl of the server's version",
        404,
        "NoSuchCall",
    ),
    Fault(
        "TWR613",
        "The login failed",
        "The server could not establish through the host's apiserver who is asking.",
        "The CertificateSigningRequest behind the login was denied, deleted, made for another tower, or is too old.",
        "repeat the command: towerctl makes a new request; if this stays, compare the clocks of server and apiserver",
        401,
        "NotLoggedIn",
    ),
    Fault(
        "TWR614",
        "RBAC of the host cluster does not allow it",
        "The host's apiserver says that this person may not make this call of the admin API.",
        "They are not bound to a Role for the API group admin.tower.kubesphere.io.",
        "have a cluster admin bind them to the Role tower-operator, or tower-viewer: `kubectl -n NAMESPACE create "
        "rolebinding NAME --role tower-operator --user USER`",
        403,
        "NotPermitted",
    ),
    Fault(
        "TWR615",
        "Too many logins at once",
        "Operators log in faster than this server asks the apiserver about them.",
        "A script that logs in for every call.",
        "wait a moment; keep the cache directory of towerctl writable",
        429,
        "TooManyLogins",
    ),
    Fault(
        "TWR616",
        "The tower cannot be reached by the host's apiserver",
        "`towerctl --context` found no server that is ready, or no way to it.",
        "The namespace is another one, no pod is ready, or a right is missing.",
        "name the tower's namespace by --namespace; look at its pods: `kubectl -n NAMESPACE get pods -l "
        "app.kubernetes.io/name=tower-server`",
        503,
        "NoWayToTheTower",
    ),
)

FAULTS: Final[Mapping[str, Fault]] = MappingProxyType({entry.code: entry for entry in _TABLE})
