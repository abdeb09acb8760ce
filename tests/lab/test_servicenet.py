"""A Service in a network of its own is called from here, and ends with the network."""

from __future__ import annotations

import subprocess

import pytest

from tests.lab.network import lacking
from tests.lab.servicenet import SERVICES, ServiceNetwork

pytestmark = pytest.mark.slow  # many processes


def test_servers_have_addresses_that_are_reached_from_here_and_services_a_way() -> None:
    if reason := lacking():
        pytest.skip(f"no network namespaces here: {reason}")
    with ServiceNetwork(2) as network:
        assert len(set(network.servers)) == 2
        routes = subprocess.run(["ip", "route"], capture_output=True, text=True, timeout=10, check=True).stdout
        assert f"{SERVICES} via {network.member}" in routes
        for address in network.servers:
            assert "local" in network.run("ip", "route", "get", address)
            done = subprocess.run(
                ["ip", "route", "get", address], capture_output=True, text=True, timeout=10, check=True
            )
            assert network.host in done.stdout
    routes = subprocess.run(["ip", "route"], capture_output=True, text=True, timeout=10, check=True).stdout
    assert network.member not in routes
