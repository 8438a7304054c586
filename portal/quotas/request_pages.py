"""Requests for more on pages: at the bar of a quota, and among a person's own requests."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

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
    asked = {}
    if shown:
        tenants = {one.tenant for one in shown if one.tenant}
        rows = QuotaRequest.objects.filter(state=QuotaRequest.State.OPEN, tenant__name__in=tenants)
        for row in rows.select_related("tenant", "user", "key", "model"):
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


def requests_of(reader: User, now: datetime) -> list[QuotaRequest]:
    """Return the person's requests that wait or were answered lately, the newest first. One query."""
    mine = QuotaRequest.objects.filter(asked_by=reader).exclude(state=QuotaRequest.State.WITHDRAWN)
    waiting, lately = mine.filter(state=QuotaRequest.State.OPEN), mine.filter(decided_at__gte=now - RECENT)
    return list((waiting | lately).select_related("tenant", "user", "key", "model", "decided_by")[:MAX_REQUESTS])
