"""The admin API over its Unix socket: one connection a call, a deadline on each, answers bounded.

Only the standard library, since every Tab in a shell starts a process that comes through here. Each way in which the
server may not answer has its own sentence: no socket, a socket without a process, no permission, silence.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import pwd
import stat
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode

from daemon.faults import TowerError
from daemon.unixhttp import UnixConnection
from protocol.jsontext import parse_object
from towerctl.errors import AdminRefused, ServerUnreachable, not_understood, usage

MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
MAX_LINE_BYTES: Final = 4 * 1024 * 1024
Object = dict[str, Any]


def path_of(*parts: str) -> str:
    """A path below /v1 from parts that may hold any character; `TowerError` (TWR601) where one is no text at all."""
    try:
        return "/v1/" + "/".join(quote(part, safe="") for part in parts)
    except UnicodeEncodeError as error:
        raise usage(f"{error.object!r} is not UTF-8", mend="names are text: type it again") from error


class AdminClient:
    """Calls of the admin API; each raises `ServerUnreachable` or `AdminRefused`."""

    def __init__(
        self,
        path: str,
        *,
        timeout: float,
        label: str = "",
        place: str = "",
        token: str = "",
        fault: Callable[[], TowerError | None] = lambda: None,
    ) -> None:
        self.path = path
        self.timeout = timeout
        self.label = label or path
        """What answers there, for people."""
        self.place = place or os.path.abspath(path)
        """The server's, the same for every command: what is kept of it goes by this."""
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.fault = fault
        """Why the way to the server fails, where the socket only stands in for it."""

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Object:
        return self._call("GET", path, query=query)

    def post(self, path: str, body: Object | None = None) -> Object:
        return self._call("POST", path, body={} if body is None else body)

    def delete(self, path: str) -> Object:
        return self._call("DELETE", path)

    def watch(self, path: str, query: Mapping[str, str]) -> Iterator[Object]:
        """Objects as the server sends them, one JSON object a line; ends when the server ends it. No deadline."""
        with self._answer("GET", path, query=query, body=None) as (connection, response):
            if connection.sock is not None:
                connection.sock.settimeout(None)  # between two changes there may lie days
            while line := response.readline(MAX_LINE_BYTES):
                if line.strip():
                    yield _parse(line, self.label)

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
    ) -> Object:
        with self._answer(method, path, query=query, body=body) as (_, response):
            data = response.read(MAX_ANSWER_BYTES + 1)
            if response.length and len(data) <= MAX_ANSWER_BYTES:  # a bounded read does not complain by itself
                raise http.client.IncompleteRead(data, response.length)
        if len(data) > MAX_ANSWER_BYTES:
            raise ServerUnreachable(f"the answer from {self.label} is larger than {MAX_ANSWER_BYTES >> 20} MiB")
        return _parse(data, self.label) if data.strip() else {}

    @contextlib.contextmanager
    def _answer(
        self, method: str, path: str, *, query: Mapping[str, str] | None, body: Object | None
    ) -> Iterator[tuple[UnixConnection, http.client.HTTPResponse]]:
        connection = UnixConnection(self.path, self.timeout)
        payload = None if body is None else json.dumps(body).encode()
        headers = {"Accept": "application/json", **self.headers} | (
            {"Content-Type": "application/json"} if payload is not None else {}
        )
        try:
            with contextlib.suppress(BrokenPipeError):  # refused before it was all sent: the answer says why
                connection.request(method, path + (f"?{urlencode(query)}" if query else ""), payload, headers)
            response = connection.getresponse()
            if response.status >= 400:
                raise refusal_of(response.status, response.reason, response.read(MAX_LINE_BYTES), self.label)
            yield connection, response
        except (OSError, http.client.HTTPException) as error:
            raise self.fault() or unreachable(error, self.label, self.timeout) from error
        finally:
            connection.close()


def _parse(data: bytes, path: str) -> Object:
    try:
        found = parse_object(data)
        items = found.get("items", [])
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise ValueError("a list that is none")
    except ValueError:
        raise ServerUnreachable(
            f"what answers at {path} is not the admin API of a tower server", mend="check --socket (TOWER_ADMIN_SOCKET)"
        ) from None
    for each in (found, *items, found.get("object"), found.get("join")):
        _refuse_odd(each if isinstance(each, dict) else {})
    return found


