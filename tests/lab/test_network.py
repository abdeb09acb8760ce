"""A member's network lets connections out to the host and none in; it is gone after `close`."""

from __future__ import annotations

import socket
import subprocess

import pytest

from tests.lab.network import MemberNetwork, lacking, reachable
from tests.lab.processes import LabError

pytestmark = pytest.mark.slow  # many processes


@pytest.fixture
def network():
    if reason := lacking():
        pytest.skip(f"no network namespaces here: {reason}")
    with MemberNetwork() as made:
        yield made


def test_connections_go_out_and_none_come_in(network: MemberNetwork) -> None:
    with socket.create_server((network.host, 0)) as listener:
        port = listener.getsockname()[1]
        network.run("python3", "-c", f"import socket; socket.create_connection(('{network.host}', {port}), 30)")
        listener.settimeout(30)
        listener.accept()[0].close()
    inside = "import socket, time; s = socket.create_server(('0.0.0.0', 4711)); print('up', flush=True); time.sleep(30)"
    server = subprocess.Popen(
        ["ip", "netns", "exec", network.name, "python3", "-c", inside], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout.readline() == "up\n"
        network.run("python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 4711), 30)")
        assert not reachable(network.member, 4711, deadline=0.5)
    finally:
        server.kill()
        server.communicate()


def test_packets_vanish_in_both_directions_and_come_back(network: MemberNetwork) -> None:
    with socket.create_server((network.host, 0)) as listener:
        dial = f"import socket; socket.create_connection(('{network.host}', {listener.getsockname()[1]}), 0.5)"
        with network.vanishing(), pytest.raises(LabError, match=r"[Tt]ime"):
            network.run("python3", "-c", dial)
        network.run("python3", "-c", dial)


def test_a_closed_network_leaves_neither_namespace_nor_link(network: MemberNetwork) -> None:
    network.close()
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    assert network.name not in listed
    assert network.name.removeprefix("tower-") not in links
    with pytest.raises(LabError, match=network.name):
        network.run("true")
