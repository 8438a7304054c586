import json

import pytest
from django.test import Client
from django.utils import timezone

from modelregistry.models import Replica, ServedModel
from portal.audit.models import AuditEvent
from portal.canary import running
from portal.canary.models import CanaryRequest, CanaryRun
from portal.canary.prompts import PROMPTS
from portal.keys import canary_key
from portal.keys.models import ApiKey
from portal.operations.live import read_first_tokens
from tests.canary_runs import canary_run, failed_run
from tests.pages import serve, service_key_of, use

pytestmark = pytest.mark.django_db


@pytest.fixture
def model() -> ServedModel:
    return serve()


@pytest.fixture
def operator(olivia) -> Client:
    client = Client()
    client.force_login(olivia)
    return client


def read(client: Client, path: str) -> str:
    answer = client.get(path)
    assert answer.status_code == 200
    return answer.content.decode()


def test_a_failing_model_needs_attention_until_it_passes(operator, model):
    canary_run(model, is_reference=True)
    run = failed_run(model)
    assert 'data-canary="qwen"' in read(operator, "/operations/")
    assert 'id="canary" data-failing="yes"' in read(operator, "/operations/models/qwen/")
    assert f'href="/operations/canary/{run.pk}/"' in read(operator, "/operations/")

    canary_run(model)

    assert "data-canary" not in read(operator, "/operations/")
    assert 'id="canary" data-failing="no"' in read(operator, "/operations/models/qwen/")


@pytest.mark.parametrize("gone", ["replica", "disabled"])
def test_what_is_not_served_any_more_does_not_fail(operator, model, gone):
    failed_run(model)
    if gone == "replica":
        Replica.objects.all().delete()
    else:
        ServedModel.objects.update(enabled=False)

    assert "data-canary" not in read(operator, "/operations/")


def test_a_run_that_was_not_done_does_not_hide_a_failure(operator, model):
    failed_run(model)
    canary_run(model, verdict=CanaryRun.Verdict.NOT_DONE, obstacle=CanaryRun.Obstacle.BUSY)

    assert 'data-canary="qwen"' in read(operator, "/operations/")


def test_a_run_shows_both_answers_of_what_failed_first(operator, model):
    canary_run(model, is_reference=True)
    run = failed_run(model)

    page = read(operator, f"/operations/canary/{run.pk}/")

    prompts = [part.partition('"')[0] for part in page.split('data-prompt="')[1:]]
    assert prompts == [prompt.name for prompt in PROMPTS]  # the first five failed
    first = page.split("data-prompt=")[1]
    assert "!" * 200 in first
    assert "東京は日本の首都です。" in first
    assert page.count('data-side="before"') == 5  # the others have not changed


def test_texts_of_a_model_are_never_markup(operator, model):
    run = canary_run(model, answers={PROMPTS[0].name: "<script>alert(1)</script>"})

    assert "<script>alert" not in read(operator, f"/operations/canary/{run.pk}/")


def test_an_operator_asks_once_and_the_audit_says_so(operator, model):
    for _ in range(2):
        answer = operator.post("/operations/ask/qwen/")
        assert (answer.status_code, answer.url) == (302, "/operations/models/qwen/")

    assert CanaryRequest.objects.get().model == model
    assert AuditEvent.objects.filter(action="model.canary-request").count() == 1
    assert "data-requested" in read(operator, "/operations/models/qwen/")


def test_a_model_that_does_not_chat_has_no_canary(operator):
    serve("e5", task="embedding")

    assert operator.post("/operations/ask/e5/").status_code == 404
    assert not CanaryRequest.objects.exists()
    assert 'id="canary"' not in read(operator, "/operations/models/e5/")


@pytest.mark.parametrize(("hour", "never"), [(3, False), (None, True)])
def test_it_is_said_whether_models_are_asked_by_themselves(operator, model, settings, hour, never):
    settings.CANARY_HOUR = hour
    assert ("data-never" in read(operator, "/operations/models/qwen/")) is never


