"""The Go peers against each other and against bare sockets: they are as odd as what they stand for."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.aio.proxydial import DialTarget
from protocol.aio.sshdial import HostSession, dial_host
from tests.interop.peers import CLUSTER, TOKEN, GoAgent, GoProxy, Vintage, make_account
from tests.lab.processes import wait_until
from tests.loopback.backend import TOKEN as MEMBER_TOKEN
from tests.loopback.callers import Caller
from tests.loopback.member import AGENT, BackendMember
from tests.protocol.aio.sshpeers import channel_limits

pytestmark = pytest.mark.slow  # many processes
PATIENCE = 20.0


@pytest.fixture
def proxy(tmp_path: Path, vintage: Vintage) -> Iterator[GoProxy]:
    with GoProxy(tmp_path / "proxy", vintage) as running:
        yield running


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def caller_of(proxy: GoProxy) -> Caller:
    wait_until(lambda: proxy.available and listening(proxy.kubernetes_port), "the cluster's port", PATIENCE)
    return Caller(proxy.kubeconfig)


def test_a_request_gets_through_and_everybody_is_the_agent(
    proxy: GoProxy, member: BackendMember, tmp_path: Path
) -> None:
    with GoAgent(tmp_path, proxy.vintage, proxy.url, credential=member.by_certificate):
        answer = caller_of(proxy).ask(f"/go/certificate-{proxy.vintage}", anonymous=True)
    assert answer.status == 200
    (seen,) = member.seen(f"/go/certificate-{proxy.vintage}")
    assert seen.certificate == AGENT


def test_a_pods_agent_ships_its_token_which_replaces_the_callers(
    proxy: GoProxy, member: BackendMember, tmp_path: Path
) -> None:
    account = make_account(
        tmp_path / "account", host="127.0.0.1", port=member.port, ca=member.ca.pem, token=MEMBER_TOKEN
    )
    with GoAgent(tmp_path, proxy.vintage, proxy.url, credential=account):
        answer = caller_of(proxy).ask(f"/go/token-{proxy.vintage}", "Authorization: Bearer of-the-caller")
        assert answer.status == 200
        account.use("another")
        assert caller_of(proxy).ask("/go/later").status == 200
    (seen,) = member.seen(f"/go/token-{proxy.vintage}")
    assert seen.values("authorization") == [f"Bearer {MEMBER_TOKEN}"]


def test_bulk_and_upgrades_pass_whole(proxy: GoProxy, member: BackendMember, tmp_path: Path) -> None:
    with GoAgent(tmp_path, proxy.vintage, proxy.url, credential=member.by_certificate):
        caller = caller_of(proxy)
        size = 5_000_000
        answer = caller.ask(f"/bytes/{size}")
        assert (answer.status, answer.body) == (200, b"z" * size)
        with caller.connect() as connection:
            connection.send(connection.request("GET", "/echo", "Connection: Upgrade", "Upgrade: echo"))
            assert connection.answer().status == 101
            connection.send(b"there and back\n")
            assert connection.line() == b"there and back\n"


def test_a_dead_member_is_an_empty_200_or_a_bare_502(proxy: GoProxy, member: BackendMember, tmp_path: Path) -> None:
    account = make_account(tmp_path / "account", host="127.0.0.1", port=9, ca=member.ca.pem, token="t")
    with GoAgent(tmp_path, proxy.vintage, proxy.url, credential=account):
        answer = caller_of(proxy).ask("/version")
    assert (answer.status, answer.body) == (502 if proxy.vintage == "2020" else 200, b"")


def test_the_last_agents_end_closes_the_port_and_an_agent_comes_back_by_itself(
    proxy: GoProxy, member: BackendMember, tmp_path: Path
) -> None:
    agent = GoAgent(tmp_path, proxy.vintage, proxy.url, credential=member.by_certificate)
    with agent:
        assert caller_of(proxy).ask("/version").status == 200
        proxy.stop()
        proxy.start()
        wait_until(lambda: agent.said.count(" connected") == 2, "the agent is back", PATIENCE)
        assert caller_of(proxy).ask("/version").status == 200
    wait_until(lambda: not proxy.available and not listening(proxy.kubernetes_port), "a closed port", PATIENCE)


@pytest.mark.parametrize("wrong", ["name", "token"])
def test_a_refused_agent_is_told_one_text_and_tries_again(
    proxy: GoProxy, member: BackendMember, tmp_path: Path, wrong: str
) -> None:
    agent = GoAgent(
        tmp_path, proxy.vintage, proxy.url, credential=member.by_certificate,
        name="other" if wrong == "name" else CLUSTER, token="00" if wrong == "token" else TOKEN,
    )  # fmt: skip
    try:
        agent.start(connected=False)
        text = "refused: Unauthorized agent"
        wait_until(lambda: agent.said.count(text) >= 2, "a second refusal", PATIENCE)
        assert agent.child.returncode is None
    finally:
        agent.stop()


# -- against bare sockets --------------------------------------------------------------------------------------------


def ask(port: int, path: str, headers: dict[str, str]) -> tuple[int, str, bytes]:
    """Status, head and body of an answer; of an upgraded connection the first message."""
    lines = [f"GET {path} HTTP/1.1", "Host: proxy", *(f"{name}: {value}" for name, value in headers.items())]
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock, sock.makefile("rb") as stream:
        sock.sendall("\r\n".join([*lines, "", ""]).encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += stream.readline()
        status = int(head.split(b" ", 2)[1])
        if status == 101:
            return status, head.decode().lower(), stream.read(stream.read(2)[1])
        length = re.search(rb"(?i)content-length: (\d+)", head)
        assert length
        return status, head.decode().lower(), stream.read(int(length[1]))


UPGRADE = {
    "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
}  # fmt: skip


def test_the_proxy_upgrades_any_path_for_exactly_its_subprotocol_and_echoes_none(proxy: GoProxy) -> None:
    wanted = {**UPGRADE, "Sec-WebSocket-Protocol": "kubesphere-v1"}
    status, head, first = ask(proxy.port, "/any/where?at=all", wanted)
    assert status == 101
    assert "sec-websocket-protocol" not in head
    assert first == b"SSH-kubesphere-v1-server\r\n"
    status, _, body = ask(proxy.port, "/", {**UPGRADE, "Sec-WebSocket-Protocol": "kubesphere-v1, other"})
    assert (status, body) == (404, b"Not Found")
    assert ask(proxy.port, "/health", {})[2] == b"OK\n"
    assert ask(proxy.port, "/version", {})[2] == b"0.0.0-rc"


class BareServer:
    """Accepts one WebSocket of an agent and hands its frames on."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(PATIENCE)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/some/path"

    def accept(self) -> tuple[dict[str, str], socket.socket]:
        sock, _ = self._listener.accept()
        sock.settimeout(PATIENCE)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += sock.recv(1)
        first, *lines = head.decode().strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        secret = headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        proof = base64.b64encode(hashlib.sha1(secret.encode()).digest()).decode()
        sock.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %b\r\n\r\n" % proof.encode()
        )
        return {"first": first, **headers}, sock

    def close(self) -> None:
        self._listener.close()


