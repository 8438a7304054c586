"""The canary through a real gateway, with an engine that answers well or is broken in six ways."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from apiproxy.bridge.management.commands.canary import is_loop
from modelregistry.models import Host, Replica
from portal.accounts.models import Tenant
from portal.canary import due, judging, running
from portal.canary.asking import Asker, NotDone
from portal.canary.due import Due
from portal.canary.models import CanaryRun
from portal.canary.prompts import PROMPTS
from portal.keys import canary_key
from portal.keys.models import ApiKey, ModelAccess
from portal.notifications.models import Notice
from portal.usage.models import LoopDay, UsageRecord
from tests.installation import installed
from tests.talkative_engine import Reply, TalkativeEngine, talkative_engine
from tests.waiting import until

Verdict, Obstacle, Reason = CanaryRun.Verdict, CanaryRun.Obstacle, CanaryRun.Reason
LANGUAGES = {prompt.text: prompt.language for prompt in PROMPTS}
SHORT = {prompt.text for prompt in PROMPTS if prompt.short}
JAPANESE = ("東京", "は", "日本", "の", "首都", "で", "、", "多く", "の", "人", "が", "働い", "て", "い", "ます", "。")
ENGLISH = ("Bread ", "needs ", "flour, ", "water, ", "yeast ", "and ", "some ", "time ", "to ", "rise ", "well", ".")
CHINESE = ("面包", "需要", "面粉", "和", "水", "，", "还", "需要", "时间", "。")


def healthy(prompt: str, every: float = 0.0) -> Reply:
    """Answer in the prompt's language, each prompt otherwise; long ones over a measurable time."""
    words = JAPANESE if LANGUAGES[prompt] == "ja" else ENGLISH
    if prompt in SHORT:
        return Reply(pieces=(*words[:6], prompt[:4]))
    return Reply(pieces=(*words, *words[::-1], prompt[:4]), every=every)


