"""Listening sockets: what allocation tries is what a listener does."""

import socket

import pytest

from tests.lab.network import loopbacks
from tower_server.relay import address_text
from tower_server.sockets import listening_socket


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