def test_an_operator_accepts_new_answers(operator, olivia, model):
    canary_run(model, is_reference=True)
    run = failed_run(model)

    operator.post(f"/operations/canary/{run.pk}/accept/")

    run.refresh_from_db()
    assert (run.is_reference, run.accepted_by) == (True, olivia)
    assert "data-canary" not in read(operator, "/operations/")
    assert f"/operations/canary/{run.pk}/accept/" not in read(operator, f"/operations/canary/{run.pk}/")


def test_a_run_that_was_not_done_has_nothing_to_accept(operator, model):
    run = canary_run(model, verdict=CanaryRun.Verdict.NOT_DONE, obstacle=CanaryRun.Obstacle.ENGINE)
    assert "/accept/" not in read(operator, f"/operations/canary/{run.pk}/")

    operator.post(f"/operations/canary/{run.pk}/accept/")

    run.refresh_from_db()
    assert not run.is_reference


def test_a_run_that_was_cut_short_has_no_button_and_is_refused(operator, model):
    run = failed_run(model)
    run.answers.filter(prompt__in=[prompt.name for prompt in PROMPTS[3:]]).delete()
    assert "/accept/" not in read(operator, f"/operations/canary/{run.pk}/")

    answer = operator.post(f"/operations/canary/{run.pk}/accept/", follow=True)

    assert ["incomplete" in message.tags for message in answer.context["messages"]] == [True]
    run.refresh_from_db()
    assert (run.verdict, run.is_reference) == (CanaryRun.Verdict.FAILED, False)


def test_an_accepted_run_shows_what_was_found_as_no_error(operator, model):
    run = failed_run(model)
    operator.post(f"/operations/canary/{run.pk}/accept/")

    page = read(operator, f"/operations/canary/{run.pk}/")

    assert 'id="findings"' in page
    assert "notice error" not in page
    assert "state broken" not in page


@pytest.mark.parametrize(("verdict", "shown"), [("failed", "20"), ("not-done", "–"), ("running", "–")])
def test_changed_answers_are_counted_also_without_a_speed(operator, model, verdict, shown):
    canary_run(model, is_reference=True)
    run = canary_run(model, verdict=verdict, tokens_per_second=None, changed=20)

    row = read(operator, "/operations/models/qwen/").partition(f'data-run="{run.pk}"')[2].partition("</tr>")[0]

    assert row.rpartition("<td")[2].partition(">")[2].removesuffix("</td>") == shown


def test_calls_of_the_canary_are_not_among_the_times_to_the_first_token(operator, model, research):
    canary_key.renew_key()
    use(ApiKey.objects.get(), at=timezone.now(), tokens=(7, 30), first_token_ms=9000)
    assert read_first_tokens(timezone.now()) == {}

    use(service_key_of(research), at=timezone.now(), tokens=(7, 30), first_token_ms=40)

    [seen] = read_first_tokens(timezone.now()).values()
    assert (seen.requests, seen.slow) == (1, 0.04)


def test_the_reference_of_an_external_engine_has_the_same_words_as_the_engine(operator, model):
    Replica.objects.update(launcher="", version="")
    canary_run(model, is_reference=True)
    run = canary_run(model)

    page = read(operator, f"/operations/canary/{run.pk}/")

    engine = page.partition("<dt>Engine</dt><dd>")[2].partition("</dd>")[0].strip()
    assert engine
    assert f"</a> · {engine}" in page


def test_the_api_shows_runs_and_takes_requests(operator, model):
    run = failed_run(model)

    shown = operator.get(f"/api/v1/models/{model.pk}/canary/").json()

    assert (shown["failing"], shown["requested"]) == (True, False)
    assert [(one["id"], one["verdict"], one["findings"][0]["code"]) for one in shown["runs"]] == [
        (run.pk, "failed", "repeated-sign")
    ]
    asked = operator.post(f"/api/v1/models/{model.pk}/canary/", json.dumps({}), content_type="application/json")
    assert (asked.status_code, asked.json()["requested"]) == (200, True)


def test_the_reference_is_compared_with_nothing(operator, model):
    run = canary_run(model, is_reference=True)

    assert 'data-side="before"' not in read(operator, f"/operations/canary/{run.pk}/")
    assert running.reference_of(canary_run(model)) == run