class Bench:
    """A model on two replicas, as the canary meets it."""

    def __init__(self, counter, engine: TalkativeEngine) -> None:
        self.counter = counter
        self.engine = engine
        self.now = datetime(2026, 11, 30, 18, tzinfo=UTC)
        self.asker = Asker(counter.url, canary_key.renew_key(), sleep=self.sleep)
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def clock(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now

    def target(self) -> due.CanaryTarget:
        [target] = due.targets("fake")
        return target

    def run(self, reason: Reason = Reason.NIGHTLY) -> CanaryRun:
        work = Due(target=self.target(), reason=reason)
        return running.run_canary(work, self.asker, clock=self.clock, is_loop=is_loop)


@pytest.fixture
def bench(counter) -> Iterator[Bench]:
    with talkative_engine(healthy) as engine:
        counter.model.url = engine.url
        counter.model.save()
        replica = counter.model.replica_set.get()
        replica.url, replica.run_id, replica.version = engine.url, "run-1", "1.0"
        replica.save()
        made = Bench(counter, engine)
        yield made
        made.asker.close()


def codes(run: CanaryRun) -> list[str]:
    return [finding["code"] for finding in run.findings]


BROKEN = {
    "exclamation marks": (judging.REPEATED_SIGN, lambda _: Reply(pieces=("!",) * 200, finish="length")),
    "empty": (judging.EMPTY, lambda _: Reply(pieces=())),
    "endless": (
        judging.ENDLESS,
        lambda prompt: Reply(
            pieces=tuple(f"{word}{number} " for number in range(20) for word in healthy(prompt).pieces[:10]),
            finish="length",
        ),
    ),
    "looping": (
        judging.LOOP,
        lambda prompt: Reply(pieces=(healthy(prompt).pieces[:5] * 40), finish="length"),
    ),
    "wrong language": (judging.LANGUAGE, lambda _: Reply(pieces=CHINESE)),
    "template": (
        judging.TEMPLATE,
        lambda prompt: Reply(pieces=(*healthy(prompt).pieces, "<|im_end|>", "\n", "<|im_start|>", "user")),
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_it_names_what_is_broken(bench, olivia, fault):
    code, reply = BROKEN[fault]
    assert bench.run(Reason.FIRST).verdict == Verdict.PASSED
    bench.engine.reply = reply

    run = bench.run()

    assert run.verdict == Verdict.FAILED
    assert set(codes(run)) == {code, judging.DRIFT}
    notice = Notice.objects.get(user=olivia)
    assert (notice.kind, notice.facts["model"], notice.facts["findings"]) == ("canary-failed", "fake", codes(run))
    assert notice.path == f"/operations/canary/{run.pk}/"


def test_it_names_half_the_speed(bench):
    bench.engine.reply = lambda prompt: healthy(prompt, every=0.01)
    for _ in range(judging.LEAST_SPEEDS):
        assert bench.run().verdict == Verdict.PASSED
    bench.engine.reply = lambda prompt: healthy(prompt, every=0.02)

    run = bench.run()

    assert codes(run) == [judging.SLOW]
    assert run.tokens_per_second < 0.6 * run.usual_tokens_per_second


def test_a_broken_model_is_named_at_its_first_run_and_never_becomes_the_reference(bench):
    bench.engine.reply = BROKEN["exclamation marks"][1]

    run = bench.run(Reason.FIRST)

    assert (run.verdict, codes(run)) == (Verdict.FAILED, [judging.REPEATED_SIGN])
    assert not run.is_reference


def test_it_asks_as_a_batch_call_that_is_no_tenants_and_counts_in_no_loop_rate(bench):
    bench.run()

    until(lambda: UsageRecord.objects.count() == len(PROMPTS))
    assert set(UsageRecord.objects.values_list("tenant__slug", "user", "key__key_class")) == {
        (canary_key.TENANT, None, ApiKey.Class.CANARY)
    }
    assert not LoopDay.objects.exists()
    asked = bench.engine.requests[0]
    assert {name: asked[name] for name in ("temperature", "max_tokens", "stream")} == {
        "temperature": 0,
        "max_tokens": 200,
        "stream": True,
    }


def test_it_reaches_a_model_that_few_tenants_may_use_and_is_not_under_its_presets(bench, sales):
    ModelAccess.objects.create(model=bench.counter.model, tenant=sales)
    bench.counter.model.sampling = {"temperature": {"least": 0.3}}
    bench.counter.model.save()
    bench.counter.wait_for_catalogue()

    assert bench.run().verdict == Verdict.PASSED
    assert {body["temperature"] for body in bench.engine.requests} == {0}


@pytest.fixture
def second(bench) -> Iterator[TalkativeEngine]:
    with talkative_engine(healthy) as engine:
        host = Host.objects.create(name="there")
        Replica.objects.create(model=bench.counter.model, host=host, state=Replica.State.READY, url=engine.url)
        yield engine


def test_each_replica_is_asked_itself(bench, second):
    for target in due.targets("fake"):
        running.run_canary(Due(target=target, reason=Reason.NIGHTLY), bench.asker, clock=bench.clock, is_loop=is_loop)

    assert len(bench.engine.requests) == len(second.requests) == len(PROMPTS)


def test_other_keys_cannot_choose_a_replica(bench, second):
    bench.counter.wait_for_catalogue()
    chosen = Replica.objects.get(url=second.url).pk

    for _ in range(4):  # one after another: the first of idle replicas is taken
        body = {"model": "fake", "messages": [{"role": "user", "content": PROMPTS[0].text}], "stream": True}
        answer = bench.counter.client.post(
            "/v1/chat/completions", json=body, headers={"x-madoguchi-replica": str(chosen)}
        )
        assert answer.status_code == 200

    assert (len(bench.engine.requests), len(second.requests)) == (4, 0)


def test_a_canary_is_told_that_its_replica_is_gone(bench, second):
    gone = Replica.objects.get(url=second.url)
    target = next(one for one in due.targets("fake") if one.replica_id == gone.pk)
    gone.state = Replica.State.STOPPED
    gone.save()
    bench.counter.wait_for_catalogue()

    run = running.run_canary(Due(target=target, reason=Reason.NIGHTLY), bench.asker, clock=bench.clock, is_loop=is_loop)

    assert (run.verdict, run.obstacle) == (Verdict.NOT_DONE, Obstacle.ENGINE)
    assert second.requests == bench.engine.requests == []


@pytest.mark.parametrize(
    ("reply", "obstacle", "waits"),
    [
        (Reply(pieces=(), status=429, headers=(("retry-after", "7"),)), Obstacle.BUSY, 5),
        (Reply(pieces=(), status=503), Obstacle.BUSY, 5),
    ],
)
def test_a_full_engine_is_waited_for_and_then_left_for_later(bench, olivia, reply, obstacle, waits):
    bench.engine.reply = lambda _: reply

    run = bench.run()

    assert (run.verdict, run.obstacle, len(bench.slept)) == (Verdict.NOT_DONE, obstacle, waits)
    assert not Notice.objects.exists()


def test_an_engine_that_goes_in_the_middle_is_no_fault_of_the_model(bench):
    def dying(prompt: str) -> Reply:
        if len(bench.engine.requests) > 5:
            Replica.objects.update(run_id="run-2")  # as its supervisor starts it again
            return Reply(pieces=("half ", "of "), breaks_off=True)
        return healthy(prompt)

    bench.engine.reply = dying

    run = bench.run()

    assert (run.verdict, run.obstacle) == (Verdict.NOT_DONE, Obstacle.ENGINE)


def test_errors_of_an_engine_that_stays_are_named(bench):
    bench.engine.reply = lambda _: Reply(pieces=(), status=400)

    run = bench.run()

    assert (run.verdict, codes(run)) == (Verdict.FAILED, [judging.ERROR])
    assert len(bench.engine.requests) == running.MOST_ERRORS


def test_a_revoked_key_and_an_inactive_tenant_are_no_fault_of_the_model(bench):
    Tenant.objects.get(slug=canary_key.TENANT)
    tenant = Tenant.objects.get(slug=canary_key.TENANT)
    tenant.is_active = False
    tenant.save()
    bench.counter.wait_for_catalogue()

    run = bench.run()

    assert (run.verdict, run.obstacle) == (Verdict.NOT_DONE, Obstacle.KEY)


def test_a_gateway_that_is_away_is_no_fault_of_the_model(bench):
    bench.counter.server.should_exit = True
    until(lambda: not bench.counter.server.started or bench.counter.server.should_exit)
    asker = Asker("http://127.0.0.1:9", "mdg_x")

    run = running.run_canary(
        Due(target=bench.target(), reason=Reason.NIGHTLY), asker, clock=bench.clock, is_loop=is_loop
    )

    assert (run.verdict, run.obstacle) == (Verdict.NOT_DONE, Obstacle.GATEWAY)


def test_the_command_asks_what_is_due_once(bench, settings, capsys):
    settings.GATEWAY_URL = bench.counter.url
    call_command("canary", "--due")
    assert capsys.readouterr().out.strip() == "fake: passed"

    call_command("canary", "--due")

    assert capsys.readouterr().out.strip() == "nothing is due"
    assert len(bench.engine.requests) == len(PROMPTS)


def test_the_command_leaves_a_run_that_goes_on_alone(bench, settings, capsys):
    settings.GATEWAY_URL = bench.counter.url
    run = running.begin_run(Due(target=bench.target(), reason=Reason.FIRST), timezone.now())

    call_command("canary", "--due")
    with pytest.raises(CommandError):
        call_command("canary", "fake")

    assert bench.engine.requests == []
    assert CanaryRun.objects.get() == run


def test_of_two_commands_that_start_together_the_second_leaves_the_key_of_the_first_alone(bench, settings, monkeypatch):
    settings.GATEWAY_URL = bench.counter.url
    key = ApiKey.objects.get(key_class=ApiKey.Class.CANARY)

    def find_gateway(addresses: list[str]) -> str:
        running.begin_run(Due(target=bench.target(), reason=Reason.FIRST), timezone.now())  # as the other one does now
        return addresses[0]

    monkeypatch.setattr("apiproxy.bridge.management.commands.canary.find_gateway", find_gateway)

    with pytest.raises(CommandError):
        call_command("canary", "fake")

    assert ApiKey.objects.get(key_class=ApiKey.Class.CANARY).digest == key.digest
    assert CanaryRun.objects.get().verdict == Verdict.RUNNING


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "not an address", ""])
def test_without_a_gateway_the_command_fails_and_the_run_is_due_at_once(bench, settings, monkeypatch, address):
    monkeypatch.setattr("apiproxy.bridge.management.commands.canary.OWN", "http://127.0.0.1:9")
    settings.GATEWAY_URL = address

    with pytest.raises(CommandError):
        call_command("canary", "--due")

    assert CanaryRun.objects.get().obstacle == Obstacle.GATEWAY
    assert [one.reason for one in due.find_due(timezone.now())] == [Reason.FIRST]


def test_no_other_program_is_given_the_key(bench, settings):
    settings.GATEWAY_URL = bench.engine.url  # answers on every path, as another program on port 8000 might

    with pytest.raises(CommandError):
        call_command("canary", "--due")

    assert bench.engine.requests == []


def test_the_text_of_the_key_works_for_one_session(bench, settings):
    settings.GATEWAY_URL = bench.counter.url
    text = canary_key.renew_key()
    call_command("canary", "--due")
    bench.counter.wait_for_catalogue()

    with pytest.raises(NotDone) as refused:
        Asker(bench.counter.url, text).ask("fake", bench.target().replica_id, PROMPTS[0])

    assert refused.value.obstacle == Obstacle.KEY
    assert ApiKey.objects.filter(key_class=ApiKey.Class.CANARY).count() == 1


def test_the_command_prints_what_it_found_for_programs(bench, settings, capsys):
    settings.GATEWAY_URL = bench.counter.url

    call_command("canary", "fake", "--json")

    [shown] = json.loads(capsys.readouterr().out)
    assert (shown["model"], shown["verdict"], shown["reason"], shown["findings"]) == ("fake", "passed", "request", [])


@pytest.mark.parametrize("model", ["nothing", "fake"])
def test_the_command_names_what_cannot_be_asked(bench, model):
    Replica.objects.update(state=Replica.State.ASLEEP)

    with pytest.raises(CommandError, match=model):
        call_command("canary", model)


def test_a_supervisor_asks_a_new_model_by_itself_through_the_gateway_beside_it(tmp_path):
    with talkative_engine(healthy) as engine, installed(tmp_path, MADOGUCHI_CANARY_HOUR="3") as site:
        site.manage("registermodel", "far", "--engine", "external", "--url", engine.url)
        site.start()
        site.ready("far")
        # If the task was run before that, it is due again at once.
        again = "from modelregistry.models import TaskRun; TaskRun.objects.filter(pk='canary').update(claimed_at=None)"
        site.manage("shell", "--verbosity", "0", "--command", again)

        found = until(lambda: site.read("select verdict, reason from canary_canaryrun where ended_at is not null"), 90)

        assert found == [("passed", "first")]
        assert len(engine.requests) >= len(PROMPTS)  # the supervisor asks whether it is ready