def frame(sock: socket.socket) -> tuple[bool, int, bytes]:
    """One masked frame: whether it ends its message, its opcode, its payload."""

    def take(count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = sock.recv(count - len(data))
            assert more, "the agent hung up"
            data += more
        return data

    first, second = take(2)
    assert second & 0x80, "a client masks"
    length = second & 0x7F
    if length == 126:
        (length,) = struct.unpack("!H", take(2))
    elif length == 127:
        (length,) = struct.unpack("!Q", take(8))
    mask = take(4)
    return bool(first & 0x80), first & 0x0F, bytes(c ^ mask[i % 4] for i, c in enumerate(take(length)))


def test_the_agent_cuts_messages_into_1_kib_frames_and_ends_with_0_when_the_handshake_breaks(
    member: BackendMember, tmp_path: Path, vintage: Vintage
) -> None:
    server = BareServer()
    agent = GoAgent(tmp_path, vintage, server.url, credential=member.by_certificate)
    try:
        agent.start(connected=False)
        head, sock = server.accept()
        with sock:
            assert head["first"] == "GET /some/path HTTP/1.1"
            assert head["sec-websocket-protocol"] == "kubesphere-v1"
            assert frame(sock) == (True, 2, b"SSH-kubesphere-v1-client\r\n")
            line = b"SSH-kubesphere-v1-server\r\n"
            sock.sendall(bytes([0x82, len(line)]) + line)
            kexinit = [frame(sock)]
            while not kexinit[-1][0]:
                kexinit.append(frame(sock))
            sizes = [len(payload) for _, _, payload in kexinit]
            assert sum(sizes) > 1024 or len(sizes) == 1  # an old KEXINIT fits into one frame
            assert max(sizes) <= 1024
            sock.sendall(bytes([0x82, 8]) + b"\xff" * 8)  # an impossible packet length
            assert agent.child.wait(PATIENCE) == 0
    finally:
        agent.stop()
        server.close()


def test_the_vintages_offer_what_they_did_then(member: BackendMember, tmp_path: Path, vintage: Vintage) -> None:
    server = BareServer()
    agent = GoAgent(tmp_path, vintage, server.url, credential=member.by_certificate)
    try:
        agent.start(connected=False)
        _, sock = server.accept()
        with sock:
            frame(sock)
            line = b"SSH-kubesphere-v1-server\r\n"
            sock.sendall(bytes([0x82, len(line)]) + line)
            offered = frame(sock)[2]
    finally:
        agent.stop()
        server.close()
    assert b"aes128-gcm@openssh.com" in offered
    assert (b"curve25519-sha256," in offered) == (vintage == "2023")
    assert (b"aes256-gcm@openssh.com" in offered) == (vintage == "2023")
    assert b"kex-strict" not in offered


def test_the_kubeconfig_that_the_proxy_writes_verifies(proxy: GoProxy, member: BackendMember, tmp_path: Path) -> None:
    with GoAgent(tmp_path, proxy.vintage, proxy.url, credential=member.by_certificate):
        caller = caller_of(proxy)
        with caller.plain() as plain:
            context = ssl.create_default_context(
                cadata=base64.b64decode(caller.cluster["certificate-authority-data"]).decode()
            )
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
                certificate = secure.getpeercert()
    assert certificate is not None
    assert certificate["subject"] == ((("organizationName", "KubeSphere"),), (("commonName", "Tower"),))


# -- the proxy's end of the registration ------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_the_proxy_is_as_silent_as_it_is_and_says_what_it_says(proxy: GoProxy) -> None:
    target = DialTarget(host="127.0.0.1", port=proxy.port, path="", ssl_context=None, proxy_env=False)

    async def dialled() -> HostSession:
        return await dial_host(target, limits=channel_limits(), on_channel=lambda channel, _: channel.refuse(2, "no"))

    late = await dialled()
    assert await late.ask("ping") == (False, b"expecting config request")
    broken = await dialled()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await broken.ask("config", b"{no JSON")
    assert not broken.closed, "no reply, and no end either"

    good = await dialled()
    payload = {"Name": proxy.name, "Token": proxy.token, "KubernetesSvcHost": "127.0.0.1:1", "KubeSphereSvcHost": "a:1"}
    assert await good.ask("config", json.dumps(payload).encode()) == (True, b"")
    unknown = asyncio.ensure_future(good.ask("keepalive@openssh.com"))
    await asyncio.sleep(0)
    ping = asyncio.ensure_future(good.ask("ping"))
    async with asyncio.timeout(PATIENCE):
        assert await unknown == (True, b""), "the only answer is the ping's: the unknown request got none"
    assert not ping.done()
    for session in (late, broken, good):
        session.close("the test is over")
    await asyncio.gather(ping, return_exceptions=True)
    await asyncio.sleep(0.05)
