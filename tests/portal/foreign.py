"""Rows of another tenant for every list of the site, each with a mark that its reader would see."""

from dataclasses import dataclass
from typing import Any

from django.utils import timezone

from portal.accounts.models import Membership, Tenant, User
from portal.audit import tracking
from portal.keys.models import ApiKey
from portal.quotas.models import Quota, QuotaRequest
from portal.usage.models import RejectionHour
from portal.web.notify import notify
from tests.conftest import person
from tests.pages import key_of, management_key_of, service_key_of, use

MARK = "zzforeign"  # in each text, whatever its case
AMOUNT = 987_654_321  # of each quota and request, and the tokens of each call; also written with commas


@dataclass(frozen=True)
class Foreign:
    """`both` belongs to the other tenant as well as to the reader's, with rows in either."""

    tenant: Tenant
    both: User
    keys: tuple[ApiKey, ...]

    def seen_in(self, text: str) -> set[str]:
        """Return what of it is in an answer."""
        sums = [AMOUNT * calls for calls in (1, 2, 3)]
        marks = {MARK, *map(str, sums), *(f"{number:,}" for number in sums), *(key.prefix for key in self.keys)}
        return {mark for mark in marks if mark in text.lower() or mark in text}

    def seen_beside_its_name(self, text: str) -> set[str]:
        """Return the same, but for the tenant's own name and address: who may see both chooses between them."""
        for name in (self.tenant.name, f"tenant:{MARK}", f"tenant/{MARK}", f"tenant={MARK}"):
            text = text.replace(name, "")
        return self.seen_in(text)


def fill(home: Tenant) -> Foreign:
    """Return another tenant with a row in every list, and a member of both, whose rows there are hidden in `home`."""
    tenant = Tenant.objects.create(slug=MARK, name="Zzforeign 部")
    both = person("dora", home, first_name="Dora")
    Membership.objects.create(user=both, tenant=tenant)
    stranger = person(f"{MARK}-eve", tenant, role="admin", first_name="Zzforeign Eve")
    keys = (
        key_of(both, tenant, f"{MARK} dora", purpose=MARK, created_by=both),
        key_of(stranger, tenant, f"{MARK} eve"),
        service_key_of(tenant, f"{MARK} bot", responsible=stranger),
    )
    limit = {"unit": "tokens", "window": "day", "amount": AMOUNT}
    owners: list[dict[str, Any]] = [
        {"tenant": tenant},
        {"tenant": tenant, "default_for": "member"},
        {"tenant": tenant, "default_for": "service"},
        {"tenant": tenant, "user": both},
        {"tenant": tenant, "user": stranger},
        *({"key": key} for key in keys),
    ]
    for owner in owners:
        Quota.objects.create(**owner, **limit)
    quota_request = {**limit, "tenant": tenant, "previous_amount": 1, "reason": MARK}
    for asked_by, owner in ((both, {"user": both}), (stranger, {}), (stranger, {"key": keys[2]})):
        QuotaRequest.objects.create(**quota_request, asked_by=asked_by, **owner)
        QuotaRequest.objects.create(
            **{**quota_request, "window": "month"}, asked_by=asked_by, **owner, state="refused", note=MARK,
            decided_by=stranger, decided_at=timezone.now(),
        )  # fmt: skip
    for key in keys:
        use(key, tokens=(AMOUNT, 0), end_user=f"{MARK} customer")
        RejectionHour.objects.create(
            hour=timezone.now().replace(minute=0, second=0, microsecond=0), tenant=tenant, user=key.user, key=key,
            model="qwen", code="rate_limit_exceeded", requests=1,
        )  # fmt: skip
    management_key_of(stranger, "usage:read", name=MARK)
    notify([stranger], "membership-ended", MARK, tenant=MARK, keys=1)
    tracking.record_event("key.models", keys[1], "key", after={"models": [MARK]}, tenant=tenant)
    return Foreign(tenant=tenant, both=both, keys=keys)
