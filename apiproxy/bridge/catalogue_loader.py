"""The bridge between the gateway and the rest: the one file that imports portal and modelregistry.

Everything here queries the database and blocks; `apiproxy.server.asgi` calls it in a thread.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from typing import Any, TypeVar, cast
from zoneinfo import ZoneInfo

from django.conf import settings
from django.db import DatabaseError, DataError, IntegrityError, InterfaceError, close_old_connections
from django.db.models import Max, Q, QuerySet, Sum
from django.utils import timezone

from apiproxy.bridge import machines
from apiproxy.bridge.models import CatalogueChange, CatalogueRevision
from apiproxy.bridge.site_gauges import site_gauges_of
from apiproxy.dataplane.backlog import BacklogReport
from apiproxy.dataplane.catalogue import Catalogue, Counter, Key, Limit, Model, Replica, Retirement, Timeouts
from apiproxy.dataplane.client_address import parse_networks
from apiproxy.dataplane.crash_suspects import Death
from apiproxy.dataplane.feedback import FeedbackNote, Outcome
from apiproxy.dataplane.host_watch import Heartbeat
from apiproxy.dataplane.ledger import DatabaseUnavailable, RecordRefused
from apiproxy.dataplane.limits.local import Spending
from apiproxy.dataplane.limits.units import UNITS
from apiproxy.dataplane.loops import NORMAL, SENSITIVITIES, LoopPolicy, read_mode
from apiproxy.dataplane.metrics import Gauge
from apiproxy.dataplane.refused_calls import RefusedCall
from apiproxy.dataplane.rejection_counts import RejectionGroup
from apiproxy.dataplane.room import EngineLoad
from apiproxy.dataplane.sampling import ParameterPreset
from apiproxy.dataplane.usage_events import Usage
from apiproxy.dataplane.wake_ups import LOADED_WITHIN, WakeUp
from modelregistry import routes
from modelregistry.engines.registry import engine_named
from modelregistry.host_figures import read_figures
from modelregistry.models import ServedModel, WakeCaller, WakeRequest
from portal.accounts.models import Tenant
from portal.audit import tracking
from portal.audit.models import AuditEvent
from portal.backups.figures import read_backup_figures
from portal.feedback import recording as feedback
from portal.feedback.recording import GivenFeedback
from portal.keys import end_user_secret, lineage, secret, site_secrets, weights
from portal.keys.models import ApiKey, ModelAccess
from portal.operations import queue_reports
from portal.quotas import policy, units, windows
from portal.quotas.models import Quota
from portal.usage import client_classes, refusals, rejections
from portal.usage import records as usage
from portal.usage.models import UsageRecord

T = TypeVar("T")
MAX_CHANGED_KEYS = 5000  # changed keys; for more it is quicker to load all
# Errors about the rows: other rows may be recorded. All other errors of a database (also a missing table or column,
# before `migrate`) are about the database, and the same rows may be recorded later.
ROW_ERRORS = (DataError, IntegrityError, ArithmeticError, ValueError, TypeError, LookupError)
NO_SECRET = (b"",)  # of end users
REFUSED_FEEDBACK: dict[str, Outcome] = {"old": "old", "many": "many"}
COLUMNS = {"key": "key_id", "user": "user_id", "tenant": "tenant_id", "replica": "replica_id"}


def digests(key: str) -> list[str]:
    """Return the digests by which the catalogue may find a key; none for what cannot be one of our keys."""
    return site_secrets.digests_of(key) if secret.is_well_formed(key) else []


def renew_digests(used: Mapping[int, Sequence[str]]) -> None:
    """Store keys under today's secret that were used and are stored under a former one. Raises DatabaseUnavailable.

    `used`: their digests by their ids.
    """
    for pk, digests in used.items():
        run_query(partial(site_secrets.renew_digest, ApiKey, pk, digests))


def check_secrets() -> None:
    """Compare the secrets of this process with its site's. Raises OtherSecret and DatabaseUnavailable."""
    run_query(site_secrets.check_secrets)


