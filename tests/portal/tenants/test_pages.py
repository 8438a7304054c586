"""A tenant's pages: what its admins and operators see there and can do, at 2,000 people as with two."""

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from portal.accounts.models import Membership, Tenant, User
from portal.keys.models import ApiKey
from portal.quotas import administration
from portal.quotas.administration import QuotaKind, QuotaTarget
from portal.quotas.models import Quota, QuotaRequest
from tests.conftest import person
from tests.html import all_of, has, one_of, parse, texts
from tests.pages import key_of, serve, service_key_of, use, use_each
from tests.portal.browsing import read, send, send_wrong

pytestmark = pytest.mark.django_db

DAILY = QuotaKind(unit="tokens", window="day")


def success_of(page: str) -> str:
    """Return the message that says what was done."""
    return one_of(page, ".notice.success[role=status]").text


def crowd(tenant: Tenant, count: int) -> list[User]:
    """People with a name, a membership, a key and some use of today."""
    first = User.objects.count()
    names = [f"p{n:05}" for n in range(first, first + count)]
    people = User.objects.bulk_create([User(username=name, last_name=f"Name {name}", password="!") for name in names])
    Membership.objects.bulk_create([Membership(user=user, tenant=tenant, source="directory") for user in people])
    keys = [
        ApiKey(tenant=tenant, user=user, name="laptop", prefix=user.username, digest=user.username) for user in people
    ]
    use_each(ApiKey.objects.bulk_create(keys))
    return people


class TestOverview:
    def test_it_answers_the_admin_s_first_questions(self, as_bob, alice, bob, olivia, research):
        administration.set_quota(olivia, QuotaTarget(tenant=research), DAILY, 1000)
        administration.set_quota(bob, QuotaTarget(tenant=research, default_for="member"), DAILY, 100)
        service = service_key_of(research, "Dify FAQ")
        use(key_of(alice, research), tokens=(90, 0))
        use(service, tokens=(300, 0))
        administration.create_request(alice, QuotaTarget(tenant=research, user=alice), DAILY, 200, "a deadline")
        page = read(as_bob, "/tenant/research/")
        assert has(page, "[data-of=tenant][data-left='610'][data-amount='1000']")
        assert has(page, "[data-of=member][data-left='10'][data-amount='100']")
        assert has(page, ".allowances .state.watch")
        assert 'id="waiting"' in page
        assert "a deadline" in page
        context = as_bob.get("/tenant/research/").context
        assert [(row.label, row.used.tokens, row.share) for row in context["people"]] == [("Alice", 90, 100)]
        assert [(row.label, row.used.tokens) for row in context["keys"]] == [("Dify FAQ", 300), ("laptop", 90)]
        assert (context["active"], context["members"]) == (1, 2)
        assert context["usage"].month["total_tokens"] == 390
        assert [series.label for series in context["usage"].chart.series] == ["qwen"]

    def test_a_tenant_without_anything_is_told_so(self, as_bob, bob):
        page = read(as_bob, "/tenant/research/")
        for part in ('id="no-quota"', 'id="none-near-limit"', 'id="no-usage"', "bob@"):
            assert part in page

    def test_its_cost_does_not_grow_with_people(self, as_bob, bob, research):
        administration.set_quota(bob, QuotaTarget(tenant=research, default_for="member"), DAILY, 5)

        def queries() -> int:
            with CaptureQueriesContext(connection) as captured:
                as_bob.get("/tenant/research/")
            return len(captured)

        crowd(research, 10)
        few = queries()
        crowd(research, 500)
        assert queries() == few <= 26


