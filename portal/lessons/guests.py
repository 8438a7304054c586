"""Guests: members of a tenant through a company-wide seminar alone, until it ends or its organiser takes the key back.

One limit binds all that a guest uses of the tenant's models, the key of the seminar and the playground together: a
quota of the member, of what their seminars of today give in all, within the tenant's default for members. A quota that
a person gave them, or changed, is kept instead. The seminars' own cannot be removed while they take part: it belongs to
being a guest. It follows at once what it is made of, whether or not the guest comes back to the playground.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable
from datetime import datetime, time

from django.db.models import Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _

from portal.accounts.models import Membership, Tenant, User
from portal.keys.models import ApiKey
from portal.lessons.models import Seminar, SeminarParticipant
from portal.quotas.administration import QuotaKind, QuotaRefused
from portal.quotas.models import Quota
from portal.quotas.units import TOKENS

PER_DAY = QuotaKind(unit=TOKENS.name, window="day")


def _guest_memberships(tenant: Tenant, people: Iterable[int]) -> QuerySet[Membership]:
    """Return the memberships of these people that joining a seminar may have made: no role and no source but its."""
    return Membership.objects.filter(
        tenant=tenant, user__in=people, source=Membership.Source.MANUAL, role=Membership.Role.MEMBER
    )


def is_guest(user: User, tenant: Tenant) -> bool:
    """Return whether this person is a member of the tenant through a seminar alone."""
    added = SeminarParticipant.objects.filter(
        user=user, seminar__tenant=tenant, seminar__ended_at=None, added_to_tenant=True
    )
    return added.exists() and _guest_memberships(tenant, [user.pk]).exists()


def end_guests(seminar: Seminar, people: Collection[int]) -> None:
    """Let these people, who were added to the tenant by this seminar, leave it.

    Those who also take part in another one of its tenant are members until that one is over.
    """
    others = SeminarParticipant.objects.filter(
        user__in=people,
        taken_back_at=None,
        seminar__tenant=seminar.tenant,
        seminar__ended_at=None,
        seminar__is_company_wide=True,
    ).exclude(seminar=seminar)
    handed_on = {one.user_id: one.pk for one in others}
    SeminarParticipant.objects.filter(pk__in=handed_on.values()).update(added_to_tenant=True)
    _guest_memberships(seminar.tenant, set(people) - handed_on.keys()).delete()


def limit_playground_key(key: ApiKey, **_facts: object) -> None:
    """Bring the limit of a key's person up to date, who may have become a member otherwise."""
    if key.user_id is not None:
        limit_guests(key.tenant, [key.user_id], timezone.now())


def keep_changed_limit(instance: Quota, *, created: bool, raw: bool = False, **_facts: object) -> None:
    """Let a limit that a person changes be theirs from then on. `_limit_guest` links its own again."""
    if not created and not raw and instance.user_id is not None:
        SeminarParticipant.objects.filter(limit=instance).update(limit=None)


def check_removal(quota: Quota, **_facts: object) -> None:
    """Raise QuotaRefused for the limit of a guest, which would come back with the next use of the playground."""
    if quota.user is None or quota.tenant is None or not SeminarParticipant.objects.filter(limit=quota).exists():
        return
    if is_guest(quota.user, quota.tenant):
        raise QuotaRefused(
            _("This limit belongs to a seminar in which the person takes part, until it ends. Set another amount."),
            code="of-a-seminar",
        )


def limit_guest_again(quota: Quota, **_facts: object) -> None:
    """Give a guest the limit of their seminars again when the quota that a person gave them instead is removed."""
    if quota.user_id is not None and quota.tenant is not None:
        limit_guests(quota.tenant, [quota.user_id], timezone.now())
    follow_default(quota)


def follow_default(instance: Quota, *, raw: bool = False, **_facts: object) -> None:
    """Bring the limits of a tenant's guests up to date when what each of its members has is set, or was removed.

    Also for what binds no member per day now: it may have done so until now.
    """
    tenant = instance.tenant
    if tenant is not None and instance.user_id is None and instance.key_id is None and not raw:
        rows = SeminarParticipant.objects.filter(seminar__tenant=tenant, seminar__ended_at=None)
        limit_guests(tenant, rows.values_list("user", flat=True), timezone.now())


def refresh_limits(now: datetime) -> None:
    """Bring the limits of guests up to date whose other seminars have ended: these count until midnight."""
    ended = SeminarParticipant.objects.filter(limit__isnull=False, seminar__ended_at__isnull=False)
    people: dict[int, set[int]] = defaultdict(set)
    for where, user in ended.values_list("seminar__tenant", "user"):
        people[where].add(user)
    for tenant in Tenant.objects.filter(pk__in=people):
        limit_guests(tenant, people[tenant.pk], now)


def limit_guests(tenant: Tenant, people: Iterable[int], now: datetime) -> None:
    """Give those of these people who are guests the limit of their seminars; take it from those who were."""
    rows = SeminarParticipant.objects.filter(seminar__tenant=tenant, user__in=list(people))
    concerned = rows.filter(Q(added_to_tenant=True) | Q(limit__isnull=False)).values("user")
    for user in User.objects.filter(pk__in=concerned).order_by("pk"):
        _limit_guest(user, tenant, now)


def _limit_guest(user: User, tenant: Tenant, now: datetime) -> None:
    rows = SeminarParticipant.objects.filter(user=user, seminar__tenant=tenant)
    # Two seminars that are joined at once give one limit.
    list(Membership.objects.select_for_update().filter(user=user, tenant=tenant).values("pk"))
    kind = {"unit": PER_DAY.unit, "window": PER_DAY.window, "model": None}
    # Locked before it is asked whose it is: a person may be changing it.
    quota = Quota.objects.select_for_update().filter(tenant=tenant, user=user, **kind).first()
    ours = quota if quota is not None and rows.filter(limit=quota).exists() else None
    amount = _sum_of_today(rows, tenant, now) if is_guest(user, tenant) else None
    if amount is None:
        if ours is not None:
            ours.delete()
        return
    if ours is None:
        if quota is not None:
            return  # of a person who gave or changed it
        ours = Quota(tenant=tenant, user=user, **kind)
    if ours.pk is None or ours.amount != amount:
        ours.amount = amount
        ours.save()
    rows.filter(seminar__ended_at=None).update(limit=ours)
    rows.filter(seminar__ended_at__lt=_midnight(tenant, now)).update(limit=None)  # they count no longer


def _sum_of_today(rows: QuerySet[SeminarParticipant], tenant: Tenant, now: datetime) -> int | None:
    """Return what the seminars give in all; None: one of them gives no limit.

    Those that ended today are among them, since what was used in them counts until midnight. Never more than the
    tenant's default for its members.
    """
    today = Q(seminar__ended_at=None) | Q(seminar__ended_at__gte=_midnight(tenant, now))
    given = list(rows.filter(today, taken_back_at=None).values_list("seminar__tokens", flat=True))
    finite = [tokens for tokens in given if tokens is not None]
    if len(finite) < len(given):
        return None
    default = Quota.objects.filter(
        default_for=Quota.DefaultFor.MEMBER, tenant=tenant, unit=PER_DAY.unit, window=PER_DAY.window, model=None
    )
    return min([sum(finite), *default.values_list("amount", flat=True)])


def _midnight(tenant: Tenant, now: datetime) -> datetime:
    """Return when the day began in the tenant's zone."""
    return datetime.combine(now.astimezone(tenant.zone).date(), time(), tenant.zone)
