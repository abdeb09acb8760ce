"""Where this agent's identities lie: the state directory, or Secrets of the member."""

from __future__ import annotations

from certs.errors import CertsError
from certs.identity import IdentityStore
from certs.identity_files import DirectoryIdentityStore
from certs.identity_secret import SecretIdentityStore
from tower_agent.config import AgentConfig, split_secret
from tower_agent.faultof import certs_fault
from tower_agent.member import MemberApi
from tower_agent.secret import Secret


def stores_of(config: AgentConfig, api: MemberApi | None) -> list[IdentityStore]:
    """Every place that may hold an identity: the one that new ones are written to first.

    `api` may be None where no Secret is configured.
    """
    secrets = [config.identity_secret, *(host.identity_secret for host in config.hosts)]
    named = list(dict.fromkeys(each for each in secrets if each is not None))
    stores: list[IdentityStore] = []
    for each in named:
        assert api is not None, "a Secret needs the member's apiserver"
        stores.append(SecretIdentityStore(Secret(api, *split_secret(each))))
    if config.identity_secret is None:
        stores.insert(0, DirectoryIdentityStore(config.state_dir))
    return stores


def needs_secret(config: AgentConfig) -> bool:
    """Whether an identity lies in a Secret."""
    return config.identity_secret is not None or any(host.identity_secret for host in config.hosts)


async def enrolled(stores: list[IdentityStore]) -> dict[str, IdentityStore]:
    """The hosts that this agent is enrolled with, and where each identity lies. Raises TowerError."""
    found: dict[str, IdentityStore] = {}
    for store in stores:
        try:
            for host in await store.hosts():
                found.setdefault(host, store)
        except CertsError as error:
            raise certs_fault(error) from error
    return found
