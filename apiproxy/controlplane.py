"""The bridge between the gateway and the rest: the one file that sees portal and modelregistry.

Everything here asks the database and blocks; `apiproxy.asgi` calls it in a thread.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

from django.conf import settings
from django.db import DatabaseError, InterfaceError, OperationalError, close_old_connections
from django.db.models import F, Sum
from django.utils import timezone

from apiproxy.catalogue import Catalogue, Counter, Key, Limit, Model, Replica, Scope, Unit
from apiproxy.ledger import DatabaseAway, RecordRefused, Usage, plain
from apiproxy.models import CatalogueRevision
from modelregistry import routes
from modelregistry.models import ServedModel, Wish
from portal.accounts.models import Tenant
from portal.keys import secret
from portal.keys.models import ApiKey, ModelAccess
from portal.metering import usage, windows
from portal.metering.models import Quota, UsageRecord

T = TypeVar("T")
RENAMED = {"key": "key_id", "user": "user_id", "tenant": "tenant_id", "replica": "replica_id"}


def digest(key: str) -> str | None:
    """What the catalogue finds a key by; None for what cannot be one of our keys."""
    return secret.digest(key, settings.API_KEY_SECRET) if secret.well_formed(key) else None


def revision() -> int:
    """The catalogue's present number. Raises DatabaseAway."""
    return asked(lambda: CatalogueRevision.objects.filter(pk=1).values_list("number", flat=True).first() or 0)


def load() -> Catalogue:
    """The whole catalogue: seven queries. Raises DatabaseAway."""
    return asked(_load)


def spent(limit: Limit, now: float) -> int:
    """What UsageRecord says was used of this limit in its present window. Raises DatabaseAway."""
    return asked(lambda: _spent(limit, now))


def record(rows: Sequence[Usage]) -> None:
    """Writes usage; what is there already is left as it is. Raises DatabaseAway or RecordRefused."""
    records = [_record(row) for row in rows]
    try:
        asked(lambda: usage.record(records))
    except DatabaseError as error:
        raise RecordRefused(str(error)) from error


def wish(model: int) -> None:
    """Somebody wants this sleeping model. Raises DatabaseAway."""
    now = timezone.now()
    asked(lambda: Wish.objects.update_or_create(model_id=model, defaults={"at": now}, create_defaults={"at": now}))


def asked(question: Callable[[], T]) -> T:
    """The answer of the database; its absence becomes DatabaseAway. A broken connection is not used again."""
    close_old_connections()
    try:
        return question()
    except (OperationalError, InterfaceError) as error:
        raise DatabaseAway(f"the database does not answer: {error}") from error
    finally:
        close_old_connections()


def _load() -> Catalogue:
    # First the number, then the rows: a change in between is loaded again at the next poll, never missed.
    number = CatalogueRevision.objects.filter(pk=1).values_list("number", flat=True).first() or 0
    return Catalogue(revision=number, keys=_keys(), models=_models())


def _keys() -> dict[str, Key]:
    limits = _limits()
    restricted: dict[int, set[int]] = defaultdict(set)
    for key_id, model_id in ApiKey.allowed_models.through.objects.values_list("apikey_id", "servedmodel_id"):
        restricted[key_id].add(model_id)
    zones = {tenant.pk: tenant.zone for tenant in Tenant.objects.all()}
    rows = ApiKey.objects.usable().values_list("pk", "digest", "tenant_id", "user_id", "user__language", "expires_at")
    return {
        key_digest: Key(
            id=pk,
            tenant=tenant,
            user=user,
            language="en" if language == "en" else "ja",
            expires=expires.timestamp() if expires else None,
            models=frozenset(restricted[pk]) if pk in restricted else None,
            limits=tuple(
                Limit(counter, amount, zones[tenant])
                for owner in (("tenant", tenant), ("user", user), ("key", pk))
                for counter, amount in limits.get(owner, ())
            ),
        )
        for pk, key_digest, tenant, user, language, expires in rows
    }


def _limits() -> dict[tuple[str, int | None], list[tuple[Counter, int]]]:
    """By (scope, owner)."""
    found: dict[tuple[str, int | None], list[tuple[Counter, int]]] = defaultdict(list)
    for quota in Quota.objects.all():
        scope: Scope = "tenant" if quota.tenant_id else "user" if quota.user_id else "key"
        owner = cast(int, quota.tenant_id or quota.user_id or quota.key_id)  # the table's constraint: just one is set
        counter = Counter(scope, owner, quota.model_id, cast(Unit, quota.unit), quota.window)
        found[scope, owner].append((counter, quota.amount))
    return found


def _models() -> dict[str, Model]:
    replicas: dict[int, list[Replica]] = defaultdict(list)
    for route in routes.ready():
        replicas[route.model_id].append(
            Replica(id=route.replica_id, url=route.url, api_key=route.api_key, upstream_model=route.upstream_model)
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
            external=served.engine == ServedModel.Engine.EXTERNAL,
            stops_unary=served.engine != ServedModel.Engine.LLAMA_CPP,
            tenants=frozenset(access[served.model_id]) if served.model_id in access else None,
            can_load=served.can_load,
            replicas=tuple(replicas[served.model_id]),
        )
        for served in routes.served()
    }


def _spent(limit: Limit, now: float) -> int:
    counter = limit.counter
    begin, _ = windows.bounds(counter.window, now, limit.zone)
    records = UsageRecord.objects.filter(
        **{f"{counter.scope}_id": counter.owner}, started_at__gte=datetime.fromtimestamp(begin, UTC)
    )
    if counter.model is not None:
        records = records.filter(model=ServedModel.objects.values_list("name", flat=True).get(pk=counter.model))
    if counter.unit == "requests":
        return records.count()
    sums: dict[str, int] = records.aggregate(sum=Sum(F("prompt_tokens") + F("completion_tokens"), default=0))
    return sums["sum"]


def _record(row: Usage) -> dict[str, Any]:
    """As UsageRecord's columns."""
    facts = {RENAMED.get(name, name): value for name, value in plain(row).items()}
    facts["started_at"] = datetime.fromtimestamp(facts.pop("started"), UTC)
    return facts


def limits_of(keys: Iterable[Key]) -> set[Limit]:
    return {limit for key in keys for limit in key.limits}
