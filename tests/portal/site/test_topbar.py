"""The bar on top of every page: the places that a person has, and how many notices wait."""

import pytest
from django.utils import timezone

from portal.accounts.models import Membership, Tenant, User
from portal.notifications.models import Notice
from portal.site.templatetags.topbar import topbar_facts
from tests.html import all_of, has, one_of
from tests.pages import service_key_of
from tests.portal.browsing import client_of

pytestmark = pytest.mark.django_db


def add_notices(user, number: int, **more) -> None:
    Notice.objects.bulk_create(Notice(user=user, kind="key-expires", ref=str(n), **more) for n in range(number))


def test_it_counts_one_s_own_unread_notices_in_one_query(alice, bob, django_assert_num_queries):
    add_notices(alice, 3)
    add_notices(bob, 5)
    Notice.objects.create(user=alice, kind="key-expired", ref="1", read_at=timezone.now())
    with django_assert_num_queries(1):
        assert topbar_facts(alice).unread == 3


def test_a_great_many_notices_are_not_counted_out(alice):
    add_notices(alice, 100)
    assert topbar_facts(alice).unread_short == "99+"


def test_it_knows_the_active_tenants_that_one_is_an_admin_of(alice, bob, research, sales):
    Membership.objects.create(user=bob, tenant=sales, role="admin")
    assert topbar_facts(alice).tenants == ()
    assert topbar_facts(bob).tenants == (("sales", "営業部"), ("research", "研究部"))
    sales.is_active = False
    sales.save()
    assert topbar_facts(bob).tenants == (("research", "研究部"),)


def test_times_in_the_zone_of_another_tenant_are_labelled(alice, bob, olivia, research, sales):
    Membership.objects.create(user=bob, tenant=sales, role="admin")  # after research, so it is not his own
    Tenant.objects.filter(pk=sales.pk).update(time_zone="Asia/Kolkata")
    key = service_key_of(sales)
    for who, address, zone in [
        (bob, "/tenant/research/", None),
        (bob, "/tenant/sales/", "Asia/Kolkata"),
        (bob, "/tenant/sales/people/", "Asia/Kolkata"),
        (bob, f"/keys/{key.prefix}/", "Asia/Kolkata"),
        (bob, "/", None),
        (bob, "/keys/services/", None),
        (olivia, "/tenant/sales/", "Asia/Kolkata"),
        (olivia, "/tenant/research/", None),  # the site's own zone
    ]:
        labels = [label["data-zone-note"] for label in all_of(client_of(who).get(address), "[data-zone-note]")]
        assert labels == ([zone] if zone else []), (who, address)


def test_the_label_says_what_time_it_is_there_and_here(bob, research, sales, time_machine):
    time_machine.move_to("2026-11-20T03:00:00Z", tick=False)
    Membership.objects.create(user=bob, tenant=sales, role="admin")
    Tenant.objects.filter(pk=sales.pk).update(time_zone="Asia/Kolkata")
    label = one_of(client_of(bob).get("/tenant/sales/"), "[data-zone-note]").text
    assert all(word in label for word in ("08:30", "Asia/Tokyo", "12:00"))


def test_the_place_where_one_is_is_marked(client, alice):
    client.force_login(alice)
    page = client.get("/keys/new/")
    assert [link["href"] for link in all_of(page, "[aria-current]")] == ["/keys/"]


def test_single_requests_belong_to_usage(client, alice):
    client.force_login(alice)
    assert [link["href"] for link in all_of(client.get("/requests/"), "[aria-current]")] == ["/usage/"]


def test_unread_notices_are_told_on_the_account_s_button(client, alice):
    client.force_login(alice)
    assert not has(client.get("/keys/"), "header .badge")
    add_notices(alice, 2)
    _, account = all_of(client.get("/keys/"), ".tools summary[aria-label]")  # the first one opens the search
    assert "2" in account["aria-label"]


def places(user: User) -> dict[str, str]:
    """Return where the bar leads, and the words of each link."""
    return {link["href"]: link.text for link in all_of(client_of(user).get("/keys/"), "[data-places] a")}


FOR_ALL = ["/", "/keys/", "/usage/", "/models/", "/try/", "/use-cases/"]


def test_a_member_has_what_everybody_has(alice):
    assert sorted(places(alice)) == sorted(FOR_ALL)


def test_an_admin_has_their_tenant_too_and_of_several_each(bob, sales):
    assert sorted(places(bob)) == sorted([*FOR_ALL, "/tenant/research/"])
    Membership.objects.create(user=bob, tenant=sales, role="admin")
    of_two = places(bob)
    assert sorted(of_two) == sorted([*FOR_ALL, "/tenant/sales/", "/tenant/research/"])
    assert (of_two["/tenant/sales/"], of_two["/tenant/research/"]) == ("営業部", "研究部")


def test_an_operator_has_all_tenants_and_operations(olivia):
    Tenant.objects.create(slug="legal", name="法務部")
    assert sorted(places(olivia)) == sorted([*FOR_ALL, "/tenants/", "/operations/"])
