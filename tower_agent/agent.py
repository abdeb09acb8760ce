"""The agent's process: one member, any number of hosts.

At start it reads its identities (joining first where a token file is given and there is none), makes one `HostAgent`
each, and then probes, reports and follows its policy file until it is told to stop. What is wrong with the member's
apiserver ends nothing: the agent says so to its hosts and goes on.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Coroutine
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, TypeVar

from certs.identity import IdentityStore
from daemon.faults import TowerError
from daemon.health import Health
from daemon.kube.access import Access
from daemon.log import get_logger
from daemon.metrics import AgentMetrics, sample_loop_lag
from daemon.process import Process
from protocol.aio.buffers import read_by
from protocol.aio.busypoll import busy_poll
from tower_agent.config import KUBERNETES, KUBESPHERE, AgentConfig, Service
from tower_agent.enrol import Enrolment
from tower_agent.host import AgentContext, HostAgent
from tower_agent.kubesphere import KubeSphere
from tower_agent.member import MemberApi
from tower_agent.policy import PolicyFile, drift
from tower_agent.probe import Probe, Prober
from tower_agent.stores import enrolled, stores_of
from tower_agent.token import read_token_file
from tower_agent.trust import HostTrust
from tower_agent.version import product_version
from tower_agent.wayout import WayOut

DRIFT_EVERY: Final = 60.0
POLICY_EVERY: Final = 2.0  # how often the policy file is looked at
HOSTS_EVERY: Final = 5.0  # how often it is looked whether another host was joined
T = TypeVar("T")

log = get_logger(__name__)


async def _unless_stopped(work: Coroutine[Any, Any, T], stop: asyncio.Event) -> T | None:
    """The result of `work`, or None when the process is told to stop first."""
    task = asyncio.get_running_loop().create_task(work, name="identities")
    stopped = asyncio.get_running_loop().create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        stopped.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)


class Agent:
    """`run` is the process' main."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._version = product_version()
        self._hosts: list[HostAgent] = []
        self._broken: dict[str, str] = {}
        self._budget = config.memory.budget()
        self._probe: Probe | None = None
        self.health_address = ""

    async def run(self, process: Process) -> int:
        """Serve until `process.stop` is set. Raises TowerError for what a person must mend before it can start."""
        config = self._config
        loop = asyncio.get_running_loop()
        read_by(loop, self._budget)
        busy_poll(loop).enabled = config.busy_poll
        access = Access.find(config.kubeconfig, config.context)
        policies = PolicyFile(config.policy_file)
        api = MemberApi(access, version=self._version)
        metrics = AgentMetrics(version=self._version)
        health = Health(metrics=metrics.render)
        health.check("tunnels", self._not_ready)
        self.health_address = await health.start(config.health_address)
        try:
            stores = stores_of(config, api)
            places = await _unless_stopped(self._identities(stores), process.stop)
            if places is None:
                return 0
            trusts = await self._load(places)
            prober = Prober(api, changed=lambda probe: self._probed(probe, metrics))
            context = self._context(access, metrics, prober)
            for trust in trusts:
                self._serve(trust, policies, context)
            self._start_tasks(process, api, prober, policies, metrics)
            process.tasks.restart(lambda: self._follow_hosts(stores, policies, context, process.stop), name="hosts")
            await process.ready(f"serving {', '.join(trust.host for trust in trusts)}")
            log.info(
                "agent-started",
                version=self._version,
                hosts=[trust.host for trust in trusts],
                apiserver=access.address,
                access=access.source,
                health=self.health_address,
            )
            await process.stop.wait()
        finally:
            health.stopping = True
            await asyncio.gather(*(host.drain("the agent is stopping") for host in self._hosts))
            await asyncio.gather(*(host.close("the agent is stopping") for host in self._hosts))
            await health.stop()
        log.info("agent-stopped")
        return 0

    async def _identities(self, stores: list[IdentityStore]) -> dict[str, IdentityStore]:
        found = await enrolled(stores)
        if not found and self._config.token_file is not None:
            token = read_token_file(self._config.token_file)
            enrolment = Enrolment(token, store=stores[0], way=WayOut.of(self._config), wait=float("inf"))
            try:
                await enrolment.run()
            except TowerError:
                if not (found := await enrolled(stores)):  # a sibling may have joined with the same token meanwhile
                    raise
            found = found or await enrolled(stores)
        if not found:
            raise TowerError("TWR225", f"there is no identity in {stores[0].place('HOST', 'identity.json')}")
        return found

    async def _load(self, places: dict[str, IdentityStore]) -> list[HostTrust]:
        """Every identity that can be used. One that cannot ends the start only where it is the only one."""
        trusts: list[HostTrust] = []
        for host, store in places.items():
            try:
                trusts.append(await HostTrust.load(store, host))
            except TowerError as error:
                if len(places) == 1:
                    raise
                self._broken[host] = f"{error.code}: {error.message}"
                log.error("host-not-served", host=host, code=error.code, text=error.message, mend=error.mend)
        for named in {each.name for each in self._config.hosts} - set(places):
            self._broken[named] = "TWR225: not joined"
            log.error(
                "host-not-served", host=named, code="TWR225", text="the configuration names it, but it is not joined"
            )
        return trusts

    def _context(self, access: Access, metrics: AgentMetrics, prober: Prober) -> AgentContext:
        if self._config.services.get(KUBERNETES, Service()).mode == "gateway":
            callers = metrics.streams.labels(KUBERNETES)
            callers.set_function(lambda: sum(len(host.gateway.connections) for host in self._hosts))
        return AgentContext(
            config=self._config,
            access=access,
            metrics=metrics,
            budget=self._budget,
            instance=_instance(self._config.state_dir),
            version=self._version,
            probe_fields=self._probe_fields,
            unreachable=prober.suspect,
            hosts=lambda: sorted(host.trust.host for host in self._hosts),
            kubesphere=self._kubesphere(access),
        )

    def _kubesphere(self, access: Access) -> KubeSphere | None:
        address = self._config.services.get(KUBESPHERE, Service()).address
        return None if address is None else KubeSphere(MemberApi(access, version=self._version), address)

    def _serve(self, trust: HostTrust, policies: PolicyFile, context: AgentContext) -> None:
        host = HostAgent(trust, policies.policy(trust.host), context)
        self._hosts.append(host)
        self._broken.pop(trust.host, None)
        host.start()

    async def _follow_hosts(
        self, stores: list[IdentityStore], policies: PolicyFile, context: AgentContext, stop: asyncio.Event
    ) -> None:
        """Serve hosts that are joined while the agent runs, and those whose identity was mended or replaced."""
        while True:
            await asyncio.sleep(HOSTS_EVERY)
            with suppress(TowerError):  # the store cannot be read now: it is asked again
                found = await enrolled(stores)
                await self._drop_replaced(found)
                for name in set(found) - {host.trust.host for host in self._hosts}:
                    await self._serve_new(name, found[name], policies, context, stop)

    async def _drop_replaced(self, found: dict[str, IdentityStore]) -> None:
        """Let go of hosts that are down and were joined anew meanwhile: the identity before may have been revoked."""
        for host in list(self._hosts):
            store = found.get(host.trust.host)
            if store is None or host.not_ready() is None:
                continue
            with suppress(TowerError):  # damaged: what is there goes on
                joined = await HostTrust.load(store, host.trust.host)
                if joined.identity.agent != host.trust.identity.agent:
                    self._hosts.remove(host)
                    await host.close("the host was joined anew")

    async def _serve_new(
        self, name: str, store: IdentityStore, policies: PolicyFile, context: AgentContext, stop: asyncio.Event
    ) -> None:
        try:
            trust = await HostTrust.load(store, name)
        except TowerError as error:
            said, self._broken[name] = self._broken.get(name), f"{error.code}: {error.message}"
            if said != self._broken[name]:
                log.error("host-not-served", host=name, code=error.code, text=error.message, mend=error.mend)
            return
        if not stop.is_set():
            self._serve(trust, policies, context)
            log.info("host-joined", host=name)

    def _start_tasks(
        self, process: Process, api: MemberApi, prober: Prober, policies: PolicyFile, metrics: AgentMetrics
    ) -> None:
        process.tasks.restart(prober.run, name="probe")
        process.tasks.restart(lambda: self._follow_policy(policies), name="policy")
        process.tasks.restart(lambda: self._compare_rights(api, policies), name="rights")
        process.tasks.start(sample_loop_lag(metrics.event_loop_lag), name="loop-lag")

    def _probed(self, probe: Probe, metrics: AgentMetrics) -> None:
        self._probe = probe
        metrics.apiserver_up.set(1 if probe.ok else 0)
        metrics.buffer_bytes.set(self._budget.used)
        for host in self._hosts:
            if host.rtt is not None:
                metrics.tunnel_rtt.labels(host.trust.host).set(host.rtt)
            host.follow_access()
            host.report()

    def _probe_fields(self) -> dict[str, Any]:
        return {} if self._probe is None else self._probe.fields()

    async def _follow_policy(self, policies: PolicyFile) -> None:
        said: str | None = None
        while True:
            await asyncio.sleep(POLICY_EVERY)
            if policies.changed():
                for host in self._hosts:
                    host.use_policy(policies.policy(host.trust.host))
                log.info("policy-read", file=str(policies.path))
            if policies.problem != said:
                said = policies.problem
                if said is not None:
                    log.error("policy-not-read", code="TWR101", text=said)

    async def _compare_rights(self, api: MemberApi, policies: PolicyFile) -> None:
        while True:
            for host in self._hosts:
                with suppress(TowerError):  # the probe says why the apiserver cannot be asked
                    found = policies.problem or await drift(api, policies.policy(host.trust.host))
                    if found != host.drift:
                        host.drift = found
                        if found is not None:
                            log.warning("policy-drift", host=host.trust.host, code="TWR307", text=found)
                        host.report()
            await asyncio.sleep(DRIFT_EVERY)

    def _not_ready(self) -> str | None:
        """Ready while at least one host is served; the reason names each that is not."""
        if not self._hosts:
            return "not started yet"
        reasons = {**self._broken, **{host.trust.host: host.not_ready() for host in self._hosts}}
        if any(reason is None for reason in reasons.values()):
            return None
        return "; ".join(f"{host}: {reason}" for host, reason in reasons.items())


def _instance(state_dir: Path) -> str:
    """Names this process. What stands before the last dash stays when it is started anew, so that the server can tell
    a process that has taken another's place from a sibling."""
    home = sha256(str(state_dir.absolute()).encode()).hexdigest()[:6]
    return f"{socket.gethostname()[:128]}-{home}-{secrets.token_hex(4)}"
