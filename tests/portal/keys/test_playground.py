"""The page for trying a model, and the key that it calls the gateway with."""

import re
from datetime import date, timedelta

import pytest
from django.core.management import call_command
from django.test import Client
from django.utils import timezone

from modelregistry.supervisor import tasks
from portal.accounts.models import Membership
from portal.audit.models import AuditEvent
from portal.keys import leaked_keys, lifecycle, lineage, playground, queries, secret
from portal.keys.model_access import AvailableModel, Liveness, suggested_model
from portal.keys.models import ApiKey, ModelAccess
from portal.usage.models import UsageDay
from portal.usage.playground_keys import delete_unused
from tests.conftest import person
from tests.html import has
from tests.pages import key_of, serve, use
from tests.portal.browsing import read

pytestmark = pytest.mark.django_db


def offered(page: str, task: str = "chat") -> list[str]:
    _, _, panel = page.partition(f'data-panel="{task}"')
    return re.findall(r'<option value="([^"/]+)" data-tenants', panel.partition("</form>")[0])


class TestPage:
    def test_it_offers_chat_models_and_those_that_answer_now_first(self, as_alice):
        serve("a-down", state="failed")
        serve("b-asleep", state="asleep")
        serve("c-up")
        serve("e5", task="embedding")
        page = read(as_alice, "/try/")
        assert offered(page) == ["c-up", "b-asleep", "a-down"]
        assert offered(page, "embedding") == ["e5"]
        assert offered(page, "rerank") == []
        assert not has(page, "[role=tab][data-shows=rerank]")
        assert has(page, "option[value=b-asleep][data-state=asleep]")
        assert has(page, "[data-about=b-asleep] .hint")

    def test_a_model_can_be_chosen_by_the_address(self, as_alice):
        serve("a")
        serve("b")
        chosen = re.findall(r'<option value="([^"]+)"[^>]* selected>', read(as_alice, "/try/?model=b"))
        assert chosen == ["b"]

    def test_it_tells_which_of_one_s_tenants_may_use_a_model(self, as_alice, alice, research, sales):
        Membership.objects.create(user=alice, tenant=sales)
        ModelAccess.objects.create(model=serve("sales-only"), tenant=sales)
        serve("open")
        page = read(as_alice, "/try/")
        assert '<option value="open" data-tenants="research sales"' in page
        assert '<option value="sales-only" data-tenants="sales"' in page

    def test_what_no_tenant_of_one_s_may_use_is_not_there(self, as_alice, sales):
        ModelAccess.objects.create(model=serve("sales-only"), tenant=sales)
        page = read(as_alice, "/try/")
        assert offered(page) == []
        assert has(page, ".empty")

    def test_without_a_tenant_it_says_whom_to_ask(self, client, olivia):
        serve()
        client.force_login(person("newcomer"))
        page = read(client, "/try/")
        assert has(page, "#no-tenant")
        assert "try.js" not in page

    def test_more_models_and_tenants_cost_no_more_queries(self, as_alice, alice, research, django_assert_num_queries):
        serve("m-0")
        # session, user, the bar on top, tenants; access, models, replicas, aliases
        with django_assert_num_queries(8):
            read(as_alice, "/try/")
        for number in range(1, 20):
            ModelAccess.objects.create(model=serve(f"m-{number}"), tenant=research)
        with django_assert_num_queries(8):
            read(as_alice, "/try/")

    def test_nothing_is_kept_by_the_browser(self, as_alice):
        serve()
        response = as_alice.get("/try/")
        assert "no-store" in response.headers["cache-control"]
        assert "connect-src 'self'" in response.headers["content-security-policy"]