class TestPeople:
    def test_the_most_used_comes_first_or_the_name(self, as_bob, alice, bob, research):
        use(key_of(bob, research), tokens=(50, 0))
        use(key_of(alice, research), tokens=(10, 0))
        people = [row.user for row in as_bob.get("/tenant/research/people/").context["members"]]
        assert people == [bob, alice]
        for sort, order in (("name", [alice, bob]), ("-name", [bob, alice]), ("-use", [alice, bob])):
            page = as_bob.get("/tenant/research/people/", {"sort": sort})
            assert [row.user for row in page.context["members"]] == order

    def test_they_are_found_by_name_user_name_and_mail(self, as_bob, alice, research):
        aoi = person("s.aoi", research, last_name="佐藤", first_name="葵")
        for text, found in [
            ("佐藤", {aoi}),
            ("葵 佐藤", {aoi}),
            ("S.AOI", {aoi}),
            ("alice@example", {alice}),
            ("nobody", set()),
        ]:
            response = as_bob.get("/tenant/research/people/", {"q": text})
            assert {row.user for row in response.context["members"]} == found, text
        assert 'id="none-found"' in response.content.decode()

    def test_where_they_stand_is_told_in_words(self, as_bob, alice, bob, research):
        administration.set_quota(bob, QuotaTarget(tenant=research, default_for="member"), DAILY, 100)
        use(key_of(alice, research), tokens=(90, 0))
        page = read(as_bob, "/tenant/research/people/")
        assert "90%" in " ".join(texts(page, "td .tightest"))
        assert has(page, "td .tightest .state.watch")

    def test_2000_people_are_read_by_the_page_at_the_same_cost(self, as_bob, bob, research, django_assert_num_queries):
        administration.set_quota(bob, QuotaTarget(tenant=research, default_for="member"), DAILY, 1000)
        # session, user, the bar on top, the tenant; used, ranked, members, quotas, spent
        crowd(research, 3)
        with django_assert_num_queries(9):
            as_bob.get("/tenant/research/people/")
        crowd(research, 2000)
        with django_assert_num_queries(9):
            response = as_bob.get("/tenant/research/people/?page=3")
        assert len(response.context["members"]) == 50
        assert has(response, "[data-first='101'][data-last='150'][data-all='2004']")

    def test_somebody_is_added_by_user_name(self, as_bob, charlie, research):
        page = send(as_bob, "/tenant/research/people/add/", username=" CHARLIE ", role="member")
        assert "Charlie" in success_of(page)
        row = Membership.objects.get(user=charlie, tenant=research)
        assert (row.role, row.source) == ("member", "manual")

    @pytest.mark.parametrize("name", ["nobody.here", "alice", ""])
    def test_what_cannot_be_added_is_said_at_the_field(self, as_bob, alice, name):
        page = send_wrong(as_bob, "/tenant/research/people/add/", username=name, role="admin")
        assert has(page, ".field.wrong #id_username_error")
        assert Membership.objects.count() == 2

    def test_a_role_is_changed(self, as_bob, alice, research):
        page = send(as_bob, f"/tenant/research/people/{alice.pk}/role/", role="admin")
        assert "Alice" in success_of(page)
        assert Membership.objects.get(user=alice).role == "admin"

    def test_removing_says_what_it_stops_and_stops_it(self, as_bob, alice, research):
        key_of(alice, research)
        assert "1" in one_of(read(as_bob, f"/tenant/research/people/{alice.pk}/remove/"), "main form p").text
        send(as_bob, f"/tenant/research/people/{alice.pk}/remove/")
        assert not ApiKey.objects.usable().exists()
        assert ApiKey.objects.filter(revoked_at=None).exists()

    def test_who_comes_from_the_directory_is_changed_there(self, as_bob, alice):
        Membership.objects.filter(user=alice).update(source="directory")
        assert 'id="from-directory"' in read(as_bob, f"/tenant/research/people/{alice.pk}/")
        for verb in ("role", "remove"):
            page = send(as_bob, f"/tenant/research/people/{alice.pk}/{verb}/", role="admin")
            assert has(page, ".notice.error")
        assert Membership.objects.get(user=alice).role == "member"

    def test_an_admin_does_not_remove_themselves_but_an_operator_does(self, as_bob, as_olivia, bob):
        for verb in ("role", "remove"):
            page = send(as_bob, f"/tenant/research/people/{bob.pk}/{verb}/", role="member")
            assert has(page, ".notice.error")
            assert Membership.objects.get(user=bob).role == "admin"
        send(as_olivia, f"/tenant/research/people/{bob.pk}/remove/")
        assert not Membership.objects.filter(user=bob).exists()

    def test_what_somebody_uses_in_other_tenants_is_for_operators(self, as_bob, as_olivia, alice, olivia, sales):
        Membership.objects.create(user=alice, tenant=sales)
        use(key_of(alice, sales), tokens=(123, 0))
        administration.set_quota(olivia, QuotaTarget(user=alice), DAILY, 1000)
        path = f"/tenant/research/people/{alice.pk}/"
        page = read(as_bob, path)
        assert not has(page, "[data-left='877']")
        assert "of=everywhere" not in page
        page = read(as_olivia, path)
        assert has(page, "[data-left='877'][data-amount='1000']")
        assert "of=everywhere" in page

    def test_people_of_other_tenants_are_not_there(self, as_bob, charlie):
        for verb in ("", "role/", "remove/"):
            assert as_bob.post(f"/tenant/research/people/{charlie.pk}/{verb}").status_code in (404, 405)
        assert as_bob.get(f"/tenant/research/people/{charlie.pk}/").status_code == 404
        assert Membership.objects.filter(user=charlie).exists()


