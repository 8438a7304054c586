"""Tables are sorted by the heads of their columns, and say by which they are."""

from datetime import timedelta

import pytest
from django.utils import timezone

from portal.accounts.models import Tenant
from portal.keys.models import ApiKey
from portal.quotas.models import Quota
from tests.conftest import person
from tests.html import Element, parse
from tests.pages import key_of, serve, service_key_of, use
from tests.portal.browsing import read

pytestmark = pytest.mark.django_db

NOW = timezone.now()


def press(client, address: str, column: str, *, by: str = "sort") -> Element:
    """Return the page behind the head of this column of its first table, which alone is marked then."""
    table = parse(read(client, address)).all("table")[0]
    [link] = [link for link in table.all("th a.sort") if f"{by}={column}" in link["href"]]
    page = parse(read(client, address.partition("?")[0] + link["href"]))
    [marked] = page.all("table")[0].all("th[aria-sort] a.sort")
    assert f"{by}={column}" in marked["href"]
    return page


def names(page: Element, selector: str = "tbody th a.row-link") -> list[str]:
    return [link.text for link in page.all(selector)]


class TestServiceKeys:
    @pytest.fixture(autouse=True)
    def _keys(self, research, alice, bob):
        for name, responsible, used, left in [
            ("beta", alice, None, 3),
            ("Alpha", bob, 1, None),
            ("gamma", alice, 9, 30),
        ]:
            key = service_key_of(research, name)
            ApiKey.objects.filter(pk=key.pk).update(
                responsible=responsible,
                last_used_at=NOW - timedelta(days=used) if used else None,
                expires_at=NOW + timedelta(days=left) if left else None,
            )

    COLUMNS = [
        ("name", ["Alpha", "beta", "gamma"]),
        ("last-used", ["Alpha", "gamma", "beta"]),
        ("expires", ["beta", "gamma", "Alpha"]),
        ("responsible", ["beta", "gamma", "Alpha"]),
    ]

    @pytest.mark.parametrize(("column", "order"), COLUMNS)
    def test_they_are_sorted_where_all_are(self, as_bob, column, order):
        assert names(press(as_bob, "/keys/services/", column)) == order
        assert names(press(as_bob, "/keys/services/?q=a&page=1", column)) == order

    @pytest.mark.parametrize(("column", "order"), COLUMNS)
    def test_they_are_sorted_on_the_page_of_their_tenant_apart_from_its_people(
        self, as_bob, research, alice, bob, column, order
    ):
        key_of(alice, research), key_of(bob, research)
        page = press(as_bob, "/tenant/research/keys/?sort=name", column, by="services")
        assert [name for name in names(page) if name in order] == order
        assert len(page.all("th[aria-sort=ascending] a[href*='sort=name']")) >= 1

    def test_by_nothing_the_newest_is_first(self, as_bob):
        for address in ("/keys/services/", "/keys/services/?sort=nonsense", "/tenant/research/keys/?services=x"):
            assert names(parse(read(as_bob, address))) == ["gamma", "Alpha", "beta"]


def test_quotas_of_people_and_keys_are_sorted(as_bob, alice, bob, research):
    key, model = key_of(alice, research, "zeta"), serve("qwen")
    for owner, amount, unit, of in [
        ({"tenant": research, "user": bob}, 30, "tokens", None),
        ({"key": key}, 90, "tokens", None),
        ({"tenant": research, "user": alice}, 20, "requests", None),
        ({"tenant": research, "user": alice}, 60, "tokens", model),
    ]:
        Quota.objects.create(**owner, unit=unit, window="day", amount=amount, model=of)
    for column, amounts in [
        ("name", [20, 60, 30, 90]),
        ("amount", [20, 90, 60, 30]),
        ("model", [20, 30, 90, 60]),
    ]:
        press(as_bob, "/tenant/research/quotas/", column)
        page = as_bob.get("/tenant/research/quotas/", {"sort": column}).context["page"]
        assert [row.amount for row in page] == amounts, column


def test_tenants_are_sorted(as_olivia, alice, charlie, research, sales):
    Tenant.objects.create(slug="off", name="Aaa", is_active=False)
    person("dave", sales), person("erin", sales)
    use(key_of(alice, research), tokens=(100, 0))
    for _ in range(2):
        use(key_of(charlie, sales), tokens=(1, 0))
    for column, order in [
        ("use", ["research", "sales", "off"]),
        ("requests", ["sales", "research", "off"]),
        ("members", ["sales", "research", "off"]),
        ("name", ["sales", "research", "off"]),
    ]:
        press(as_olivia, "/tenants/", column)
        rows = as_olivia.get("/tenants/", {"sort": column}).context["rows"]
        assert [tenant.slug for tenant, _, _ in rows] == order, column
