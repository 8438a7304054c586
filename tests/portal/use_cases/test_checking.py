"""Which use cases are checked at night, by what, and what their answers are found to be."""

from datetime import UTC, datetime, timedelta

import pytest

from modelregistry.models import Alias, Replica
from portal.canary.asking import NotDone
from portal.canary.judging import Answer
from portal.canary.models import CanaryRun
from portal.use_cases import checking, publishing
from portal.use_cases.checking import RETRY, SILENT, check_all, find_due_checks, judge_answer
from portal.use_cases.content import content_of
from portal.use_cases.models import UseCaseCheck
from tests.pages import serve
from tests.use_cases import use_case

pytestmark = pytest.mark.django_db
Outcome = UseCaseCheck.Outcome
NIGHT = datetime(2026, 12, 1, 18, tzinfo=UTC)  # 3:00 in Tokyo


@pytest.fixture(autouse=True)
def _nights(settings):
    settings.CANARY_HOUR = 3


class Night:
    """Asks as a test has it answer."""

    def __init__(self) -> None:
        self.now = NIGHT + timedelta(minutes=1)
        self.asked: list[tuple[str, list[dict[str, str]]]] = []
        self.answer: Answer | NotDone = Answer(text="We open at nine.", tokens=5, duration_ms=1200)

    def ask(self, model, replica, prompt) -> Answer:
        self.asked.append((model, prompt.messages))
        if isinstance(self.answer, NotDone):
            raise self.answer
        return self.answer

    def run(self) -> list[UseCaseCheck]:
        return check_all(
            find_due_checks(self.now), self, clock=lambda: self.now, is_loop=lambda text, _: "LOOP" in text
        )


@pytest.fixture
def night() -> Night:
    return Night()


@pytest.fixture
def case(alice, bob, research):
    return use_case(alice, research, publisher=bob, model="fast")


@pytest.fixture
def qwen(db):
    model = serve("qwen")
    Alias.objects.create(name="fast", model=model)
    return model


def test_a_case_is_put_with_its_examples_once_a_night(night, qwen, case):
    [row] = night.run()
    assert night.asked == [("qwen", [{"role": "user", "content": "Answer politely:\nWhen do you open?"}])]
    assert (row.outcome, row.model, row.tokens, row.seconds) == (Outcome.FINE, "qwen", 5, 1.2)
    assert night.run() == []
    night.now += timedelta(days=1)
    assert len(night.run()) == 1


def test_the_answer_is_stored_nowhere(night, qwen, case):
    night.answer = Answer(text="a very particular answer", tokens=5)
    night.run()
    assert "particular" not in str(list(UseCaseCheck.objects.values()))


def test_a_new_version_is_due_again(night, qwen, case, bob):
    night.run()
    publishing.save_version(bob, case, content_of(case.current))
    publishing.publish(bob, case)
    assert len(find_due_checks(night.now + RETRY)) == 1


@pytest.mark.parametrize("state", [state for state in Replica.State.values if state != "ready"])
def test_no_model_is_woken_for_it(night, qwen, case, state):
    Replica.objects.update(state=state)
    assert night.run() == []
    assert not UseCaseCheck.objects.exists()


def test_nothing_is_asked_without_nights(night, qwen, case, settings):
    settings.CANARY_HOUR = None
    assert night.run() == []


def test_hidden_and_unpublished_cases_and_those_of_other_models_are_left(night, qwen, case, alice, bob, research):
    use_case(alice, research)
    use_case(alice, research, publisher=bob, model="elsewhere")
    publishing.hide(bob, case)
    assert night.run() == []


def test_a_case_for_any_model_is_put_to_one_that_answers(night, qwen, alice, bob, research):
    use_case(alice, research, publisher=bob)
    assert [row.model for row in night.run()] == ["qwen"]


@pytest.mark.parametrize("obstacle", [one for one in CanaryRun.Obstacle])
def test_an_obstacle_says_nothing_of_the_case_and_is_tried_again_later(night, qwen, case, obstacle):
    night.run()
    night.now += timedelta(days=1)
    night.answer = NotDone(obstacle, "")
    [row] = night.run()
    assert (row.outcome, row.obstacle) == (Outcome.FINE, obstacle)
    assert night.run() == []
    night.now += RETRY + timedelta(seconds=1)
    assert len(find_due_checks(night.now)) == 1


@pytest.mark.parametrize("obstacle", [CanaryRun.Obstacle.GATEWAY, CanaryRun.Obstacle.KEY])
def test_without_the_gateway_the_rest_is_not_tried(night, qwen, case, alice, bob, research, obstacle):
    use_case(alice, research, publisher=bob)
    night.answer = NotDone(obstacle, "")
    assert len(night.run()) == 1


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (Answer(text="A reply."), Outcome.FINE),
        (Answer(text=" \n"), Outcome.EMPTY),
        (Answer(text="LOOP LOOP"), Outcome.LOOPING),
        (Answer(text="I'm sorry, but I can't help with that."), Outcome.REFUSED),
        (Answer(text="申し訳ありませんが、そのご依頼にはお答えできません。"), Outcome.REFUSED),
        (Answer(text="申し訳ありませんが、納期が 3 日遅れます。" + "詳細は次のとおりです。" * 40), Outcome.FINE),
        (Answer(text="No.", finish="content_filter"), Outcome.REFUSED),
        (Answer(text="", error="400 context_length_exceeded"), Outcome.REFUSED),
        (Answer(text="", error="502 engine_error"), Outcome.FAILED),
        (Answer(text="half", error="the stream broke off"), Outcome.FAILED),
    ],
)
def test_what_is_wrong_with_an_answer(answer, outcome):
    assert judge_answer(answer, lambda text, _: "LOOP" in text) == outcome


def test_one_process_checks_at_a_time_until_it_is_silent(db):
    assert checking.begin_session(NIGHT)
    assert not checking.begin_session(NIGHT + timedelta(minutes=1))
    assert checking.begin_session(NIGHT + SILENT + timedelta(minutes=1))
    checking.end_session()
    assert checking.begin_session(NIGHT)
