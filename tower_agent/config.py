"""What the agent's configuration file, environment and flags may say.

Most members need none of it: an agent serves every host that it was joined to, with an identity each in the state
directory. `hosts` changes something for one of them, or names a host whose identity lies in a Secret.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from certs.names import is_label
from daemon.config import Duration, Log, Section
from daemon.liveness import Liveness
from daemon.memory import Memory
from daemon.units import Listener, split_address
from protocol import defaults

KUBERNETES = "kubernetes"
KUBESPHERE = "kubesphere"
Mode = Literal["gateway", "passthrough"]


def split_secret(text: str) -> tuple[str, str]:
    """`namespace/name` of a Secret as a pair; raises ValueError."""
    namespace, slash, name = text.partition("/")
    if not slash or not is_label(namespace) or not all(map(is_label, name.split("."))):
        raise ValueError(f"a Secret is named NAMESPACE/NAME, not {text!r}")
    return namespace, name


def _secret_name(text: str) -> str:
    split_secret(text)
    return text


SecretName = Annotated[str, AfterValidator(_secret_name)]


class Service(Section):
    """A destination that the member's owner offers to the hosts."""

    address: str | None = None
    """host:port as the agent dials it; not for `kubernetes`, whose address comes from the agent's access."""
    mode: Mode = "gateway"
    """`kubernetes` only: `gateway` authenticates every request here; `passthrough` relays TCP to the apiserver."""

    @field_validator("address")
    @classmethod
    def _an_address(cls, value: str | None) -> str | None:
        if value is not None:
            split_address(value, listener=False)
        return value


def _short_service(value: Any) -> Any:
    return {"address": value} if isinstance(value, str) else value


class Host(Section):
    """What differs for one host. What is left out is as for all hosts."""

    name: str
    """The host's name, as `tower-agent join` printed it."""
    url: str | None = None
    """The server's address, where it is no longer the one that the token carried."""
    ca_file: Path | None = None
    proxy: str | None = None
    identity_secret: SecretName | None = None
    raw_services_over_foreign_tls: bool | None = None

    @field_validator("name")
    @classmethod
    def _a_label(cls, value: str) -> str:
        if not is_label(value):
            raise ValueError("a host's name is a DNS label")
        return value


class KubesphereV1(Section):
    """For `dialect: kubesphere-v1` only: the host, and consent to what the dialect asks for."""

    server: str | None = None
    """ws://, wss://, http:// or https:// address of the host's tower."""
    cluster: str | None = None
    """The name of this member's Cluster there; `token_file` holds its token."""
    ship_credential: bool = False
    """Agrees that the host gets the credential by which this agent reaches the apiserver, in full."""


class AgentConfig(Section):
    """The agent's configuration."""

    dialect: Literal["tower.v1", "kubesphere-v1"] = "tower.v1"
    """What the host speaks. `kubesphere-v1` is Go Tower's: one host, and a credential that is shipped to it."""
    kubesphere_v1: KubesphereV1 = KubesphereV1()
    state_dir: Path = Path(defaults.AGENT_STATE_DIR)
    """Holds the identities (0600), one folder a host, and the revocation list last seen."""
    kubeconfig: Path | None = None
    """The member's kubeconfig; without one the pod's ServiceAccount is used."""
    context: str | None = None
    health_address: Listener = defaults.AGENT_HEALTH_ADDRESS
    ca_file: Path | None = None
    """Further authorities (PEM) for the link's TLS and https:// proxies, beside the tower's own and the system's."""
    proxy: str | None = None
    """http(s)://user:password@host:port on the way to every host; HTTPS_PROXY and NO_PROXY are used without it."""
    proxy_from_environment: bool = True
    insecure_transport: bool = False
    """Allows ws:// addresses: the link without TLS."""
    raw_services_over_foreign_tls: bool = False
    """Allows raw services where the link's TLS ends before the tower: whoever ends it can read and change them."""
    identity_secret: SecretName | None = None
    """NAMESPACE/NAME of the Secret that keeps the identity, in place of the state directory."""
    token_file: Path | None = None
    """An enrolment token: used at start when there is no identity yet."""
    policy_file: Path | None = None
    """Whom each host may act as, see `tower-agent policy`; without it, what the manifest of a new member allows."""
    links: int = Field(default=defaults.LINKS, ge=1, le=defaults.MAX_LINKS)
    """Tunnels to each host: connections of their own, over which the host spreads callers."""
    drain: Duration = defaults.DRAIN
    """How long an agent that is told to stop lets its streams end; watches end at once, cleanly."""
    services: dict[str, Annotated[Service, BeforeValidator(_short_service)]] = Field(default_factory=dict)
    hosts: list[Host] = Field(default_factory=list)
    liveness: Liveness = Liveness()
    memory: Memory = Memory()
    busy_poll: bool = True
    """Polls for the next message for a moment after each one, where they come thousands a second, before it sleeps."""
    log: Log = Log()

    @field_validator("services")
    @classmethod
    def _declared(cls, services: dict[str, Service]) -> dict[str, Service]:
        for name, service in services.items():
            if not is_label(name):
                raise ValueError(f"a service's name is a DNS label, not {name!r}")
            if name == KUBERNETES and service.address is not None:
                raise ValueError("the address of kubernetes comes from the kubeconfig or the ServiceAccount")
            if name != KUBERNETES and (service.address is None or service.mode != "gateway"):
                raise ValueError(f"the service {name} needs an address (host:port) and nothing else")
        return services

    @model_validator(mode="after")
    def _the_dialects_own_keys(self) -> AgentConfig:
        if self.dialect == "tower.v1" and self.kubesphere_v1 != KubesphereV1():
            raise ValueError(
                "kubesphere_v1 (--server, --cluster, --ship-credential) is for `dialect: kubesphere-v1` (--dialect "
                "kubesphere-v1); a host of tower.v1 is named by the token of `tower-agent join`"
            )
        return self

    @field_validator("hosts")
    @classmethod
    def _one_entry_a_host(cls, hosts: list[Host]) -> list[Host]:
        names = [host.name for host in hosts]
        if len(set(names)) != len(names):
            raise ValueError("names a host twice")
        return hosts
