from __future__ import annotations

import pytest

from tests.towerctl.kit import Shell


def test_a_cluster_without_tunnel_is_said_before_anything_listens(live: Shell, cluster: str) -> None:
    live("forward", cluster, "grafana").refused(cluster, "TWR200")


def test_an_unknown_cluster_is_refused_with_what_is_close(live: Shell, cluster: str) -> None:
    live("forward", f"{cluster}x", "grafana").refused(f"there is no cluster '{cluster}x'", f"did you mean {cluster}")


@pytest.mark.parametrize("local", ["x", "70000", "a:b", "127.0.0.1", ":", ":80", "1.2.3.4:99999", "a..b:5"])
def test_a_local_address_that_is_none_is_a_usage_error(live: Shell, cluster: str, local: str) -> None:
    live("forward", cluster, "grafana", local).refused("use PORT or ADDRESS:PORT", code=2)


def test_a_service_that_is_no_label_is_a_usage_error(live: Shell, cluster: str) -> None:
    live("forward", cluster, "../etc").refused("cannot be the name of a service", code=2)
