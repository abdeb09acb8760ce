from __future__ import annotations

import json
import socket

import pytest

from tests.towerctl.kit import Shell, peer


@pytest.mark.slow
def test_waiting_ends_as_soon_as_a_request_would_get_through(shell: Shell) -> None:
    states = ["NeverConnected", "Degraded", "Connected"]

    def answer(connection: socket.socket) -> None:
        head = connection.recv(65536)
        body: dict[str, object] = {"name": "edge-1", "ports": {"kubernetes": 6001}}
        if head.startswith(b"GET"):
            state = states.pop(0)
            body |= {"state": state, "ready": "True" if state == "Connected" else "False"}
        text = json.dumps(body)
        connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())

    with peer(shell.socket, answer):
        ran = shell("add", "cluster", "edge-1", "--no-join", "--wait", "10s")
    assert ran.code == 0
    assert "Cluster edge-1 is Ready." in ran.err
    assert states == []
