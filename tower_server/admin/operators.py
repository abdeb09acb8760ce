"""The admin API for operators who come by the host's apiserver, as `towerctl --context` does.

It listens on a loopback address of the pod, where `pods/portforward` leads and nothing else does; that right alone lets
nobody in. After a login (`admin.login`) each call carries its session, is allowed or refused by the apiserver for that
person (`admin.rights`), and stands in the log under their name.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from daemon.faults import TowerError, cannot_listen
from daemon.log import get_logger
from daemon.units import split_address
from tower_server.admin.app import AdminApp, admitted, error_response, json_response, pattern_of, read_parts, read_query
from tower_server.admin.body import read_object
from tower_server.admin.login import Logins
from tower_server.admin.rights import permit, right_of
from tower_server.admin.socket import AdminSocket, BoundedConnection
from tower_server.sockets import listening_socket

BACKLOG: Final = 64
LOGIN: Final = ["login"]

log = get_logger(__name__)


class OperatorApp:
    """In front of the admin API: nothing gets there that nobody answers for."""

    def __init__(self, app: AdminApp, logins: Logins) -> None:
        self._app = app
        self._logins = logins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if await self._login(scope, receive, send):
                return
            name = await self._permitted(scope)
        except TowerError as error:
            log.info("operator-refused", path=str(scope["path"])[:200], code=error.code, text=error.message[:300])
            response = error_response(error)
            if scope["type"] == "websocket":
                await WebSocket(scope, receive, send).send_denial_response(response)
            else:
                await response(scope, receive, send)
            return
        await self._app({**scope, "client": (name, "by the apiserver")}, receive, send)

    async def _login(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Whether it was one, and is answered."""
        if scope["type"] != "http" or read_parts(scope) != LOGIN:
            return False
        request = Request(scope, receive)
        admitted(request.headers)
        if request.method == "GET":
            answer = self._logins.challenge()
        elif request.method == "POST":
            answer = await self._logins.login(await read_object(request))
            log.info("operator-login", user=answer["user"])
        else:
            raise TowerError("TWR612", f"{request.method} is not a call of this path")
        await json_response(200, answer)(scope, receive, send)
        return True

    async def _permitted(self, scope: Scope) -> str:
        """The name of whoever asks; TowerError unless they may."""
        websocket = scope["type"] == "websocket"
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        admitted(headers)
        person = self._logins.who(headers.get("authorization", ""))
        parts = read_parts(scope)
        watch = read_query(scope).get("watch") in ("1", "true")
        method = "POST" if websocket else str(scope["method"])
        right = right_of(method, pattern_of(parts, websocket=websocket), parts, watch=watch)
        await permit(self._logins.client, person, right, namespace=self._logins.namespace)
        return person.name


class OperatorPort(AdminSocket):
    """The listener, on a loopback address."""

    def __init__(self, app: OperatorApp, listen: str) -> None:
        super().__init__(app, Path())
        self._listen = listen
        self.address = ""

    async def start(self, sock: socket.socket | None = None) -> None:
        """TowerError TWR103 when the address cannot be listened on."""
        self._config.load()
        host, port = split_address(self._listen)
        try:
            sock = sock or listening_socket(host, port, backlog=BACKLOG)
        except OSError as error:
            raise cannot_listen(f"the operators' port {self._listen}", error, key="operators.listen") from error
        self.address = "{}:{}".format(*sock.getsockname()[:2])
        self._server = await asyncio.get_running_loop().create_server(self._connection, sock=sock)

    def _connection(self) -> asyncio.Protocol:
        return BoundedConnection(config=self._config, server_state=self._state, app_state=self._app_state)
