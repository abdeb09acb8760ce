"""Listening sockets: what allocation tries is what a listener does."""

import contextlib
import socket

import pytest

from daemon.faults import TowerError
from tests.lab.network import loopbacks
from tower_server.relay import address_text
from tower_server.sockets import check_inherited, listening_socket


def reach(host, port):
    with socket.create_connection((host, port), timeout=30) as sock:
        return sock.getsockname()


def test_an_empty_address_means_every_address_of_both_families():
    with listening_socket("", 0, backlog=1) as sock:
        port = sock.getsockname()[1]
        for address in loopbacks().values():
            reach(address, port)


@pytest.mark.parametrize("address", loopbacks().values())
def test_one_address_is_only_that_one(address):
    with listening_socket(address, 0, backlog=1) as sock:
        reach(address, sock.getsockname()[1])
        with pytest.raises(OSError, match="refused"):
            reach("127.0.0.2" if "." in address else "127.0.0.1", sock.getsockname()[1])


def test_a_port_that_is_taken_leaves_no_socket_behind():
    with listening_socket("127.0.0.1", 0, backlog=1) as sock, pytest.raises(OSError, match="in use"):
        listening_socket("127.0.0.1", sock.getsockname()[1], backlog=1)


def test_callers_are_named_by_the_address_they_really_have():
    assert address_text(("::ffff:192.0.2.7", 4711, 0, 0)) == "192.0.2.7:4711"
    assert address_text(("192.0.2.7", 4711)) == "192.0.2.7:4711"
    assert address_text(("2001:db8::1", 4711, 0, 0)) == "[2001:db8::1]:4711"
    assert address_text("@unix") == "unknown"


def handed_in(*pairs):
    found = {}
    for name, sock in pairs:
        found.setdefault(name, []).append(sock)
    return found


def test_sockets_that_were_handed_in_are_each_one_that_somebody_answers_at(tmp_path):
    with contextlib.ExitStack() as stack:

        def tcp():
            return stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def local(kind=socket.SOCK_STREAM):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            sock.bind(str(tmp_path / f"{sock.fileno()}"))
            sock.listen()
            return sock

        tunnel, caller = tcp(), tcp()
        right = handed_in(("tunnel", tunnel), ("admin", local()), ("health", tcp()), ("kubesphere-v1", tcp()))
        right[f"port-{caller.getsockname()[1]}"] = [caller]
        check_inherited(right, legacy=True)
        for wrong, said, mend in (
            (("tower-server-tunnel.socket", tcp()), "is named 'tower-server-tunnel.socket'", "FileDescriptorName="),
            (("unknown", tcp()), "are tunnel, admin, health, kubesphere-v1 and port-NUMBER", "disable that unit"),
            (("tunnel", tcp()), f"second one named tunnel (127.0.0.1:{tunnel.getsockname()[1]} and", "an empty"),
            (("kubesphere-v1", tcp()), "Go agents are not served", "kubesphere_v1.enabled"),
            (("health", local()), f"is named health and is at {tmp_path}", "a TCP port"),
            (("admin", tcp()), "is named admin and is at 127.0.0.1:", "the path of a Unix socket"),
            (("admin", local(socket.SOCK_SEQPACKET)), f"is named admin and is at {tmp_path}", "of a Unix socket"),
            (("port-1", tcp()), "is named port-1 and listens at 127.0.0.1:", "name the port of its ListenStream="),
        ):
            with pytest.raises(TowerError) as refused:
                check_inherited(handed_in(("tunnel", tunnel), wrong), legacy=False)
            assert refused.value.code == "TWR103"
            assert said in refused.value.message
            assert refused.value.message.endswith("; nobody would answer there")
            assert mend in refused.value.mend
