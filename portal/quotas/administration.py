"""Give quotas and take them away; ask for more, grant it or not. For pages, the API and commands.

Who may do what: operators give tenants, people (everywhere) and the default of each tenant, and may do all the rest.
Admins of a tenant give its members, its keys and its defaults, up to what the tenant itself has. A person sets no
quota of their own and decides no request of their own. Each verb is one transaction; what cannot be done raises
Refused.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Count, Exists, F, OuterRef, Q, QuerySet
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _

from modelregistry.models import ServedModel
from portal.accounts import permissions
from portal.accounts.models import Membership, Tenant, User
from portal.keys.models import ApiKey
from portal.quotas import policy
from portal.quotas.models import Quota, QuotaRequest
from portal.quotas.signals import quota_removal_requested, quota_removed
from portal.quotas.units import UNITS
from portal.web.notify import notify
from portal.web.refusals import Refused
from portal.web.templatetags.formatting import figure, person

MAX_AMOUNT = 2**63 - 1  # what the column holds


class QuotaRefused(Refused):
    """What was asked of a quota cannot be."""


class NotAllowed(QuotaRefused):
    """Another person may do it."""

    allowed = False


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaTarget:
    """The owner of a quota that is or would be: the columns of Quota by the same names, see its docstring."""

    tenant: Tenant | None = None
    user: User | None = None
    key: ApiKey | None = None
    default_for: str = ""

    @property
    def home(self) -> Tenant | None:
        """The tenant whose admins may give this. None: operators only."""
        if self.key:
            return self.key.tenant
        return self.tenant if self.user or self.default_for else None

    @property
    def columns(self) -> dict[str, Any]:
        return {"tenant": self.tenant, "user": self.user, "key": self.key, "default_for": self.default_for}

    @property
    def person(self) -> User | None:
        """Who profits alone: a member, a user, the bearer of a personal key."""
        return self.key.user if self.key else self.user


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaKind:
    """What a quota counts: `unit` per `window` ("" for requests at the same time), of one model or of all (None)."""

    unit: str
    window: str = ""
    model: ServedModel | None = None

    @property
    def columns(self) -> dict[str, Any]:
        return {"unit": self.unit, "window": self.window, "model": self.model}


def quota_target(row: Quota | QuotaRequest) -> QuotaTarget:
    """Return the owner of this quota, or of the quota that is requested."""
    if isinstance(row, Quota):
        return QuotaTarget(tenant=row.tenant, user=row.user, key=row.key, default_for=row.default_for)
    return QuotaTarget(key=row.key) if row.key else QuotaTarget(tenant=row.tenant, user=row.user)


def quota_kind(row: Quota | QuotaRequest) -> QuotaKind:
    return QuotaKind(unit=row.unit, window=row.window, model=row.model)


def effective_amount(to: QuotaTarget, what: QuotaKind) -> int | None:
    """Return the amount in force for this tenant, member or key: its own or the default; None: there is no limit.

    One query.
    """
    tenant = to.key.tenant if to.key else to.tenant
    if tenant is None or to.default_for:
        return None
    keys, users = ([to.key.pk] if to.key else []), ([to.user.pk] if to.user else [])
    rules = policy.Policy(Quota.objects.filter(policy.applying_to(tenants=[tenant.pk], users=users, keys=keys)))
    if to.key:
        bounds = rules.key(to.key.pk, tenant.pk, to.key.user_id)
    else:
        bounds = rules.member(tenant.pk, to.user.pk) if to.user else rules.tenant(tenant.pk)
    kind = (what.model.pk if what.model else None, what.unit, what.window)
    return next((bound.quota.amount for bound in bounds if policy.kind_of(bound.quota) == kind), None)


def current_amounts(requests: Iterable[QuotaRequest]) -> dict[int, int | None]:
    """Return the amount in force now for the owner of each request, by primary key; None: no limit. One query."""
    rows = list(requests)
    users, keys = {row.user_id for row in rows if row.user_id}, {row.key_id for row in rows if row.key_id}
    tenants = {row.tenant_id for row in rows}
    rules = policy.Policy(Quota.objects.filter(policy.applying_to(tenants=tenants, users=users, keys=keys)))
    found: dict[int, int | None] = {}
    for row in rows:
        if row.key:
            bounds = rules.key(row.key.pk, row.key.tenant_id, row.key.user_id)
        else:
            bounds = rules.member(row.tenant_id, row.user_id) if row.user_id else rules.tenant(row.tenant_id)
        kind = (row.model_id, row.unit, row.window)
        found[row.pk] = next((bound.quota.amount for bound in bounds if policy.kind_of(bound.quota) == kind), None)
    return found


# --- to set quotas


def may_set(by: User, to: QuotaTarget) -> bool:
    """Return whether this person may set such a quota at all; how much is another question. One query at most."""
    if permissions.may_operate(by):
        return True
    return to.home is not None and to.person != by and permissions.administers(by, to.home)


def max_grantable(by: User, to: QuotaTarget, what: QuotaKind) -> int | None:
    """Return the most that this person may give of it: for admins what the tenant itself has. None: any amount."""
    if permissions.may_operate(by) or to.home is None:
        return None
    return effective_amount(QuotaTarget(tenant=to.home), what)


def set_quota(by: User, to: QuotaTarget, what: QuotaKind, amount: int) -> Quota:
    """Set the quota, be there one already or not. 0 blocks. Raises Refused."""
    with transaction.atomic():
        check_quota(by, to, what, amount)
        return _save_quota(to, what, amount)


def check_quota(by: User, to: QuotaTarget, what: QuotaKind, amount: int) -> None:
    """Raise Refused if this person cannot set this quota."""
    _check_may_set(by, to)
    _check_amount(by, to, what, amount)


def remove_quota(by: User, quota: Quota) -> None:
    """Delete it: from then on the default applies, if there is one. Raises Refused."""
    _check_may_set(by, quota_target(quota))
    delete_quota(quota)


def check_removal(quota: Quota) -> None:
    """Raise QuotaRefused if a package above needs the quota, which then no page, command or admin removes."""
    quota_removal_requested.send(Quota, quota=quota)


def delete_quota(quota: Quota) -> None:
    """Delete it for a caller who may: a page, the API, a command, Django's admin. Raises QuotaRefused."""
    with transaction.atomic():
        check_removal(quota)
        quota.delete()
        quota_removed.send(Quota, quota=quota)


