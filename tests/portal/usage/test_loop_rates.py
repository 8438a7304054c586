"""The rate of word loops: its interval, what it is counted by, exactly once, and when it is above the usual."""

from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from django.core.management import call_command
from django.db import transaction
from hypothesis import given, strategies

from modelregistry.models import FileReport, Host, Replica, ServedModel
from portal.usage import loop_rates, records
from portal.usage.loop_rates import LoopRate, band_of, wilson_interval
from portal.usage.models import LoopDay, UsageRecord
from tests.pages import external
from tests.portal.usage.record_rows import NOON, row

MODEL = "swallow-70b"
answer = partial(row, model=MODEL, completion_tokens=100)


class TestInterval:
    def test_it_is_wilsons(self):
        """As published for the score interval: 0 of 20, 1 of 29, 15 of 148, 81 of 263."""
        for hits, trials, low, high in (
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
            (15, 148, 0.0624, 0.1605),
            (81, 263, 0.2553, 0.3662),
            (20, 20, 0.8389, 1.0),
        ):
            assert wilson_interval(hits, trials) == pytest.approx((low, high), abs=1e-4)

    def test_nothing_is_known_of_no_answers(self):
        assert wilson_interval(0, 0) == (0.0, 1.0)
        assert (LoopRate().share, LoopRate().known) == (None, False)

    @given(hits=strategies.integers(0, 10**6), more=strategies.integers(0, 10**6))
    def test_it_lies_around_the_share_within_0_and_1(self, hits, more):
        if trials := hits + more:
            low, high = wilson_interval(hits, trials)
            assert 0 <= low <= hits / trials <= high <= 1

    def test_a_rate_is_above_another_only_if_both_are_known_and_apart(self):
        usual = LoopRate(answers=2000, looped=10)
        assert LoopRate(answers=100, looped=10).is_above(usual)
        assert not LoopRate(answers=100, looped=2).is_above(usual)
        assert not LoopRate(answers=19, looped=19).is_above(usual)
        assert not LoopRate(answers=100, looped=10).is_above(LoopRate(answers=19))


def test_temperatures_are_in_bands():
    bands = [(None, "none"), (0, "0"), (1, "0.3"), (30, "0.3"), (31, "0.7"), (70, "0.7"), (100, "1"), (101, "above")]
    assert [(temperature, band_of(temperature).value) for temperature, _band in bands] == bands


@pytest.fixture
def model(db) -> ServedModel:
    served = external(MODEL)
    FileReport.objects.create(model=served, facts={"quantisation": "AWQ INT4"}, at=NOON)
    return served


@pytest.fixture
def replica(model) -> Replica:
    return Replica.objects.create(
        model=model, host=Host.objects.create(name="a"), launcher="vllm", version="0.32.0", index=0
    )


def counts() -> set[tuple]:
    fields = ("day", "quantisation", "launcher", "version", "temperature", "finished", "looped")
    return {(str(day), *rest) for day, *rest in LoopDay.objects.values_list(*fields)}


