"""Service keys, replacing a key, notices and settings, in the browser and as they look."""

import re
from datetime import timedelta

import pytest
from django.urls import reverse
from django.utils import timezone
from playwright.sync_api import expect

from portal.accounts.models import Membership
from portal.keys import lifecycle
from portal.keys.models import ApiKey
from portal.quotas.models import Quota
from portal.web.notify import notify
from tests.browser.pages import LONG_KEY, LONG_MODEL, LONG_TENANT, REFUSED_FORM, looks, sign_in
from tests.conftest import person
from tests.pages import serve, use

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_tenant_admin_sets_up_dify(open_page, bob, research, provoked):
    provoked.append(REFUSED_FORM)
    qwen = serve("qwen")
    qwen.args = ["--jinja"]
    qwen.save()
    serve("e5", task="embedding")
    page = open_page("en")
    sign_in(page, "bob")
    page.goto(reverse("keys"))
    page.locator("main nav a[href='/keys/services/']").click()
    page.locator("main a[href='/keys/services/new/']").first.click()
    page.locator("[name=name]").fill("Dify")
    expect(page.locator("[name=responsible]")).to_have_value("bob")
    page.locator("main form summary").click()
    networks = page.locator("[name=networks]")
    networks.fill("10.1.2.3/16")
    page.locator("main form button.primary").click()
    expect(page.locator(".wrong .error")).to_contain_text("10.1.0.0/16")
    expect(networks).to_be_focused()
    networks.fill("127.0.0.0/8")
    page.locator("main form button.primary").click()
    text = page.locator("#key").inner_text()
    key = ApiKey.objects.get()
    assert (text[:12], key.service, key.responsible, key.networks) == (key.prefix, "Dify", bob, ["127.0.0.0/8"])

    page.goto(reverse("key", args=[key.prefix]))
    page.locator("label[for=tab-dify]").click()
    fields = page.locator(".tab.dify dl")
    expect(fields).to_contain_text("Function Call Type Tool Call", use_inner_text=True)  # as Dify itself has it
    fields.locator("div", has_text="API Base URL").locator("button").click()
    expect(page.locator("[data-said]")).not_to_be_empty()
    assert re.fullmatch(r"http://.*/v1", page.evaluate("navigator.clipboard.readText()"))
    page.locator("select[name=model]").select_option("e5")
    page.locator("#use form button").first.click()
    page.locator("label[for=tab-webui]").click()
    expect(page.locator(".tab.webui")).to_contain_text("RAG_EMBEDDING_MODEL=e5")


@pytest.mark.parametrize("language", ["ja", "en"])
def test_a_key_is_replaced_while_both_work(open_page, bob, research, language):
    key, _ = lifecycle.issue_key(tenant=research, service="Dify", name="Dify", responsible=bob)
    page = open_page(language)
    sign_in(page, "bob")
    page.goto(reverse("key", args=[key.prefix]))
    page.locator("details.card.more > summary").click()
    page.locator("form[action$='/rotate/'] button").click()
    text = page.locator("#key").inner_text()
    new = ApiKey.objects.get(replaces=key)
    assert text.startswith(new.prefix)
    assert set(ApiKey.objects.usable()) == {key, new}
    page.goto(reverse("key", args=[key.prefix]))
    page.locator(f"main a[href='/keys/{new.prefix}/']").click()
    expect(page).to_have_url(re.compile(f"/keys/{new.prefix}/"))


def test_a_notice_leads_to_what_it_tells_of(open_page, alice, research):
    key, _ = lifecycle.issue_key(tenant=research, user=alice, name="laptop")
    lifecycle.revoke_key(key, because="the laptop was lost")
    page = open_page("en")
    sign_in(page)
    page.locator(".tools summary", has=page.locator(".badge")).click()
    page.locator(".sheet a[href='/notices/']").click()
    expect(page.locator(".notices")).to_contain_text("the laptop was lost")
    page.locator(".notices h2 a", has_text="laptop").click()
    expect(page.locator("h1")).to_contain_text("laptop")
    expect(page.locator(".tools .badge")).to_have_count(0)