# --- to request more


def may_ask(by: User, to: QuotaTarget) -> bool:
    """Return whether this person may request more: for themselves, a key of theirs, or a tenant that they administer.

    A key is theirs if they use it or are responsible for it. Two queries at most.
    """
    if to.default_for or (to.key is None and to.tenant is None):
        return False
    if to.key:
        return by in (to.key.user, to.key.responsible) or (
            not to.key.user_id and permissions.administers(by, to.key.tenant)
        )
    assert to.tenant is not None
    if to.user:
        return to.user == by and Membership.objects.filter(user=by, tenant=to.tenant).exists()
    return permissions.administers(by, to.tenant)


def create_request(by: User, to: QuotaTarget, what: QuotaKind, amount: int, reason: str = "") -> QuotaRequest:
    """Create a request and notify those who may grant it. Raises Refused."""
    home = to.key.tenant if to.key else to.tenant
    if home is None or not may_ask(by, to):
        raise NotAllowed(
            _("You cannot request this. Only the person that it is for, or the person responsible for the key, can."),
            code="not-yours",
        )
    with transaction.atomic():
        previous = effective_amount(to, what)
        if previous is None:
            raise QuotaRefused(_("There is currently no quota here, so there is nothing to request."), code="no-quota")
        _check_is_more(amount, previous)
        quota_request = QuotaRequest(
            **{"tenant": home, "user": to.user, "key": to.key, **what.columns},
            **{"amount": amount, "previous_amount": previous, "reason": reason[:500], "asked_by": by},
        )
        try:
            with transaction.atomic():  # a savepoint: PostgreSQL would refuse all that follows otherwise
                quota_request.save()
        except IntegrityError as error:
            raise QuotaRefused(
                _("This has been requested already and waits for a decision."), code="requested"
            ) from error
        _notify_deciders(quota_request)
    return quota_request


def change_request(by: User, quota_request: QuotaRequest, amount: int, reason: str) -> QuotaRequest:
    """Change the amount and the reason of one's own request before it is answered. Raises Refused."""
    with transaction.atomic():
        row = _lock_open(quota_request)
        if row.asked_by != by:
            raise NotAllowed(_("Only the person who made this request can change it."), code="not-yours")
        now = effective_amount(quota_target(row), quota_kind(row))
        _check_is_more(amount, row.previous_amount if now is None else now)
        row.amount, row.reason = amount, reason[:500]
        row.save(update_fields=["amount", "reason"])
        return row


def may_decide(by: User, quota_request: QuotaRequest) -> bool:
    """Return whether this person may decide the request: operators, of a member or a key the tenant's admins too.

    No person decides their own.
    """
    return quota_request.pk in requests_to_decide(by, [quota_request])


