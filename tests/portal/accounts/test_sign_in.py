"""The sign-in page and its throttle, with local accounts."""

import threading
from datetime import timedelta

import pytest
import time_machine
from axes.models import AccessAttempt
from django.db import connections
from django.test import Client, RequestFactory
from django.utils import timezone

from portal.accounts import throttle
from portal.accounts.models import User
from portal.web.client_address import client_address
from tests.html import one_of
from tests.portal.conftest import Door

pytestmark = pytest.mark.django_db
RIGHT = "correct horse"


def fail(door: Door, times: int, username: str = "alice") -> None:
    for _ in range(times):
        assert door.enter(username, "wrong") is None


class TestSignIn:
    def test_the_right_password_leads_home(self, door, alice):
        assert door.enter("alice", RIGHT) == alice
        assert door.response.headers["location"] == "/start/arrive/"

    def test_it_leads_back_to_where_one_came_from_but_never_elsewhere(self, client, alice):
        form = {"username": "alice", "password": RIGHT}
        assert client.post("/sign-in/?next=/keys/", form).headers["location"] == "/keys/"
        assert (
            client.post("/sign-in/", form | {"next": "https://evil.example/"}).headers["location"] == "/start/arrive/"
        )

    def test_a_wrong_password_says_what_to_mind_and_keeps_the_name(self, door, alice):
        assert door.enter("alice", "battery staple") is None
        assert door.error == "invalid_login"
        assert b'value="alice"' in door.response.content
        assert b"battery staple" not in door.response.content

    def test_an_unknown_name_is_told_the_same(self, door, alice):
        fail(door, 1)
        about_alice = door.error
        fail(door, 1, "nobody")
        assert door.error == about_alice

    def test_the_name_may_be_typed_in_any_case(self, door, alice):
        assert door.enter("ALICE", RIGHT) == alice

    def test_who_is_switched_off_stays_out(self, door, alice):
        alice.is_active = False
        alice.save()
        assert door.enter("alice", RIGHT) is None

    def test_switching_off_ends_the_open_session(self, door, alice):
        door.enter("alice", RIGHT)
        alice.is_active = False
        alice.save()
        assert door.client.get("/keys/").headers["location"].startswith("/sign-in/")

    def test_signing_out_takes_a_post(self, door, alice):
        door.enter("alice", RIGHT)
        assert door.client.get("/sign-out/").url == "/"
        assert door.client.post("/sign-out/").headers["location"] == "/sign-in/"
        assert door.who() is None

    def test_a_form_of_another_site_is_refused(self, alice):
        strict = Client(enforce_csrf_checks=True)
        assert strict.post("/sign-in/", {"username": "alice", "password": RIGHT}).status_code == 403

    @pytest.mark.parametrize("name", ["alice\0", "x" * 10_000, "' OR 1=1 --", "<script>"])
    def test_odd_names_are_only_wrong(self, door, alice, name):
        assert door.enter(name, RIGHT) is None
        assert b"<script>" not in door.response.content


