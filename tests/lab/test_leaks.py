"""The leak check itself must be able to fail: each kind of leak, in a pytest run of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # many processes

ROOT = Path(__file__).resolve().parents[2]
BAD = """
import asyncio, os, socket, subprocess
import pytest
from tests.lab import leaks
leaks.GRACE = 0.1
kept = []

def test_descriptor(): kept.append(open("/dev/null"))
def test_child():
    kept.append(subprocess.Popen(["true"], stdin=subprocess.DEVNULL))
    os.waitid(os.P_PID, kept[-1].pid, os.WEXITED | os.WNOWAIT)
@pytest.mark.asyncio
async def test_task(): kept.append(asyncio.create_task(asyncio.sleep(30), name="forgotten"))
@pytest.mark.asyncio
async def test_socket_of_a_loop():
    listener = socket.create_server(("127.0.0.1", 0)); kept.append(listener)
@pytest.mark.asyncio
async def test_clean_loop():
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0); server.close(); await server.wait_closed()
    task = asyncio.create_task(asyncio.sleep(0.02))
@pytest.mark.asyncio
async def test_what_a_loop_is_about_to_close():
    for end in socket.socketpair(): asyncio.get_running_loop().call_later(0.02, end.close)
def test_clean(): open("/dev/null").close()
"""


def test_each_kind_of_leak_fails_its_own_test_and_names_it(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makepyfile(BAD)
    result = pytester.runpytest_subprocess("-p", "tests.lab.leaks", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=7, errors=4)
    for line in ("*descriptor * (/dev/null)*", "*process * (ended, not waited for)*", "*forgotten*", "*(socket:*"):
        result.stdout.fnmatch_lines([line])
