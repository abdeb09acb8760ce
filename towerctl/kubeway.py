"""`--context`: the admin API of a tower in a Kubernetes cluster, reached with the operator's own rights there.

A private Unix socket stands in for the server's own, so that every command works as on the server's machine; each
connection to it is a port-forward to a server that is ready. The operator then proves who they are (`certs.login`):
their credential goes to the apiserver and nowhere else. One thread relays; `close` ends it and takes the socket away.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, TypeVar

from certs.files import is_there
from certs.keys import PrivateKey, generate_key, make_csr, signer
from certs.login import NAMESPACE_LABEL, SIGNER_NAME, login_statement
from daemon.faults import TowerError
from daemon.kube.access import Access
from daemon.kube.client import Client
from daemon.kube.resources import Object, Resource, name_of
from protocol import defaults
from towerctl.client import AdminClient
from towerctl.errors import AdminRefused, not_understood
from towerctl.files import kubectl_files
from towerctl.loginkey import LoginKey, keep, kept, login_file
from towerctl.portforward import PODS, PortForward

SERVERS: Final = "app.kubernetes.io/name=tower-server"
PORT_NAME: Final = "operators"
REQUESTS: Final = Resource(
    "certificates.k8s.io", "v1", "certificatesigningrequests", "CertificateSigningRequest", namespaced=False
)
T = TypeVar("T")


class KubeWay:
    """`open`, then `socket`, `token` and `label` are what an AdminClient needs; `close`."""

    def __init__(self, *, context: str, namespace: str, timeout: float) -> None:
        self.context = context
        self.namespace = namespace
        self.label = f"the tower in namespace {namespace} of {context}"
        self.token = ""
        self._timeout = timeout
        self._folder = Path(tempfile.mkdtemp(prefix="towerctl-"))  # 0700
        self.socket = str(self._folder / "admin.sock")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="towerctl-relay", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._forward: PortForward | None = None
        self._client: Client | None = None

    @property
    def fault(self) -> TowerError | None:
        """Why nothing came back over the way, where it is the way's fault."""
        return self._forward.fault if self._forward is not None else None

    def open(self) -> None:
        """TowerError says what is in the way: no such context, no right, no server that is ready, a login refused."""
        self._thread.start()
        access = Access.find(kubeconfig_of(self.context), self.context)
        pod, port = self._wait(lambda: self._find(access))
        self.label = f"pod {pod} in {self.namespace} of {self.context}"
        self._forward = PortForward(access, namespace=self.namespace, pod=pod, port=port)
        self._wait(self._listen)
        self._login(access, pod)

    def close(self) -> None:
        """Idempotent."""
        if self._thread.is_alive():
            with contextlib.suppress(TowerError):
                self._wait(self._stop)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(self._timeout)
        if not self._loop.is_running():
            self._loop.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    # ---- in the thread ------------------------------------------------------------------------------------------

    def _wait(self, work: Callable[[], Awaitable[T]]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(self._timeout):
                return await work()

        pending: Future[T] = asyncio.run_coroutine_threadsafe(bounded(), self._loop)
        try:
            return pending.result()
        except TimeoutError as error:
            raise TowerError(
                "TWR616", f"{self.label}: no answer within {self._timeout:g}s", mend="raise --timeout"
            ) from error

    async def _find(self, access: Access) -> tuple[str, int]:
        """A server that is ready, and its port for operators."""
        self._client = Client(access, user_agent="towerctl", deadline=self._timeout)
        pods = (await self._client.list(PODS, namespace=self.namespace, labels=SERVERS)).items
        if not pods:
            raise TowerError("TWR616", f"no pod with the label {SERVERS} is in namespace {self.namespace}")
        ready = [pod for pod in pods if is_ready(pod)]
        if not ready:
            states = ", ".join(f"{name_of(pod)}: {(pod.get('status') or {}).get('phase', '?')}" for pod in pods)
            raise TowerError("TWR616", f"no tower server in namespace {self.namespace} is ready ({states})")
        pod = secrets.choice(ready)
        return name_of(pod), port_of(pod)

    async def _listen(self) -> None:
        self._server = await asyncio.start_unix_server(self._accept, self.socket)
        os.chmod(self.socket, 0o600)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._forward is not None
        work = self._forward.relay(reader, writer, timeout=self._timeout)
        task = asyncio.create_task(work, name="towerctl-portforward")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._client is not None:
            self._client.close()
        await asyncio.sleep(0)

    # ---- the login ----------------------------------------------------------------------------------------------

    def _login(self, access: Access, pod: str) -> None:
        """By the key of before, as long as it is known; a new one when the server refuses that."""
        file = login_file(access.address, self.namespace, self.context)
        held = kept(file)
        if held is not None:
            try:
                self.token = self._session(held, pod)
            except AdminRefused as error:
                if error.status != 401:
                    raise
            else:
                return
        held = self._request(generate_key())
        keep(file, held)
        self.token = self._session(held, pod)

    def _request(self, key: PrivateKey) -> LoginKey:
        """A request of the host cluster's that ties the key to whoever the apiserver takes us for."""
        name = f"tower-operator-{secrets.token_hex(8)}"
        labels = {NAMESPACE_LABEL: self.namespace}
        spec = {
            "signerName": SIGNER_NAME,
            "request": base64.b64encode(make_csr(key, "towerctl")).decode(),
            "usages": ["client auth"],
        }
        body: Object = {"metadata": {"name": name, "labels": labels}, "spec": spec}
        client = self._client
        assert client is not None
        self._wait(lambda: client.create(REQUESTS, body))
        return LoginKey(name, key)

    def _session(self, held: LoginKey, pod: str) -> str:
        client = AdminClient(self.socket, timeout=self._timeout, label=self.label, fault=lambda: self.fault)
        challenge = client.get("/v1/login")
        try:
            nonce = base64.b64decode(str(challenge["nonce"]))
        except (KeyError, ValueError) as error:
            raise not_understood("a login without a nonce") from error
        statement = login_statement(namespace=self.namespace, server=pod, request=held.request, nonce=nonce)
        signature = base64.b64encode(signer(held.key)(statement)).decode()
        body = {"request": held.request, "nonce": challenge["nonce"], "signature": signature}
        token = client.post("/v1/login", body).get("token")
        if not isinstance(token, str):
            raise not_understood("a login without a token")
        return token


def kubeconfig_of(context: str) -> Path:
    """The first of kubectl's own files that has the context; TowerError TWR309 where none has."""
    from daemon import yamlfile

    files = [file for file in kubectl_files() if is_there(file)]
    known: list[str] = []
    for file in files:
        contexts = yamlfile.read(file)[0].get("contexts")
        names = [str(each.get("name")) for each in contexts or () if isinstance(each, dict)]
        if context in names:
            return file
        known += names
    if not files:
        raise TowerError("TWR309", "there is no kubeconfig (KUBECONFIG, ~/.kube/config)", mend="name one by KUBECONFIG")
    raise TowerError(
        "TWR309",
        f"the kubeconfig {', '.join(map(str, files))} has no context {context!r}",
        mend=f"choose one of: {', '.join(sorted(known)) or 'none'}",
    )


def is_ready(pod: Object) -> bool:
    if (pod.get("metadata") or {}).get("deletionTimestamp"):
        return False
    conditions: list[Any] = (pod.get("status") or {}).get("conditions") or []
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)


def port_of(pod: Object) -> int:
    """The port that the pod names `operators`; the default where it names none."""
    for container in (pod.get("spec") or {}).get("containers") or ():
        for port in container.get("ports") or ():
            if port.get("name") == PORT_NAME and isinstance(port.get("containerPort"), int):
                return int(port["containerPort"])
    return defaults.OPERATOR_PORT