class TestKeys:
    def test_service_keys_and_holders_of_personal_ones_are_listed(self, as_bob, alice, research):
        service_key_of(research, "Dify FAQ", responsible=alice)
        use(key_of(alice, research))
        key_of(alice, research, "second")
        page = read(as_bob, "/tenant/research/keys/")
        assert "Dify FAQ" in page
        [(row, used)] = as_bob.get("/tenant/research/keys/").context["holders"]
        assert (row.user, row.keys, used.tokens, row.last_used is None) == (alice, 2, 15, False)

    def test_keys_of_other_tenants_are_not_listed(self, as_bob, charlie, sales, research):
        service_key_of(sales, "secret service")
        key_of(charlie, sales)
        context = as_bob.get("/tenant/research/keys/").context
        assert (context["services"], context["holders"]) == ([], [])

    def test_many_cost_no_more_than_one(self, as_bob, research, django_assert_max_num_queries):
        crowd(research, 100)
        for n in range(20):
            service_key_of(research, f"service {n}")
        with django_assert_max_num_queries(14):
            response = as_bob.get("/tenant/research/keys/?page=2")
        assert len(response.context["holders"]) == 50


class TestQuotas:
    @pytest.mark.parametrize(
        ("written", "amount"), [("500,000", 500_000), ("50万", 500_000), ("0.5M", 500_000), ("１２", 12)]
    )
    def test_an_amount_is_taken_as_people_write_it(self, as_bob, research, written, amount):
        page = send(as_bob, "/tenant/research/quotas/give/?of=members", kind="tokens/day", model="", amount=written)
        assert f"{amount:,}" in " ".join(texts(page, ".quotas th"))
        quota = Quota.objects.get()
        assert (quota.tenant, quota.default_for, quota.unit, quota.window, quota.amount) == (
            research, "member", "tokens", "day", amount,
        )  # fmt: skip

    @pytest.mark.parametrize("written", ["", "many", "-1", "1.5", "99999999999999999999999999"])
    def test_what_is_no_amount_is_explained_and_kept(self, as_bob, bob, written):
        address = "/tenant/research/quotas/give/?of=members"
        page = send_wrong(as_bob, address, kind="tokens/day", model="", amount=written)
        assert has(page, ".field.wrong")
        assert f'value="{written}"' in page or not written
        assert not Quota.objects.exists()

    def test_an_existing_one_changes_its_amount_alone(self, as_bob, bob, research):
        model = serve("qwen")
        quota = administration.set_quota(
            bob,
            QuotaTarget(tenant=research, default_for="service"),
            QuotaKind(unit="requests", window="day", model=model),
            5,
        )
        path = "/tenant/research/quotas/give/?of=services&kind=requests/day&model=qwen"
        assert 'value="5"' in read(as_bob, path)
        assert model.name in success_of(send(as_bob, path, kind="tokens/month", amount="7"))
        quota.refresh_from_db()
        assert (quota.unit, quota.model, quota.amount) == ("requests", model, 7)
        assert Quota.objects.count() == 1

    def test_an_admin_learns_the_ceiling_before_and_after(self, as_bob, olivia, alice, research):
        administration.set_quota(olivia, QuotaTarget(tenant=research), DAILY, 1000)
        path = f"/tenant/research/quotas/give/?of=person:{alice.pk}"
        assert "1,000" in " ".join(texts(read(as_bob, path), "form .hint li"))
        wrong = send_wrong(as_bob, path, kind="tokens/day", model="", amount="1001")
        assert "1,000" in " ".join(texts(wrong, ".error"))
        assert Quota.objects.count() == 1

    def test_what_operators_set_is_shown_to_admins_and_changed_by_operators(self, as_bob, as_olivia, olivia, research):
        quota = administration.set_quota(olivia, QuotaTarget(tenant=research), DAILY, 1000)
        page = read(as_bob, "/tenant/research/quotas/")
        assert has(page, "[data-of=tenant][data-left='1000'][data-amount='1000']")
        assert "give/?of=tenant" not in page
        assert 'id="not-allowed"' in read(as_bob, "/tenant/research/quotas/give/?of=tenant")
        send_wrong(as_bob, "/tenant/research/quotas/give/?of=tenant", kind="tokens/day", model="", amount="9")
        send(as_bob, f"/tenant/research/quotas/{quota.pk}/remove/")
        assert Quota.objects.get().amount == 1000
        assert "give/?of=tenant" in read(as_olivia, "/tenant/research/quotas/")
        send(as_olivia, f"/tenant/research/quotas/{quota.pk}/remove/")
        assert not Quota.objects.exists()

    def test_one_for_a_key_is_given_from_its_page(self, as_bob, research):
        key = service_key_of(research)
        path = f"/tenant/research/quotas/give/?of=key:{key.prefix}"
        assert path in read(as_bob, f"/keys/{key.prefix}/")
        send(as_bob, path, kind="concurrent/", model="", amount="2")
        assert Quota.objects.get(key=key).unit == "concurrent"

    def test_a_key_s_page_tells_its_own_first_then_the_person_s_then_the_tenant_s(
        self, as_alice, alice, bob, olivia, research
    ):
        key = key_of(alice, research)
        administration.set_quota(olivia, QuotaTarget(tenant=research), DAILY, 1000)
        administration.set_quota(olivia, QuotaTarget(user=alice), DAILY, 500)
        administration.set_quota(bob, QuotaTarget(tenant=research, default_for="member"), DAILY, 100)
        administration.set_quota(bob, QuotaTarget(key=key), DAILY, 10)
        bars = as_alice.get(f"/keys/{key.prefix}/").context["bars"]
        assert [bar.allowance.of for bar in bars] == ["key", "member", "user", "tenant"]
        assert [bar.may_ask for bar in bars] == [True, True, False, False]

    def test_what_is_not_the_tenant_s_is_not_there(self, as_bob, charlie, sales):
        theirs = Quota.objects.create(tenant=sales, unit="tokens", window="day", amount=1)
        for of in (f"person:{charlie.pk}", f"key:{key_of(charlie, sales).prefix}", "nonsense", "person:x"):
            assert as_bob.get("/tenant/research/quotas/give/", {"of": of}).status_code == 404, of
        assert as_bob.post(f"/tenant/research/quotas/{theirs.pk}/remove/").status_code == 404

    def test_many_of_their_own_are_read_by_the_page(self, as_bob, research, django_assert_max_num_queries):
        people = crowd(research, 120)
        Quota.objects.bulk_create(
            Quota(tenant=research, user=user, unit="tokens", window="day", amount=9) for user in people
        )
        with django_assert_max_num_queries(13):
            response = as_bob.get("/tenant/research/quotas/?page=2")
        assert has(response, "[data-first='51'][data-last='100'][data-all='120']")
        found = as_bob.get("/tenant/research/quotas/", {"q": people[7].username}).context["page"]
        assert [row.user for row in found] == [people[7]]

    def test_what_blocks_everyone_is_asked_once_and_keeps_what_was_typed(self, as_bob, bob, research):
        path, form = "/tenant/research/quotas/give/?of=members", {"kind": "tokens/day", "model": "", "amount": "0"}
        asked = send(as_bob, path, **form)
        assert has(asked, "#caution [data-caution=blocks-all]")
        assert has(asked, "input[name=amount][value='0']")
        assert not Quota.objects.exists()
        confirmed = one_of(asked, "input[name=confirmed]")["value"]
        other = send(as_bob, path, kind="requests/day", model="", amount="0", confirmed=confirmed)
        assert has(other, "#caution"), "the answer to one question was taken for another's"
        send(as_bob, path, **form, confirmed=confirmed)
        assert Quota.objects.get().amount == 0
        assert success_of(send(as_bob, path, **form)), "what is so already was asked about"

    def test_operators_set_the_default_of_each_tenant(self, as_olivia, as_bob, bob):
        send(as_olivia, "/tenants/quotas/give/", kind="tokens/month", model="", amount="2M")
        quota = Quota.objects.get()
        assert (quota.default_for, quota.amount) == ("tenant", 2_000_000)
        assert has(read(as_bob, "/tenant/research/quotas/"), "[data-left='2000000'][data-amount='2000000']")
        send(as_olivia, f"/tenants/quotas/{quota.pk}/remove/")
        assert not Quota.objects.exists()