def _refuse_odd(found: Object) -> None:
    """What is counted with, sorted or looked into has to be of that kind: of another server's version it may not be."""
    for key, value in found.items():
        if value is not None and (kind := _KINDS.get(key)) is not None and not kind[1](value):
            raise not_understood(f"{key} is {str(value)[:60]!r}, where {kind[0]} belongs")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < 1 << 63  # neither is NaN


def _is_list_of(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(isinstance(each, kind) for each in value)


def _is_ports(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(port, int) for port in value.values())


_TEXT: Final = ("a text", lambda value: isinstance(value, str))
_NUMBER: Final = ("a number", _is_number)
_TEXTS: Final = ("a list of texts", _is_list_of(str))
_OBJECT: Final = ("an object", lambda value: isinstance(value, dict))
_OBJECTS: Final = ("a list of objects", _is_list_of(dict))
_KINDS: Final[Mapping[str, tuple[str, Callable[[Any], bool]]]] = {
    **dict.fromkeys(("name", "cluster"), _TEXT),
    **dict.fromkeys(("streams", "bytes_in", "bytes_out", "used", "uses", "closed"), _NUMBER),
    **dict.fromkeys(("tunnels", "tunnels_expected", "rtt", "mux", "stream", "readyz"), _NUMBER),
    **dict.fromkeys(("agents", "serving_names", "waiting"), _TEXTS),
    **dict.fromkeys(("member", "join", "object"), _OBJECT),
    **dict.fromkeys(("unanswered", "conditions", "history", "roots"), _OBJECTS),
    "id": ("a text or a number", lambda value: isinstance(value, (str, int))),
    "ports": ("an object of numbers", _is_ports),
}
"""Of what kind a field is, wherever it stands; what an agent says of its member has none, and is read as it comes."""


def refusal_of(status: int, reason: str, data: bytes, path: str) -> AdminRefused:
    """The error that the admin API answered with; whatever else answered is named as such."""
    try:
        error = parse_object(data)
    except ValueError:
        error = {}
    if not error.get("message"):
        return AdminRefused(status, "", f"{path} answered {status} {reason}", "")
    return AdminRefused(status, str(error.get("code", "")), str(error["message"]), str(error.get("mend", "") or ""))


def unreachable(error: Exception, path: str, timeout: float) -> ServerUnreachable:
    """The sentence for why nothing answered at `path`."""
    start = "start it with `tower-server run` (or `systemctl start tower-server`), or name its socket with --socket"
    code = error.errno if isinstance(error, OSError) else None
    if isinstance(error, TimeoutError):
        return ServerUnreachable(
            f"the tower server at {path} did not answer within {timeout:g}s",
            mend="look at its log; raise --timeout if it is only busy",
        )
    if isinstance(error, PermissionError):
        return ServerUnreachable(
            f"you may not open {path}{_owner(path)}", mend="run this as the user who owns it (sudo)"
        )
    if code in (errno.ENOENT, errno.ENOTDIR):
        return ServerUnreachable(f"no tower server runs here: {path} does not exist", mend=start)
    if code == errno.ECONNREFUSED:
        if not _is_socket(path):
            return ServerUnreachable(f"{path} is not a socket", mend="name the server's admin socket with --socket")
        return ServerUnreachable(f"no tower server runs here: nobody listens at {path} any more", mend=start)
    if isinstance(error, OSError) and "too long" in str(error):
        return ServerUnreachable(
            f"the socket path of {len(path)} characters is longer than the kernel takes (107): {path}",
            mend="configure a shorter `admin_socket` in the server, or reach it through a shorter symbolic link",
        )
    if isinstance(error, (http.client.HTTPException, ConnectionError)):
        return ServerUnreachable(
            f"what answers at {path} broke off or does not speak HTTP ({type(error).__name__})",
            mend="check --socket; look at the server's log",
        )
    return ServerUnreachable(f"the tower server at {path} cannot be asked: {error}")


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def _owner(path: str) -> str:
    try:
        return f" (it belongs to {pwd.getpwuid(os.stat(path).st_uid).pw_name})"
    except (OSError, KeyError):
        return ""
