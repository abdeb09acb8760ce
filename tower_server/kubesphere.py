"""Whether a member's `jwtSecret` is that of the host's KubeSphere; asked by the server that holds the member's tunnel.

Used only if the configuration names KubeSphere's ConfigMap and the member declares the service `kubesphere`. Each
tunnel gets a nonce of its own. The agent's answer becomes `kubesphere` in the report: `pending` until it has come, then
`trouble`, which is empty if the secrets agree. The proof itself is not passed on.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import math
import secrets
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from daemon.faults import TowerError
from daemon.kube.resources import CONFIG_MAPS
from daemon.kubesphere import CONFIG, NONCE_BYTES, SPACE, jwt_secret, proof
from daemon.log import get_logger
from daemon.reminder import Reminder
from protocol.frames import printable
from tower_server.records import KUBESPHERE

if TYPE_CHECKING:
    from daemon.kube.client import Client

READ_EVERY: Final = 60.0
ANSWER_WITHIN: Final = 30.0  # an agent that knows the question reads one ConfigMap and asks one service
KEY: Final = "kubesphere"
MAX_TEXT: Final = 300

log = get_logger(__name__)


class HostSecret:
    """`run` it as a task; `secret` is empty while there is nothing to compare with."""

    def __init__(self, client: Client, *, place: str) -> None:
        self.secret = ""
        self._client = client
        self._namespace, _, self._name = place.partition("/")
        self._reminder = Reminder(every=math.inf)

    async def run(self) -> None:
        """Until cancelled. What cannot be read now leaves what was read before."""
        while True:
            trouble = ""
            try:
                self.secret = jwt_secret(await self._client.get(CONFIG_MAPS, self._name, namespace=self._namespace))
            except TowerError as error:
                trouble = error.message
            except ValueError as error:
                trouble = str(error)
            if not trouble:
                self._reminder.reset()
            elif self._reminder.due(trouble):
                log.warning("kubesphere-config-unreadable", place=f"{self._namespace}/{self._name}", text=trouble)
            await asyncio.sleep(READ_EVERY)


class Question:
    """One tunnel's."""

    __slots__ = ("asked", "nonce")

    def __init__(self) -> None:
        self.nonce = secrets.token_bytes(NONCE_BYTES)
        self.asked = time.monotonic()

    @property
    def text(self) -> str:
        return base64.b64encode(self.nonce).decode()


def in_play(secret: str, report: Mapping[str, Any]) -> bool:
    services = report.get("services")
    return bool(secret) and isinstance(services, Mapping) and KUBESPHERE in services


def compared(secret: str, said: object, question: Question, *, host: str, cluster: str) -> dict[str, Any]:
    """What a report says of it in place of the answer `said`."""
    if not isinstance(said, Mapping):
        late = time.monotonic() - question.asked > ANSWER_WITHIN
        old = "its agent does not say whether the two jwtSecrets are the same: it is older than this server"
        return {"pending": not late, "trouble": old if late else ""}
    mac, nonce = _binary(said.get("mac")), _binary(said.get("nonce"))
    if mac is None or nonce is None:
        text = said.get("text")
        told = printable(text[:MAX_TEXT]) if isinstance(text, str) and text else "its agent's answer cannot be read"
        return {"pending": False, "trouble": told}
    wanted = proof(secret, host=host, cluster=cluster, server_nonce=question.nonce, agent_nonce=nonce)
    differs = f"the jwtSecret in the member's ConfigMap {SPACE}/{CONFIG} is not this host's"
    return {"pending": False, "trouble": "" if hmac.compare_digest(mac, wanted) else differs}


def _binary(value: object) -> bytes | None:
    if not isinstance(value, str):
        return None
    try:
        found = base64.b64decode(value, validate=True)
    except ValueError:
        return None
    return found if len(found) == NONCE_BYTES else None
