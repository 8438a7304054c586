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
    page = follow(client, address, f"{by}={column}")
    [marked] = page.all("table")[0].all("th[aria-sort] a.sort")
    assert f"{by}=-{column}" in marked["href"]
    return page


def turn(client, address: str, column: str, *, by: str = "sort") -> tuple[Element, str]:
    """Return the page behind that head when it is pressed once more, and the direction that it says."""
    page = follow(client, f"{address}{'&' if '?' in address else '?'}{by}={column}", f"{by}=-{column}")
    [marked] = page.all("table")[0].all("th[aria-sort]")
    assert f"{by}={column}" in marked.all("a.sort")[0]["href"]
    return page, marked["aria-sort"]


def follow(client, address: str, query: str) -> Element:
    """Return the page behind the head with this query, or this page if the head is not there: it is sorted so."""
    page = parse(read(client, address))
    links = [link["href"] for link in page.all("table")[0].all("th a.sort")]
    found = [link for link in links if query in link.partition("?")[2].split("&")]
    return parse(read(client, address.partition("?")[0] + found[0])) if found else page


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

    @pytest.mark.parametrize(
        ("column", "order", "direction"),
        [
            ("name", ["gamma", "beta", "Alpha"], "descending"),
            ("last-used", ["gamma", "Alpha", "beta"], "ascending"),  # never used: last all the same
            ("expires", ["gamma", "beta", "Alpha"], "descending"),
        ],
    )
    def test_a_second_press_turns_the_direction(self, as_bob, column, order, direction):
        page, said = turn(as_bob, "/keys/services/", column)
        assert (names(page), said) == (order, direction)
        page, said = turn(as_bob, "/tenant/research/keys/", column, by="services")
        assert ([name for name in names(page) if name in order], said) == (order, direction)

    @pytest.mark.parametrize(("column", "order"), COLUMNS)
    def test_they_are_sorted_on_the_page_of_their_tenant_apart_from_its_people(
        self, as_bob, research, alice, bob, column, order
    ):
        key_of(alice, research), key_of(bob, research)
        page = press(as_bob, "/tenant/research/keys/?sort=name", column, by="services")
        assert [name for name in names(page) if name in order] == order
        assert len(page.all("th[aria-sort=ascending] a[href*='sort=-name']")) >= 1

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
        ("-amount", [30, 60, 90, 20]),
    ]:
        if column.startswith("-"):
            assert turn(as_bob, "/tenant/research/quotas/", column[1:])[1] == "ascending"
        else:
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
        ("-use", ["sales", "research", "off"]),
        ("-name", ["research", "sales", "off"]),  # what is switched off: last all the same
    ]:
        if column.startswith("-"):
            turn(as_olivia, "/tenants/", column[1:])
        else:
            press(as_olivia, "/tenants/", column)
        rows = as_olivia.get("/tenants/", {"sort": column}).context["rows"]
        assert [tenant.slug for tenant, _, _ in rows] == order, column