def test_language_and_colours_are_chosen_for_good(open_page, alice):
    page = open_page("en")
    sign_in(page)
    page.goto(reverse("settings"))
    page.locator("main [name=language][value=ja]").check()
    page.locator("main [name=theme][value=dark]").check()
    page.locator("main form button").click()
    expect(page.locator(".notice.success")).to_be_visible()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.goto("/")
    expect(page.locator("html")).to_have_attribute("lang", "ja")


@pytest.fixture
def everything(bob, research):
    """Return a tenant admin with plenty of everything, with long names."""
    research.name = LONG_TENANT
    research.save()
    model = serve(LONG_MODEL, context=131_072)
    serve("e5", task="embedding", state="asleep")
    gone = person("takahashi.shinnosuke.contractor", research, first_name="慎之介", last_name="高橋")
    key, _ = lifecycle.issue_key(
        tenant=research, service=LONG_KEY, name=LONG_KEY, responsible=gone, purpose=LONG_KEY * 4, key_class="batch",
        networks=["10.0.0.0/8", "2001:db8:aaaa:bbbb:cccc:dddd:eeee:0/112"], allowed_models=[model], created_by=bob,
        expires_at=timezone.now() + timedelta(days=3),
    )  # fmt: skip
    Membership.objects.get(user=gone).delete()
    use(key, tokens=(123_456_789, 98_765), model=LONG_MODEL)
    ApiKey.objects.filter(pk=key.pk).update(last_used_from="10.255.255.254", last_used_with="OpenAI/Python 3.54.0")
    Quota.objects.create(key=key, unit="tokens", window="day", amount=100_000_000)
    old, _ = lifecycle.issue_key(tenant=research, service="Open WebUI", name="Open WebUI", responsible=bob)
    lifecycle.rotate_key(old, timedelta(days=7), by=bob)
    ended, _ = lifecycle.issue_key(tenant=research, service="old", name="old", responsible=bob)
    lifecycle.revoke_key(ended, because="leaked")
    facts = {"key": LONG_KEY, "prefix": key.prefix, "tenant": research.name, "at": timezone.now()}
    notify([bob], "key-expires", "1", path=f"/keys/{key.prefix}/", days=3, **facts)
    notify([bob], "key-expired", "1", **facts)
    notify([bob], "membership-ended", "1", tenant=research.name, keys=2)
    bob.notices.filter(kind="membership-ended").update(read_at=timezone.now())
    return key


def pages(key) -> list[str]:
    names = ["keys", "key-new", "key-services", "key-service-new", "notices", "settings"]
    one = [reverse(name, args=[key.prefix]) for name in ("key", "key-edit")]
    ended = ApiKey.objects.get(name="old")
    return [*(reverse(name) for name in names), *one, reverse("key", args=[ended.prefix]), "/keys/services/?ended=1"]


@pytest.mark.parametrize("language", ["ja", "en"])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window_or_too_small_to_hit(open_page, everything, language, width):
    page = open_page(language, width=width)
    sign_in(page, "bob")
    for path in pages(everything):
        page.goto(path)
        for folded in page.locator("details:not(.menu) > summary").all():
            folded.click()
        assert looks(page, "tooWide") == [], path
        assert looks(page, "tooSmall") == [], path


def test_the_pages_of_a_tenant_admin_are_for_everybody(open_page, everything, axe):
    """test_every_page looks at the same pages with less in them: no one has left there, nothing was replaced."""
    page = open_page()
    sign_in(page, "bob")
    for path in pages(everything):
        page.goto(path)
        page.evaluate("for (const e of document.querySelectorAll('main details')) e.open = true")
        page.emulate_media(color_scheme="light", reduced_motion="reduce")
        assert axe(page) == [], path
        page.emulate_media(color_scheme="dark", reduced_motion="reduce")
        assert axe(page, "color-contrast") == [], path
