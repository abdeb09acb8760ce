"""The reader's own cluster as the demo's member: told and asked before anything is made, and only that is deleted.

Every object is *created*, never applied: what exists already is not ours, so meeting it ends the demo and undoes what
was made until then. Each carries a mark of this run, and what is deleted is what carries it: so a create that nobody
waited for (Ctrl-C, a deadline) is undone too. The kubeconfig is read by kubectl alone and never changed.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml

from tests.lab import assets, pki
from tests.lab.controlplane import Done, run
from tests.lab.processes import LabError

IMAGE = "busybox:1.36"
SCRIPT = 'n=0; while true; do n=$((n+1)); echo "hello $n from the member, at $(date +%T)"; sleep 1; done'
POD_DEADLINE = 90
DELETE_DEADLINE = 60.0
MARK = "tower-demo"


class MemberRefused(LabError):
    """What the reader gave or answered does not do: nothing that a less busy machine would change."""


class OwnMember:
    """The cluster of a kubeconfig's current context; leaving the context manager deletes what `install` made."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        if not kubeconfig.is_file():
            raise MemberRefused(
                f"MEMBER_KUBECONFIG={kubeconfig}: no such file; name the kubeconfig of the member to use"
            )
        self.programs: Mapping[str, Path] = assets.ensure(["kubectl"])
        self.network = None
        self._kubeconfig, self._folder = kubeconfig, folder
        self._mark = secrets.token_hex(8)
        self._made: list[tuple[str, str, str]] = []  # kind, namespace, name; the last may not have come to be
        read = self.kubectl("config", "view", "--minify", "--flatten", "--raw", "-o", "json", check=False)
        if read.code != 0:
            why = read.stderr.decode(errors="replace").strip()
            raise MemberRefused(f"MEMBER_KUBECONFIG={kubeconfig} is no kubeconfig that kubectl reads: {why}")
        try:
            self._cluster: dict[str, Any] = json.loads(read.stdout)["clusters"][0]["cluster"]
            self.server: str = self._cluster["server"]
        except (KeyError, IndexError, TypeError) as error:
            raise MemberRefused(f"MEMBER_KUBECONFIG={kubeconfig}: its current context names no cluster") from error

    def __enter__(self) -> Self:
        self.kubectl("version", "--request-timeout=10s")
        return self

    def __exit__(self, *exc: object) -> None:
        left = []
        while self._made:
            kind, namespace, name = self._made.pop()
            scope = ["-n", namespace] if namespace else []
            try:
                self.kubectl("delete", kind, "-l", f"{MARK}={self._mark}", *scope, "--wait=false")
            except LabError as error:
                left.append(f"{kind} {name}: {error}")
        if left:
            raise LabError("left in your member, delete it by hand:\n  " + "\n  ".join(left))

    def kubectl(
        self, *arguments: str, stdin: bytes = b"", check: bool = True, deadline: float = DELETE_DEADLINE
    ) -> Done:
        argv = [str(self.programs["kubectl"]), "--kubeconfig", str(self._kubeconfig), *arguments]
        environment = {
            key: value for key, value in os.environ.items() if key != "KUBECONFIG"
        }  # its exec plugin may need the rest
        done = run(argv, environment, stdin, deadline)
        if check and done.code != 0:
            raise LabError(f"kubectl {' '.join(arguments)} on your member: {done.stderr.decode()[-1500:].strip()}")
        return done

    def kubeconfig(self, user: str, *, token: str | None = None) -> Path:
        """The same apiserver, with a token instead of the reader's own credential."""
        authority = base64.b64decode(self._cluster.get("certificate-authority-data", ""))
        path = self._folder / f"{user}.kubeconfig"
        return pki.write_kubeconfig(path, name="member", server=self.server, ca=authority, token=token)

    def install(self, objects: Sequence[Mapping[str, Any]]) -> None:
        """Show what would be created, ask, and create it."""
        pod = {"kind": "Pod", "metadata": {"name": "greeter", "namespace": _namespace(objects)}}
        print(f"\nIn {self.server} this would create, and delete at the end:")
        for document in [*objects, pod]:
            metadata = document["metadata"]
            place = f" in {metadata['namespace']}" if "namespace" in metadata else ""
            print(f"  {document['kind']} {metadata['name']}{place}")
        print(
            "The ClusterRoleBinding of the host's admins makes whoever holds the demo's kubeconfig cluster-admin.\n",
            end="",
        )
        print("Create these? [y/N] ", end="", flush=True)
        answer = sys.stdin.readline()
        if not sys.stdin.isatty():  # nothing has ended the line of the question
            print()
        if answer.strip().lower() not in ("y", "yes"):
            raise MemberRefused("not confirmed; nothing was created")
        for document in objects:
            self._create(document)

    def create_pod(self, name: str, *, namespace: str) -> None:
        """A pod that says hello each second, on any node: it asks for no scheduler's opinion."""
        nodes = json.loads(self.kubectl("get", "nodes", "-o", "json").stdout)["items"]
        ready = [node["metadata"]["name"] for node in nodes if _is_ready(node)]
        if not ready:
            raise LabError("your member has no Ready node to run a pod for logs and exec")
        container = {"name": "main", "image": IMAGE, "command": ["sh", "-c", SCRIPT]}
        spec = {"nodeName": ready[0], "tolerations": [{"operator": "Exists"}], "containers": [container]}
        spec |= {"terminationGracePeriodSeconds": 0, "automountServiceAccountToken": False}
        metadata = {"name": name, "namespace": namespace}
        self._create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        wait = ["wait", "--for=condition=Ready", f"pod/{name}", "-n", namespace, f"--timeout={POD_DEADLINE}s"]
        self.kubectl(*wait, deadline=POD_DEADLINE + 10)

    def _create(self, document: Mapping[str, Any]) -> None:
        metadata = document["metadata"]
        group = document["apiVersion"].partition("/")[0] if "/" in document["apiVersion"] else ""
        kind = f"{document['kind'].lower()}.{group}" if group else document["kind"].lower()
        self._made.append((kind, metadata.get("namespace", ""), metadata["name"]))
        marked = metadata | {"labels": metadata.get("labels", {}) | {MARK: self._mark}}
        self.kubectl("create", "-f", "-", stdin=yaml.safe_dump({**document, "metadata": marked}).encode())


def _namespace(objects: Sequence[Mapping[str, Any]]) -> str:
    return next((document["metadata"]["name"] for document in objects if document["kind"] == "Namespace"), "default")


def _is_ready(node: Mapping[str, Any]) -> bool:
    conditions = node.get("status", {}).get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
