"""What a command knows besides its own arguments: where the server is, and how long to wait for it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from protocol import defaults

if TYPE_CHECKING:
    from towerctl.client import AdminClient
    from towerctl.kubeway import KubeWay


def _socket() -> str:
    """TOWER_ADMIN_SOCKET, else the socket of a server that runs as this (unprivileged) user, else the machine's."""
    return os.environ.get("TOWER_ADMIN_SOCKET") or _own_socket() or defaults.ADMIN_SOCKET


def _own_socket() -> str | None:
    """In any place that the server may have had by its own environment: it can be of another session than this."""
    if (user := os.geteuid()) == 0:
        return None
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    for place in (os.environ.get("XDG_RUNTIME_DIR"), state, f"/run/user/{user}"):
        path = os.path.join(place or state, "tower", os.path.basename(defaults.ADMIN_SOCKET))
        if os.path.exists(path):
            return path
    return None


@dataclass(slots=True)
class Ctl:
    """The object of the click context; the global options write it."""

    socket: str = field(default_factory=_socket)
    timeout: float = defaults.ADMIN_DEADLINE
    given: set[str] = field(default_factory=set)
    """The options that stood on the line."""
    context: str = ""
    """Of the kubeconfig: the tower of that cluster is asked, and the socket does not count."""
    tower_namespace: str = defaults.STORE_NAMESPACE
    _way: KubeWay | None = None

    def client(self, *, timeout: float | None = None) -> AdminClient:
        from towerctl.client import AdminClient

        deadline = self.timeout if timeout is None else timeout
        self._refuse_unheeded()
        if not self.context:
            return AdminClient(self.socket, timeout=deadline)
        way = self._opened()
        return AdminClient(
            way.socket,
            timeout=deadline,
            label=way.label,
            place=f"{self.context}/{self.tower_namespace}",
            token=way.token,
            fault=lambda: way.fault,
        )

    def _refuse_unheeded(self) -> None:
        """Another server than the one that was named must not answer in its place."""
        from towerctl.errors import usage

        if self.context and "socket" in self.given:
            raise usage("--socket and --context each name a server, and not the same", mend="leave one of them out")
        if not self.context and "tower_namespace" in self.given:
            raise usage("the tower's namespace goes with --context: a socket has none", mend="add --context NAME")

    def _opened(self) -> KubeWay:
        """The way by the apiserver, once a command."""
        if self._way is None:
            from towerctl.kubeway import KubeWay

            way = KubeWay(context=self.context, namespace=self.tower_namespace, timeout=self.timeout)
            click.get_current_context().find_root().call_on_close(way.close)
            way.open()
            self._way = way
        return self._way


pass_ctl = click.make_pass_decorator(Ctl, ensure=True)
"""Hands a command its `Ctl`, whether or not a global option made it."""
