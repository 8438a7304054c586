"""Requests for more on pages: at the bar of a quota, and among a person's own requests."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import Q
from django.http import Http404

from modelregistry.models import ServedModel
from portal.accounts import permissions
from portal.accounts.models import Tenant, User
from portal.keys import queries
from portal.quotas import administration
from portal.quotas.administration import QuotaKind, QuotaTarget
from portal.quotas.models import QuotaRequest
from portal.quotas.status import Allowance
from portal.quotas.units import UNITS

# How long an answer stays on one's home page, and how many requests do.
RECENT = timedelta(days=14)
MAX_REQUESTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaBar:
    """A quota as its reader sees it. `open_request`: a request for more of it, by any person."""

    allowance: Allowance
    may_ask: bool
    open_request: QuotaRequest | None


def quota_bars(reader: User, allowances: Iterable[Allowance]) -> list[QuotaBar]:
    """Return quotas with whether this person may request more, and what is requested already. Two queries at most."""
    shown = list(allowances)
    slugs = {one.to.partition(":")[2] for one in shown if one.of == "tenant"}
    mine = slugs  # of operators: they administer all
    if not permissions.may_operate(reader):
        mine = set(permissions.administered_tenants(reader).filter(slug__in=slugs).values_list("slug", flat=True))
    rows = QuotaRequest.objects.filter(_open_beside(shown)) if shown else QuotaRequest.objects.none()
    return _make_bars(shown, mine, rows.select_related("tenant", "user", "key", "model"))


def read_bars_and_requests(
    reader: User, allowances: Sequence[Allowance], administered: Collection[str], now: datetime
) -> tuple[list[QuotaBar], list[QuotaRequest]]:
    """Return `quota_bars` and the person's requests that wait or were answered lately, the newest first. One query.

    `administered`: the short names of those tenants of the quotas that the person administers; of operators not needed.
    """
    mine = Q(asked_by=reader) & (Q(state=QuotaRequest.State.OPEN) | Q(decided_at__gte=now - RECENT))
    of_mine = mine & ~Q(state=QuotaRequest.State.WITHDRAWN)
    rows = list(
        QuotaRequest.objects.filter(of_mine | _open_beside(allowances) if allowances else of_mine).select_related(
            "tenant", "user", "key", "model", "decided_by"
        )
    )
    slugs = {one.to.partition(":")[2] for one in allowances if one.of == "tenant"}
    bars = _make_bars(allowances, slugs if permissions.may_operate(reader) else administered, rows)
    return bars, [row for row in rows if row.asked_by_id == reader.pk][:MAX_REQUESTS]


def _open_beside(allowances: Iterable[Allowance]) -> Q:
    """Return the condition of open requests in the tenants of these quotas."""
    return Q(state=QuotaRequest.State.OPEN, tenant__name__in={one.tenant for one in allowances if one.tenant})


def _make_bars(shown: Iterable[Allowance], mine: Collection[str], rows: Iterable[QuotaRequest]) -> list[QuotaBar]:
    """Return the bars. `mine`: tenants for which the reader may ask; `rows`: requests, among them those that wait."""
    asked = {}
    for row in rows:
        if row.state == QuotaRequest.State.OPEN:
            asked[name_of(row), row.user_id or 0, row.unit, row.window, row.model.name if row.model else ""] = row
    return [
        QuotaBar(
            allowance=one,
            may_ask=bool(one.to) and (one.of != "tenant" or one.to.partition(":")[2] in mine),
            open_request=asked.get((one.to, one.user, one.unit, one.window, one.model)),
        )
        for one in shown
    ]


def name_of(row: QuotaRequest) -> str:
    """Return the name of the request's target, as Allowance.to."""
    if row.key:
        return f"key:{row.key.prefix}"
    return f"member:{row.tenant.slug}" if row.user_id else f"tenant:{row.tenant.slug}"


def find_request_target(by: User, name: str) -> QuotaTarget:
    """Return what Allowance.to names. Raises Http404 for what is not there or this person may not request."""
    kind, _, which = name.partition(":")
    to = None
    if kind == "key":
        key = queries.viewable_by(by).filter(prefix=which).first()
        to = QuotaTarget(key=key) if key else None
    elif kind in ("tenant", "member"):
        tenant = Tenant.objects.filter(slug=which).first()
        to = QuotaTarget(tenant=tenant, user=by if kind == "member" else None) if tenant else None
    if to is None or not administration.may_ask(by, to):
        raise Http404
    return to


def quota_kind_of(unit: str, window: str, model: str) -> QuotaKind:
    """Return the kind by the words of an address or a form. Raises Http404."""
    if unit not in UNITS or window not in UNITS[unit].windows:
        raise Http404
    served = ServedModel.objects.filter(name=model).first() if model else None
    if model and served is None:
        raise Http404
    return QuotaKind(unit=unit, window=window, model=served)


def proposed_amount(now: int | None) -> int | None:
    """Return what the form proposes: double."""
    return 2 * now if now else None
