"""The page of notices, and that of a person's settings."""

from datetime import timedelta

import pytest
from django.utils import timezone

from portal.accounts.models import Membership
from portal.notifications import inbox
from portal.notifications.models import Notice
from portal.web.notify import notify
from tests.html import all_of, has, texts

pytestmark = pytest.mark.django_db


def left(user, slug: str = "research", path: str = "/keys/") -> Notice:
    notify([user], "membership-ended", slug, path=path, tenant="研究部", keys=2)
    return user.notices.get(ref=slug)


class TestNotices:
    def test_they_stand_there_newest_first_with_what_is_new(self, as_alice, alice, bob):
        for number in range(3):
            left(alice, f"t{number}")
        left(bob, "bob's")
        alice.notices.filter(ref="t0").update(read_at=timezone.now())
        answer = as_alice.get("/notices/")
        assert [one.is_read for one in answer.context["notices"]] == [False, False, True]
        assert ["研究部" in text for text in texts(answer, ".notices h2 a")] == [True] * 3
        assert "2" in all_of(answer, ".notices li p")[0].text  # the keys that stopped

    def test_opening_one_marks_it_as_read_and_leads_to_its_page(self, as_alice, alice):
        first, second = left(alice, "t0"), left(alice, "t1")
        assert as_alice.get(f"/notices/{first.pk}/").headers["location"] == "/keys/"
        first.refresh_from_db()
        second.refresh_from_db()
        assert first.read_at
        assert second.read_at is None

    @pytest.mark.parametrize("path", ["", "//evil.example/", "https://evil.example/"])
    def test_one_without_a_page_here_leads_back(self, as_alice, alice, path):
        notice = left(alice, path=path)
        assert as_alice.get(f"/notices/{notice.pk}/").headers["location"] == "/notices/"

    def test_another_s_notice_is_not_there(self, as_alice, bob):
        notice = left(bob)
        assert as_alice.get(f"/notices/{notice.pk}/").status_code == 404
        notice.refresh_from_db()
        assert notice.read_at is None

    def test_all_are_read_at_once_and_keep_when_they_were(self, as_alice, alice, bob):
        before = timezone.now() - timedelta(days=1)
        left(alice, "t0")
        alice.notices.update(read_at=before)
        left(alice, "t1")
        left(bob)
        assert has(as_alice.get("/notices/"), "form[action='/notices/read/']")
        as_alice.post("/notices/read/")
        assert alice.notices.get(ref="t0").read_at == before
        assert not alice.notices.filter(read_at=None).exists()
        assert bob.notices.filter(read_at=None).count() == 1
        assert not has(as_alice.get("/notices/"), "form[action='/notices/read/']")

    def test_it_says_what_comes_here_when_there_is_none(self, as_alice):
        assert has(as_alice.get("/notices/"), ".empty")

    def test_two_thousand_cost_no_more_queries_than_one(self, as_alice, alice, django_assert_num_queries):
        left(alice)
        # session, user, the bar on top, how many, notices, zone
        with django_assert_num_queries(6):
            as_alice.get("/notices/")
        for number in range(0, 2000, 400):
            Notice.objects.bulk_create(
                Notice(user=alice, kind="membership-ended", ref=f"r{n}", facts={"tenant": "T", "keys": 0})
                for n in range(number, number + 400)
            )
        with django_assert_num_queries(6):
            answer = as_alice.get("/notices/?page=2")
        assert len(answer.context["notices"]) == 50
        assert 'href="?page=3"' in answer.content.decode()

    def test_what_people_wrote_is_text_and_not_markup(self, as_alice, alice):
        notify([alice], "membership-ended", "x", tenant="<script>alert(1)</script>", keys=0)
        assert "<script>alert" not in as_alice.get("/notices/").content.decode()

    def test_kinds_of_another_release_are_passed_over(self, as_alice, alice):
        Notice.objects.create(user=alice, kind="from-the-future", ref="x")
        Notice.objects.create(user=alice, kind="membership-ended", ref="x", facts={"tenant": "without the rest"})
        assert as_alice.get("/notices/").context["notices"] == []

    def test_what_is_older_than_a_year_is_forgotten(self, alice):
        old = left(alice, "old")
        Notice.objects.filter(pk=old.pk).update(at=timezone.now() - timedelta(days=401))
        new = left(alice, "new")
        assert inbox.delete_old(timezone.now()) == 1
        assert list(alice.notices.all()) == [new]


class TestSettings:
    def test_what_is_chosen_holds_and_the_page_is_in_the_new_language(self, as_alice, alice):
        answer = as_alice.post("/settings/", {"language": "ja", "theme": "dark", "wants_mail": ""}, follow=True)
        alice.refresh_from_db()
        assert (alice.language, alice.wants_mail) == ("ja", False)
        assert has(answer, "html[lang=ja][data-theme=dark]")
        assert has(answer, ".notice.success")
        form = answer.context["form"]
        assert (form["language"].value(), form["theme"].value(), form["wants_mail"].value()) == ("ja", "dark", False)

    @pytest.mark.parametrize("wrong", [{"language": "fr"}, {"theme": "pink"}, {"theme": ""}])
    def test_nothing_else_can_be_chosen(self, as_alice, alice, wrong):
        answer = as_alice.post("/settings/", {"language": "ja", "theme": "dark", **wrong})
        assert answer.context["form"].errors.keys() == wrong.keys()
        alice.refresh_from_db()
        assert alice.language == ""

    @pytest.mark.parametrize(
        ("sends", "address", "says"),
        [
            (False, "a@example.com", "off"),
            (True, "", "no-address"),
            (True, "a@example.com", "a@example.com"),
        ],
    )
    def test_it_says_where_mails_would_go(self, as_alice, alice, settings, sends, address, says):
        settings.SENDS_MAIL = sends
        alice.email = address
        alice.save()
        assert f'data-mail="{says}"' in as_alice.get("/settings/").content.decode()

    def test_it_says_who_one_is_here(self, as_alice):
        assert f"研究部 ({Membership.Role.MEMBER.label})" in as_alice.get("/settings/").content.decode()
