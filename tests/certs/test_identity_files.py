from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import pytest_asyncio

from certs.ca import Authority
from certs.errors import IdentityError
from certs.files import locked
from certs.identity import PendingJoin
from certs.identity_files import DirectoryIdentityStore
from tests.certs.identities import enrolled

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def base(tmp_path: Path, authority: Authority) -> Path:
    """A directory with one identity."""
    base = tmp_path / "agent"
    await DirectoryIdentityStore(base).save(enrolled(authority, PendingJoin.create("hq", "t")), replaces=None)
    return base


async def test_folders_and_files_are_private(base: Path) -> None:
    old = os.umask(0)
    try:
        await DirectoryIdentityStore(base).pending("other", "t")
    finally:
        os.umask(old)
    for folder, _, files in os.walk(base):
        assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o700
        for name in files:
            assert stat.S_IMODE((Path(folder) / name).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("place", "mode", "mend"),
    [("hq/identity.json", 0o640, "chmod go-rwx"), ("hq", 0o755, "chmod go-rwx"), (".", 0o777, "chmod go-w")],
)
async def test_what_others_may_touch_is_refused_with_its_mend(base: Path, place: str, mode: int, mend: str) -> None:
    (base / place).chmod(mode)
    with pytest.raises(IdentityError, match=rf"mode {mode:04o}.*{mend}.*revoke the agent") as caught:
        await DirectoryIdentityStore(base).load("hq")
    assert str(base / place) in str(caught.value)
    assert caught.value.fault == "TWR104"


@pytest.mark.parametrize("place", [".", "hq"])
async def test_a_directory_of_somebody_elses_is_refused(
    base: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, own = Path.stat, base.stat().st_uid or 4712

    def of_somebody(path: Path, **more: bool) -> os.stat_result:
        fields = list(real(path, **more))
        fields[4] = 4711 if path == base / place else fields[4]
        return os.stat_result(fields)

    monkeypatch.setattr(Path, "stat", of_somebody)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert await DirectoryIdentityStore(base).load("hq") is not None, "root looks after whose it is"
    monkeypatch.setattr(os, "geteuid", lambda: own)
    with pytest.raises(IdentityError, match=r"in the place of this agent's: .* belongs to uid 4711.*chown"):
        await DirectoryIdentityStore(base).load("hq")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda content: b"", "not JSON"),
        (lambda content: content[: len(content) // 2], "not JSON"),
        (lambda content: content.replace(b'"cluster":"edge-1"', b'"cluster":"edge-2"'), "certificate is that of a1"),
        (lambda content: content.replace(b"-----BEGIN PRIVATE", b"-----SPOILT PRIVATE"), "not PEM|cannot be read"),
        (lambda content: b"{}", "'url'"),
    ],
)
async def test_a_damaged_identity_says_where_and_what_to_do(base: Path, damage: object, says: str) -> None:
    path = base / "hq" / "identity.json"
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(IdentityError, match=rf"({says}).*join again with a new token") as caught:
        await DirectoryIdentityStore(base).load("hq")
    assert str(path) in str(caught.value)


async def test_a_huge_file_is_not_read(base: Path) -> None:
    with (base / "hq" / "identity.json").open("r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(IdentityError, match=r"more than 524288 bytes"):
        await DirectoryIdentityStore(base).load("hq")


async def test_a_link_in_place_of_a_key_is_not_followed(base: Path, tmp_path: Path) -> None:
    path = base / "hq" / "identity.json"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IdentityError, match=r"cannot be read or written"):
        await DirectoryIdentityStore(base).load("hq")


async def test_a_place_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(IdentityError, match=r"file/agent cannot be read or written.*writable"):
        await DirectoryIdentityStore(tmp_path / "file" / "agent").load("hq")


async def test_a_lock_that_is_never_released_is_named(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certs.identity_files.locked", lambda path: locked(path, deadline=0.05))
    with locked(base / ".lock"), pytest.raises(IdentityError, match=r"are locked: .*see which process holds it"):
        await DirectoryIdentityStore(base).load("hq")


async def test_whoever_is_killed_while_a_host_is_forgotten_can_forget_it_again(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, real = DirectoryIdentityStore(base), Path.unlink
    await store.pending("hq", "t2")
    await store.save_revocations("hq", b"list")

    def killed(path: Path, missing_ok: bool = False) -> None:
        real(path, missing_ok=missing_ok)
        raise SystemExit(path.name)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed)
        for _ in range(2):
            with pytest.raises(SystemExit):
                await store.forget("hq")
            assert await store.hosts() == ("hq",)
    await store.forget("hq")
    assert not (base / "hq").exists()


async def test_forgetting_a_host_leaves_no_key(base: Path) -> None:
    (base / "hq" / ".tower-leftover").write_bytes(b"half a key")
    await DirectoryIdentityStore(base).forget("hq")
    assert sorted(os.listdir(base)) == [".lock"]
