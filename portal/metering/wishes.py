"""Wishes for more as people meet them: at the bar of a quota, and among their own requests."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.http import Http404

from modelregistry.models import ServedModel
from portal.accounts import tenancy
from portal.accounts.models import Tenant, User
from portal.keys import keyring
from portal.metering import giving
from portal.metering.allowance import Allowance
from portal.metering.giving import Measure, Whose
from portal.metering.models import Quota, QuotaRequest

# How long an answer stays on one's home page, and how many requests do.
RECENT = timedelta(days=14)
MOST = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A quota as its reader sees it. `wish`: an open request for more of it, whoever asked."""

    allowance: Allowance
    may_ask: bool
    wish: QuotaRequest | None


def bars(reader: User, allowances: Iterable[Allowance]) -> list[Bar]:
    """Two queries at most: which tenants this person may ask for, and what has been asked for."""
    shown = list(allowances)
    slugs = {one.to.partition(":")[2] for one in shown if one.of == "tenant"}
    mine = set(tenancy.administered_tenants(reader).filter(slug__in=slugs).values_list("slug", flat=True))
    asked = {}
    if shown:
        tenants = {one.tenant for one in shown if one.tenant}
        rows = QuotaRequest.objects.filter(state=QuotaRequest.State.OPEN, tenant__name__in=tenants)
        for row in rows.select_related("tenant", "user", "key", "model"):
            asked[name_of(row), row.user_id or 0, row.unit, row.window, row.model.name if row.model else ""] = row
    return [
        Bar(
            allowance=one,
            may_ask=bool(one.to) and (one.of != "tenant" or one.to.partition(":")[2] in mine),
            wish=asked.get((one.to, one.user, one.unit, one.window, one.model)),
        )
        for one in shown
    ]


def name_of(row: QuotaRequest) -> str:
    """As Allowance.to."""
    if row.key:
        return f"key:{row.key.prefix}"
    return f"member:{row.tenant.slug}" if row.user_id else f"tenant:{row.tenant.slug}"


def find(by: User, name: str) -> Whose:
    """What Allowance.to names, for this person. Raises Http404 for what is not there or not theirs to ask for."""
    kind, _, which = name.partition(":")
    to = None
    if kind == "key":
        key = keyring.viewable(by).filter(prefix=which).first()
        to = Whose(key=key) if key else None
    elif kind in ("tenant", "member"):
        tenant = Tenant.objects.filter(slug=which).first()
        to = Whose(tenant=tenant, user=by if kind == "member" else None) if tenant else None
    if to is None or not giving.may_ask(by, to):
        raise Http404
    return to


def measure(unit: str, window: str, model: str) -> Measure:
    """From the words of an address or a form. Raises Http404."""
    if unit not in Quota.Unit.values or window not in ("", *Quota.Window.values):
        raise Http404
    served = ServedModel.objects.filter(name=model).first() if model else None
    if model and served is None:
        raise Http404
    return Measure(unit=unit, window=window, model=served)


def proposal(now: int | None) -> int | None:
    """What one click asks for: double."""
    return 2 * now if now else None


def of(reader: User, now: datetime) -> list[QuotaRequest]:
    """This person's requests that wait or were answered lately, the newest first. One query."""
    mine = QuotaRequest.objects.filter(asked_by=reader).exclude(state=QuotaRequest.State.WITHDRAWN)
    waiting, lately = mine.filter(state=QuotaRequest.State.OPEN), mine.filter(decided_at__gte=now - RECENT)
    return list((waiting | lately).select_related("tenant", "user", "key", "model", "decided_by")[:MOST])
