"""What tokens cost in the company, what they would elsewhere, and what tenants mean to spend in a month."""

from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from portal.demo.plan import BGE, CHAT, CODE, EMBEDDING, LARGE, OLD, RERANK, SMALL, VISION
from portal.demo.rows import insert_row
from portal.demo.staff import HOME, Staff
from portal.notifications import budget_alerts
from portal.prices import price_list
from portal.prices.models import PriceOptions, TenantBudget, TokenPrice
from portal.usage.costs import read_spending

# Yen for 1,000 tokens: in, out.
INTERNAL = {
    LARGE: ("0.12", "0.36"),
    CODE: ("0.06", "0.18"),
    CHAT: ("0.02", "0.06"),
    VISION: ("0.03", "0.09"),
    OLD: ("0.02", "0.06"),
    SMALL: ("0.01", "0.02"),
    EMBEDDING: ("0.002", "0"),
    BGE: ("0.002", "0"),
    RERANK: ("0.002", "0"),
}
FORMERLY = {LARGE: ("0.2", "0.6")}  # until the second replica
OUTSIDE = {
    LARGE: ("0.38", "1.5", "クラウド A 社の大型モデル（見積もり）"),
    CODE: ("0.38", "1.5", "クラウド A 社の大型モデル（見積もり）"),
    CHAT: ("0.023", "0.092", "クラウド A 社の小型モデル（見積もり）"),
    VISION: ("0.038", "0.15", "クラウド B 社の小型モデル（見積もり）"),
}
EARLY = 7  # days of a month in which too little is spent to make a budget of it
# The part of its budget that a tenant has spent in `month_of_budgets`.
SPENT = {HOME: 0.83, "legal": 0.58, "research": 0.71, "aoba-software": 1.04, "marketing": 0.4, "dx-promotion": 0.66}


def create_prices(now: datetime, staff: Staff, days: int) -> None:
    """Write the prices of tokens, and budgets that are spent as SPENT says; notify of those that are near their end."""
    today = now.astimezone(ZoneInfo("Asia/Tokyo")).date()
    first, cheaper = today - timedelta(days=days), today - timedelta(days=days * 2 // 5)
    rows = [
        _price(TokenPrice.Kind.INTERNAL, model, first, *FORMERLY.get(model, price)) for model, price in INTERNAL.items()
    ]
    rows += [_price(TokenPrice.Kind.INTERNAL, model, cheaper, *INTERNAL[model]) for model in FORMERLY]
    rows += [_price(TokenPrice.Kind.OUTSIDE, model, first, *price) for model, price in OUTSIDE.items()]
    TokenPrice.objects.bulk_create(rows)
    insert_row(PriceOptions(pk=price_list.ROW, shown_to_people=True))
    tenants = [staff.tenants[slug] for slug in SPENT]
    months = {one.pk: month_of_budgets(now.astimezone(one.zone).date()) for one in tenants}
    spent = read_spending(tenants, months)
    TenantBudget.objects.bulk_create(
        TenantBudget(tenant=one, yen=max(1, int(float(spent.get(one.pk, 0)) / SPENT[one.slug]))) for one in tenants
    )
    budget_alerts.notify_near_budgets(now)


def month_of_budgets(today: date) -> date:
    """Return the first day of the month whose spending budgets are made of: the last one in the first days of one."""
    day = today - timedelta(days=today.day) if today.day <= EARLY else today
    return day.replace(day=1)


def _price(kind: str, model: str, first: date, into: str, out: str, reference: str = "") -> TokenPrice:
    return TokenPrice(kind=kind, model=model, first_day=first, input_price=into, output_price=out, reference=reference)