class TestKey:
    def test_it_is_the_person_s_own_for_some_hours_and_every_model_of_the_tenant(
        self, as_alice, alice, research, settings
    ):
        answer = as_alice.post("/try/research/key/")
        assert "no-store" in answer.headers["cache-control"]
        key = ApiKey.objects.get()
        assert key.digest == secret.digest_of(answer.json()["key"], settings.API_KEY_SECRET)
        assert (key.user, key.tenant, key.is_playground, key.every_model) == (alice, research, True, True)
        assert timedelta(hours=3) < key.expires_at - timezone.now() <= playground.LIFE

    def test_a_new_one_ends_the_one_before_and_is_the_same_row(self, as_alice):
        first = as_alice.post("/try/research/key/").json()["key"]
        second = as_alice.post("/try/research/key/").json()["key"]
        assert first != second
        key = ApiKey.objects.get()
        assert key.prefix == second[:12]
        assert leaked_keys.find_in_text(ApiKey, first) == ([], 1)

    def test_one_that_somebody_ended_is_not_used_again(self, as_alice):
        lifecycle.revoke_key(ApiKey.objects.get(prefix=as_alice.post("/try/research/key/").json()["key"][:12]))
        as_alice.post("/try/research/key/")
        assert ApiKey.objects.filter(revoked_at=None).count() == 1
        assert ApiKey.objects.count() == 2

    def test_what_was_used_with_one_that_is_ended_counts_on(self, alice, research):
        made = []
        for _ in range(3):
            playground.renew_key(alice, research, timezone.now())
            key = ApiKey.objects.get(revoked_at=None)
            lifecycle.revoke_leaked_key(key, alice)
            made.append(key.pk)
        assert lineage.lineage_of([made[-1]]).chain(made[-1]) == made

    def test_it_needs_the_token_of_the_page(self, alice):
        careful = Client(enforce_csrf_checks=True)
        careful.force_login(alice)
        assert careful.post("/try/research/key/").status_code == 403
        assert not ApiKey.objects.exists()

    def test_looking_makes_none(self, as_alice):
        assert as_alice.get("/try/research/key/").url == "/try/"
        serve()
        read(as_alice, "/try/")
        assert not ApiKey.objects.exists()

    def test_there_is_none_for_a_tenant_that_is_not_one_s_own_or_switched_off(self, client, olivia, as_alice, research):
        research.is_active = False
        research.save()
        assert as_alice.post("/try/research/key/").status_code == 404
        client.force_login(olivia)
        assert client.post("/try/research/key/").status_code == 404
        assert not ApiKey.objects.exists()

    def test_it_is_not_listed_among_keys(self, as_alice, alice, research):
        key_of(alice, research, "laptop")
        as_alice.post("/try/research/key/")
        assert [key.name for key in queries.keys_of(alice)] == ["laptop"]
        assert "playground" not in read(as_alice, "/keys/")

    def test_a_sitting_is_one_event_of_the_audit_without_a_secret(self, as_alice, alice, time_machine):
        time_machine.move_to("2026-11-20T03:00:00Z", tick=False)
        as_alice.force_login(alice)
        text = [as_alice.post("/try/research/key/").json()["key"] for _ in range(3)][-1]
        [event] = AuditEvent.objects.filter(object_kind="key")
        assert (event.action, event.actor, event.tenant.slug) == ("key.playground", alice, "research")
        assert text not in str(vars(event))
        time_machine.move_to("2026-11-20T07:30:00Z")
        as_alice.post("/try/research/key/")
        assert AuditEvent.objects.filter(object_kind="key").count() == 2

    def test_that_somebody_ended_it_is_audited(self, as_alice, bob):
        text = as_alice.post("/try/research/key/").json()["key"]
        finder = Client()
        finder.force_login(bob)
        finder.post("/keys/found/", {"text": text})
        assert AuditEvent.objects.get(action="key.revoke").actor == bob


class TestClearing:
    @pytest.fixture
    def later(self, time_machine):
        """Make two keys that expired long ago: Alice's was used, Bob's was not."""
        time_machine.move_to("2026-11-20T03:00:00Z")

    def test_only_what_expired_unused_goes(self, later, alice, bob, charlie, research, sales, time_machine):
        for user, tenant in ((alice, research), (bob, research)):
            playground.renew_key(user, tenant, timezone.now())
        use(ApiKey.objects.get(user=alice))
        key_of(bob, research, "laptop", expires_at=timezone.now() + timedelta(hours=1))
        time_machine.move_to("2026-11-22T03:00:00Z")
        playground.renew_key(charlie, sales, timezone.now())
        call_command("clearplayground")
        names = {(key.user.username, key.name) for key in ApiKey.objects.all()}
        assert names == {("alice", "playground"), ("bob", "laptop"), ("charlie", "playground")}
        assert UsageDay.objects.get().key_id == ApiKey.objects.get(user=alice).pk

    def test_a_key_that_has_just_expired_may_still_have_a_call_under_way(self, later, alice, research, time_machine):
        playground.renew_key(alice, research, timezone.now())
        time_machine.move_to("2026-11-20T08:00:00Z")
        assert delete_unused(timezone.now()) == 0
        time_machine.move_to("2026-11-21T08:00:00Z")
        assert delete_unused(timezone.now()) == 1

    def test_what_was_used_is_shown_under_a_name(self, as_alice, alice, research, later, time_machine):
        playground.renew_key(alice, research, timezone.now())
        use(ApiKey.objects.get())
        time_machine.move_to("2026-11-22T03:00:00Z")
        delete_unused(timezone.now())
        as_alice.force_login(alice)
        [row] = as_alice.get("/usage/?by=key").context["groups"]
        assert (row["id"], "Alice" in row["name"]) == (str(ApiKey.objects.get().pk), True)


def test_a_model_that_retires_or_is_made_up_is_proposed_after_the_others():
    def offer(name, **more):
        return AvailableModel(name=name, description="", task="chat", context=None, state=Liveness.UP, **more)

    assert suggested_model([offer("a", retires_on=date(2030, 1, 1)), offer("b"), offer("c")]).name == "b"
    assert suggested_model([offer("a", made_up=True), offer("b")]).name == "b"


def test_clearing_runs_every_hour():
    [work] = [work for work in tasks.registered_tasks() if work.name == "clearplayground"]
    assert (work.every, work.argv) == (timedelta(hours=1), ("clearplayground",))