MORE = {"to": "member:research", "unit": "tokens", "window": "day", "model": ""}


class TestRequests:
    @pytest.fixture
    def limited(self, bob, research):
        administration.set_quota(bob, QuotaTarget(tenant=research, default_for="member"), DAILY, 100)

    def test_the_form_proposes_double_and_nothing_is_sent_before_it(self, as_alice, limited, alice, bob):
        link = one_of(read(as_alice, "/"), ".ask a[href*='/more/?to=member']")
        form = parse(read(as_alice, link["href"]))
        assert form.one("[name=amount]")["value"] == "200"
        assert form.all("[name=reason]")
        as_alice.post("/more/", {"to": "member:research", "unit": "tokens", "window": "day", "model": ""})
        assert not QuotaRequest.objects.exists()
        page = send(as_alice, "/more/", **MORE, amount="200", reason="a report")
        row = QuotaRequest.objects.get()
        assert (row.user, row.amount, row.previous_amount, row.asked_by) == (alice, 200, 100, alice)
        assert "200" in one_of(page, "h1").text
        assert "Bob" in page
        assert "200" in one_of(read(as_alice, "/"), f".asked a[href='/more/{row.pk}/']").text

    def test_a_reason_and_another_amount_can_follow_and_it_can_be_withdrawn(self, as_alice, limited):
        send(as_alice, "/more/", **MORE, amount="200", reason="")
        row = QuotaRequest.objects.get()
        send(as_alice, f"/more/{row.pk}/", amount="150", reason="a report")
        row.refresh_from_db()
        assert (row.amount, row.reason) == (150, "a report")
        assert has(send_wrong(as_alice, f"/more/{row.pk}/", amount="50", reason=""), "#id_amount_error")
        send(as_alice, f"/more/{row.pk}/withdraw/")
        row.refresh_from_db()
        assert row.state == "withdrawn"

    def test_who_is_blocked_says_how_much(self, as_alice, bob, research):
        administration.set_quota(bob, QuotaTarget(tenant=research, default_for="member"), DAILY, 0)
        assert "/more/?to=member%3Aresearch" in read(as_alice, "/")
        form = {"to": "member:research", "unit": "tokens", "window": "day", "model": ""}
        assert "0" in as_alice.get("/more/", form).context["so_far"]
        send(as_alice, "/more/", **form, amount="1万", reason="")
        assert QuotaRequest.objects.get().amount == 10_000

    def test_a_tenant_s_bar_has_no_such_button_for_members(self, as_alice, as_bob, olivia, research):
        administration.set_quota(olivia, QuotaTarget(tenant=research), DAILY, 100)
        assert not has(read(as_alice, "/"), ".ask")
        assert has(read(as_bob, "/"), ".ask")
        form = {"to": "tenant:research", "unit": "tokens", "window": "day", "model": ""}
        assert as_alice.post("/more/", form).status_code == 404

    @pytest.mark.parametrize(
        "form",
        [
            {"to": "member:sales"},
            {"to": "key:mdg_nothing0"},
            {"to": "nonsense"},
            {"to": "member:research", "unit": "bytes"},
            {"to": "member:research", "unit": "tokens", "window": "year"},
            {"to": "member:research", "unit": "tokens", "window": "day", "model": "nope"},
        ],
    )
    def test_what_is_not_theirs_or_not_there_is_not_found(self, as_alice, sales, form):
        assert as_alice.post("/more/", form).status_code == 404
        assert as_alice.get("/more/", form).status_code == 404

    def test_an_admin_grants_with_a_note_and_the_asker_reads_it(self, as_alice, as_bob, limited, alice, research):
        row = administration.create_request(alice, QuotaTarget(tenant=research, user=alice), DAILY, 200, "a deadline")
        assert "a deadline" in read(as_bob, "/tenant/research/requests/")
        form = {"verdict": "grant", "amount": "150", "note": "until Friday"}
        assert has(send(as_bob, f"/tenant/research/requests/{row.pk}/", **form), ".notice.success")
        assert Quota.objects.get(user=alice).amount == 150
        page = read(as_alice, "/")
        assert "until Friday" in page
        assert has(page, "[data-left='150'][data-amount='150']")

    def test_an_amount_that_may_be_a_slip_is_asked_about_once(self, as_bob, limited, alice, research):
        row = administration.create_request(alice, QuotaTarget(tenant=research, user=alice), DAILY, 200)
        path = f"/tenant/research/requests/{row.pk}/"
        form = {"verdict": "grant", "amount": "10,000", "note": "as agreed"}
        asked = one_of(send(as_bob, path, **form), f"#request-{row.pk}")
        assert asked.one("#caution [data-caution]")["data-caution"] == "leap"
        assert (asked.one("[name=amount]")["value"], asked.one("[name=note]")["value"]) == ("10,000", "as agreed")
        confirmed = asked.one("[name=confirmed]")["value"]
        other = send(as_bob, path, **{**form, "amount": "20,000"}, confirmed=confirmed)
        assert has(other, "#caution"), "the answer to one question was taken for another's"
        assert QuotaRequest.objects.get().state == "open"
        send(as_bob, path, **form, confirmed=confirmed)
        assert (QuotaRequest.objects.get().granted, Quota.objects.get(user=alice).amount) == (10_000, 10_000)

    def test_what_cannot_be_granted_is_not_asked_about(self, as_bob, limited, alice, research, olivia):
        administration.set_quota(olivia, QuotaTarget(tenant=research), DAILY, 5000)
        row = administration.create_request(alice, QuotaTarget(tenant=research, user=alice), DAILY, 200)
        page = send(as_bob, f"/tenant/research/requests/{row.pk}/", verdict="grant", amount="1万", note="")
        assert has(page, ".notice.error")
        assert not has(page, "#caution")

    def test_what_is_refused_keeps_what_was_typed(self, as_bob, limited, alice, research):
        row = administration.create_request(alice, QuotaTarget(tenant=research, user=alice), DAILY, 200)
        form = {"verdict": "refuse", "amount": "1234", "note": ""}
        page = send(as_bob, f"/tenant/research/requests/{row.pk}/", **form)
        assert has(page, ".notice.error")
        assert 'value="1234"' in page
        page = send(as_bob, f"/tenant/research/requests/{row.pk}/", verdict="grant", amount="lots", note="fine")
        assert 'role="alert"' in page
        assert 'value="fine"' in page
        assert QuotaRequest.objects.get().state == "open"

    def test_one_s_own_request_is_for_others(self, as_bob, limited, bob, olivia, research):
        row = administration.create_request(bob, QuotaTarget(tenant=research, user=bob), DAILY, 200)
        page = read(as_bob, "/tenant/research/requests/")
        assert 'data-decided-by="others"' in page
        form = {"verdict": "grant", "amount": "200", "note": ""}
        assert has(send(as_bob, f"/tenant/research/requests/{row.pk}/", **form), ".notice.error")
        assert QuotaRequest.objects.get().state == "open"

    def test_home_leads_to_what_waits(self, as_bob, as_olivia, limited, alice, bob, olivia, research):
        administration.create_request(alice, QuotaTarget(tenant=research, user=alice), DAILY, 200)
        administration.set_quota(olivia, QuotaTarget(tenant=research), DAILY, 1000)
        administration.create_request(bob, QuotaTarget(tenant=research), DAILY, 2000)
        for client in (as_bob, as_olivia):
            page = read(client, "/")
            assert "1" in one_of(page, "main .notice a[href='/tenant/research/requests/']").text

    def test_requests_of_other_tenants_are_not_there(self, as_bob, charlie, sales):
        Quota.objects.create(tenant=sales, default_for="member", unit="tokens", window="day", amount=1)
        row = administration.create_request(charlie, QuotaTarget(tenant=sales, user=charlie), DAILY, 2)
        assert as_bob.post(f"/tenant/research/requests/{row.pk}/", {"verdict": "grant"}).status_code == 404

    def test_a_hundred_cost_no_more_than_one(self, as_bob, research, django_assert_max_num_queries):
        people = crowd(research, 60)
        more = {"unit": "tokens", "window": "day", "amount": 2, "previous_amount": 1}
        for state, some in (("open", people[:30]), ("refused", people[30:])):
            QuotaRequest.objects.bulk_create(
                QuotaRequest(tenant=research, user=user, asked_by=user, state=state, decided_at=timezone.now(), **more)
                for user in some
            )
        with django_assert_max_num_queries(9):
            as_bob.get("/tenant/research/requests/")


