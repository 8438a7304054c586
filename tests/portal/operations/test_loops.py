"""Word loops on operators' pages and in their API: the rate with its interval, and what is above the usual."""

from datetime import datetime, timedelta

import pytest
from django.utils import timezone

from modelregistry.models import Replica, ServedModel
from portal.usage import records
from portal.usage.loop_rates import read_failures
from tests.html import all_of, has, one_of
from tests.pages import serve
from tests.portal.calling import Caller
from tests.portal.usage.record_rows import row

pytestmark = pytest.mark.django_db

PAGE = "/operations/models/qwen/"


@pytest.fixture
def now(time_machine) -> datetime:
    time_machine.move_to("2026-11-20T03:20:00Z", tick=False)
    return timezone.now()


def answers(looped: int, finished: int, at: datetime, temperature: int | None = 0) -> None:
    replica = serve_once()
    facts = {"model": "qwen", "started_at": at, "temperature": temperature, "replica_id": replica}
    states = ["looped"] * looped + ["finished"] * finished
    records.record_usage([row(f"{at} {temperature} {n}", status=state, **facts) for n, state in enumerate(states)])


def serve_once() -> int:
    model = ServedModel.objects.filter(name="qwen").first() or serve()
    Replica.objects.update(launcher="llama-server", version="b11549")
    return model.replica_set.get().pk


class TestModelPage:
    def test_the_rate_is_told_with_its_interval_by_temperature_and_engine(self, as_olivia, now):
        answers(8, 92, now - timedelta(days=5), temperature=0)
        answers(1, 99, now - timedelta(days=4), temperature=70)
        page = as_olivia.get(PAGE)
        assert one_of(page, "#loop-rates")["data-raised"] == "no"
        assert [one["data-temperature"] for one in all_of(page, "#loop-rates [data-temperature]")] == ["0", "0.7"]
        assert one_of(page, "#loop-rates [data-engine]")["data-engine"] == "llama-server b11549"
        texts = [one.text for one in all_of(page, "#loop-rates [data-temperature] small")]
        assert texts == ["4.1%–15.0%", "0.2%–5.4%"]
        chart = page.context["loops"].chart
        assert [series.values[-5] for series in chart.series] == pytest.approx([1.0, 0.18, 5.45], abs=0.01)
        assert len(chart.slots) == 30

    def test_of_few_answers_it_is_not_yet_known(self, as_olivia, now):
        answers(3, 10, now - timedelta(days=5))
        page = as_olivia.get(PAGE)
        assert has(page, "#loop-rates [data-temperature] [data-unknown]")
        assert len(all_of(page, "#loop-rates .tiles [data-unknown]")) == 2
        assert not has(page, "#loop-rates canvas")

    def test_a_model_without_answers_and_one_that_cannot_loop(self, as_olivia, now):
        serve()
        serve("e5", task="embedding")
        page = as_olivia.get(PAGE)
        assert not has(page, "#loop-rates table")
        assert len(all_of(page, "#loop-rates [data-unknown]")) == 2
        assert not has(as_olivia.get("/operations/models/e5/"), "#loop-rates")


def test_a_model_whose_answers_could_not_be_watched_needs_attention(as_olivia, now):
    serve()
    facts = {"model": "qwen", "watched": False, "observer_failed": True}
    records.record_usage([row("a", started_at=now, **facts), row("b", started_at=now, status="aborted", **facts)])
    page = as_olivia.get("/operations/")
    assert has(page, "#attention [data-unwatched=qwen]")
    assert read_failures(now) == {"qwen": 2}
    assert not has(as_olivia.get(PAGE), "#loop-rates table")  # they say nothing of the rate
    assert read_failures(now + timedelta(days=2)) == {}


class TestSamplingChange:
    """Whether other settings helped: the days before the change beside those after it."""

    def set_sampling(self, at: datetime, time_machine) -> None:
        now = timezone.now()
        time_machine.move_to(at, tick=False)
        model = ServedModel.objects.get()
        model.sampling = {"temperature": {"default": 0.7}}
        model.save()
        time_machine.move_to(now, tick=False)

    @pytest.mark.parametrize(
        ("before", "after", "verdict"),
        [
            ((20, 80), (1, 99), "helped"),
            ((1, 99), (20, 80), "worse"),
            ((5, 95), (4, 96), "no difference"),
            ((20, 80), (0, 5), "unknown"),
        ],
    )
    def test_it_is_told_whether_it_helped(self, as_olivia, now, time_machine, before, after, verdict):
        answers(*before, now - timedelta(days=12))
        answers(50, 50, now - timedelta(days=9))  # of the day itself, which belongs to neither
        self.set_sampling(now - timedelta(days=9), time_machine)
        answers(*after, now - timedelta(days=3))
        assert one_of(as_olivia.get(PAGE), "#sampling-change")["data-verdict"] == verdict

    def test_a_change_of_something_else_or_of_long_ago_is_none(self, as_olivia, now, time_machine):
        answers(20, 80, now - timedelta(days=12))
        model = ServedModel.objects.get()
        model.loops = "stop"
        model.save()
        assert not has(as_olivia.get(PAGE), "#sampling-change")
        self.set_sampling(now - timedelta(days=40), time_machine)
        assert not has(as_olivia.get(PAGE), "#sampling-change")


class TestAttention:
    def test_a_model_above_its_usual_rate_needs_it(self, as_olivia, now):
        answers(1, 199, now - timedelta(days=7))
        answers(6, 34, now - timedelta(hours=3))
        page = as_olivia.get("/operations/")
        assert one_of(page, "#attention [data-loops] a")["href"] == f"{PAGE}#loop-rates"
        assert has(page, ".tiles a[href='#attention']")
        assert one_of(as_olivia.get(PAGE), "#loop-rates")["data-raised"] == "yes"

    def test_one_at_its_usual_rate_does_not(self, as_olivia, now):
        answers(10, 190, now - timedelta(days=7))
        answers(2, 38, now - timedelta(hours=3))
        assert not has(as_olivia.get("/operations/"), "[data-loops]")


def test_the_api_tells_the_same(olivia, described, now):
    answers(1, 199, now - timedelta(days=7))
    answers(6, 34, now - timedelta(hours=3), temperature=None)
    operator = Caller(olivia, described)
    (model,) = operator.get("models/?name=qwen")["results"]
    told = operator.get(f"models/{model['id']}/loops/")
    assert told["raised"] is True
    assert told["change"] is None
    assert (told["recent"]["answers"], told["recent"]["looped"], told["recent"]["share"]) == (40, 6, 0.15)
    assert told["usual"]["high"] == pytest.approx(0.0278, abs=1e-4)
    assert [(one["day"], one["version"], one["temperature"], one["looped"]) for one in told["days"]] == [
        ("2026-11-13", "b11549", "0", 1),
        ("2026-11-20", "b11549", "none", 6),
    ]