def body_key() -> bytes:
    """Return the secret key for digests of requests, the same in all gateways."""
    return hashlib.sha256(b"suspects" + settings.API_KEY_SECRET.encode()).digest()


def revision() -> int:
    """Return the current number of the catalogue. Raises DatabaseUnavailable."""
    return run_query(_current_revision)


def heartbeats_by_host() -> dict[int, Heartbeat]:
    """Return what is known of the supervisors of hosts, by the hosts' ids. Raises DatabaseUnavailable."""
    return run_query(
        lambda: {one.host_id: Heartbeat(one.claim, one.quiet, one.gone) for one in routes.supervisor_heartbeats()}
    )


def site_gauges() -> list[Gauge]:
    """Return the figures of hosts, models, tasks, controller and backups. Six queries. Raises DatabaseUnavailable."""
    return run_query(lambda: site_gauges_of(read_figures(), read_backup_figures()))


def loads_by_replica() -> dict[int, EngineLoad]:
    """Return what engines of unknown slots last reported, by their replicas' ids. Raises DatabaseUnavailable."""
    return run_query(
        lambda: {one.replica_id: EngineLoad(one.at, one.waiting, one.cache_used) for one in routes.engine_reports()}
    )


def load() -> Catalogue:
    """Return the whole catalogue, in eleven queries. Raises DatabaseUnavailable."""
    return run_query(_load)


def apply_changes(catalogue: Catalogue) -> Catalogue:
    """Return the catalogue with what changed since its revision; load all of it if that is too much.

    Raises DatabaseUnavailable.
    """
    return run_query(lambda: _apply_changes(catalogue))


def usage_since(limit: Limit, now: float) -> Spending:
    """Return what was used of this limit since its window began, by UsageRecord.

    Includes records by a clock that was ahead of `now`. Raises DatabaseUnavailable.
    """
    return run_query(lambda: _usage_since(limit, now))


def record_usage(rows: Sequence[Usage]) -> None:
    """Write usage; what is there already is left as it is. Raises DatabaseUnavailable or RecordRefused."""
    try:
        run_query(lambda: usage.record_usage([_record(row) for row in rows]))
    except ROW_ERRORS as error:
        raise RecordRefused(f"{type(error).__name__}: {error}") from error


def record_rejections(counts: Mapping[RejectionGroup, int]) -> None:
    """Add refused calls to the sums of their hours.

    Raises RecordRefused, or DatabaseUnavailable: all or none are written.
    """
    groups = {
        rejections.RejectionTotals(datetime.fromtimestamp(group.hour, UTC), *group[1:]): requests
        for group, requests in counts.items()
    }
    try:
        run_query(lambda: rejections.add_rejections(groups))
    except ROW_ERRORS as error:
        raise RecordRefused(f"{type(error).__name__}: {error}") from error


def record_refused_calls(calls: Sequence[RefusedCall]) -> None:
    """Write refused calls; what is there already is left as it is. Raises RecordRefused or DatabaseUnavailable."""
    rows = [{**call._asdict(), "at": datetime.fromtimestamp(call.at, UTC)} for call in calls]
    try:
        run_query(lambda: refusals.add_refusals(rows))
    except ROW_ERRORS as error:
        raise RecordRefused(f"{type(error).__name__}: {error}") from error


def record_feedback(note: FeedbackNote) -> Outcome:
    """Store what a caller says about a request, if it is the caller's own. Raises DatabaseUnavailable."""
    given = GivenFeedback(
        request_id=note.request_id,
        score=note.score,
        comment=note.comment,
        model=note.model,
        use_case=note.use_case,
        use_case_version=note.use_case_version,
    )
    store = partial(feedback.record_feedback, given, user_id=note.user, tenant_id=note.tenant, key_id=note.key)
    try:
        is_known = run_query(lambda: store(now=timezone.now()))
    except feedback.FeedbackRefused as refusal:
        return REFUSED_FEEDBACK.get(refusal.code, "unknown")
    return "recorded" if is_known else "pending"