class TestTenants:
    def test_operators_see_all_with_use_and_quota_and_find_one(self, as_olivia, olivia, alice, research, sales):
        administration.set_quota(olivia, QuotaTarget(tenant=research), DAILY, 100)
        use(key_of(alice, research), tokens=(85, 0))
        rows = as_olivia.get("/tenants/").context["rows"]
        assert [(row.slug, used.tokens, one and one.percent) for row, used, one in rows] == [
            ("research", 85, 85),
            ("sales", 0, None),
        ]
        assert has(read(as_olivia, "/tenants/"), "td .state.watch")
        for text in ("営業", "SALES"):
            assert [row.slug for row, *_ in as_olivia.get("/tenants/", {"q": text}).context["rows"]] == ["sales"]
        assert 'id="none-found"' in read(as_olivia, "/tenants/?q=zzz")

    def test_200_cost_no_more_than_two(self, as_olivia, olivia, research, sales, django_assert_num_queries):
        administration.set_quota(olivia, QuotaTarget(default_for="tenant"), DAILY, 100)
        # session, user, the bar on top; zone; used, ranked, rows, quotas, spent; waiting
        with django_assert_num_queries(10):
            as_olivia.get("/tenants/")
        Tenant.objects.bulk_create(Tenant(slug=f"dept-{n}", name=f"第{n}事業部") for n in range(198))
        with django_assert_num_queries(10):
            response = as_olivia.get("/tenants/?page=4")
        assert has(response, "[data-first='151'][data-last='200'][data-all='200']")

    def test_one_is_created_and_leads_to_its_people(self, as_olivia):
        form = {"name": "法務部", "slug": "legal", "time_zone": "Asia/Tokyo", "key_days": "30"}
        page = send(as_olivia, "/tenants/new/", **form)
        assert "法務部" in success_of(page)
        assert 'id="no-members"' in page
        assert Tenant.objects.get(slug="legal").key_days == 30

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            *(("slug", "research"), ("slug", "a b"), ("name", ""), ("key_days", "0")),
            *(("time_zone", "localtime"), ("time_zone", "Factory")),
            *(("weight", "0"), ("weight", "11"), ("weight", "nan"), ("weight", "much")),
        ],
    )
    def test_what_is_wrong_is_said_at_its_field(self, as_olivia, research, field, value):
        form = {"name": "法務部", "slug": "legal", "time_zone": "Asia/Tokyo", "key_days": "30", field: value}
        response = as_olivia.post("/tenants/new/", form)
        assert list(response.context["form"].errors) == [field]
        assert Tenant.objects.count() == 1

    def test_one_is_changed_but_not_its_short_name(self, as_olivia, research):
        form = {"name": "研究所", "slug": "other", "time_zone": "Europe/Berlin", "key_days": "", "weight": "2.5"}
        send(as_olivia, "/tenant/research/edit/", **form)
        research.refresh_from_db()
        assert (research.name, research.slug, research.time_zone, research.key_days) == (
            "研究所", "research", "Europe/Berlin", None,
        )  # fmt: skip
        assert research.weight == 2.5
        del form["weight"]
        send(as_olivia, "/tenant/research/edit/", **form)
        research.refresh_from_db()
        assert research.weight == 2.5

    def test_switching_off_says_whom_it_hits_and_stops_the_keys(self, as_olivia, alice, research):
        key_of(alice, research)
        service_key_of(research)
        context = as_olivia.get("/tenant/research/switch/").context
        assert (context["keys"], context["services"], context["people"]) == (2, 1, 1)
        send(as_olivia, "/tenant/research/switch/", to="off")
        assert not ApiKey.objects.usable().exists()
        assert has(read(as_olivia, "/tenant/research/"), "h1 .state.off")
        question = as_olivia.get("/tenant/research/switch/")  # in a second tab
        assert (question.status_code, question.headers["location"]) == (302, "/tenant/research/")
        send(as_olivia, "/tenant/research/switch/", to="on")
        assert ApiKey.objects.usable().count() == 2


class TestHome:
    def test_a_member_learns_where_they_belong_and_whom_to_ask(self, as_alice, alice, bob, sales):
        Membership.objects.create(user=alice, tenant=sales)
        page = read(as_alice, "/")
        assert "研究部" in page
        assert 'href="mailto:bob@example.com"' in page
        assert len(all_of(page, ".where li")) == 2

    def test_an_answer_of_long_ago_is_not_shown(self, as_alice, alice, bob, research):
        QuotaRequest.objects.create(
            **{"tenant": research, "user": alice, "asked_by": alice, "unit": "tokens", "window": "day"},
            **{"amount": 777, "previous_amount": 1, "state": "granted", "granted": 777},
            decided_at=timezone.now() - timedelta(days=15),
        )
        assert "777" not in read(as_alice, "/")
