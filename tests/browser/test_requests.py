"""A person looks up why a request was slow or refused, in both languages."""

from datetime import timedelta

import pytest
from django.utils import timezone
from playwright.sync_api import expect

from portal.keys.models import ApiKey
from portal.usage import records, refusals
from tests.browser.pages import JAPANESE, LONG_KEY, LONG_MODEL, enter, looks
from tests.pages import key_of, serve, use
from tests.portal.usage.record_rows import row

pytestmark = pytest.mark.django_db(transaction=True)

SLOW = "req_0123456789abcdef01234567"
REFUSED = "req_refused0123456789abcdef0"
VIEWS = [("ja", 1280, "light"), ("en", 390, "dark"), ("ja", 360, "dark"), ("en", 1280, "dark")]


@pytest.fixture
def key(alice, research) -> ApiKey:
    """Return a key that was used as usual, for one slow request, for one that was cut, and for one that was refused."""
    serve("qwen")
    key, now = key_of(alice, research, LONG_KEY), timezone.now()
    owner = {"key_id": key.pk, "user_id": alice.pk, "tenant_id": research.pk, "model": "qwen"}
    usual = {
        "queued_ms": 0,
        "loading_ms": 0,
        "prefill_ms": 300,
        "first_token_ms": 300,
        "duration_ms": 3300,
        "retries": 0,
    }
    ago = [now - timedelta(minutes=20 + n) for n in range(20)]
    facts = {**owner, **usual, "completion_tokens": 120, "prompt_tokens": 400, "stopped_by": "stop"}
    records.record_usage([row(f"req_usual{n}", **{**facts, "started_at": at}) for n, at in enumerate(ago)])
    busy = {**facts, "key_id": key.pk + 1, "user_id": alice.pk + 1, "duration_ms": 60_000, "replica_id": 1}
    around = [now - timedelta(seconds=100 + n) for n in range(6)]
    records.record_usage([row(f"req_busy{n}", **{**busy, "started_at": at}) for n, at in enumerate(around)])
    slow = {"queued_ms": 8200, "loading_ms": 41_000, "prefill_ms": 2400, "first_token_ms": 5400, "duration_ms": 45_000}
    slow |= {"retries": 1, "stopped_by": "length", "engine": "vllm 0.32.0", "completion_tokens": 512, "replica_id": 1}
    slow |= {"prompt_tokens": 12_000, "started_at": now - timedelta(seconds=60)}
    records.record_usage([row(SLOW, **{**facts, **slow})])
    refused = {"request_id": REFUSED, "at": now, "model": LONG_MODEL, "endpoint": "/v1/chat/completions"}
    refused |= {"code": "rate_limit_exceeded", "reason": "rate_limit_exceeded", "scope": "tenant", "window": "minute"}
    refused |= {"digest": "", "key": key.pk, "tenant": research.pk, "user": alice.pk, "retry_after": 17}
    refusals.add_refusals([{**refused, "waited_ms": None}])
    return key


@pytest.mark.parametrize(("language", "width", "scheme"), VIEWS)
def test_a_person_finds_a_request_and_reads_its_causes(open_page, axe, site, alice, key, language, width, scheme):
    tab = open_page(language, width=width, scheme=scheme)
    enter(tab, site, "alice")
    tab.goto("/requests/")
    expect(tab.locator(f"[data-request={SLOW}]")).to_be_visible()
    assert looks(tab, "tooWide") == []
    assert looks(tab, "faint") == []
    assert axe(tab) == []
    tab.locator("#request-id").fill(SLOW)
    tab.locator("#find button").click()
    expect(tab.locator("[data-cause]").first).to_have_attribute("data-cause", "cut_at_limit")
    causes = [one.get_attribute("data-cause") for one in tab.locator("[data-cause]").all()]
    assert causes[1] == "model_was_asleep"
    assert {"waited_behind_others", "moved_to_other_replica", "long_prompt", "slow_engine"} <= set(causes)
    for one in tab.locator("[data-cause], [data-stage]").all():
        assert bool(JAPANESE.search(one.inner_text())) == (language == "ja")
    assert looks(tab, "tooWide") == []
    assert looks(tab, "faint") == []
    assert axe(tab) == []
    tab.goto("/requests/")
    tab.locator(f"[data-request={REFUSED}] a").click()
    expect(tab.locator("[data-cause=rate_limited]")).to_be_visible()
    assert looks(tab, "tooWide") == []
    assert axe(tab) == []


def test_an_id_that_is_not_known_is_answered_on_the_page(open_page, site, alice, key):
    tab = open_page()
    enter(tab, site, "alice")
    tab.goto("/requests/")
    tab.locator("#request-id").fill("req_unknown")
    tab.locator("#find button").click()
    expect(tab.locator("#not-found")).to_be_visible()
    expect(tab.locator("#request-id")).to_have_value("req_unknown")


def test_the_live_view_leads_to_the_page_of_a_request(open_page, site, alice, key):
    tab = open_page()
    enter(tab, site, "alice")
    tab.goto("/usage/live/")
    expect(tab.locator("[data-live-state].fine")).to_be_visible()
    record = use(key, at=timezone.now() - timedelta(seconds=2))
    link = tab.locator(f"[data-rows=last] a[href='/requests/{record.request_id}/']")
    link.click()
    tab.wait_for_url(f"**/requests/{record.request_id}/")
    expect(tab.locator("#causes")).to_be_visible()
