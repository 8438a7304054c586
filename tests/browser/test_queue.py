"""The operators' page of the queue in a browser: it follows what gateways report."""

import time
from datetime import timedelta

import pytest
from django.utils import timezone
from playwright.sync_api import expect

from modelregistry.models import Replica
from portal.keys.models import ApiKey
from portal.operations.models import QueueReport
from portal.operations.queue import GONE_AFTER
from portal.operations.queue_reports import write_report
from tests.browser.pages import LONG_KEY, LONG_MODEL, looks, sign_in
from tests.fleet import fleet
from tests.pages import key_of, service_key_of

pytestmark = pytest.mark.django_db(transaction=True)

MODEL = "llama-3.1-70b-japanese"


def waiting(key: ApiKey, waited: float, place: int, *, model: str = MODEL, **more) -> dict:
    owner = {"tenant": key.tenant_id, "user": key.user_id, "key": key.pk, "end_user": ""}
    facts = {"model": model, "call_class": key.key_class, "waited": waited, "place": place, "expected": 2.5 * place}
    return {**owner, **facts, **more}


def report(worker: str, *calls: dict, running: int = 4, loading: float | None = None) -> None:
    names = {call["model"] for call in calls}
    models = [
        {
            "model": name,
            "waiting": {
                one: count
                for one in ("interactive", "batch")
                if (count := sum((call["model"], call["call_class"]) == (name, one) for call in calls))
            },
            "longest": max(call["waited"] for call in calls if call["model"] == name),
            "loading": loading if name != MODEL else None,
            "usual_loading": 45.0 if name != MODEL else None,
        }
        for name in names
    ]
    replicas = [
        {"replica": one.pk, "model": one.model.name, "running": running, "room": 4.0}
        for one in Replica.objects.filter(model__name=MODEL).select_related("model")
    ]
    now = int(time.time() // 60)
    flows = [["user:1:", 60, 900.0], ["user:2:", 60, 1000.0], ["key:3:", 55, 950.0]]
    minutes = [
        {"number": now - ago, "model": MODEL, "call_class": "interactive", "contended": 60, "flows": flows}
        for ago in range(1, 4)
    ]
    write_report(worker, {"calls": list(calls), "models": models, "replicas": replicas}, minutes)


@pytest.fixture
def keys(olivia, alice, bob, research) -> tuple[ApiKey, ApiKey]:
    fleet()
    return key_of(alice, research), service_key_of(research, LONG_KEY)


@pytest.mark.parametrize("language", ["ja", "en"])
def test_the_page_follows_who_waits(open_page, keys, language):
    person, service = keys
    report("gpu-01/4711", waiting(person, 8.0, 1))
    page = open_page(language)
    sign_in(page, "olivia")
    page.goto("/operations/queue/")
    expect(page.locator("[data-live-state].fine")).to_be_visible()
    expect(page.locator("[data-call]")).to_have_count(1)
    report(
        "gpu-02/4712",
        waiting(service, 20.0, 1, end_user="yamada@example.com"),
        waiting(service, 3.0, 2, model=LONG_MODEL, call_class="batch"),
        loading=12.0,
    )
    expect(page.locator("[data-call]")).to_have_count(3)
    expect(page.locator("[data-call]").first).to_contain_text("yamada@example.com")
    expect(page.locator("[data-worker]")).to_have_count(2)
    page.locator(f"[data-model='{LONG_MODEL}'] td a").click()
    expect(page.locator(f"[data-only='{LONG_MODEL}']")).to_be_visible()
    expect(page.locator("[data-call]")).to_have_count(1)
    page.locator("[data-only] a").click()
    expect(page.locator("[data-call]")).to_have_count(3)
    QueueReport.objects.filter(worker="gpu-02/4712").update(at=timezone.now() - timedelta(seconds=GONE_AFTER + 5))
    expect(page.locator("[data-worker]")).to_have_count(1)
    expect(page.locator("[data-call]")).to_have_count(1)


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_long_names_fit_and_all_of_it_can_be_read(open_page, axe, keys, width, scheme):
    person, service = keys
    named = waiting(service, 200.0, 1, model=LONG_MODEL, end_user="sakura.katsuragi-yamamoto@research.example.com")
    report("gpu-01.ai.example.com/4711", named, waiting(person, 8.0, 1), loading=12.0)
    page = open_page("ja", width=width, scheme=scheme)
    sign_in(page, "olivia")
    page.goto("/operations/queue/")
    expect(page.locator("[data-call]")).to_have_count(2)
    assert [looks(page, question) for question in ("tooWide", "faint")] == [[], []]
    assert axe(page) == []
