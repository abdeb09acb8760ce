"""Every default and limit of the product, in one place.

Units are in the names: seconds unless `_BYTES`, `_DAYS` or a count says otherwise. A test compares this module with the
table of defaults in docs/OPERATIONS.md, so neither can drift from the other.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * 1024

# Addresses and places.
TUNNEL_PORT: Final = 8443
REPLICA_PORT: Final = 8444  # for the other servers of a host, where several share a Kubernetes store
OPERATOR_PORT: Final = 8445  # the admin API for operators who come by the host's apiserver, on loopback of the pod
LEGACY_PORT: Final = 8080  # of the dialect kubesphere-v1, where Go agents look for it
TUNNEL_PATH: Final = "/v1/tunnel"
SERVER_HEALTH_ADDRESS: Final = "127.0.0.1:9443"
AGENT_HEALTH_ADDRESS: Final = "127.0.0.1:9444"
SERVER_CONFIG_FILE: Final = "/etc/tower/server.yaml"
AGENT_CONFIG_FILE: Final = "/etc/tower/agent.yaml"
STATE_DIR: Final = "/var/lib/tower"
AGENT_STATE_DIR: Final = "/var/lib/tower-agent"
ADMIN_SOCKET: Final = "/run/tower/admin.sock"
PORT_RANGE: Final = (6000, 7000)
KUBESPHERE_PORT_OFFSET: Final = 10000
STORE_NAMESPACE: Final = "tower-system"
KUBESPHERE_SERVICE: Final = "ks-apiserver.kubesphere-system.svc:80"  # in the member, where none is declared

# Lifetimes.
CA_DAYS: Final = 3650
ISSUER_DAYS: Final = 1825
AGENT_IDENTITY_DAYS: Final = 7
EXPIRED_IDENTITY_GRACE_DAYS: Final = 90  # an expired, unrevoked identity may still renew, and nothing else
CALLER_HOURS: Final = 24
CLUSTER_KUBECONFIG_DAYS: Final = 30  # of the kubeconfig in a Cluster resource, which controllers of the host use
RENEW_AT: Final = 2 / 3  # of a certificate's life
MAX_CALLER_DAYS: Final = 365  # bounds how long a revocation by user must be kept
SERVER_CERTIFICATE_DAYS: Final = 30
CERTIFICATE_BACKDATE: Final = 300.0  # before the time of issue, for clocks that run behind
TOKEN_LIFETIME: Final = 3600.0
LOGIN_LIFETIME: Final = 3600.0  # of a request that ties an operator's key to their name, see certs.login
SEAL_KEY_LIFETIME: Final = 3600.0  # of the key that enrolments are sealed to; the one before it still opens
TOKEN_USES: Final = 1
REVOCATIONS_EVERY: Final = 3600.0  # the list is signed and sent anew, so that an agent sees when one is kept from it
REVOCATIONS_STALE: Final = 3 * REVOCATIONS_EVERY

# Liveness.
PING_INTERVAL: Final = 5.0
DEAD_AFTER: Final = 15.0
LEASE_DURATION: Final = 15.0  # of the controller's leader: how long others wait for one that fell silent
LEASE_RENEW_DEADLINE: Final = 10.0  # after which a leader that could not renew stops, well before others may begin
LEASE_RETRY: Final = 2.0
REPLICA_HEARTBEAT: Final = 1.0  # of a server to the others of its host
REPLICA_DEAD_AFTER: Final = 3.0  # without a heartbeat, a server holds nothing that callers could be sent to
STALL_AFTER: Final = 2.0  # without progress, a tunnel gets no new streams while there is another
RESUME_WINDOW: Final = 40.0  # how long a tunnel waits for a new link, and a cluster without one is worth waiting for
GIVE_UP: Final = 60.0  # when kubectl does: dead time and window have to be over before
BACKOFF_MIN: Final = 0.2
BACKOFF_MAX: Final = 30.0

# Deadlines.
DIAL_DEADLINE: Final = 5.0
OPEN_DEADLINE: Final = 10.0  # for the answer to an OPEN: the peer's dial and a slow link
HANDSHAKE_DEADLINE: Final = 10.0
COME_BACK: Final = 5.0  # asked of whoever comes while a server has no room for another handshake
HEAD_DEADLINE: Final = 10.0
LINK_FLUSH: Final = 5.0  # for the last bytes of a closed link: a peer that reads nothing must not hold its socket
ADMIN_DEADLINE: Final = 10.0  # for an answer of the admin API to the command line
COMPLETION_DEADLINE: Final = 0.3  # a Tab must not feel stuck
PROBE_FRESH_FOR: Final = 30.0
PROBE_INTERVAL: Final = 10.0
PROBE_AGAIN: Final = 1.0  # after one that failed, then twice as long each time, up to the interval; the least pause
HOLD: Final = 2.0
HOLD_WAITERS: Final = 256
DRAIN: Final = 5.0  # how long a process that stops lets its streams end: callers of its restart wait that long

# Connections that the gateway holds.
UPSTREAM_IDLE: Final = 60.0  # of a kept connection to the apiserver, which itself closes idle ones after 90 s
CALLER_IDLE: Final = 900.0  # between two requests of one caller's connection
LINGER: Final = 2.0  # what a caller still sends is read that long after a last answer, so that a reset does not eat it
GATEWAY_TICK: Final = 0.5  # how often deadlines, idle limits and expired certificates are looked at

# TCP's questions to the other end of a silent connection, in seconds and in number: a machine that runs answers them,
# however busy its programs are, and a caller's machine that slept for a minute goes on.
KEEPALIVE_IDLE: Final = 60
KEEPALIVE_INTERVAL: Final = 15
KEEPALIVE_PROBES: Final = 4

# Sizes.
MAX_HEAD_BYTES: Final = 64 * KIB
MAX_HEADER_FIELDS: Final = 200
MAX_FRAME_PAYLOAD: Final = 64 * KIB
MAX_HANDSHAKE_BYTES: Final = 16 * KIB
MAX_CONTROL_LINE_BYTES: Final = 256 * KIB
MAX_ENROLMENT_BYTES: Final = 64 * KIB  # a sealed request, and an offer of a seal key
MAX_ENROLLED_BYTES: Final = 512 * KIB  # a sealed reply: it carries the revocation list
MAX_REVOCATION_BYTES: Final = 180 * KIB  # so that it fits a control line in base64
INITIAL_CREDIT: Final = 256 * KIB
RESERVED_CREDIT: Final = 16 * KIB
MAX_CREDIT: Final = 32 * MIB
TUNNEL_BUDGET: Final = 48 * MIB
PROCESS_BUDGET: Final = 48 * MIB

# Frames that a tunnel keeps until they are acknowledged: a whole window, and what leaves before its ACK is back.
REPLAY_BYTES: Final = MAX_CREDIT + 4 * MIB

# Bytes of a stream that wait for credit or their turn, above which its writer pauses: more than one read brings, or
# every read would pause and resume the connection that it came from.
SEND_HIGH: Final = 384 * KIB
SEND_LOW: Final = 128 * KIB
READ_BUFFER_BYTES: Final = 256 * KIB  # one for a whole event loop

# Counts.
LINKS: Final = 1
MAX_LINKS: Final = 16  # of one agent to one host
LEGACY_REGISTRATION: Final = 240 * KIB  # bytes of `config` at most; a Go agent sends no packet above 256 KiB
LEGACY_CREDIT: Final = 2 * MIB  # the most a Go agent may send ahead on one channel; Go's own window
LEGACY_WINDOW: Final = 3600.0  # how long a window for Go agents beside native ones is open
MAX_STREAMS: Final = 10_000
AGENT_REPLICAS: Final = 2  # in the manifest: one may go away without a caller noticing
OPEN_BACKLOG: Final = 256
MAX_UNAUTHENTICATED: Final = 1024  # connections to the tunnel port that have not proven who they are
NEW_CALLERS: Final = 512  # of one network at one port, younger than HEAD_DEADLINE: nobody may have recognised them yet
RESERVED_DESCRIPTORS: Final = 64  # kept from callers (at most a quarter): for links, the store, health, operators
UPSTREAM_IDLE_CONNECTIONS: Final = 128  # kept connections to the apiserver, of each of the two pools
CONTROL_BACKLOG: Final = 8192  # control frames waiting for a peer that does not read, above which the tunnel is closed

# Admission at the tunnel port: token buckets, refilled per second. A storm of agents comes back within their back-off.
HANDSHAKE_RATE: Final = 100.0
HANDSHAKE_BURST: Final = 200
ENROLMENT_RATE: Final = 20.0
ENROLMENT_BURST: Final = 200
