"""A department's day in the browser: a member runs out and asks, the admin answers, adds somebody, limits them; the
operator makes a tenant and switches it off. In both languages, by what people read and press."""

import pytest
from django.utils import timezone

from portal.accounts.models import Membership, Tenant, User
from portal.keys.models import ApiKey
from portal.quotas import administration
from portal.quotas.administration import QuotaKind, QuotaTarget
from portal.quotas.models import Quota, QuotaRequest
from tests.browser.pages import looks, sign_in
from tests.pages import key_of, serve, use

pytestmark = pytest.mark.django_db(transaction=True)

WORDS = {
    "ja": {
        "near": "残りわずか",
        "asked": "対応待ち",
        "grant": "承認する",
        "granted": "承認",
        "left": "今日の残り 20 / 105 トークン",
        "people": "メンバー",
        "add": "追加",
        "quota": "利用上限を設定",
        "save": "保存",
        "per_day": "1 日あたり 500,000 トークン",
        "new": "テナントを作成",
        "create": "作成",
        "off": "停止…",
        "is_off": "利用停止中",
    },
    "en": {
        "near": "nearly used up",
        "asked": "waiting for a decision",
        "grant": "Grant",
        "granted": "granted",
        "left": "20 of 105 tokens left today",
        "people": "People",
        "add": "Add",
        "quota": "Set a quota",
        "save": "Save",
        "per_day": "500,000 tokens per day",
        "new": "Create a tenant",
        "create": "Create",
        "off": "Switch off…",
        "is_off": "switched off",
    },
}


@pytest.fixture
def department(alice, bob, charlie, olivia, research):
    """Alice has used 85 of the 100 tokens that each member has a day."""
    serve()
    administration.set_quota(
        bob, QuotaTarget(tenant=research, each="member"), QuotaKind(unit="tokens", window="day"), 100
    )
    use(key_of(alice, research), tokens=(80, 5), at=timezone.now())
    return WORDS


@pytest.mark.parametrize("language", ["ja", "en"])
def test_who_runs_out_asks_with_one_click_and_the_admin_grants(open_page, department, language, alice):
    words = department[language]
    mine, theirs = open_page(language, width=360), open_page(language)
    sign_in(mine)
    assert words["near"] in mine.locator("#left").inner_text()
    mine.locator("#left form button").first.click()
    mine.wait_for_url("**/more/*/")
    assert words["asked"] in mine.locator("h1").inner_text()
    mine.locator("[name=reason]").fill("年度末の資料 / year-end papers")
    mine.get_by_role("button", name=words["save"]).click()
    mine.wait_for_load_state()

    sign_in(theirs, "bob")
    theirs.locator("main .notice a").click()
    assert "year-end papers" in theirs.locator("main").inner_text()
    theirs.locator("[name=amount]").fill("105")
    theirs.locator("[name=note]").fill("ok")
    theirs.get_by_role("button", name=words["grant"], exact=True).click()
    theirs.wait_for_url("**/tenant/research/requests/")

    mine.goto("/")
    assert words["left"] in mine.locator("#left").inner_text()
    assert words["granted"] in mine.locator(".mine").inner_text()
    assert QuotaRequest.objects.get().granted == Quota.objects.get(user=alice).amount == 105


@pytest.mark.parametrize("language", ["ja", "en"])
def test_an_admin_adds_somebody_and_limits_them_with_words_of_their_own(
    open_page, department, language, charlie, research
):
    words = department[language]
    page = open_page(language)
    sign_in(page, "bob")
    page.goto("/tenant/research/")
    page.get_by_role("link", name=words["people"], exact=True).click()
    page.locator("[name=username]").fill("charlie")
    page.get_by_role("button", name=words["add"], exact=True).click()
    page.get_by_role("link", name="Charlie", exact=True).click()
    page.get_by_role("link", name=words["quota"]).click()
    page.locator("[name=amount]").fill("many")
    page.get_by_role("button", name=words["save"]).click()
    assert page.locator(".field.wrong [name=amount]").evaluate("field => field === document.activeElement")
    page.locator("[name=amount]").fill("50万")
    page.get_by_role("button", name=words["save"]).click()
    page.wait_for_url("**/people/*/")
    assert words["per_day"] in page.locator(".quotas").inner_text()
    assert Quota.objects.get(user=charlie, tenant=research).amount == 500_000


@pytest.mark.parametrize("language", ["ja", "en"])
def test_an_operator_makes_a_tenant_and_switches_one_off(open_page, department, language):
    words = department[language]
    page = open_page(language)
    sign_in(page, "olivia")
    page.goto("/tenants/")
    page.get_by_role("link", name=words["new"], exact=True).click()
    page.locator("[name=name]").fill("法務部")
    page.locator("[name=slug]").fill("legal")
    page.get_by_role("button", name=words["create"], exact=True).click()
    page.wait_for_url("**/tenant/legal/people/")
    assert Tenant.objects.filter(slug="legal").exists()
    page.goto("/tenant/research/")
    page.get_by_role("link", name=words["off"]).click()
    page.locator("main button.danger").click()
    page.wait_for_url("**/tenant/research/")
    assert words["is_off"] in page.locator("main").inner_text()
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
