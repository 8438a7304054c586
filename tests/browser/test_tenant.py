"""A department's day in the browser, in both languages.

A member runs out and asks, the admin answers, adds a person, limits them; the operator makes a tenant and switches it
off.
"""

import pytest
from django.utils import timezone

from portal.accounts.models import Membership, Tenant, User
from portal.keys.models import ApiKey
from portal.quotas import administration
from portal.quotas.administration import QuotaKind, QuotaTarget
from portal.quotas.models import Quota, QuotaRequest
from tests.browser.pages import REFUSED_FORM, looks, sign_in
from tests.pages import key_of, serve, use

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def department(alice, bob, charlie, olivia, research) -> None:
    """Alice has used 85 of the 100 tokens that each member has a day."""
    serve()
    administration.set_quota(
        bob, QuotaTarget(tenant=research, default_for="member"), QuotaKind(unit="tokens", window="day"), 100
    )
    use(key_of(alice, research), tokens=(80, 5), at=timezone.now())


@pytest.mark.parametrize("language", ["ja", "en"])
def test_who_runs_out_asks_with_a_reason_and_the_admin_grants(open_page, department, language, alice):
    mine, theirs = open_page(language, width=360), open_page(language)
    sign_in(mine)
    assert mine.locator("#left .state.watch").count() == 1
    mine.locator("#left .ask a").first.click()
    mine.locator("[name=reason]").fill("年度末の資料 / year-end papers")
    mine.locator("main form button.primary").click()
    mine.wait_for_url("**/more/*/")
    assert mine.locator("h1 .state.watch").count() == 1

    sign_in(theirs, "bob")
    theirs.goto("/")  # a newcomer is led to the first page instead
    theirs.locator("main .notice a").click()
    assert "year-end papers" in theirs.locator("main").inner_text()
    theirs.locator("[name=amount]").fill("105")
    theirs.locator("[name=note]").fill("ok")
    theirs.locator("[name=verdict][value=grant]").click()
    theirs.wait_for_url("**/tenant/research/requests/")

    mine.goto("/")
    assert mine.locator("#left [data-left='20'][data-amount='105']").count() == 1
    assert mine.locator(".mine .state.fine").count() == 1
    assert QuotaRequest.objects.get().granted == Quota.objects.get(user=alice).amount == 105


@pytest.mark.parametrize("language", ["ja", "en"])
def test_an_admin_adds_somebody_and_limits_them_with_words_of_their_own(
    open_page, department, language, charlie, research, provoked
):
    provoked.append(REFUSED_FORM)
    page = open_page(language)
    sign_in(page, "bob")
    page.goto("/tenant/research/")
    page.locator(".parts a[href='/tenant/research/people/']").click()
    page.locator("[name=username]").fill("charlie")
    page.locator("form[action$='/people/add/'] button").click()
    page.locator("main table a", has_text="Charlie").click()
    page.locator(f"a[href$='?of=person:{charlie.pk}']").click()
    page.locator("[name=amount]").fill("many")
    page.locator("main form button.primary").click()
    assert page.locator(".field.wrong [name=amount]").evaluate("field => field === document.activeElement")
    page.locator("[name=amount]").fill("50万")
    page.locator("main form button.primary").click()
    page.locator("#caution [data-caution=leap]").wait_for()  # from the 100 of each member
    page.locator("main form button.primary").click()
    page.wait_for_url("**/people/*/")
    assert "500,000" in page.locator(".quotas").inner_text()
    assert Quota.objects.get(user=charlie, tenant=research).amount == 500_000


@pytest.mark.parametrize("language", ["ja", "en"])
def test_an_operator_makes_a_tenant_and_switches_one_off(open_page, department, language):
    page = open_page(language)
    sign_in(page, "olivia")
    page.goto("/tenants/")
    page.locator("a[href='/tenants/new/']").click()
    page.locator("[name=name]").fill("法務部")
    page.locator("[name=slug]").fill("legal")
    page.locator("main form button.primary").click()
    page.wait_for_url("**/tenant/legal/people/")
    assert Tenant.objects.filter(slug="legal").exists()
    page.goto("/tenant/research/")
    page.locator("a[href='/tenant/research/switch/']").click()
    page.locator("main button.danger").click()
    page.wait_for_url("**/tenant/research/")
    assert page.locator("h1 .state.off").count() == 1
    assert not ApiKey.objects.usable().exists()


def test_2000_people_with_long_names_fit_a_telephone(open_page, department, research, bob):
    long = "very.long.user.name.of.somebody.with.many.given.names.who.came.from.a.subsidiary"
    people = User.objects.bulk_create(
        User(username=f"{long}.{n}", last_name="勅使河原" * 4, first_name="Wolfeschlegelsteinhausen", password="!")
        for n in range(2000)
    )
    Membership.objects.bulk_create(Membership(user=user, tenant=research, source="directory") for user in people)
    page = open_page("ja", width=360)
    sign_in(page, "bob")
    for path in ("/tenant/research/people/?page=40", f"/tenant/research/people/{people[0].pk}/"):
        page.goto(path)
        assert looks(page, "tooWide") == [], path
        assert looks(page, "tooSmall") == [], path
