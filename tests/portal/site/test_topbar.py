"""The bar on top of every page: the places that a person has, and how many notices wait."""

import re

import pytest
from django.utils import timezone

from portal.accounts.models import Membership, Tenant
from portal.notifications.models import Notice
from portal.site.templatetags.topbar import topbar_facts
from tests.html import all_of, has, one_of

pytestmark = pytest.mark.django_db


def tell(user, number: int, **more) -> None:
    Notice.objects.bulk_create(Notice(user=user, kind="key-expires", ref=str(n), **more) for n in range(number))


def test_it_counts_one_s_own_unread_notices_in_one_query(alice, bob, django_assert_num_queries):
    tell(alice, 3)
    tell(bob, 5)
    Notice.objects.create(user=alice, kind="key-expired", ref="1", read_at=timezone.now())
    with django_assert_num_queries(1):
        assert topbar_facts(alice).unread == 3


def test_a_great_many_notices_are_not_counted_out(alice):
    tell(alice, 100)
    assert topbar_facts(alice).unread_short == "99+"


def test_it_knows_the_active_tenants_that_one_is_an_admin_of(alice, bob, research, sales):
    Membership.objects.create(user=bob, tenant=sales, role="admin")
    assert topbar_facts(alice).tenants == ()
    assert topbar_facts(bob).tenants == (("sales", "営業部"), ("research", "研究部"))
    sales.is_active = False
    sales.save()
    assert topbar_facts(bob).tenants == (("research", "研究部"),)


def test_the_place_where_one_is_is_marked(client, alice):
    client.force_login(alice)
    page = client.get("/keys/new/")
    assert [link["href"] for link in all_of(page, "[aria-current]")] == ["/keys/"]


def test_unread_notices_are_told_on_the_account_s_button(client, alice):
    client.force_login(alice)
    assert not has(client.get("/keys/"), "header .badge")
    tell(alice, 2)
    assert "2" in one_of(client.get("/keys/"), ".tools summary[aria-label]")["aria-label"]


def places(client, person) -> dict[str, str]:
    """Return what the bar offers: the words of each link and where it leads."""
    client.force_login(person)
    bar = client.get("/keys/", headers={"accept-language": "en"}).content.decode().split("<nav")[1].split("</nav>")[0]
    return {text: address for address, text in re.findall(r'<a href="([^"]+)"[^>]*>([^<]+)</a>', bar)}


EVERYBODY_S = {"Home": "/", "API keys": "/keys/", "Usage": "/usage/", "Models": "/models/", "Try it": "/try/"}


def test_a_member_has_what_everybody_has(client, alice):
    assert places(client, alice) == EVERYBODY_S


def test_an_admin_has_their_tenant_too_and_of_several_each(client, bob, sales):
    assert places(client, bob) == {**EVERYBODY_S, "Tenant": "/tenant/research/"}
    Membership.objects.create(user=bob, tenant=sales, role="admin")
    assert places(client, bob) == {**EVERYBODY_S, "営業部": "/tenant/sales/", "研究部": "/tenant/research/"}


def test_an_operator_has_all_tenants_and_operations(client, olivia):
    Tenant.objects.create(slug="legal", name="法務部")
    assert places(client, olivia) == {**EVERYBODY_S, "Tenants": "/tenants/", "Operations": "/operations/"}