def requests_to_decide(by: User, requests: Iterable[QuotaRequest]) -> set[int]:
    """Return those of them that this person may decide, by primary key. One query, for an operator none."""
    to = {
        quota_request.pk: quota_target(quota_request)
        for quota_request in requests
        if by not in (quota_request.asked_by, quota_target(quota_request).person)
    }
    if permissions.may_operate(by):
        return set(to)
    homes = {whose.home.pk for whose in to.values() if whose.home}
    mine = set(permissions.administered_tenants(by).filter(pk__in=homes).values_list("pk", flat=True))
    return {pk for pk, whose in to.items() if by.is_active and whose.home and whose.home.pk in mine}


def deciders(quota_request: QuotaRequest) -> QuerySet[User]:
    """Return who is to decide: for a member or a key the tenant's other admins, if there are any; else operators."""
    if quota_request.user_id or quota_request.key_id:
        admins = permissions.admins_of(quota_request.tenant).exclude(pk=quota_request.asked_by_id or 0)
        if admins.exists():
            return admins
    return permissions.operators().exclude(pk=quota_request.asked_by_id or 0)


def grant_request(by: User, quota_request: QuotaRequest, amount: int | None = None, note: str = "") -> QuotaRequest:
    """Give what was requested, or another `amount`, and notify who asked. Raises Refused; also if answered before."""
    with transaction.atomic():
        row = _lock_for_decision(by, quota_request)
        given = row.amount if amount is None else amount
        _check_grant(by, row, given)
        _save_quota(quota_target(row), quota_kind(row), given)
        row.granted = given
        return _decide(row, by, QuotaRequest.State.GRANTED, note)


def check_grant(by: User, quota_request: QuotaRequest, amount: int) -> None:
    """Raise Refused if this person cannot grant this amount."""
    with transaction.atomic():
        _check_grant(by, _lock_for_decision(by, quota_request), amount)


def refuse_request(by: User, quota_request: QuotaRequest, note: str) -> QuotaRequest:
    """Refuse a request and say why. Raises Refused, also when answered already."""
    if not note.strip():
        raise QuotaRefused(_("Please give a reason in a few words."), code="no-reason")
    with transaction.atomic():
        return _decide(_lock_for_decision(by, quota_request), by, QuotaRequest.State.REFUSED, note)


def withdraw_request(by: User, quota_request: QuotaRequest) -> QuotaRequest:
    """Withdraw one's own request. Raises Refused, also when answered already."""
    with transaction.atomic():
        row = _lock_open(quota_request)
        if row.asked_by != by:
            raise NotAllowed(_("Only the person who made this request can withdraw it."), code="not-yours")
        row.state, row.decided_at = QuotaRequest.State.WITHDRAWN, timezone.now()
        row.save(update_fields=["state", "decided_at"])
        return row


def waiting_for(user: User) -> QuerySet[QuotaRequest]:
    """Return the open requests that this person is to answer.

    Of members and keys: the admins of the tenant. Of tenants, and where no admin can: operators.
    """
    of_people = Q(user__isnull=False) | Q(key__isnull=False)
    mine = Q(tenant__memberships__user=user, tenant__memberships__role=Membership.Role.ADMIN)
    wanted = of_people & Q(pk__in=QuotaRequest.objects.filter(mine))
    if permissions.may_operate(user):
        admins = Membership.objects.filter(
            tenant=OuterRef("tenant"), role=Membership.Role.ADMIN, user__is_active=True
        ).exclude(user=OuterRef("asked_by"))
        wanted = wanted | ~of_people | Q(~Exists(admins))
    return (
        QuotaRequest.objects.filter(wanted, state=QuotaRequest.State.OPEN)
        .exclude(asked_by=user)
        .select_related("tenant", "user", "key__user", "key__tenant", "model", "asked_by")
        .order_by("asked_at")
    )


def count_waiting(user: User) -> QuerySet[QuotaRequest, tuple[str, str, int]]:
    """Return what finds (short name and name of a tenant, how many of these are in it)."""
    waiting = waiting_for(user).order_by().select_related(None)
    by_tenant: QuerySet[Any, Any] = waiting.annotate(slug=F("tenant__slug"), of=F("tenant__name"))
    counted: QuerySet[QuotaRequest, tuple[str, str, int]] = by_tenant.values_list("slug", "of").annotate(
        number=Count("pk")
    )
    return counted


def _check_may_set(by: User, to: QuotaTarget) -> None:
    if may_set(by, to):
        return
    if to.person == by:
        raise NotAllowed(
            _("You cannot set this for yourself: another admin of the tenant or an operator can."), code="your-own"
        )
    raise NotAllowed(_("This quota is set by the people who run this server."), code="operators-only")