class TestThrottle:
    def test_after_five_failures_even_the_right_password_is_refused(self, door, alice):
        fail(door, 4)
        assert door.response.status_code == 400
        fail(door, 1)
        assert door.response.status_code == 429
        assert door.enter("alice", RIGHT) is None
        assert door.response.status_code == 429
        assert (door.error, door.response.headers["Retry-After"]) == ("locked", "900")
        assert "15" in one_of(door.response, ".notice.error").text  # minutes

    def test_in_japanese_too(self, door, alice):
        fail(door, 5)
        said = []
        for language in ("en", "ja"):
            door.enter("alice", RIGHT, accept_language=language)
            said.append(one_of(door.response, ".notice.error").text)
        assert said[0] != said[1]
        assert ["15" in words for words in said] == [True, True]

    @pytest.mark.django_db(transaction=True)
    def test_x_attempts_at_the_same_time_are_no_more_than_one_after_the_other(self, alice, monkeypatch, settings):
        """Of seventy at once all were tried before five failures had counted, the right password too, however late."""
        tried, answers, check = [], [], User.check_password
        monkeypatch.setattr(User, "check_password", lambda user, text: tried.append(text) or check(user, text))
        together = threading.Barrier(16)

        def guess(number: int) -> None:
            door = Door()
            together.wait()
            door.enter("alice", f"wrong {number}")
            answers.append(door.response.status_code)
            connections.close_all()

        threads = [threading.Thread(target=guess, args=[number]) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == 16
        assert len(tried) <= 5
        assert set(answers) <= {400, 429}
        settings.AXES_FAILURE_LIMIT = 1  # a single attempt that still counted would be one too many
        with throttle.wait_turn(RequestFactory().post("/", REMOTE_ADDR=Door().address), "alice"):
            pass

    def test_another_address_is_not_locked(self, door, alice):
        fail(door, 5)
        assert Door("10.0.0.8").enter("alice", RIGHT) == alice

    def test_another_name_is_not_locked(self, door, alice, bob):
        fail(door, 5)
        assert door.enter("bob", RIGHT) == bob

    def test_spelling_the_name_in_other_ways_gives_no_more_attempts(self, door, alice):
        for name in ("alice", "Alice", "ALICE", " alice ", "ａｌｉｃｅ"):
            fail(door, 1, name)
        assert door.enter("alice", RIGHT) is None
        assert AccessAttempt.objects.count() == 1

    def test_another_browser_gives_no_more_attempts(self, door, alice):
        for number in range(5):
            door.enter("alice", "wrong", user_agent=f"browser {number}")
        assert door.enter("alice", RIGHT) is None

    def test_the_lock_ends_when_it_said_it_would(self, door, alice):
        now = timezone.now()
        with time_machine.travel(now, tick=False) as clock:
            fail(door, 5)
            clock.shift(timedelta(minutes=10))
            assert door.enter("alice", RIGHT) is None  # and trying does not lengthen it
            assert (door.error, door.response.headers["Retry-After"]) == ("locked", "300")
            assert "5" in one_of(door.response, ".notice.error").text  # minutes
            clock.shift(timedelta(minutes=4, seconds=30))
            assert door.enter("alice", RIGHT) is None
            assert (door.error, door.response.headers["Retry-After"]) == ("locked", "30")
            assert "1" in one_of(door.response, ".notice.error").text  # minute, begun
            clock.shift(timedelta(seconds=31))
            assert door.enter("alice", RIGHT) == alice

    def test_success_forgives_earlier_failures(self, door, alice):
        fail(door, 4)
        assert door.enter("Alice", RIGHT) == alice
        fail(door, 4)
        assert door.enter("alice", RIGHT) == alice

    def test_no_password_is_kept(self, door, alice):
        door.enter("alice", "a password typed wrong")
        assert "a password typed wrong" not in str(AccessAttempt.objects.values().get())

    def test_the_admin_has_no_second_unthrottled_way_in(self, client, alice):
        response = client.post("/admin/login/", {"username": "alice", "password": RIGHT})
        assert response.headers["location"].startswith("/sign-in/")


class TestAddress:
    def address(self, settings, proxies: int, forwarded: str | None, peer: str = "10.1.1.1") -> str | None:
        settings.TRUSTED_PROXIES = proxies
        more = {"HTTP_X_FORWARDED_FOR": forwarded} if forwarded is not None else {}
        return client_address(RequestFactory().get("/", REMOTE_ADDR=peer, **more))

    @pytest.mark.parametrize(
        ("proxies", "forwarded", "address"),
        [
            (0, None, "10.1.1.1"),
            (0, "192.0.2.9", "10.1.1.1"),
            (1, "192.0.2.9", "192.0.2.9"),
            (1, "6.6.6.6, 192.0.2.9", "192.0.2.9"),
            (2, "6.6.6.6, 192.0.2.9, 10.1.1.2", "192.0.2.9"),
            (2, "192.0.2.9", "10.1.1.1"),
            (1, None, "10.1.1.1"),
            (1, "", "10.1.1.1"),
            (1, "nonsense", "10.1.1.1"),
            (1, "192.0.2.9:4711", "192.0.2.9"),
            (1, "2001:DB8::1", "2001:db8::1"),
            (1, "[2001:db8::1]:4711", "2001:db8::1"),
        ],
    )
    def test_only_what_our_own_proxies_wrote_is_believed(self, settings, proxies, forwarded, address):
        assert self.address(settings, proxies, forwarded) == address

    def test_a_socket_without_addresses_has_none(self, settings):
        assert self.address(settings, 0, None, peer="") is None

    def test_people_behind_a_proxy_are_locked_one_by_one(self, settings, door, alice):
        settings.TRUSTED_PROXIES = 1
        for _ in range(5):
            door.enter("alice", "wrong", x_forwarded_for="192.0.2.1")
        assert door.enter("alice", RIGHT, x_forwarded_for="192.0.2.1") is None
        assert door.enter("alice", RIGHT, x_forwarded_for="192.0.2.2") == alice

    def test_writing_addresses_of_one_s_own_gives_no_more_attempts(self, settings, door, alice):
        settings.TRUSTED_PROXIES = 1
        for number in range(5):
            door.enter("alice", "wrong", x_forwarded_for=f"6.6.6.{number}, 192.0.2.1")
        assert door.enter("alice", RIGHT, x_forwarded_for="6.6.6.9, 192.0.2.1") is None


def test_a_failed_sign_in_makes_nobody(door):
    fail(door, 2, "nobody")
    assert not User.objects.exists()