def report_set_aside(lines: int) -> None:
    """Record how many lines of usage wait on this host for an operator. Raises DatabaseUnavailable."""
    run_query(lambda: usage.report_set_aside(settings.HOST_NAME, lines))


def report_backlog(worker: str, backlog: BacklogReport) -> None:
    """Report usage that waits on a worker's disk for long, or that none does any more. Raises DatabaseUnavailable."""
    run_query(lambda: usage.report_backlog(worker, size=backlog.bytes, seconds=backlog.seconds))


def report_machine() -> None:
    """Record that this machine has a gateway of this version. Raises DatabaseUnavailable."""
    run_query(machines.report_machine)


def report_queue(worker: str, snapshot: dict[str, Any], minutes: Sequence[dict[str, Any]]) -> None:
    """Report a worker's queue, and what callers were served in minutes that are over. Raises DatabaseUnavailable."""
    run_query(lambda: queue_reports.write_report(worker, snapshot, minutes))


def withdraw_queue(worker: str) -> None:
    """Remove the report of a worker that stops. Raises DatabaseUnavailable."""
    run_query(lambda: queue_reports.withdraw_report(worker))


def record_deaths(deaths: Sequence[Death]) -> None:
    """Write calls under which an engine died into the audit log. Raises DatabaseUnavailable or RecordRefused."""
    try:
        run_query(lambda: _record_deaths(deaths))
    except ROW_ERRORS as error:
        raise RecordRefused(f"{type(error).__name__}: {error}") from error


def _record_deaths(deaths: Sequence[Death]) -> None:
    keys = ApiKey.objects.select_related("tenant", "user").in_bulk([death.key for death in deaths])
    models = ServedModel.objects.in_bulk([death.model for death in deaths])
    for death in deaths:
        key, model = keys.get(death.key), models.get(death.model)
        if key is None or model is None:
            continue
        facts = {
            "api_key": key.prefix,
            "request_id": death.request_id,
            "endpoint": death.endpoint,
            "replica": death.replica,
            "open_calls": death.calls,
            "verdict": death.verdict,
        }
        via = AuditEvent.Via.GATEWAY
        tracking.record_event("model.crash", model, "model", after=facts, tenant=key.tenant, actor=key.user, via=via)


def request_wake_up(wake: WakeUp, calls: int = 0) -> float:
    """Note that so many calls wait for a sleeping model, 0: not known. Return 0.

    For a caller that has had as many others loaded as it may, nothing is noted, and the seconds are returned after
    which it may have this one loaded. Raises DatabaseUnavailable.
    """
    return run_query(lambda: _request_wake_up(wake, calls))


def _request_wake_up(wake: WakeUp, calls: int) -> float:
    now = timezone.now()
    if wake.most is not None and (seconds := _count_loading(wake, wake.most, now)):
        return seconds
    renewed = {"at": now, "calls": calls} | ({"interactive_at": now} if wake.interactive else {})
    WakeRequest.objects.update_or_create(
        model_id=wake.model, defaults=renewed, create_defaults={"since": now, **renewed}
    )
    return 0.0


def _count_loading(wake: WakeUp, most: int, now: datetime) -> float:
    """Count the model among those that the caller has loaded. Return 0; if there are too many, see `request_wake_up`.

    Its row is committed before the others are counted: of two workers at once one sees the other's at least.
    """
    scope, owner = wake.caller
    since = now - timedelta(seconds=LOADED_WITHIN)
    rows = WakeCaller.objects.filter(scope=scope, owner=owner, at__gt=since)
    if rows.filter(model=wake.model).update(at=now):
        return 0.0
    WakeCaller.objects.filter(at__lte=since).delete()
    row, _ = WakeCaller.objects.update_or_create(scope=scope, owner=owner, model_id=wake.model, defaults={"at": now})
    others = list(rows.exclude(pk=row.pk).order_by("at").values_list("at", flat=True))
    if len(others) < most:
        return 0.0
    row.delete()
    return max(1.0, (others[len(others) - most] - since).total_seconds())


