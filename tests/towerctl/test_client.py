"""Each way in which the admin API may not answer has a sentence and a mend of its own."""

from __future__ import annotations

import os
import pwd
import socket
import threading
from pathlib import Path

import pytest

from daemon.faults import TowerError
from tests.towerctl.kit import Shell, http, peer
from towerctl.client import AdminClient, path_of
from towerctl.errors import AdminRefused, ServerUnreachable


def test_a_missing_socket_says_how_to_start_the_server(shell: Shell) -> None:
    shell("get", "clusters").refused(
        "no tower server runs here", str(shell.socket), "does not exist", "tower-server run", "--socket", "TWR602"
    )


def test_a_socket_that_nobody_listens_at_is_told_from_a_missing_one(shell: Shell) -> None:
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(shell.socket))
    shell("get", "clusters").refused("nobody listens", str(shell.socket), "tower-server run", "TWR602")


def test_a_file_that_is_no_socket_is_called_that(shell: Shell) -> None:
    shell.socket.write_text("hello")
    shell("get", "clusters").refused("is not a socket", "--socket", "TWR602")


def test_a_path_that_is_too_long_for_the_kernel_says_so(shell: Shell, folder: Path) -> None:
    shell("get", "clusters", "--socket", f"{folder}/{'x' * 120}").refused("longer than the kernel takes", "TWR602")