class TestCounting:
    def test_it_is_by_quantisation_engine_band_and_the_sites_day(self, replica):
        late = datetime(2026, 11, 22, 15, 30, tzinfo=UTC)  # half past midnight in Tokyo
        records.record_usage(
            [
                answer("a", replica_id=replica.pk, temperature=0, status="looped"),
                answer("b", replica_id=replica.pk, temperature=0),
                answer("c", replica_id=replica.pk, temperature=0, started_at=late),
                answer("d", replica_id=replica.pk, temperature=50),
                answer("e", replica_id=replica.pk + 1),
            ]
        )
        engine = ("AWQ INT4", "vllm", "0.32.0")
        assert counts() == {
            ("2026-11-22", *engine, "0", 1, 1),
            ("2026-11-23", *engine, "0", 1, 0),
            ("2026-11-22", *engine, "0.7", 1, 0),
            ("2026-11-22", "AWQ INT4", "", "", "none", 1, 0),
        }

    def test_another_version_counts_for_itself(self, replica):
        records.record_usage([answer("a", replica_id=replica.pk)])
        Replica.objects.update(version="0.33.0")
        records.record_usage([answer("b", replica_id=replica.pk, status="looped")])
        assert {(version, looped) for *_, version, _band, _finished, looped in counts()} == {
            ("0.32.0", 0),
            ("0.33.0", 1),
        }

    def test_a_model_that_is_gone_or_has_no_report_is_counted(self, db):
        external("unread")
        records.record_usage([answer("a", model="gone"), answer("b", model="unread", status="looped")])
        assert {(finished, looped) for *_, finished, looped in counts()} == {(1, 0), (0, 1)}

    def test_only_answers_that_loops_are_looked_for_in_count(self, model):
        records.record_usage(
            [answer(status, status=status) for status in ("aborted", "failed", "refused", "interrupted")]
            + [answer("empty", completion_tokens=0), answer("unwatched", watched=False)]
        )
        assert counts() == set()
        assert loop_rates.read_recent_rates(NOON) == {}

    def test_one_that_loops_counts_also_if_its_line_does_not_say_that_it_was_watched(self, model):
        records.record_usage([answer("a", status="looped", watched=False), answer("b")])
        assert [one[-2:] for one in counts()] == [(1, 1)]
        assert loop_rates.read_recent_rates(NOON) == {MODEL: LoopRate(answers=2, looped=1)}

    def test_each_record_counts_once_however_often_it_is_written(self, model):
        for _ in range(3):
            records.record_usage([answer("a", status="looped"), answer("b"), answer("b")])
        assert [one[-2:] for one in counts()] == [(1, 1)]

    def test_a_batch_that_fails_counts_nothing(self, model, monkeypatch):
        def fail(*_: object) -> None:
            raise RuntimeError

        monkeypatch.setattr("portal.keys.last_used.record_use", fail)
        with pytest.raises(RuntimeError), transaction.atomic():
            records.record_usage([answer("a", status="looped")])
        assert (counts(), UsageRecord.objects.count()) == (set(), 0)

    def test_pruning_keeps_it(self, model, time_machine):
        records.record_usage([answer("a", status="looped")])
        time_machine.move_to(NOON + timedelta(days=100))
        call_command("pruneusage", "--older-than", "40")
        assert UsageRecord.objects.count() == 0
        assert [one[-2:] for one in counts()] == [(0, 1)]


def use(looped: int, finished: int, hours_ago: float, model: str = MODEL) -> None:
    """Record answers that so many hours ago looped and finished."""
    at = NOON - timedelta(hours=hours_ago)
    name = f"{model} {hours_ago}"
    records.record_usage(
        [answer(f"{name} l{n}", status="looped", started_at=at, model=model) for n in range(looped)]
        + [answer(f"{name} f{n}", started_at=at, model=model) for n in range(finished)]
    )


@pytest.mark.django_db
class TestAttention:
    def raised(self) -> list[str]:
        return [one.model for one in loop_rates.find_raised(NOON)]

    def test_a_rate_above_the_usual_is_found(self):
        use(1, 199, hours_ago=24 * 7)
        use(4, 36, hours_ago=3)
        use(1, 199, hours_ago=24 * 7, model="calm")
        use(0, 40, hours_ago=3, model="calm")
        (found,) = loop_rates.find_raised(NOON)
        assert (found.model, found.recent, found.usual) == (
            MODEL,
            LoopRate(answers=40, looped=4),
            LoopRate(answers=200, looped=1),
        )

    def test_of_too_few_answers_nothing_is_said(self):
        use(1, 199, hours_ago=24 * 7)
        use(19, 0, hours_ago=3)
        assert self.raised() == []
        use(20, 0, hours_ago=3, model="new")
        assert self.raised() == []

    def test_only_28_days_are_usual_and_only_24_hours_recent(self):
        use(0, 200, hours_ago=24 * 32)
        use(20, 20, hours_ago=3)
        assert self.raised() == []  # what was before is too long ago
        use(0, 200, hours_ago=24 * 28)
        assert self.raised() == [MODEL]

    def test_what_is_over_is_not_recent(self):
        use(0, 200, hours_ago=24 * 7)
        use(20, 20, hours_ago=26)
        assert self.raised() == []