def run_query(query: Callable[[], T]) -> T:
    """Return the database's answer, or raise DatabaseUnavailable. A broken connection is not used again.

    Errors about the values in the query (DataError, IntegrityError) are raised as they are.
    """
    close_old_connections()
    try:
        return query()
    except (DataError, IntegrityError):
        raise
    except (DatabaseError, InterfaceError) as error:
        raise DatabaseUnavailable(f"the database does not answer: {error}") from error
    finally:
        close_old_connections()


def _load() -> Catalogue:
    # First the number, then the rows: a change in between is loaded again at the next poll, never missed.
    number = _current_revision()
    keys = _keys(ApiKey.objects.all(), Quota.objects.all())
    digests = {key.id: digest for digest, key in keys.items()}
    return Catalogue(number, keys, digests, _models(), routes.names_by_alias())


def _apply_changes(catalogue: Catalogue) -> Catalogue:
    number = _current_revision()
    changes = set(
        CatalogueChange.objects.filter(revision__gt=catalogue.revision, revision__lte=number).values_list(
            "kind", "object_id"
        )
    )
    first = CatalogueChange.objects.order_by("revision").values_list("revision", flat=True).first()
    if first is None or first > catalogue.revision + 1:
        return _load()  # some of the changes are forgotten
    if any(kind == CatalogueChange.Kind.ALL for kind, _ in changes):
        return _load()
    affected = _affected_keys(changes)
    if len(affected) > MAX_CHANGED_KEYS:
        return _load()
    owners = ApiKey.objects.filter(pk__in=affected)
    bearing = policy.applying_to(tenants=owners.values("tenant"), users=owners.values("user"), keys=affected)
    changed = _keys(owners, Quota.objects.filter(bearing)) if affected else {}
    models, aliases = catalogue.models, catalogue.aliases
    if any(kind == CatalogueChange.Kind.MODELS for kind, _ in changes):
        models, aliases = _models(), routes.names_by_alias()
    keys, digests = _merge_keys(catalogue, affected, changed)
    return Catalogue(number, keys, digests, models, aliases)


def _current_revision() -> int:
    return CatalogueRevision.objects.filter(pk=1).values_list("number", flat=True).first() or 0


def _affected_keys(changes: set[tuple[str, int]]) -> set[int]:
    """Return the ids of all keys that these changes may have made usable, unusable or different.

    Includes ids of deleted keys.
    """
    changed_ids: dict[str, set[int]] = defaultdict(set)
    for kind, object_id in changes:
        changed_ids[kind].add(object_id)
    of_owners = ApiKey.objects.filter(
        Q(user__in=changed_ids[CatalogueChange.Kind.USER]) | Q(tenant__in=changed_ids[CatalogueChange.Kind.TENANT])
    )
    return changed_ids[CatalogueChange.Kind.KEY] | set(of_owners.values_list("pk", flat=True))


def _merge_keys(
    catalogue: Catalogue, affected: set[int], changed: dict[str, Key]
) -> tuple[Mapping[str, Key], Mapping[int, str]]:
    """Return the catalogue's keys and digests, with those of these ids as they are now."""
    if not affected:
        return catalogue.keys, catalogue.digests
    # Copied: 2 ms for 100,000 keys, in a thread; readers keep the old one until the new one takes its place.
    keys, digests = dict(catalogue.keys), dict(catalogue.digests)
    for key in affected & digests.keys():
        del keys[digests.pop(key)]
    keys.update(changed)
    digests.update({key.id: digest for digest, key in changed.items()})
    return keys, digests


