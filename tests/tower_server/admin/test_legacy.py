"""The calls about Go agents; what they bring about is in tests/tower_server/legacy."""

from __future__ import annotations

import pytest

from tests.tower_server.kit import admin, running
from tests.tower_server.legacy.goagent import TOKEN

pytestmark = pytest.mark.asyncio
ENABLED = {"enabled": True, "listen": "127.0.0.1:0"}


async def test_tokens_and_windows_come_and_go(tmp_path):
    async with running(tmp_path, kubesphere_v1=ENABLED) as server:
        await server.add("edge-1")
        base = "/v1/clusters/edge-1"
        made = await admin(server, "POST", f"{base}/legacy-token", {})
        assert (made.status, made.json()["kind"], len(made.json()["token"])) == (201, "LegacyToken", 64)
        taken = await admin(server, "POST", f"{base}/legacy-token", {"token": TOKEN})
        assert taken.json()["token"] == TOKEN
        record = server.services.clusters.get("edge-1")[0]
        assert record.legacy_token
        assert TOKEN not in record.legacy_token
        window = await admin(server, "POST", f"{base}/legacy-window", {})
        assert (window.status, window.json()["kind"]) == (201, "LegacyWindow")
        assert server.services.clusters.get("edge-1")[0].legacy_until
        gone = await admin(server, "DELETE", f"{base}/legacy-token")
        assert (gone.status, gone.json()["closed"]) == (200, 0)
        record = server.services.clusters.get("edge-1")[0]
        assert (record.legacy_token, record.legacy_until) == (None, None)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("legacy-token", {"token": 7}),
        ("legacy-token", {"tokens": "x"}),
        ("legacy-token", {"token": "short"}),
        ("legacy-window", {"ttl": 0}),
        ("legacy-window", {"ttl": 1e9}),
    ],
)
async def test_what_is_no_token_or_window_is_refused(tmp_path, path, body):
    async with running(tmp_path, kubesphere_v1=ENABLED) as server:
        await server.add("edge-1")
        assert (await admin(server, "POST", f"/v1/clusters/edge-1/{path}", body)).status == 400
        assert (await admin(server, "POST", f"/v1/clusters/nowhere/{path}", {})).status == 404


@pytest.mark.parametrize("path", ["legacy-token", "legacy-window"])
async def test_a_server_without_the_dialect_promises_nothing(tmp_path, path):
    async with running(tmp_path) as server:
        await server.add("edge-1")
        refused = await admin(server, "POST", f"/v1/clusters/edge-1/{path}", {})
        assert (refused.status, refused.json()["code"]) == (400, "TWR605")
        assert "no Go agent could register" in refused.json()["message"]
        assert "kubesphere_v1.enabled" in refused.json()["mend"]
