import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from modelregistry.models import FileReport, Host, Replica, ServedModel
from portal.canary import due, judging, running
from portal.canary.asking import NotDone
from portal.canary.due import Due
from portal.canary.judging import Answer
from portal.canary.models import CanaryAnswer, CanaryRequest, CanaryRun
from portal.canary.prompts import PROMPTS, Prompt
from portal.notifications.models import Notice

Reason, Verdict, Obstacle = CanaryRun.Reason, CanaryRun.Verdict, CanaryRun.Obstacle
EMPTY = Answer(text="")


@pytest.fixture
def replica(db) -> Replica:
    model = ServedModel.objects.create(name="m", engine="vllm", path="/m")
    FileReport.objects.create(model=model, facts={}, stamp="files-1", at=datetime(2026, 11, 1, tzinfo=UTC))
    host = Host.objects.create(name="here")
    return Replica.objects.create(
        model=model, host=host, state=Replica.State.READY, run_id="run-1", version="0.30", launcher="vllm"
    )


def answer(prompt: Prompt, variant: int = 0, speed: float = 50.0) -> Answer:
    text = "東京は日本の首都です。" if prompt.language == "ja" else "Bread needs flour, water and time."
    return Answer(
        text=f"{text} {prompt.name} {variant}", tokens=51, first_token_ms=100, duration_ms=100 + round(50_000 / speed)
    )


class Nights:
    """Asks as a test has it answer, on a clock of its own, as a gateway would."""

    def __init__(self) -> None:
        self.now = datetime(2026, 12, 1, 18, tzinfo=UTC)
        self.answers: dict[str, Answer] = {}
        self.obstacle: Obstacle | None = None

    def ask(self, model: str, replica: int, prompt: Prompt) -> Answer:
        if self.obstacle is not None:
            raise NotDone(self.obstacle, "")
        return self.answers.get(prompt.name) or answer(prompt)

    def run(self, reason: Reason = Reason.NIGHTLY, number: int = 0) -> CanaryRun:
        self.now += timedelta(days=1)
        target = next(one for one in due.targets() if one.number == number)
        return running.run_canary(
            Due(target=target, reason=reason), self, clock=lambda: self.now, is_loop=lambda *_: False
        )


@pytest.fixture
def nights(replica) -> Nights:
    return Nights()


def notices() -> list[str]:
    return list(Notice.objects.order_by("pk").values_list("kind", flat=True))


def test_fourteen_healthy_nights_raise_nothing(nights, olivia):
    chance = random.Random(14)
    for night in range(14):
        for prompt in PROMPTS:
            # Half of the answers turn at a word that is as likely; each has a speed of its own.
            variant = chance.randrange(1, 4) if night and chance.random() < 0.5 else 0
            nights.answers[prompt.name] = answer(prompt, variant, speed=50 * chance.uniform(0.7, 1.1))
        # One answer a night is odd.
        nights.answers[chance.choice(PROMPTS).name] = EMPTY
        assert nights.run().verdict == Verdict.PASSED

    assert notices() == []
    assert CanaryRun.objects.filter(is_reference=True).count() == 1


def test_a_failure_is_news_once_and_so_is_its_end(nights, olivia):
    nights.run()
    nights.answers = {prompt.name: EMPTY for prompt in PROMPTS[:5]}
    for _ in range(3):
        assert nights.run().verdict == Verdict.FAILED
    assert notices() == ["canary-failed"]

    nights.answers = {}
    nights.run()
    nights.run()

    assert notices() == ["canary-failed", "canary-passed"]


def test_another_failure_of_a_failing_model_is_news(nights, olivia):
    nights.run()
    nights.answers = {prompt.name: EMPTY for prompt in PROMPTS[:5]}
    nights.run()
    nights.answers = {prompt.name: Answer(text="!" * 40) for prompt in PROMPTS[:5]}

    nights.run()

    assert notices() == ["canary-failed", "canary-failed"]


def test_a_second_replica_that_fails_alike_is_no_news(nights, replica, olivia):
    Replica.objects.create(model=replica.model, host=replica.host, index=1, state=Replica.State.READY)
    nights.answers = {prompt.name: EMPTY for prompt in PROMPTS[:5]}

    nights.run()
    nights.run(number=1)
    nights.answers = {}
    nights.run()
    assert notices() == ["canary-failed"]
    nights.run(number=1)

    assert notices() == ["canary-failed", "canary-passed"]


def test_changed_answers_after_an_upgrade_are_shown_and_no_alarm(nights, olivia):
    nights.run()
    Replica.objects.update(version="0.31", run_id="run-2")
    nights.answers = {prompt.name: answer(prompt, 7) for prompt in PROMPTS}

    run = nights.run(Reason.ENGINE)

    assert (run.verdict, run.changed, notices()) == (Verdict.CHANGED, len(PROMPTS), [])
    assert nights.run().verdict == Verdict.CHANGED
    nights.answers = {prompt.name: answer(prompt, 8) for prompt in PROMPTS}  # nothing explains these
    assert [finding["code"] for finding in nights.run().findings] == [judging.DRIFT]


def test_accepted_answers_are_what_later_ones_are_compared_with(nights, olivia):
    nights.run()
    nights.answers = {prompt.name: answer(prompt, 7) for prompt in PROMPTS}
    failed = nights.run()
    assert failed.verdict == Verdict.FAILED

    running.accept(failed, olivia)

    failed.refresh_from_db()
    assert (failed.verdict, failed.is_reference, failed.accepted_by) == (Verdict.PASSED, True, olivia)
    assert nights.run().verdict == Verdict.PASSED
    assert CanaryRun.objects.filter(is_reference=True).count() == 1


