"""Write the quotas and defaults of the company, requests for higher quotas, and rejected requests.

Amounts follow from the usage, so that on every day some quotas are almost used up and a few are used up.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from random import Random
from zoneinfo import ZoneInfo

from django.db.models import F, Sum

from modelregistry.models import ServedModel
from portal.accounts.models import User
from portal.demo import workdays
from portal.demo.keyrings import Holder
from portal.demo.plan import DEPARTMENTS, ENGINEERS_MIX, LARGE, RESEARCH_MIX, Department
from portal.demo.staff import EMPLOYEE, HOME, Staff
from portal.keys.models import ApiKey
from portal.quotas import units
from portal.quotas.models import Quota, QuotaRequest
from portal.usage.models import RejectionHour, UsageDay

TOKENS, REQUESTS, CONCURRENT = units.TOKENS.name, units.REQUESTS.name, units.CONCURRENT.name
MONTH, DAY, MINUTE = Quota.Window.MONTH, Quota.Window.DAY, Quota.Window.MINUTE
# The part of its monthly tokens that a tenant has used by now; the others have plenty.
USED_UP = {HOME: 0.87, "legal": 0.94, "quality": 1.0, "aoba-software": 0.85}
REASONS = (
    ("展示会の準備で、今月だけ資料の翻訳が増えます。", "今月分を増やしました。来月は元に戻します。"),
    ("新人研修で全員が使うためです。", "研修の期間は問題ありません。"),
    ("長い契約書の要約で一日の上限に届いてしまいます。", "了解しました。"),
    ("決算の時期は使用量が倍になります。", "決算の間だけとします。"),
    ("提案書の下書きに毎日使っています。", "効果が出ているとのこと、増やします。"),
    ("議事録の要約を課の全員分まとめて行います。", "全体の上限内に収まるため承認します。"),
)
ENGINEERS = (
    ("コードレビューの対象リポジトリが増えました。", "効果が出ているとのこと、増やします。"),
    ("過去 5 年分の不具合報告を一度に分類したいです。", "夜間に、バッチ用のキーで実行してください。"),
    ("論文と特許の要約をまとめて作ります。", "全体の上限内に収まるため承認します。"),
    ("評価用のプロンプトを一晩で流したいです。", "夜間であれば問題ありません。"),
)
REFUSALS = {
    "rate_limit_exceeded": 46,
    "insufficient_quota": 24,
    "model_not_found": 11,
    "context_length_exceeded": 9,
    "model_unavailable": 4,
    "network_not_allowed": 2,
    "model_not_supported": 2,
    "request_too_large": 1,
    "invalid_json": 1,
}


def create_policy(
    chance: Random, now: datetime, staff: Staff, holders: list[Holder], models: dict[str, ServedModel], days: int
) -> None:
    quotas = [*_defaults(staff), *_of_tenants(chance, now, staff, models), *_of_people(chance, now, staff, holders)]
    Quota.objects.bulk_create([*quotas, *_of_keys(now, holders)])
    QuotaRequest.objects.bulk_create(_requests(chance, now, staff, holders))
    RejectionHour.objects.bulk_create(_rejections(chance, now, holders, days), batch_size=2000)


def round_amount(amount: float) -> int:
    """Round to two digits, as people choose amounts."""
    if amount < 100:
        return 100
    unit: int = 10 ** (int(math.log10(amount)) - 1)
    return round(amount / unit) * unit


def tokens_used(by: str, since: date) -> dict[int, int]:
    """Return the tokens used since then, by tenant_id, user_id or key_id."""
    tokens = Sum(F("prompt_tokens") + F("completion_tokens"))
    rows = UsageDay.objects.filter(day__gte=since).exclude(**{by: None}).values(by).annotate(tokens=tokens)
    return {row[by]: row["tokens"] for row in rows}


def _defaults(staff: Staff) -> list[Quota]:
    made = [
        Quota(default_for=Quota.DefaultFor.TENANT, unit=TOKENS, window=MONTH, amount=60_000_000),
        Quota(default_for=Quota.DefaultFor.TENANT, unit=CONCURRENT, window="", amount=40),
    ]
    for department in DEPARTMENTS:
        tenant = staff.tenants[department.slug]
        daily = _daily_default(department)
        made.append(Quota(tenant=tenant, default_for=Quota.DefaultFor.MEMBER, unit=TOKENS, window=DAY, amount=daily))
        if department.size > 100:
            made.append(
                Quota(tenant=tenant, default_for=Quota.DefaultFor.MEMBER, unit=REQUESTS, window=MINUTE, amount=30)
            )
        made.append(
            Quota(tenant=tenant, default_for=Quota.DefaultFor.SERVICE, unit=TOKENS, window=DAY, amount=20_000_000)
        )
    return made


def _of_tenants(chance: Random, now: datetime, staff: Staff, models: dict[str, ServedModel]) -> list[Quota]:
    made = []
    month = tokens_used("tenant_id", _month(now))
    usual = tokens_used("tenant_id", (now - timedelta(days=30)).date())
    for slug, tenant in staff.tenants.items():
        used, of_month = USED_UP.get(slug), month.get(tenant.pk, 0)
        if used and of_month:
            amount = round_amount(of_month / used) if used < 1 else of_month - of_month // 500
        else:
            amount = round_amount(chance.uniform(1.1, 2.8) * usual.get(tenant.pk, 0))
        made.append(Quota(tenant=tenant, unit=TOKENS, window=MONTH, amount=max(amount, 1)))
        made.append(Quota(tenant=tenant, unit=REQUESTS, window=MINUTE, amount=600))
    made.append(Quota(tenant=staff.tenants[HOME], model=models[LARGE], unit=TOKENS, window=DAY, amount=2_000_000))
    made.append(Quota(tenant=staff.tenants["aoba-software"], unit=CONCURRENT, window="", amount=64))
    return made


def _of_people(chance: Random, now: datetime, staff: Staff, holders: list[Holder]) -> list[Quota]:
    """Return higher quotas of some members, among them the demo employee, who has almost used it up."""
    month = tokens_used("user_id", _month(now))
    made: list[Quota] = []
    heaviest = sorted(month, key=lambda user: -month[user])[:12]
    for holder in holders:
        if not holder.user:
            continue
        known = any(quota.user == holder.user for quota in made)
        if not known and (holder.user.pk in heaviest or holder.user.username == EMPLOYEE):
            used = 0.88 if holder.user.username == EMPLOYEE else chance.choice((0.55, 0.7, 0.84, 0.97))
            amount = round_amount(max(month.get(holder.user.pk, 0), 20_000) / used)
            tenant = staff.tenants[holder.department.slug]
            made.append(Quota(tenant=tenant, user=holder.user, unit=TOKENS, window=MONTH, amount=amount))
    for user in staff.operators[:2]:
        made.append(Quota(user=user, unit=REQUESTS, window=DAY, amount=5_000))
    return made


def _of_keys(now: datetime, holders: list[Holder]) -> list[Quota]:
    month = tokens_used("key_id", _month(now))
    made = []
    services = [holder.keys[-1] for holder in holders if holder.service]
    for place, key in enumerate(services[:8]):
        used = (0.91, 0.6, 0.72, 0.5, 0.83, 0.4, 1.0, 0.66)[place]
        amount = round_amount(max(month.get(key.pk, 0), 100_000) / used)
        made.append(Quota(key=key, unit=TOKENS, window=MONTH, amount=amount))
        made.append(Quota(key=key, unit=CONCURRENT, window="", amount=16 if key.key_class == "batch" else 24))
    return made


@dataclass(frozen=True, slots=True)
class RequestPlan:
    """A quota request to make up."""

    department: Department
    asked_by: User
    user: User | None  # None: for the tenant
    state: str


def _requests(chance: Random, now: datetime, staff: Staff, holders: list[Holder]) -> list[QuotaRequest]:
    """Return requests of members to their admins and of admins to operators.

    Most were decided within days; some are waiting, some were withdrawn.
    """
    made: dict[object, QuotaRequest] = {}
    months = Quota.objects.filter(default_for="", user=None, unit=TOKENS, window=MONTH, tenant__isnull=False)
    now_has = dict(months.values_list("tenant__slug", "amount"))
    for plan in _request_plans(chance, staff, holders):
        unique = plan.department.slug, plan.user, plan.state == QuotaRequest.State.OPEN or len(made)
        made[unique] = _request(chance, now, staff, plan, now_has)
    return sorted(made.values(), key=lambda row: row.asked_at)


def _request_plans(chance: Random, staff: Staff, holders: list[Holder]) -> Iterator[RequestPlan]:
    open_, granted, refused, withdrawn = QuotaRequest.State.values
    by_slug = {department.slug: department for department in DEPARTMENTS}
    people = [(holder.department, holder.user) for holder in holders if holder.user]
    at_home = [(department, user) for department, user in people if department.slug == HOME]
    for department, user in chance.sample(at_home, min(4, len(at_home))):
        yield RequestPlan(department, user, user, open_)
    for department, user in people:
        if user.username == EMPLOYEE:
            yield RequestPlan(department, user, user, granted)
            yield RequestPlan(department, user, user, open_)
    for slug, state in ((HOME, granted), (HOME, open_), ("research", open_), ("dx-promotion", refused)):
        yield RequestPlan(by_slug[slug], staff.admin(slug), None, state)
    for department, user in chance.sample(people, min(48, len(people))):
        yield RequestPlan(department, user, user, chance.choices((open_, granted, refused, withdrawn), [2, 6, 3, 1])[0])
    for state in (refused, withdrawn):  # also in a small company
        yield RequestPlan(at_home[0][0], at_home[0][1], at_home[0][1], state)


def _request(chance: Random, now: datetime, staff: Staff, plan: RequestPlan, now_has: dict[str, int]) -> QuotaRequest:
    """Return a request with reason, answer and times. `now_has`: the monthly tokens of each tenant."""
    State = QuotaRequest.State
    decider = staff.admin(plan.department.slug) if plan.user else staff.operators[0]
    if decider == plan.asked_by:  # no one decides their own request
        decider = staff.operators[-1]
    reason, note = chance.choice(ENGINEERS if plan.department.mix in (ENGINEERS_MIX, RESEARCH_MIX) else REASONS)
    had = _daily_default(plan.department) if plan.user else now_has[plan.department.slug]
    waiting = plan.state == State.OPEN
    asked_at = workdays.at_work(chance, now, chance.uniform(0.1, 2.5) if waiting else chance.uniform(5, 80))
    decided_at = min(now, asked_at + timedelta(hours=chance.choice((0.4, 1.2, 2.5, 23, 25, 48))))
    answered = plan.state in (State.GRANTED, State.REFUSED)
    return QuotaRequest(
        tenant=staff.tenants[plan.department.slug],
        user=plan.user,
        unit=TOKENS,
        window=DAY if plan.user else MONTH,
        amount=round_amount(had * (chance.choice((2, 2, 3, 5)) if plan.user else 1.5)),
        previous_amount=had,
        reason=reason,
        asked_by=plan.asked_by,
        asked_at=asked_at,
        state=plan.state,
        granted=round_amount(had * (2 if plan.user else 1.3)) if plan.state == State.GRANTED else None,
        decided_by=decider if answered else None,
        decided_at=decided_at if answered else None,
        note=(note if plan.state == State.GRANTED else "まずは今の上限の範囲でお試しください。") if answered else "",
    )


def _daily_default(department: Department) -> int:
    """Return the tokens that a member without a quota of their own may use a day."""
    return 500_000 if department.calls > 3 else 200_000


def _rejections(chance: Random, now: datetime, holders: list[Holder], days: int) -> list[RejectionHour]:
    """Return rejected requests by hour: most of holders who call often, and most because of limits."""
    counts: dict[tuple[datetime, int, str, str], RejectionHour] = {}
    weights = [holder.service.calls / 40 if holder.service else holder.heavy for holder in holders]
    codes = list(REFUSALS)
    names = {id(holder): list(holder.service.mix if holder.service else holder.department.mix) for holder in holders}
    for holder in chance.choices(holders, weights, k=max(60, len(holders) * days // 30)):
        zone = ZoneInfo(holder.department.zone)
        day = (now - timedelta(days=days * chance.random() ** 1.4)).astimezone(zone)
        if chance.random() > workdays.office_activity(day.date()):
            continue
        hour = chance.choices(range(24), weights=workdays.OFFICE)[0]
        at = day.replace(hour=hour, minute=0, second=0, microsecond=0)
        key: ApiKey | None = holder.key_at(at)
        if key is None or at >= now:
            continue
        code = chance.choices(codes, list(REFUSALS.values()))[0]
        if code == "network_not_allowed" and not key.networks:
            continue
        model = "" if code in ("model_not_found", "invalid_json") else chance.choice(names[id(holder)])
        count = 1 + int(chance.expovariate(0.12 if code in ("rate_limit_exceeded", "insufficient_quota") else 0.8))
        row = counts.get((at, key.pk, model, code))
        if row:
            row.requests += count
            continue
        counts[at, key.pk, model, code] = RejectionHour(
            hour=at, tenant_id=key.tenant_id, user_id=key.user_id, key=key, model=model, code=code, requests=count
        )
    return sorted(counts.values(), key=lambda row: row.hour)


def _month(now: datetime) -> date:
    return now.astimezone(ZoneInfo("Asia/Tokyo")).date().replace(day=1)
