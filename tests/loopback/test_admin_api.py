"""The admin API of a whole server under bad input: refused with a code, counted, and no tunnel or stream minds."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys

import pytest

from tests.lab.world import TowerWorld
from tests.loopback.callers import logs, moves

pytestmark = [pytest.mark.usefixtures("bystanders"), pytest.mark.slow]
DEEP = b'{"name":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
HUGE = b'{"name":"' + b"a" * (2 << 20) + b'"}'
BAD = {
    "deep-json": ("POST", "/v1/clusters", DEEP, {}, 400),
    "oversized-json": ("POST", "/v1/clusters", HUGE, {}, 413),
    "no-json": ("POST", "/v1/clusters", b"\xff\xfe", {}, 400),
    "a-list": ("POST", "/v1/clusters", b"[]", {}, 400),
    "an-unknown-key": ("POST", "/v1/clusters", b'{"name":"edge-9","admin":true}', {}, 400),
    "a-foreign-host": ("GET", "/v1/clusters", None, {"Host": "evil.example"}, 421),
    "a-web-page": ("GET", "/v1/clusters", None, {"Origin": "https://evil.example"}, 403),
    "a-wrong-method": ("DELETE", "/v1/clusters", None, {}, 405),
    "an-unknown-path": ("GET", "/v1/secrets", None, {}, 404),
    "an-unknown-cluster": ("POST", "/v1/clusters/nowhere/tokens", b"{}", {}, 404),
    "another-path-by-encoding": ("DELETE", "/v1/clusters/..%2f..%2fv1%2fclusters%2fedge-1", None, {}, 400),
    "a-user-that-is-a-field": ("POST", "/v1/callers/a%0d%0aImpersonate-User:%20root/revoke", b"{}", {}, 400),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_calls_are_refused_with_a_code_and_change_nothing(world: TowerWorld, name: str) -> None:
    method, path, body, headers, expected = BAD[name]
    before = world.call("GET", "/v1/clusters")[1]["items"]
    with moves(world, f'tower_admin_requests_total{{code="{expected}"}}'), logs(world.server.log, str(expected)):
        status, document = world.call(method, path, body, headers)
    assert (status, document["kind"]) == (expected, "Error"), document
    assert document["code"].startswith("TWR6")
    assert document["message"]
    after = world.call("GET", "/v1/clusters")[1]["items"]
    assert [item["name"] for item in after] == [item["name"] for item in before]


def test_what_is_no_http_is_refused_and_counted(world: TowerWorld) -> None:
    secret = b"GET /v1/clusters HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer admin-secret-1f2e\nX\r\n\r\n"
    for data in (
        bytes(range(256)) * 64,
        b"GET /v1/clusters HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (1 << 20),
        secret,
    ):
        with (
            moves(world, 'tower_admin_requests_total{code="400"}'),
            logs(world.server.log, "Invalid HTTP request", without=("admin-secret-1f2e",)),
            socket.socket(socket.AF_UNIX) as bare,
        ):
            bare.settimeout(10.0)
            bare.connect(str(world.socket))
            got = b""
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all of it was read
                bare.sendall(data)
                while piece := bare.recv(65536):
                    got += piece
            assert got.startswith(b"HTTP/1.1 400 ") or len(data) > (1 << 20)
    assert world.call("GET", "/v1/info")[0] == 200


def test_nobody_but_its_owner_can_connect(world: TowerWorld) -> None:
    assert os.stat(world.socket).st_mode & 0o777 == 0o600
    connect = (
        f"import os, socket; os.setuid(65534); socket.socket(socket.AF_UNIX).connect({json.dumps(str(world.socket))})"
    )
    if os.geteuid() != 0:
        connect = connect.replace("os.setuid(65534)", "os.chmod(os.devnull, 0o600)")
    done = subprocess.run([sys.executable, "-c", connect], capture_output=True, text=True, timeout=20, check=False)
    assert "PermissionError" in done.stderr