def _keys(owners: QuerySet[ApiKey], quotas: QuerySet[Quota]) -> dict[str, Key]:
    """Return the usable keys among `owners` by digest, with those of `quotas` that bind them."""
    restricted: dict[int, set[int]] = defaultdict(set)
    through = ApiKey.allowed_models.through.objects.filter(apikey__in=owners)
    for key_id, model_id in through.values_list("apikey_id", "servedmodel_id"):
        restricted[key_id].add(model_id)
    limits = _Limits(quotas)
    rows = owners.usable().values_list(  # type: ignore[attr-defined]
        *("pk", "digest", "tenant_id", "user_id", "user__language", "expires_at", "every_model"),
        *("networks", "key_class", "tenant__weight", "takes_user_headers", "loop_guard"),
        *("weight", "separates_users", "end_user_nonce"),
    )
    of_classes = weights.class_weights()
    return {
        key_digest: Key(
            id=pk,
            tenant=tenant,
            user=user,
            language="en" if language == "en" else "ja",
            expires=expires.timestamp() if expires else None,
            models=None if every_model else frozenset(restricted[pk]),
            limits=limits.of(tenant=tenant, user=user, key=pk),
            networks=parse_networks(allowed),
            batch=key_class != ApiKey.Class.INTERACTIVE,
            canary=key_class == ApiKey.Class.CANARY,
            weight=weight,
            service_weight=of_classes[key_class] if own_weight is None else own_weight,
            takes_user_headers=user_headers,
            user_secret=user_secrets[0],
            former_user_secrets=user_secrets[1:],
            separates_users=separates_users,
            guarded=guarded,
        )
        for (
            pk,
            key_digest,
            tenant,
            user,
            language,
            expires,
            every_model,
            allowed,
            key_class,
            weight,
            user_headers,
            guarded,
            own_weight,
            separates_users,
            nonce,
        ) in rows
        for user_secrets in [_user_secrets(nonce) if nonce and user_headers else NO_SECRET]
    }


def _user_secrets(nonce: str) -> tuple[bytes, ...]:
    return tuple(one.encode() for one in end_user_secret.secrets_of(nonce))


class _Limits:
    """Limits of keys by the quotas that bind them. What binds several keys alike is made once for all of them."""

    def __init__(self, quotas: Iterable[Quota]) -> None:
        self._policy = policy.Policy(quotas)
        self._zones = {tenant.pk: tenant.zone for tenant in Tenant.objects.all()}
        self._shared: dict[tuple[int, int | None], tuple[Limit, ...]] = {}
        self._lineage: lineage.Lineage | None = None  # asked for if any key has a limit of its own

    def of(self, *, tenant: int, user: int | None, key: int) -> tuple[Limit, ...]:
        zone = self._zones[tenant]
        shared = self._shared.get((tenant, user))
        if shared is None:
            bounds = self._policy.caller(tenant, user)
            shared = self._shared[tenant, user] = tuple(_limit(bound, zone) for bound in bounds)
        own = self._policy.key(key, tenant, user)
        return (*shared, *(_limit(bound, zone, first=self._first(key)) for bound in own)) if own else shared

    def _first(self, key: int) -> int:
        """Return the key under which this one and all its predecessors are counted."""
        if self._lineage is None:
            self._lineage = lineage.lineages_of_all()
        return self._lineage.first(key)


def _limit(bound: policy.AppliedQuota, zone: ZoneInfo, first: int | None = None) -> Limit:
    """Make the limit of a quota. `first`: for a key's, the first of those that it succeeds."""
    quota, scope = bound.quota, bound.scope
    owner = {"tenant": bound.tenant, "user": bound.user, "member": bound.user, "key": first}[scope]
    within = bound.tenant if scope == "member" else None
    counter = Counter(scope, cast(int, owner), quota.model_id, UNITS[quota.unit], quota.window, within)
    return Limit(counter, quota.amount, zone)


