"""An identity in a Secret: one name, optimistic updates, failures that name it."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from certs.identity_secret import SecretIdentityStore
from daemon.faults import TowerError
from tests.tower_agent.backend import Pki, Request, backend
from tests.tower_agent.test_member import api
from tests.tower_agent.tower import new_tower, serving_tower
from tower_agent.enrol import Enrolment
from tower_agent.secret import Secret
from tower_agent.wayout import WayOut


@dataclass
class SecretServer:
    """One Secret as an apiserver keeps it."""

    data: dict[str, str] = field(default_factory=dict)
    version: int = 1
    puts: int = 0
    between: list[dict[str, str]] = field(default_factory=list)

    def __call__(self, request: Request) -> tuple[int, object]:
        if request.path != "/api/v1/namespaces/tower-east/secrets/identity":
            return 404, {"message": "secrets not found"}
        if request.method == "PUT":
            self.puts += 1
            document = request.json()
            assert isinstance(document, dict)
            assert document["type"] == "Opaque"
            if self.between:
                self.data.update(self.between.pop())
                self.version += 1
            if document["metadata"]["resourceVersion"] != str(self.version):
                return 409, {"message": "the object has been modified"}
            self.data, self.version = document["data"], self.version + 1
        return 200, {
            "type": "Opaque",
            "metadata": {"name": "identity", "resourceVersion": str(self.version), "managedFields": [{}]},
            "data": dict(self.data),
        }


@pytest.mark.asyncio
async def test_a_join_into_a_secret_keeps_what_others_wrote(tmp_path: Path) -> None:
    pki, server = Pki(tmp_path), SecretServer(between=[{"note": base64.b64encode(b"mine").decode()}])
    async with backend(server, pki.server) as served, serving_tower(new_tower()) as tower:
        member = api(tmp_path, served.port, pki)
        store = SecretIdentityStore(Secret(member, "tower-east", "identity"))
        joined = await Enrolment(str(tower.token()), store=store, way=WayOut()).run()
        assert server.puts >= 3  # the first was refused, since someone else had written
        assert base64.b64decode(server.data["note"]) == b"mine"
        assert "east.identity.json" in server.data

        sibling = SecretIdentityStore(Secret(member, "tower-east", "identity"))
        assert await sibling.hosts() == ("east",)
        assert await sibling.load("east") == joined


@pytest.mark.asyncio
async def test_failures_name_the_secret_and_its_rbac(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    async with backend(SecretServer(), pki.server) as served:
        member = api(tmp_path, served.port, pki)
        with pytest.raises(TowerError) as caught:
            await Secret(member, "tower-east", "other").get()
        assert caught.value.code == "TWR311"
        assert "the Secret tower-east/other cannot be read: 404" in caught.value.message
        assert "towerctl manifest" in caught.value.mend
        served.respond = lambda _request: (403, {"message": "secrets is forbidden"})
        with pytest.raises(TowerError, match="secrets is forbidden"):
            await Secret(member, "tower-east", "identity").get()
        served.respond = lambda _request: (200, {"data": {"a": "%%"}})
        with pytest.raises(TowerError, match="not base64"):
            await Secret(member, "tower-east", "identity").get()