def test_a_run_that_was_not_done_cannot_be_accepted(nights, olivia):
    nights.obstacle = Obstacle.BUSY

    with pytest.raises(running.NotComplete):
        running.accept(nights.run(), olivia)


def test_a_run_that_was_cut_short_cannot_be_accepted_and_is_never_the_reference(nights, olivia):
    nights.answers = {prompt.name: Answer(text="", finish="error", error="500 x") for prompt in PROMPTS}

    cut = nights.run()

    assert (cut.verdict, cut.answers.count(), cut.is_reference) == (Verdict.FAILED, running.MOST_ERRORS, False)
    with pytest.raises(running.NotComplete):
        running.accept(cut, olivia)
    assert not CanaryRun.objects.filter(is_reference=True).exists()


def test_a_first_run_with_one_error_is_healthy_and_not_the_reference(nights):
    nights.answers = {PROMPTS[3].name: Answer(text="", finish="error", error="500 x")}

    assert (nights.run().verdict, nights.run().is_reference) == (Verdict.PASSED, False)
    nights.answers = {}
    assert nights.run().is_reference


def test_a_reference_that_an_older_version_made_of_errors_counts_as_none(nights):
    nights.answers = {prompt.name: Answer(text="", finish="error", error="500 x") for prompt in PROMPTS}
    cut = nights.run()
    CanaryRun.objects.filter(pk=cut.pk).update(is_reference=True, verdict=Verdict.PASSED)

    assert nights.run().verdict == Verdict.FAILED
    nights.answers = {}
    assert nights.run().is_reference
    nights.answers = {prompt.name: answer(prompt, 7) for prompt in PROMPTS}
    assert [finding["code"] for finding in nights.run().findings] == [judging.DRIFT]


def test_an_accepted_slower_speed_is_the_usual_one_from_then_on(nights, olivia):
    for _ in range(judging.LEAST_SPEEDS):
        nights.run()
    nights.answers = {prompt.name: answer(prompt, speed=20) for prompt in PROMPTS}
    slow = nights.run()
    assert [finding["code"] for finding in slow.findings] == [judging.SLOW]

    running.accept(slow, olivia)

    assert [nights.run().verdict for _ in range(4)] == [Verdict.PASSED] * 4


def test_an_engine_with_other_work_is_not_slow(nights, replica):
    for _ in range(judging.LEAST_SPEEDS):
        nights.run()
    Replica.objects.update(live={"running": 3, "waiting": 0})
    nights.answers = {prompt.name: answer(prompt, speed=20) for prompt in PROMPTS}

    assert nights.run().verdict == Verdict.PASSED


@pytest.mark.parametrize("obstacle", list(Obstacle))
def test_an_obstacle_says_nothing_about_the_model(nights, olivia, obstacle):
    nights.obstacle = obstacle

    run = nights.run()

    assert (run.verdict, run.obstacle, run.findings, notices()) == (Verdict.NOT_DONE, obstacle, [], [])


def test_an_engine_that_restarted_meanwhile_is_not_judged(nights, replica):
    nights.run()
    nights.answers = {prompt.name: EMPTY for prompt in PROMPTS}
    ask = nights.ask

    def ask_and_restart(model: str, number: int, prompt: Prompt) -> Answer:
        Replica.objects.update(run_id="run-2")
        return ask(model, number, prompt)

    nights.ask = ask_and_restart

    assert nights.run().obstacle == Obstacle.ENGINE


def test_a_run_that_takes_too_long_is_judged_by_what_there_is(nights):
    nights.run()
    ask = nights.ask

    def ask_slowly(model: str, number: int, prompt: Prompt) -> Answer:
        nights.now += timedelta(minutes=6)
        return EMPTY if prompt.name == PROMPTS[0].name else ask(model, number, prompt)

    nights.ask = ask_slowly

    run = nights.run()

    assert (run.verdict, run.answers.count()) == (Verdict.PASSED, 6)


def test_a_run_that_was_killed_is_closed_by_the_next(nights):
    target = due.targets()[0]
    left = running.begin_run(Due(target=target, reason=Reason.FIRST), nights.now)

    run = nights.run()

    assert run.verdict == Verdict.PASSED
    assert not CanaryRun.objects.filter(verdict=Verdict.RUNNING).exists()
    assert not CanaryRun.objects.filter(pk=left.pk).exclude(obstacle=Obstacle.INTERRUPTED).exists()


def test_a_stopped_run_says_so(nights):
    def stop(*_: object) -> Answer:
        raise SystemExit

    nights.ask = stop

    with pytest.raises(SystemExit):
        nights.run()

    assert CanaryRun.objects.get().obstacle == Obstacle.INTERRUPTED


def test_a_request_is_done_by_a_run_that_began_after_it(nights, replica):
    CanaryRequest.objects.create(model=replica.model, at=nights.now)
    nights.obstacle = Obstacle.BUSY
    nights.run()
    assert CanaryRequest.objects.exists()

    nights.obstacle = None
    nights.run()

    assert not CanaryRequest.objects.exists()


def test_the_last_runs_the_reference_and_bounded_texts_are_kept(nights):
    first = nights.run()
    nights.answers = {PROMPTS[0].name: replace(answer(PROMPTS[0]), text="あ、" * 9000)}
    for _ in range(running.KEPT + 3):
        nights.run()

    kept = CanaryRun.objects.all()
    assert (kept.count(), kept.last()) == (running.KEPT + 1, first)
    assert CanaryAnswer.objects.count() == kept.count() * len(PROMPTS)
    assert {len(one.text) for one in CanaryAnswer.objects.filter(prompt=PROMPTS[0].name)} == {
        len(answer(PROMPTS[0]).text),
        4096,
    }
