"""Reconciles one cluster: compares what is asked for with what is there, and changes what differs. Level-triggered.

Called with a name, it looks at everything anew and does what is missing; called again, it finds nothing to do. `ending`
deals with clusters that end, `reporter` with what others read. The order follows need: the port and the Service carry
callers, so they come first; the reports come last. Nothing here waits for the member: what has to be done there is left
to `errands`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from certs.errors import IssueRefused
from certs.names import check_serving_name
from daemon.faults import TowerError, fault
from daemon.kube.resources import CLUSTERS, ENDPOINT_SLICES, ENDPOINTS, SERVICES, Object, Resource
from tower_server.controller import desired
from tower_server.controller.ending import Ending
from tower_server.controller.facts import Observed
from tower_server.controller.names import external_name, is_of, service_name
from tower_server.controller.reporter import Again, Reporter
from tower_server.controller.status import Outcome, problem_of
from tower_server.controller.wanted import Problem, Wanted
from tower_server.controller.writer import Deposed, NameTaken
from tower_server.records import KUBERNETES, KUBESPHERE, Cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciler(Ending):
    """Everything that one reconcile needs."""

    reporter: Reporter
    namespace: str
    own_names: frozenset[str] = frozenset()
    """Of the tower's servers, which no cluster's certificate carries."""

    def begin(self, names: Iterable[str]) -> None:
        """Called before the first reconcile of a term, so that all clusters that are the same member are known."""
        for name in names:
            observed = self.facts.observed(name)
            self.twins.note(name, observed.uid if observed is not None else "")

    async def reconcile(self, name: str) -> Again:
        """Reconcile one cluster. Raises Deposed if this server no longer leads, TowerError to be called again."""
        await self.registry.finish(name)
        resource, record = self.view.get(CLUSTERS, name), await self.registry.get(name)
        if self.ends(resource, record) or (record is None and self.has_objects(name)):
            return await self._settle(name)
        return await self._follow(name, resource, record)

    async def _follow(self, name: str, resource: Object | None, record: Cluster | None) -> Again:
        """Make what the resource asks for; if it asks for nothing, serve the record alone, if there is one."""
        wanted = self.read(resource)
        if wanted is None or not (wanted.proxied and wanted.usable):
            again = Again()
            if record is not None:  # added by hand, or kept: the resource asks for something that is not ours to do
                again = await self._serve(name, None, None, record)
            elif wanted is not None and wanted.proxied:
                return await self.reporter.tell(resource, Outcome(problems=wanted.problems), None)
            await self.remove_finalizer(resource, wanted)
            return again
        record = await self.registry.follow(name, resource=wanted.uid)
        if record.resource != wanted.uid:
            return await self._settle(name)
        return await self._serve(name, resource, wanted, record)

    async def _settle(self, name: str) -> Again:
        """Deal with a cluster that seems to be over: it is ended, or served as what it is now."""
        resource, record = await self.settle(name)
        wanted = self.read(resource)
        released = wanted is not None and self.released(wanted)
        proxied = wanted is not None and not released and wanted.proxied and wanted.usable
        if wanted is not None and proxied and record is not None and not record.resource:
            record = await self.registry.adopt(record, resource=wanted.uid)
        if proxied or (record is not None and not released):
            return await self._follow(name, resource, record)
        if record is None:
            await self.delete_objects(name)  # a record that was added by hand, or is kept, outlives this resource
        return Again(failed=not await self.remove_finalizer(resource, wanted))

    async def failed(self, name: str, error: Exception) -> None:
        """Report that a cluster's reconcile keeps failing. What there is of the cluster stays as it is."""
        await self.reporter.failed(name, error)

    # ---- a cluster that is wanted -------------------------------------------------------------------------------

    async def _serve(self, name: str, resource: Object | None, wanted: Wanted | None, record: Cluster) -> Again:
        observed = self.facts.observed(name)
        if wanted is not None:
            record = await self.registry.take_token(record, wanted.legacy_token)
        outcome = Outcome(problems=wanted.problems if wanted is not None else ())
        outcome = await self._ports(outcome, wanted, record, observed)
        if KUBERNETES in outcome.ports:
            outcome = await self._service(name, outcome)
            outcome = await self._external(name, outcome, wanted)
            await self._names(name, outcome, record)
        if observed is None:
            observed = self.facts.observed(name)  # a record that was just made is mostly known by now
        outcome = self._alone(name, outcome, observed)
        if self.membership is not None and resource is not None and wanted is not None:
            outcome = await self.membership.look(
                outcome,
                record=record,
                wanted=wanted,
                resource=resource,
                observed=observed,
                hosted_as=self.view.hosted_as,
            )
        return await self.reporter.tell(resource, outcome, observed, record=record)

    async def _ports(
        self, outcome: Outcome, wanted: Wanted | None, record: Cluster, observed: Observed | None
    ) -> Outcome:
        """A port for the apiserver, and one for the second service once the member declares it."""
        services = observed.report.get("services") if observed is not None else None
        declared = isinstance(services, dict) and KUBESPHERE in services
        asked = wanted.ports if wanted is not None else {}
        refused = any(problem.reason == "PortOutOfRange" for problem in outcome.problems)
        ports = dict(record.ports)
        for service in (KUBERNETES, KUBESPHERE):
            if service not in ports and (refused or (service == KUBESPHERE and not (declared or asked.get(service)))):
                continue
            try:
                self.writer.fence()
                if service in ports:
                    await self.registry.allocation.confirm(record, service)
                else:
                    ports[service] = await self.registry.allocation.hold(record.name, service, asked=asked.get(service))
            except Deposed:
                raise
            except TowerError as error:
                if error.code not in ("TWR109", "TWR121"):
                    raise
                ports.pop(service, None)
                outcome = outcome.with_problem(problem_of("PortReady", error))
        return replace(outcome, ports=ports)

    async def _service(self, name: str, outcome: Outcome) -> Outcome:
        wanted = desired.service(name, outcome.ports, namespace=self.namespace)
        found = await self._ensure(SERVICES, wanted)
        address = str((found.get("spec") or {}).get("clusterIP") or "")
        if address == "None":  # a headless Service has no address to give to callers, and cannot be given one
            await self.writer.delete(SERVICES, found)
            found = await self.writer.ensure(SERVICES, wanted, None)
            address = str((found.get("spec") or {}).get("clusterIP") or "")
        await self._slices(service_name(name), name, outcome)
        return replace(outcome, address=address)

    async def _external(self, name: str, outcome: Outcome, wanted: Wanted | None) -> Outcome:
        held = self.view.get(SERVICES, external_name(name))
        published = held is not None and is_of(held, name)
        if wanted is None and published and held is not None:  # no resource says anything about it: it stays as it was
            await self._slices(external_name(name), name, _of_apiserver(outcome))
            return replace(outcome, external=True, external_address=_published(held))
        if wanted is None or not wanted.external:
            if published:
                await self.delete_service(name, external_name(name))
            return outcome
        only = desired.external_service(name, outcome.ports, namespace=self.namespace, annotations=wanted.annotations)
        try:
            found = await self._ensure(SERVICES, only)
        except NameTaken as taken:
            return outcome.with_problem(problem_of("ExternalAccessReady", taken))
        await self._slices(external_name(name), name, _of_apiserver(outcome))
        return replace(outcome, external=True, external_address=_published(found))

    async def _slices(self, service: str, name: str, outcome: Outcome) -> None:
        replicas = desired.serving(name, self.facts.replicas())
        wanted = desired.slices(service, name, outcome.ports, replicas, namespace=self.namespace)
        for each in wanted:
            await self._ensure(ENDPOINT_SLICES, each)
        found = self.view.of_service(ENDPOINT_SLICES, service)
        old = self.view.get(ENDPOINTS, service)
        if not wanted:
            return  # no replica is known at this moment: what is there is better than nothing
        for each in desired.leftovers(service, [*found, *([old] if old is not None else [])], wanted):
            await self.writer.delete(ENDPOINTS if each["kind"] == "Endpoints" else ENDPOINT_SLICES, each)

    async def _names(self, name: str, outcome: Outcome, record: Cluster) -> None:
        """Have the cluster's serving certificate carry the names that callers reach it by, from its next renewal on."""
        inside = f"{service_name(name)}.{self.namespace}"
        names = [inside, f"{inside}.svc", outcome.address]
        if outcome.external_address and not self._of_others(outcome.external_address.lower(), name):
            names.append(outcome.external_address)
        await self.registry.name_services(record, tuple(dict.fromkeys(_that_certificates_hold(names, cluster=name))))

    def _of_others(self, published: str, name: str) -> bool:
        """Whether a published name is the tower's own or another cluster's: with such a name in its certificate an
        agent could pass for that one, and people who may not add clusters may be able to set a load balancer's name."""
        others = (other for other in self.registry.known.values() if other.name != name)
        return published in self.own_names or any(
            published == each.lower() for other in others for each in other.certificate_names
        )

    def _alone(self, name: str, outcome: Outcome, observed: Observed | None) -> Outcome:
        others = self.twins.note(name, observed.uid if observed is not None else "")
        if not others:
            return outcome
        uid = observed.uid if observed is not None else ""
        text = f"the member says of itself that it is also {', '.join(others)} (kube-system uid {uid})"
        return outcome.with_problem(Problem("Unique", "DuplicateMember", "TWR123", text, fault("TWR123").mend))

    async def _ensure(self, resource: Resource, wanted: Object) -> Object:
        return await self.writer.ensure(resource, wanted, self.view.get(resource, wanted["metadata"]["name"]))


def _that_certificates_hold(names: Iterable[str], *, cluster: str) -> Iterator[str]:
    """Those of the names that a certificate of the cluster may carry; a load balancer may have any name."""
    for name in names:
        try:
            yield str(check_serving_name(name, cluster=cluster))
        except IssueRefused:
            continue


def _of_apiserver(outcome: Outcome) -> Outcome:
    """The outcome without the second service, which is never published."""
    return replace(outcome, ports={KUBERNETES: outcome.ports[KUBERNETES]})


def _published(service: Object) -> str:
    """The address of the LoadBalancer: its IP address if it has one, else its name."""
    given = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    for key in ("ip", "hostname"):
        for each in given:
            if isinstance(each, dict) and each.get(key):
                return str(each[key])
    return ""
