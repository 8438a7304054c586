"""What a quota would do that its giver may not mean. Pages ask once before they save it; the API and commands say it.

A script says exactly what it wants, so the API and `setquota` obey and name the cautions beside the quota.
"""

from collections.abc import Iterable
from itertools import chain

from django.utils.translation import gettext as _

from portal.quotas import policy
from portal.quotas.administration import QuotaKind, QuotaTarget, quota_kind, quota_target
from portal.quotas.models import Quota, QuotaRequest
from portal.quotas.units import UNITS
from portal.web.cautions import Caution
from portal.web.templatetags.formatting import figure

# A hundred times as much as before is more often a slip (50万 for 50, two zeros too many) than meant.
LEAP = 100
WINDOWS = {"": 0, Quota.Window.MINUTE: 1, Quota.Window.DAY: 2, Quota.Window.MONTH: 3}
CODES = ("blocks-all", "never-reached", "leap")


def find_cautions(to: QuotaTarget, what: QuotaKind, amount: int) -> list[Caution]:
    """Return each thing to ask about before this quota is saved, in the order of CODES. Two queries."""
    own = Quota.objects.filter(**to.columns, **what.columns).first()
    if own is not None and own.amount == amount:
        return []
    if amount == 0:
        blocked = _block(to, what)
        return [blocked] if blocked else []
    found = []
    before, beside = _read_beside(to, what)
    lower = [quota for quota in beside if _reached_first(quota, what, amount)]
    if lower:
        least = min(lower, key=lambda quota: quota.amount)
        limit = UNITS[least.unit].format_amount(least.amount, least.window)
        if least.model is not None:
            limit = _("%(amount)s of %(model)s") % {"amount": limit, "model": least.model.name}
        sentence = _("This amount can never be used up, because another quota ends it first: %(limit)s.")
        found.append(Caution("never-reached", sentence % {"limit": limit}))
    if before and amount >= LEAP * before:
        sentence = _("This is %(times)s times the current quota (%(amount)s).")
        found.append(Caution("leap", sentence % {"times": figure(amount // before), "amount": figure(before)}))
    return found


def find_grant_cautions(quota_request: QuotaRequest, amount: int) -> list[Caution]:
    """Return the same of a request that would be granted so much. Two queries."""
    return find_cautions(quota_target(quota_request), quota_kind(quota_request), amount)


def _block(to: QuotaTarget, what: QuotaKind) -> Caution | None:
    """Return the caution for 0. None for a person or a key alone: who gives it there means it."""
    if to.key or to.user:
        return None
    if what.model:
        sentence = _(
            "0 refuses every request to %(model)s with error 429, for everyone here, until the quota is raised or"
            " removed."
        ) % {"model": what.model.name}
    else:
        sentence = _("0 refuses every request with error 429, for everyone here, until the quota is raised or removed.")
    if to.default_for:
        sentence += " " + _("Only those with a quota of their own of this kind can go on.")
    return Caution("blocks-all", sentence)


def _read_beside(to: QuotaTarget, what: QuotaKind) -> tuple[int | None, list[Quota]]:
    """Return the amount in force for the owner, and the other quotas that bind the same calls. One query."""
    tenant = to.key.tenant if to.key else to.tenant
    users, keys = ([to.user.pk] if to.user else []), ([to.key.pk] if to.key else [])
    rows = Quota.objects.filter(
        policy.applying_to(tenants=[tenant.pk] if tenant else [], users=users, keys=keys)
    ).select_related("model")
    rules = policy.Policy(rows)
    mine: Iterable[policy.AppliedQuota] = ()
    defaults: Iterable[Quota] = ()
    if to.default_for:
        home = to.tenant.pk if to.tenant else None
        defaults = [quota for quota in rows if quota.default_for == to.default_for and quota.tenant_id == home]
    elif to.key and tenant:
        mine = rules.key(to.key.pk, tenant.pk, to.key.user_id)
    elif to.user:
        mine = rules.member(tenant.pk, to.user.pk) if tenant else rules.user(to.user.pk)
    elif tenant:
        mine = rules.tenant(tenant.pk)
    kind = (what.model.pk if what.model else None, what.unit, what.window)
    own = list(chain((bound.quota for bound in mine), defaults))
    before = next((quota.amount for quota in own if policy.kind_of(quota) == kind), None)
    others = [quota for quota in own if policy.kind_of(quota) != kind]
    if to.home:
        others += [bound.quota for bound in rules.tenant(to.home.pk)]
    return before, others


def _reached_first(quota: Quota, what: QuotaKind, amount: int) -> bool:
    """Return whether this quota is used up before `amount` of `what` could be: it counts at least the same, longer."""
    counts_the_same = quota.unit == what.unit and quota.model in (None, what.model)
    return counts_the_same and WINDOWS[quota.window] >= WINDOWS[what.window] and quota.amount < amount