def test_a_socket_is_tried_before_it_is_said_to_be_closed_to_this_user(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is told of a socket that may not be opened is more than that it cannot be read."""
    shell.socket.write_text("hello")
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    shell("get", "clusters", "--socket", str(shell.socket)).refused("is not a socket", "TWR602")


def test_a_socket_that_may_not_be_opened_names_its_owner(folder: Path) -> None:
    folder.chmod(0o711)
    path = folder / "admin.sock"
    reader, writer = os.pipe()
    with peer(path, http("200 OK", "{}")):
        path.chmod(0o600 if os.geteuid() == 0 else 0)  # root may open everything: there the child is another user
        child = os.fork()
        if child == 0:
            try:
                if os.geteuid() == 0:
                    os.seteuid(65534)
                AdminClient(str(path), timeout=30).get("/v1/info")
            except TowerError as error:
                os.write(writer, str(error).encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as told:
        text = told.read()
    assert "you may not open" in text
    assert f"it belongs to {pwd.getpwuid(os.geteuid()).pw_name}" in text
    assert "sudo" in text


def test_silence_ends_at_the_deadline_that_was_given(shell: Shell) -> None:
    done = threading.Event()
    with peer(shell.socket, lambda connection: bool(connection.recv(1)) and done.wait(5)):  # type: ignore[arg-type,func-returns-value]
        ran = shell("get", "clusters", "--timeout", "100ms")
        done.set()
    ran.refused("did not answer within 0.1s", "--timeout", "TWR602")


@pytest.mark.parametrize(
    "body", ["<html>hello</html>", "[1, 2]", "{" * 100_000, "\x00", '{"items": 3}', '{"items": [3]}']
)
def test_what_is_not_the_admin_api_is_called_that(shell: Shell, body: str) -> None:
    with peer(shell.socket, http("200 OK", body)):
        shell("get", "clusters").refused("is not the admin API of a tower server", "--socket")


@pytest.mark.parametrize(
    ("words", "answer", "says"),
    [
        ("get clusters", '{"items": [{"name": "a", "rtt": "x"}]}', "rtt is 'x', where a number belongs"),
        ("get clusters", '{"items": [{"name": "a", "rtt": NaN}]}', "rtt is 'nan', where a number belongs"),
        ("get clusters", '{"items": [], "unanswered": 5}', "unanswered is '5', where a list of objects belongs"),
        ("get clusters", '{"items": [{"name": "a", "member": [1]}]}', "member is '[1]', where an object belongs"),
        ("get clusters -w", '{"type": "CURRENT", "object": {"name": []}}', "name is '[]', where a text belongs"),
        ("get tokens -o wide", '{"items": [{"agents": [3]}]}', "agents is '[3]', where a list of texts belongs"),
        ("top --once -i 0.1", '{"items": [{"id": {}}]}', "id is '{}', where a text or a number belongs"),
        ("describe cluster a", '{"name": "a", "history": [0]}', "history is '[0]', where a list of objects belongs"),
        ("describe authority", '{"roots": "x"}', "roots is 'x', where a list of objects belongs"),
        ("add cluster a --no-join", '{"ports": {"kubernetes": "x"}}', "where an object of numbers belongs"),
        ("create token a", '{"uses": []}', "uses is '[]', where a number belongs"),
        ("ping a -c 1", '{"mux": 1e308}', "mux is '1e+308', where a number belongs"),
        ("check", '{"items": [{"category": 1, "name": "n", "status": "ok", "message": ""}]}', "cannot be read"),
    ],
)
def test_a_field_of_a_kind_that_it_never_has_is_named(shell: Shell, words: str, answer: str, says: str) -> None:
    with peer(shell.socket, http("200 OK", answer)):
        shell(*words.split()).refused(says, "TWR611", code=3 if words.split()[0] in ("ping", "check") else 1)


def test_what_an_agent_says_of_its_member_may_be_anything(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the agent's to say, so it spoils neither the list nor what is shown of the rest."""
    member = '{"services": 5, "nodes": [], "version": {}, "uid": true, "ports": 0, "conditions": "x"}'
    with peer(shell.socket, http("200 OK", f'{{"items": [], "name": "a", "member": {member}}}')):
        assert "Services:     -\n" in shell.ok("describe", "cluster", "a")
        assert shell("get", "clusters", "a").code == 0
        monkeypatch.setenv("_TOWERCTL_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", "towerctl forward a ")
        monkeypatch.setenv("COMP_CWORD", "3")
        assert (shell().out.strip(), shell().err) == ("", "")


def test_garbage_in_place_of_http_is_called_that(shell: Shell) -> None:
    def ssh(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

    with peer(shell.socket, ssh):
        shell("get", "clusters").refused("does not speak HTTP", "--socket")


def test_an_end_in_the_middle_of_an_answer_is_called_that(shell: Shell) -> None:
    def cut(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")

    with peer(shell.socket, cut):
        shell("get", "clusters").refused("broke off", "TWR602")


def test_a_peer_that_hangs_up_is_called_that(shell: Shell) -> None:
    with peer(shell.socket, lambda connection: None):
        shell("get", "clusters").refused("broke off", "TWR602")


def test_a_refusal_is_shown_with_its_code_and_mend(shell: Shell) -> None:
    body = '{"kind": "Error", "code": "TWR105", "message": "the disk is full", "mend": "make room"}'
    with peer(shell.socket, http("503 Service Unavailable", body)):
        shell("get", "clusters").refused("the disk is full", "mend: make room", "TWR105")


def test_a_refusal_with_a_code_that_this_version_does_not_know_is_shown_as_it_is(folder: Path) -> None:
    body = '{"kind": "Error", "code": "TWR999", "message": "something new", "mend": "upgrade"}'
    with peer(folder / "s", http("409 Conflict", body)), pytest.raises(AdminRefused) as refused:
        AdminClient(str(folder / "s"), timeout=30).get("/v1/info")
    assert (refused.value.code, refused.value.status, refused.value.mend) == ("TWR999", 409, "upgrade")


def test_a_refusal_without_an_error_object_shows_the_status(shell: Shell) -> None:
    with peer(shell.socket, http("502 Bad Gateway", "oops")):
        shell("get", "clusters").refused("answered 502 Bad Gateway", str(shell.socket))


def test_an_endless_answer_is_cut_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("towerctl.client.MAX_ANSWER_BYTES", 1 << 20)
    with (
        peer(folder / "s", http("200 OK", '{"a": "' + "x" * (1 << 20) + '"}')),
        pytest.raises(ServerUnreachable, match="larger than 1 MiB"),
    ):
        AdminClient(str(folder / "s"), timeout=30).get("/v1/info")


def test_names_cannot_leave_their_place_in_the_path() -> None:
    assert path_of("callers", "a/../b?x#y", "revoke") == "/v1/callers/a%2F..%2Fb%3Fx%23y/revoke"


def test_requests_name_the_host_that_the_api_answers_to(folder: Path) -> None:
    seen: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        seen.append(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    with peer(folder / "s", answer):
        AdminClient(str(folder / "s"), timeout=30).get("/v1/clusters", {"cluster": "edge 1"})
    assert seen[0].startswith(b"GET /v1/clusters?cluster=edge+1 HTTP/1.1\r\nHost: localhost\r\n")