def _check_amount(by: User, to: QuotaTarget, what: QuotaKind, amount: int) -> None:
    if what.unit not in UNITS or what.window not in ("", *Quota.Window.values):
        raise QuotaRefused(_("There is no such unit."), code="unit")
    if what.window not in UNITS[what.unit].windows:
        raise QuotaRefused(_("Requests at the same time have no window; all other units need one."), code="window")
    _check_bounds(amount)
    if to.tenant and to.user and not Membership.objects.filter(user=to.user, tenant=to.tenant).exists():
        raise QuotaRefused(
            _("%(person)s is not a member of %(tenant)s.") % {"person": person(to.user), "tenant": to.tenant},
            code="not-a-member",
        )
    most = max_grantable(by, to, what)
    if most is not None and amount > most:
        raise QuotaRefused(
            _("%(tenant)s itself has %(amount)s. Give at most that, or request more for the tenant first.")
            % {"tenant": to.home, "amount": figure(most)},
            code="more-than-tenant",
        )


def _check_grant(by: User, row: QuotaRequest, amount: int) -> None:
    to, what = quota_target(row), quota_kind(row)
    now = effective_amount(to, what)
    if now is not None and amount <= now:
        raise QuotaRefused(
            _("That is not more than the current amount: %(amount)s.") % {"amount": figure(now)}, code="not-more"
        )
    _check_amount(by, to, what, amount)


def _check_bounds(amount: int) -> None:
    if amount < 0:
        raise QuotaRefused(_("Give a whole number, 0 or more."), code="amount")
    if amount > MAX_AMOUNT:
        raise QuotaRefused(
            _("No quota can be that large. The most is %(most)s.") % {"most": figure(MAX_AMOUNT)}, code="too-much"
        )


def _check_is_more(amount: int, previous: int) -> None:
    _check_bounds(amount)
    if amount <= previous:
        raise QuotaRefused(
            _("Request more than you have now: %(amount)s.") % {"amount": figure(previous)}, code="not-more"
        )


def _save_quota(to: QuotaTarget, what: QuotaKind, amount: int) -> Quota:
    quota, _created = Quota.objects.update_or_create(**to.columns, **what.columns, defaults={"amount": amount})
    return quota


def _lock_open(quota_request: QuotaRequest) -> QuotaRequest:
    """Return the row as it is now, locked: no other decision comes before this transaction ends.

    SQLite lets one write at a time, so nothing is locked there.
    """
    row = (
        QuotaRequest.objects.select_for_update(of=("self",))
        .select_related("tenant", "user", "key__user", "key__tenant", "model", "asked_by", "decided_by")
        .get(pk=quota_request.pk)
    )
    if row.state != QuotaRequest.State.OPEN:
        raise QuotaRefused(_describe_answer(row), code=row.state)
    return row


def _describe_answer(row: QuotaRequest) -> str:
    if row.state == QuotaRequest.State.WITHDRAWN:
        return _("This request has been withdrawn.")
    if row.decided_by is None:
        return _("This request has been decided already.")
    return _("%(person)s has decided on this request already.") % {"person": person(row.decided_by)}


def _lock_for_decision(by: User, quota_request: QuotaRequest) -> QuotaRequest:
    row = _lock_open(quota_request)
    if may_decide(by, row):
        return row
    if by in (row.asked_by, quota_target(row).person):
        raise NotAllowed(
            _("You cannot decide on your own request: another admin of the tenant or an operator can."), code="your-own"
        )
    raise NotAllowed(_("You cannot decide on this request."), code="not-yours")


def _decide(row: QuotaRequest, by: User, state: str, note: str) -> QuotaRequest:
    row.state, row.decided_by, row.decided_at, row.note = state, by, timezone.now(), note.strip()[:500]
    row.save(update_fields=["state", "granted", "decided_by", "decided_at", "note"])
    _notify_requester(row)
    return row


def _notify_deciders(quota_request: QuotaRequest) -> None:
    assert quota_request.asked_by is not None
    notify(
        deciders(quota_request),
        "request-asked",
        str(quota_request.pk),
        path=reverse("tenant-requests", args=[quota_request.tenant.slug]),
        **{
            "asker": person(quota_request.asked_by),
            "tenant": quota_request.tenant.name,
            "previous_amount": quota_request.previous_amount,
            "reason": quota_request.reason,
        },
        **_quota_facts(quota_request),
    )


def _notify_requester(row: QuotaRequest) -> None:
    if row.asked_by and row.decided_by:
        notify(
            [row.asked_by],
            "request-decided",
            str(row.pk),
            path=reverse("home"),
            **{"by": person(row.decided_by), "granted": row.granted, "note": row.note},
            **_quota_facts(row),
        )


def _quota_facts(quota_request: QuotaRequest) -> dict[str, Any]:
    """Return what a notice says of the quota that is requested."""
    model = quota_request.model.name if quota_request.model else ""
    return {"unit": quota_request.unit, "window": quota_request.window, "model": model, "amount": quota_request.amount}