def _models() -> dict[str, Model]:
    replicas: dict[int, list[Replica]] = defaultdict(list)
    for route in routes.ready_replicas():
        replicas[route.model_id].append(
            Replica(
                id=route.replica_id,
                url=route.url,
                api_key=route.api_key,
                upstream_model=route.upstream_model,
                slots=route.slots,
                supports_priority=route.supports_priority,
                host=route.host_id,
                health=route.health,
                ends_loops=route.ends_loops,
                engine=route.engine,
            )
        )
    access: dict[int, set[int]] = defaultdict(set)
    for model_id, tenant_id in ModelAccess.objects.values_list("model_id", "tenant_id"):
        access[model_id].add(tenant_id)
    return {
        served.name: Model(
            id=served.model_id,
            name=served.name,
            task=served.task,
            created=served.created,
            context=served.context,
            external=engine_named(served.engine).external,
            stops_unary=engine_named(served.engine).stops_unary,
            tenants=frozenset(access[served.model_id]) if served.model_id in access else None,
            loading_on=served.loading_on,
            no_room=served.no_room,
            hosts=served.nodes,
            retires=_retirement(served.retires_on),
            timeouts=_timeouts(served),
            replicas=tuple(replicas[served.model_id]),
            loops=LoopPolicy(read_mode(served.loops) or "count", SENSITIVITIES.get(served.loop_sensitivity, NORMAL)),
            presets=tuple(ParameterPreset(*preset) for preset in served.presets),
        )
        for served in routes.served_models()
    }


def _retirement(day: date | None) -> Retirement | None:
    """Return when the model retires. Days begin in the server's time zone (TIME_ZONE)."""
    if day is None:
        return None
    return Retirement(datetime.combine(day, time(), timezone.get_default_timezone()).timestamp(), day.isoformat())


def _timeouts(served: routes.Served) -> Timeouts:
    """Return the model's own time-outs; where it has none, those of the settings."""
    return Timeouts(
        connect=served.connect_timeout or settings.GATEWAY_CONNECT_TIMEOUT,
        first_byte=served.first_byte_timeout or settings.GATEWAY_FIRST_BYTE_TIMEOUT,
        idle=served.idle_timeout or settings.GATEWAY_IDLE_TIMEOUT,
        total=served.total_timeout or settings.GATEWAY_TOTAL_TIMEOUT,
    )


def _usage_since(limit: Limit, now: float) -> Spending:
    counter = limit.counter
    owner = "user" if counter.scope == "member" else counter.scope
    owner_filter: dict[str, Any] = {f"{owner}_id": counter.owner}
    if owner == "key":
        owner_filter = {"key_id__in": lineage.lineage_of([counter.owner]).chain(counter.owner)}
    begin, _ = windows.window_bounds(counter.window, now, limit.zone)
    records = UsageRecord.objects.filter(**owner_filter, started_at__gte=datetime.fromtimestamp(begin, UTC))
    if counter.tenant is not None:
        records = records.filter(tenant=counter.tenant)
    if counter.model is not None:  # gone meanwhile: nothing is recorded under no name
        records = records.filter(model__in=ServedModel.objects.filter(pk=counter.model).values("name"))
    recorded = units.UNITS[counter.unit.name].recorded
    facts = records.aggregate(used=Sum(recorded, default=0), newest=Max("started_at"))
    return Spending(facts["used"], facts["newest"].timestamp() if facts["newest"] else 0.0)


def _record(row: Usage) -> dict[str, Any]:
    """Return the row by UsageRecord's columns."""
    facts = {COLUMNS.get(name, name): value for name, value in vars(row).items()}
    facts["started_at"] = datetime.fromtimestamp(facts.pop("started"), UTC)
    facts["client_class"] = client_classes.classify_client(row.client)
    return facts
