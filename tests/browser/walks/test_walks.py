"""Five people do what they came for, each by what the pages offer: with the gateway, and an engine that is not one."""

import os
import re
import subprocess
import sys

import pytest
from django.utils import timezone
from playwright.sync_api import Page, expect

from portal.accounts.models import Membership
from portal.feedback.models import Feedback
from portal.news.models import Announcement
from portal.prices.models import TokenPrice
from portal.quotas import administration
from portal.quotas.administration import QuotaKind, QuotaTarget
from portal.quotas.models import Quota, QuotaRequest
from portal.usage.models import UsageRecord
from portal.use_cases.models import HelpedMark, UseCase, UseCaseVersion
from tests.browser.pages import JAPANESE, looks, sign_in
from tests.browser.playground.steps import answered, calls
from tests.pages import key_of, use
from tests.use_cases import text_content, use_case
from tests.waiting import until

pytestmark = pytest.mark.django_db(transaction=True)

COUNT_CLICKS = """
addEventListener("click", (event) => {
  if (event.isTrusted) sessionStorage.setItem("clicks", Number(sessionStorage.getItem("clicks") ?? 0) + 1);
}, true);
"""


def try_use_case(page: Page, mail: str) -> None:
    """Fill in the use case whose page is open, send it in the playground, and press the thumb below the answer."""
    page.locator("#v-mail").fill(mail)
    page.locator("#fill button.primary").click()
    page.wait_for_url("**/try/")
    expect(page.locator("[data-prompt]")).to_have_value(re.compile(re.escape(mail)))
    page.locator("[data-send]").click()
    answered(page)
    page.locator("[data-thumb='1']").click()
    expect(page.locator("[data-verdict='1']")).to_be_visible()


def test_a_newcomer_in_sales_asks_and_is_helped_by_a_colleagues_use_case(
    open_page, serve, engine_, bob, charlie, sales
):
    serve()
    Membership.objects.create(user=bob, tenant=sales, role=Membership.Role.ADMIN)
    texts = text_content(
        "ja", title="メールに返信する", summary="丁寧な返信です。", prompt="返信してください。\n{{mail}}"
    )
    case = use_case(bob, sales, texts, publisher=bob)
    page = open_page("ja")
    page.add_init_script(COUNT_CLICKS)
    page.goto("/")
    page.locator("[name=username]").fill("charlie")
    page.locator("[name=password]").fill("correct horse")
    page.locator("main form button").click()
    page.wait_for_url("**/start/")
    page.locator("[data-ask-button]").click()
    page.wait_for_url("**/try/")
    page.locator("[data-send]").click()
    answered(page)
    assert int(page.evaluate("sessionStorage.getItem('clicks')")) == 3
    assert JAPANESE.search(calls(engine_)[-1]["messages"][-1]["content"])
    until(lambda: UsageRecord.objects.exists())

    page.goto("/")
    page.locator("#colleagues .row-link").click()
    assert UseCase.objects.get().tried == 0
    try_use_case(page, "納期はいつですか")
    assert calls(engine_)[-1]["messages"] == [{"role": "user", "content": "返信してください。\n納期はいつですか"}]
    until(lambda: UseCase.objects.get().tried == 1)
    given = until(lambda: Feedback.objects.first())
    assert (given.use_case, given.use_case_version, given.score, given.user) == (case, 1, 1, charlie)

    page.goto(f"/use-cases/{case.pk}/")
    page.locator("#helped [name=minutes]").fill("10")
    page.locator("#helped [name=helped][value=yes]").click()
    expect(page.locator("[data-helped='1']")).to_be_visible()
    assert HelpedMark.objects.get().minutes == 10
    assert looks(page, "tooWide") == []


