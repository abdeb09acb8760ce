"""The server's configuration: defaults that work, and mistakes that are named."""

import pytest

from daemon.config import load
from daemon.faults import TowerError
from tower_server.config import ServerConfig, machine_name, normal_url, user_places


def of(text, tmp_path):
    file = tmp_path / "server.yaml"
    file.write_text(text)
    return load(ServerConfig, file=file, environ={}).value


def test_nothing_needs_to_be_set():
    config = load(ServerConfig, environ={}).value
    assert (config.listen, config.ports.range, str(config.state_dir)) == (":8443", (6000, 7000), "/var/lib/tower")
    assert (config.callers.hold, config.callers.hold_waiters, config.enrolment.lifetime) == (2.0, 256, 3600.0)


def test_what_is_written_is_read(tmp_path):
    config = of(
        "public_url: https://tower.example.com:8443/\nports: {range: 7000-7100, bind: 10.0.0.1}\n"
        "callers: {hold: 500ms, no_tunnel_answer: close}\n",
        tmp_path,
    )
    assert config.public_url == "wss://tower.example.com:8443"
    assert (config.ports.range, config.callers.hold) == ((7000, 7100), 0.5)


def test_the_effective_configuration_reads_back(tmp_path):
    loaded = load(ServerConfig, environ={"TOWER_PORTS__RANGE": "7000-7001", "TOWER_PUBLIC_URL": "wss://t"})
    file = tmp_path / "shown.yaml"
    file.write_text(loaded.render())
    assert load(ServerConfig, file=file, environ={}).value == loaded.value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("public_url: ftp://x", "wss://tower.example.com:8443"),
        ("public_url: wss://x/path", "must end after host and port"),
        ("public_url: wss://user:pw@x", "must end after host and port"),
        ("ports: {range: 7000}", "6000-7000"),
        ("ports: {range: 7000-6000}", "from a lower to a higher port"),
        ("ports: {range: 50000-60000}", "kubesphere_offset must lift"),
        ("listen: 8443", "HOST:PORT"),
        ("host: Not_A_Label", "DNS label"),
        ("callers: {hold: soon}", "duration"),
        ("callers: {no_tunnel_answer: maybe}", "status"),
        ("admin_socket: /" + "x" * 200, "107 bytes"),
        ("tls: {cert: /x}", "tls.key"),
        ("tls: {cert: '', key: /x}", "tls.cert: an empty path"),
        ("state_dir: ''", "state_dir: an empty path"),
        ("store: {kubeconfig: ''}", "store.kubeconfig: an empty path"),
        ("tunnel_port: 1", "unknown key 'tunnel_port'"),
    ],
)
def test_a_mistake_names_file_key_and_what_would_be_right(tmp_path, text, said):
    with pytest.raises(TowerError) as caught:
        of(text, tmp_path)
    assert caught.value.code == "TWR101"
    assert "server.yaml" in caught.value.message or "offset" in said
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("wss://a", "wss://a"),
        ("https://a:443", "wss://a"),
        ("http://a:80/", "ws://a"),
        ("wss://[::1]:9", "wss://[::1]:9"),
        ("wss://A_b.c.", "wss://a_b.c."),
    ],
)
def test_urls_have_one_form(text, url):
    assert normal_url(text) == url


@pytest.mark.parametrize(
    "text",
    ["wss://tower example.com", "wss://a..b", "wss://*.a", "wss://t\u00fcr", "wss://\udcff", "wss://a\nb"],
)
def test_a_url_whose_host_nobody_can_dial_is_refused_at_the_start(text):
    """Else the join commands that it stands in end in vain, in another cluster and under another name."""
    with pytest.raises(TowerError) as caught:
        load(ServerConfig, environ={}, flags={"public_url": text})
    assert caught.value.code == "TWR101"
    assert "public_url" in caught.value.message
    assert "host" in caught.value.message


def test_root_keeps_the_defaults_and_others_get_places_of_their_own():
    assert user_places({"HOME": "/home/u"}, 0) == {}
    assert user_places({"HOME": "/home/u"}, 1000) == {
        "state_dir": "/home/u/.local/state/tower",
        "admin_socket": "/home/u/.local/state/tower/admin.sock",
    }
    with_runtime = user_places({"HOME": "/home/u", "XDG_RUNTIME_DIR": "/run/user/1000"}, 1000)
    assert with_runtime["admin_socket"] == "/run/user/1000/tower/admin.sock"


def test_the_machines_name_can_stand_in_a_certificate(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "My_Machine.example.com")
    assert machine_name() == "my-machine"
    monkeypatch.setattr("socket.gethostname", lambda: "___")
    assert machine_name() == "tower"
