"""The tree of verbs. Nothing here imports a command."""

from __future__ import annotations

from typing import Final

import click

from towerctl.lazy import LazyGroup
from towerctl.words import PROGRAM

COMPLETE_VARIABLE: Final = "_TOWERCTL_COMPLETE"
TABLE: Final = {
    "add": ("towerctl.commands.add:add", "Add a cluster and print the one command that joins it."),
    "get": ("towerctl.commands.get:get", "List clusters, tunnels, streams, agents or tokens."),
    "describe": ("towerctl.commands.describe:describe", "Show one cluster or agent with its history, or the tower CA."),
    "delete": ("towerctl.commands.delete:delete", "Delete a cluster with all of it, or what lets Go agents in."),
    "create": ("towerctl.commands.create:create", "Create a token for agents, or a window for a move."),
    "revoke": ("towerctl.commands.revoke:revoke", "Revoke a token, an agent, a caller or a certificate."),
    "rotate": ("towerctl.commands.rotate:rotate", "Rotate the tower CA without a pause."),
    "kubeconfig": (
        "towerctl.commands.kubeconfig:kubeconfig",
        "Write a kubeconfig that reaches a cluster through its tunnel.",
    ),
    "credential": (
        "towerctl.commands.credential:credential",
        "Give kubectl a client certificate (exec credential plugin).",
    ),
    "manifest": ("towerctl.commands.manifest:manifest", "Print the manifest that runs the agent in the member."),
    "forward": ("towerctl.commands.forward:forward", "Reach a declared service of a member on a local port."),
    "ping": ("towerctl.commands.ping:ping", "Time mux, stream and apiserver of a cluster apart."),
    "top": ("towerctl.commands.top:top", "Show what the tunnels of each cluster carry now."),
    "check": ("towerctl.commands.check:check", "Check server and clusters, and name root causes only."),
    "explain": ("towerctl.commands.explain:explain", "Say what a fault code means and how to mend it (offline)."),
    "completion": ("towerctl.commands.completion:completion", "Print the completion script of a shell."),
    "version": ("towerctl.commands.version:version", "Print the versions of this command and of the server."),
}

cli = LazyGroup(
    name=PROGRAM,
    table=TABLE,
    help=(
        "Operate the tunnels of a tower server: add member clusters, get kubeconfigs for them, see how they are.\n\n"
        "Talks to the server's admin socket, so it runs on the server's machine as a user who may open that socket; "
        "or, with --context, to a server in a Kubernetes cluster, with your rights there."
    ),
    epilog=f"Exit codes: 0 fine, 1 failed, 2 usage, 3 could not check. Start with `{PROGRAM} add cluster NAME`.",
    no_args_is_help=True,
    callback=lambda: None,
)
click.version_option(package_name="tower-tunnel", prog_name=PROGRAM, message="%(prog)s %(version)s")(cli)