def run_pasted(command: list[str]) -> str:
    """Run what a person pasted; return what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout


def test_a_developer_pastes_what_the_page_of_a_new_key_shows_and_looks_at_the_calls(open_page, serve, alice):
    serve()
    page = open_page("en")
    sign_in(page)
    page.goto("/keys/")
    page.locator("main a[href='/keys/new/']").first.click()
    page.locator("[name=name]").fill("laptop")
    page.locator("main form button").click()
    assert '"content": "hello"' in run_pasted(["sh", "-c", page.locator(".tab.curl pre").inner_text()])
    page.locator("label[for=tab-python]").click()
    python = page.locator(".tab.python pre").first.inner_text()
    assert run_pasted([sys.executable, "-c", python]).strip() == "t0 t1 t2"
    until(lambda: UsageRecord.objects.count() == 2)
    page.locator("[data-places] a[href='/usage/']").click()
    page.locator("main a[href^='/requests/']").first.click()
    page.locator("main tbody th a").first.click()
    expect(page).to_have_url(re.compile(f"/requests/{UsageRecord.objects.latest('pk').request_id}/$"))
    expect(page.locator("[data-stage]").first).to_be_attached()
    expect(page.locator("main")).to_contain_text("laptop")


def test_a_champion_returns_a_proposal_publishes_the_next_one_and_reads_what_colleagues_say(
    open_page, serve, alice, charlie, research
):
    serve()
    Membership.objects.create(user=charlie, tenant=research, is_champion=True)
    case = use_case(alice, research)
    theirs, mine = open_page("en"), open_page("en")
    sign_in(theirs, "charlie")
    theirs.goto("/use-cases/")
    theirs.locator("#waiting .row-link").click()
    theirs.locator("#decide [name=note]").fill("Say which tone.")
    theirs.locator("[name=verdict][value=return]").click()
    until(lambda: UseCaseVersion.objects.get().state == "returned")

    sign_in(mine)
    mine.goto("/use-cases/")
    expect(mine.locator("#own")).to_contain_text("Say which tone.")
    mine.locator("#own .row-link").click()
    mine.locator(f"a[href='/use-cases/{case.pk}/edit/']").click()
    mine.locator("[name$=prompt]:visible").fill("Answer in a friendly tone:\n{{mail}}")
    mine.locator("[name=step][value=propose]").click()
    until(lambda: UseCaseVersion.objects.filter(state="proposed").exists())

    theirs.goto("/use-cases/")
    theirs.locator("#waiting .row-link").click()
    theirs.locator("[name=verdict][value=publish]").click()
    until(lambda: UseCase.objects.get().current_id)
    published = UseCase.objects.get()
    assert (published.is_company_wide, published.tenant) == (False, research)

    mine.goto(f"/use-cases/{case.pk}/")
    try_use_case(mine, "Are you open on Sundays?")
    until(lambda: Feedback.objects.exclude(model="").exists() or join_feedback())
    theirs.goto("/use-cases/")
    theirs.locator("main a[href='/feedback/']").click()
    row = theirs.locator(f"#by-use-case [data-row='{case.pk}']")
    expect(row.locator(".num.share")).to_have_text("100%")
    expect(row).to_contain_text(str(published.current.number))


def join_feedback() -> bool:
    """Join what was given before its usage was recorded, as the periodic task does."""
    from portal.feedback.recording import join_waiting

    return bool(join_waiting())


def test_a_tenant_admin_sees_who_is_near_a_limit_decides_a_request_and_reads_the_month_in_yen(
    open_page, serve, alice, bob, research
):
    serve()
    per_day = QuotaKind(unit="tokens", window="day")
    administration.set_quota(bob, QuotaTarget(tenant=research, default_for="member"), per_day, 1000)
    use(key_of(alice, research), tokens=(800, 50), at=timezone.now())
    today = timezone.localdate()
    TokenPrice.objects.create(model="qwen", first_day=today.replace(day=1), input_price=100, output_price=400)
    about = {"unit": "tokens", "window": "day", "amount": 2000, "previous_amount": 1000}
    QuotaRequest.objects.create(tenant=research, user=alice, asked_by=alice, reason="year-end papers", **about)
    page = open_page("en")
    sign_in(page, "bob")
    page.goto("/")
    page.locator("[data-tenant-of-admin=research] [data-near]").click()
    expect(page.locator(".allowances [data-amount='1000']").first).to_contain_text("Alice")
    page.locator("#waiting a.button").click()
    expect(page.locator(".quote")).to_have_text("year-end papers")
    page.locator("[name=amount]").fill("1500")
    page.locator("[name=verdict][value=grant]").click()
    until(lambda: Quota.objects.filter(user=alice, amount=1500).exists())
    page.locator(".parts a[href='/tenant/research/']").click()
    expect(page.locator("#none-near-limit")).to_be_visible()
    page.locator(".parts a[href^='/feedback/']").click()
    expect(page.locator("#no-feedback")).to_be_visible()
    page.go_back()
    page.locator(".parts a[href^='/usage/']").click()
    page.goto(f"{page.url}&period=this-month")
    assert page.locator("[data-yen]").get_attribute("data-yen") == "100"  # 800 × 100 / 1,000 + 50 × 400 / 1,000


def test_an_operator_goes_from_what_needs_attention_to_news_status_and_a_webhook(open_page, serve, olivia, posted):
    serve()
    serve("broken", state="failed")
    page = open_page("en")
    sign_in(page, "olivia")
    page.goto("/")
    page.locator("#operator a[href='/operations/models/broken/']").first.click()
    expect(page.locator("h1 .state.broken")).to_be_visible()

    page.goto("/news/")
    page.locator("main a[href='/news/new/']").first.click()
    page.locator("[name=title_en]").fill("broken is being repaired")
    now = timezone.localtime()
    page.locator("[name=begins_at]").fill(f"{now:%Y-%m-%dT%H:%M}")
    page.locator("[name=ends_at]").fill(f"{now.replace(year=now.year + 1, day=1):%Y-%m-%dT%H:%M}")
    page.locator("main form button.primary").click()
    banner = until(lambda: Announcement.objects.first())
    page.goto("/status/")
    expect(page.locator(f"[data-banner='{banner.pk}']")).to_contain_text("broken is being repaired")
    expect(page.locator("#summary")).to_have_attribute("data-troubled", "1")
    expect(page.locator(".statuses [data-model=broken]")).to_be_visible()

    page.goto("/notices/webhooks/")
    page.locator("main a[href='/notices/webhooks/new/']").click()
    page.locator("[name=name]").fill("operators")
    page.locator("[name=url]").fill(posted.url)
    page.locator("main form button.primary").click()
    page.locator("[data-webhook=operators] form button").click()
    expect(page.locator(".notice.success")).to_be_visible()
    assert len(posted.bodies) == 1
    page.goto("/operations/")
    page.locator("main a[href='/feedback/']").click()
    expect(page.locator("#no-feedback")).to_be_visible()
