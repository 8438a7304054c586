"""The live view of usage: what is counted in which second, who sees what, through the server that `up` uses."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.utils import timezone
from websockets.exceptions import ConnectionClosed

from modelregistry.models import Replica
from portal.accounts.models import Membership
from portal.operations.live import LiveOperationsFeed
from portal.usage import live
from portal.usage.live import AnsweredRequest, LiveUsageFeed, LiveUsageReader, UsageSnapshot, usage_view
from portal.usage.models import UsageRecord
from portal.web import websockets
from tests.html import all_of
from tests.pages import key_of, serve, use
from tests.portal.sockets import Database, is_refused, next_message, open_socket, serving, session_of
from tests.portal.usage.answers import AT, END, answered
from tests.waiting import until


def seen(*answers: AnsweredRequest, owner: live.Owner = None, **more: Any) -> live.UsageView:
    return usage_view(UsageSnapshot(number=1, at=AT, answers=answers, **more), owner)


class TestPicture:
    def test_it_is_of_the_last_five_minutes_in_whole_slots(self):
        empty = seen()
        assert len(empty.slots) == len(empty.tokens) == len(empty.requests) == 60
        assert empty.slots[0] == datetime(2026, 11, 22, 11, 55, tzinfo=UTC)
        assert empty.slots[-1] == datetime(2026, 11, 22, 11, 59, 55, tzinfo=UTC)

    def test_tokens_are_spread_over_the_time_in_which_they_were_written(self):
        shown = seen(answered(5, took=20, tokens=100, first=END - 15))
        assert shown.tokens[-4:] == (0, 10.0, 10.0, 0)
        assert shown.requests[-1:] == (1,)

    def test_what_was_written_before_the_window_is_left_out(self):
        shown = seen(answered(295, took=10, tokens=100))
        assert shown.tokens[0] == 10.0
        assert sum(shown.tokens) == 10.0

    def test_an_answer_at_once_is_counted_where_it_ended(self):
        shown = seen(answered(1, tokens=50))
        assert (shown.tokens[-1], shown.requests[-1]) == (10.0, 1)

    def test_what_ended_after_the_last_whole_slot_waits_for_the_next(self):
        shown = seen(answered(-1))
        assert sum(shown.requests) == 0
        assert len(shown.last) == 1

    @pytest.mark.parametrize(
        ("owner", "models"), [(None, {"a", "b", "c"}), (("tenant", 1), {"a", "b"}), (("user", 7), {"b"})]
    )
    def test_each_sees_what_is_theirs(self, owner, models):
        answers = [
            answered(3, model="a", tenant=1, user=None),
            answered(3, model="b", tenant=1, user=7),
            answered(3, model="c", tenant=2, user=8),
        ]
        shown = seen(*answers, owner=owner, running={"a": 2})
        assert {row["model"] for row in shown.models} == models
        assert {row["model"] for row in shown.last} == models
        assert sum(shown.requests) == len(models)

    def test_only_who_sees_everything_sees_what_runs(self):
        assert seen(answered(3), running={"qwen": 2, "idle": 0}).models[0]["running"] == 2
        assert [row["model"] for row in seen(running={"qwen": 2, "idle": 0}).models] == ["qwen"]
        assert seen(answered(3), owner=("tenant", 1), running={"qwen": 2}).models[0]["running"] is None

    def test_the_latest_requests_come_first_and_are_few(self):
        shown = seen(*(answered(300 - n, number=n) for n in range(live.LATEST + 5)), keys={1: "laptop"})
        assert [row["number"] for row in shown.last] == list(range(24, 4, -1))
        assert shown.last[0]["key"] == "laptop"


@pytest.mark.django_db
class TestReader:
    def test_it_reads_only_what_is_new_and_nothing_twice(
        self, alice, research, django_assert_num_queries, time_machine
    ):
        time_machine.move_to(AT)
        key = key_of(alice, research)
        reader = LiveUsageReader()
        use(key, at=AT - timedelta(seconds=10))
        assert len(reader(1).answers) == 1
        use(key, at=AT - timedelta(seconds=5))
        with django_assert_num_queries(2):
            frame = reader(2)
        assert len(frame.answers) == 2
        assert frame.keys == {key.pk: "laptop"}

    def test_a_record_that_is_committed_after_a_later_one_is_not_missed(self, alice, research, time_machine):
        time_machine.move_to(AT)
        key = key_of(alice, research)
        reader = LiveUsageReader()
        late = use(key, at=AT)
        late.delete()
        use(key, at=AT)
        assert len(reader(1).answers) == 1
        time_machine.move_to(AT + timedelta(seconds=2))
        late.save(force_insert=True)
        assert len(reader(2).answers) == 2

    def test_what_is_past_is_forgotten(self, alice, research, time_machine):
        time_machine.move_to(AT)
        reader = LiveUsageReader()
        use(key_of(alice, research), at=AT)
        assert len(reader(1).answers) == 1
        time_machine.move_to(AT + timedelta(seconds=live.WINDOW + 20))
        assert reader(2).answers == ()

    def test_a_long_answer_that_began_before_the_window_is_in_it(self, alice, research, time_machine):
        time_machine.move_to(AT)
        use(key_of(alice, research), at=AT - timedelta(minutes=9), duration_ms=8 * 60_000)
        assert len(LiveUsageReader()(1).answers) == 1


# --- Sockets


@pytest.fixture
def site(monkeypatch) -> Iterator[SimpleNamespace]:
    """Provide the portal on a port, with the `database` that the live view reads."""
    monkeypatch.setattr(websockets, "LOOK_AGAIN", 0.2)
    database = Database(LiveUsageReader())
    with serving(LiveOperationsFeed(), LiveUsageFeed(lambda: database, poll=0.05)) as site:
        site.database = database
        yield site


MINE, EVERYTHING, RESEARCH = "/ws/usage/", "/ws/usage/?of=all", "/ws/usage/?of=tenant:research"


@pytest.mark.django_db(transaction=True)
class TestSocket:
    @pytest.mark.parametrize(
        ("who", "path", "let_in"),
        [
            (None, MINE, False),
            ("alice", MINE, True),
            ("alice", RESEARCH, False),
            ("alice", EVERYTHING, False),
            ("bob", RESEARCH, True),
            ("bob", "/ws/usage/?of=tenant:sales", False),
            ("charlie", RESEARCH, False),
            ("olivia", RESEARCH, True),
            ("olivia", EVERYTHING, True),
            ("olivia", "/ws/usage/?of=nonsense", False),
        ],
    )
    def test_who_is_let_in(self, site, request, alice, bob, charlie, olivia, who, path, let_in):
        somebody = request.getfixturevalue(who) if who else None
        if not let_in:
            assert is_refused(site, somebody, path)
        else:
            with open_socket(site, somebody, path) as connection:
                assert next_message(connection)["type"] == "usage"

    def test_it_tells_what_was_answered_to_those_whose_it_is(self, site, alice, bob, charlie, olivia, research, sales):
        serve("qwen")
        Replica.objects.update(live={"running": 3})
        with (
            open_socket(site, alice, MINE) as own,
            open_socket(site, bob, RESEARCH) as tenant,
            open_socket(site, olivia, EVERYTHING) as everything,
        ):
            use(key_of(charlie, sales), at=timezone.now())
            use(key_of(bob, research), at=timezone.now())
            use(key_of(alice, research, "laptop"), at=timezone.now(), tokens=(7, 30), first_token_ms=40)
            for connection, requests in ((own, 1), (tenant, 2), (everything, 3)):
                while len((message := next_message(connection, "usage"))["last"]) < requests:
                    pass
                assert len(message["last"]) == requests
            assert message["models"][0]["running"] == 3
            mine = next_message(own, "usage")["last"][0]
            assert (mine["key"], mine["tokens_in"], mine["tokens_out"], mine["first"]) == ("laptop", 7, 30, 0.04)

    @pytest.mark.parametrize("end", ["no admin any more", "no member any more", "deactivated", "signed out"])
    def test_who_loses_the_right_is_cut(self, site, bob, research, end):
        client = session_of(bob)
        with open_socket(site, bob, RESEARCH, client=client) as connection:
            assert next_message(connection)["type"] == "usage"
            if end == "signed out":
                client.logout()
            elif end == "deactivated":
                bob.is_active = False
                bob.save()
            elif end == "no admin any more":
                Membership.objects.filter(user=bob).update(role="member")
            else:
                Membership.objects.filter(user=bob).delete()
            with pytest.raises(ConnectionClosed) as caught:
                next_message(connection, "never")
            assert caught.value.rcvd.code == 4403

    def test_a_database_that_is_away_is_told_once_and_its_return_too(self, site, alice):
        with open_socket(site, alice, MINE) as connection:
            next_message(connection, "usage")
            site.database.away = True
            assert next_message(connection, "stale")
            reads = site.database.reads
            until(lambda: site.database.reads > reads + 3)
            site.database.away = False
            assert next_message(connection)["type"] == "usage"

    def test_many_who_look_are_served_by_one_reader_which_ends_with_the_last(self, site, alice, bob):
        with open_socket(site, alice, MINE) as one, open_socket(site, bob, RESEARCH) as other:
            next_message(one), next_message(other)
        until(lambda: len(site.server.server_state.connections) == 0)
        reads = site.database.reads
        with open_socket(site, alice, MINE) as connection:
            next_message(connection)
            assert site.database.reads > reads


@pytest.mark.django_db
class TestPage:
    def test_without_a_script_it_shows_how_it_is_now(self, client, bob, alice, research):
        use(key_of(alice, research, "laptop"), at=timezone.now() - timedelta(seconds=20), tokens=(7, 1234))
        client.force_login(bob)
        page = client.get("/usage/live/?of=tenant:research")
        [row] = all_of(page, "[data-rows=last] tr")
        for words in ("1,234", "laptop", str(UsageRecord.Status.FINISHED.label)):
            assert words in row.text
        assert "laptop" not in client.get("/usage/live/").content.decode()

    def test_what_is_of_others_is_not_there(self, client, bob):
        client.force_login(bob)
        assert client.get("/usage/live/?of=all").status_code == 404
        assert client.get("/usage/live/?of=tenant:nowhere").status_code == 404
