"""Pages of service keys, and of changing, replacing and revoking any key."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone

from portal.accounts.models import Membership, Tenant
from portal.audit.models import AuditEvent
from portal.keys import canary_key, lifecycle
from portal.keys.models import ApiKey, ModelAccess
from portal.notifications.models import Notice
from portal.quotas.models import Quota
from tests.conftest import person
from tests.html import has, one_of, texts
from tests.pages import key_of, serve, service_key_of, use
from tests.portal.browsing import WHOLE_KEY

pytestmark = pytest.mark.django_db


def text_of(client, path: str) -> str:
    page = client.get(path).content.decode()
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def ask(client, address="/keys/services/new/", **fields):
    """Fill in the form as a browser does and send it."""
    shown = client.get(address).context["form"]
    form = {
        "name": "Dify",
        "tenant": shown.tenants[0].pk,
        "lifetime": shown["lifetime"].value(),
        "responsible": shown["responsible"].value() or "",
        "token": shown["token"].value(),
        **fields,
    }
    return client.post(address, form)


class TestMaking:
    def test_a_tenant_admin_makes_one_that_is_the_tenant_s(self, as_bob, bob, alice, research):
        response = ask(
            as_bob, responsible="Alice", purpose="help desk", key_class="batch", networks="10.1.0.0/16\n10.9.9.9"
        )
        key = ApiKey.objects.get()
        assert WHOLE_KEY.search(response.content.decode())[0].startswith(key.prefix)
        assert has(response, f"main a[href='/keys/{key.prefix}/']")
        assert (key.user, key.service, key.name, key.tenant) == (None, "Dify", "Dify", research)
        assert (key.responsible, key.created_by, key.purpose) == (alice, bob, "help desk")
        assert (key.key_class, key.networks) == ("batch", ["10.1.0.0/16", "10.9.9.9/32"])

    def test_p6_it_takes_end_users_from_open_webui_if_that_is_asked_for(self, as_bob):
        for asked in ({}, {"takes_user_headers": "on"}):
            ask(as_bob, **asked)
        assert [key.takes_user_headers for key in ApiKey.objects.order_by("pk")] == [False, True]

    def test_its_answers_are_watched_for_loops_unless_that_is_declined(self, as_bob):
        for asked in ({}, {"without_loop_guard": "on"}):
            ask(as_bob, **asked)
        assert [key.loop_guard for key in ApiKey.objects.order_by("pk")] == [True, False]

    def test_who_makes_it_is_proposed_as_responsible(self, as_bob, bob):
        ask(as_bob)
        assert ApiKey.objects.get().responsible == bob

    @pytest.mark.parametrize("name", ["charlie", "nobody", ""])
    def test_responsible_is_a_member(self, as_bob, charlie, name):
        response = ask(as_bob, responsible=name)
        assert response.context["form"].errors.keys() == {"responsible"}
        assert not ApiKey.objects.exists()

    def test_a_member_is_found_by_mail_address_too(self, as_bob, alice):
        ask(as_bob, responsible="ALICE@example.com")
        assert ApiKey.objects.get().responsible == alice

    def test_an_operator_chooses_the_tenant_first(self, as_olivia, research, sales, charlie):
        page = as_olivia.get("/keys/services/new/")
        assert [tenant.slug for tenant in page.context["tenants"]] == ["sales", "research"]
        ask(as_olivia, "/keys/services/new/?tenant=sales", responsible="charlie")
        assert ApiKey.objects.get().tenant == sales

    def test_an_admin_of_one_tenant_makes_none_for_another(self, as_bob, sales):
        assert as_bob.get("/keys/services/new/?tenant=sales").status_code == 404
        ask(as_bob, tenant=sales.pk)
        assert not ApiKey.objects.exists()

    def test_not_for_a_tenant_that_is_switched_off(self, as_bob, research):
        research.is_active = False
        research.save()
        assert as_bob.get("/keys/services/new/?tenant=research").status_code == 404
        assert as_bob.get("/keys/services/new/").status_code == 404

    def test_only_models_of_the_tenant_may_be_chosen(self, as_bob, sales):
        closed = serve("closed")
        ModelAccess.objects.create(model=closed, tenant=sales)
        response = ask(as_bob, models=[closed.pk])
        assert response.context["form"].errors.keys() == {"models"}

    def test_a_reload_makes_no_second_one(self, as_bob):
        token = as_bob.get("/keys/services/new/").context["form"]["token"].value()
        for _ in range(2):
            response = ask(as_bob, token=token)
        assert ApiKey.objects.count() == 1
        assert response.headers["location"] == "/keys/services/"

    def test_what_is_wrong_behind_the_fold_is_in_sight(self, as_bob):
        assert not as_bob.get("/keys/services/new/").context["form"].has_folded_errors()
        response = ask(as_bob, networks="10.1.2.3/16")
        assert response.context["form"].has_folded_errors()
        assert response.context["form"].errors.keys() == {"networks"}
        assert "10.1.0.0/16" in one_of(response, "#id_networks_error").text  # what it could have meant
        assert "10.1.2.3/16" in response.context["form"]["networks"].value()


class TestProposedLife:
    @pytest.mark.parametrize(("days", "lifetime"), [(90, "90"), (45, "45"), (None, "never")])
    def test_the_tenant_proposes_how_long(self, as_alice, research, days, lifetime):
        research.key_days = days
        research.save()
        form = as_alice.get("/keys/new/").context["form"]
        assert form["lifetime"].value() == lifetime
        assert lifetime in dict(form.fields["lifetime"].choices)

    def test_tenants_that_differ_propose_each_for_themselves(self, as_alice, alice, research, sales):
        sales.key_days = 7
        sales.save()
        Membership.objects.create(user=alice, tenant=sales)
        form = as_alice.get("/keys/new/").context["form"]
        fields = {
            "name": "x",
            "lifetime": form["lifetime"].value(),
            "token": form["token"].value(),
            "tenant": sales.pk,
        }
        as_alice.post("/keys/new/", fields)
        left = ApiKey.objects.get().expires_at - timezone.now()
        assert timedelta(days=7) - left < timedelta(minutes=1)


class TestList:
    def test_it_shows_what_one_administers_and_answers_for(self, client, research, sales, alice, bob, charlie, olivia):
        one, other = service_key_of(research, responsible=alice), service_key_of(sales)
        shown = {}
        for who in (alice, bob, charlie, olivia):
            client.force_login(who)
            shown[who.username] = {key.prefix for key in client.get("/keys/services/").context["key_page"].keys}
        assert shown == {
            "alice": {one.prefix},
            "bob": {one.prefix},
            "charlie": set(),
            "olivia": {one.prefix, other.prefix},
        }

    def test_the_way_to_it_is_shown_to_whom_it_concerns(self, client, research, alice, bob, charlie, olivia):
        service_key_of(research, responsible=alice)
        for who, shown in ((alice, True), (bob, True), (olivia, True), (charlie, False)):
            client.force_login(who)
            assert ('href="/keys/services/"' in client.get("/keys/").content.decode()) is shown

    def test_who_may_make_none_is_offered_none(self, as_alice):
        assert "/keys/services/new/" not in as_alice.get("/keys/services/").content.decode()

    def test_it_is_searched(self, as_olivia, research, sales, alice):
        service_key_of(research, "Dify", responsible=alice)
        service_key_of(sales, "Open WebUI", purpose="for everybody")
        for query, found in {
            "q=dify": ["Dify"],
            "q=EVERY": ["Open WebUI"],
            "q=営業": ["Open WebUI"],
            "q=alice": ["Dify"],
            "tenant=sales": ["Open WebUI"],
            "tenant=sales&q=dify": [],
            "q=%3Cscript%3E": [],
        }.items():
            answer = as_olivia.get(f"/keys/services/?{query}")
            assert [key.name for key in answer.context["key_page"].keys] == found, query
            assert "<script>" not in answer.content.decode().replace("<script type=", "")
        assert has(as_olivia.get("/keys/services/?q=zzz"), ".empty")

    def test_it_costs_the_same_for_two_thousand(self, as_olivia, research, sales, alice, django_assert_num_queries):
        service_key_of(research, responsible=alice)
        # session, user, the bar on top, tenants, how many, keys, their models, zone
        with django_assert_num_queries(8):
            as_olivia.get("/keys/services/")
        ApiKey.objects.bulk_create(
            ApiKey(tenant=sales, service="s", name=f"k{n}", prefix=f"mdg_{n:08}", digest=f"{n}", responsible=alice)
            for n in range(2000)
        )
        with django_assert_num_queries(8):
            key_page = as_olivia.get("/keys/services/").context["key_page"]
        assert (len(key_page.keys), key_page.working) == (50, 2001)

    def test_keys_whose_responsible_person_left_stand_out(self, as_bob, research, alice):
        service_key_of(research, responsible=alice)
        assert not has(as_bob.get("/keys/services/"), "td .state.watch")
        alice.memberships.all().delete()
        assert ["Alice" in text for text in texts(as_bob.get("/keys/services/"), "td .state.watch")] == [True]


class TestOneKey:
    def test_it_tells_all_that_is_known(self, as_bob, research, alice, bob):
        serve("qwen")
        key = service_key_of(
            research, responsible=alice, purpose="help desk", key_class="batch", networks=["10.0.0.0/8"], created_by=bob
        )
        Quota.objects.create(key=key, unit="tokens", window="day", amount=1000)
        use(key, tokens=(100, 20))
        ApiKey.objects.filter(pk=key.pk).update(last_used_from="10.1.2.3", last_used_with="OpenAI/Python 3.54")
        response = as_bob.get(f"/keys/{key.prefix}/")
        shown = " ".join(texts(response, ".settings.plain"))
        for fact in ("help desk", "Alice", "10.0.0.0/8", "10.1.2.3", "OpenAI/Python 3.54", "120"):
            assert fact in shown
        assert has(response, "#left [data-left='880'][data-amount='1000']")

    def test_the_settings_of_each_model_are_a_choice_away(self, as_bob, research):
        serve("qwen")
        serve("e5", task="embedding")
        key = service_key_of(research)
        assert as_bob.get(f"/keys/{key.prefix}/").context["example"].offer.name == "qwen"
        chosen = as_bob.get(f"/keys/{key.prefix}/?model=e5").context["example"]
        assert (chosen.offer.name, dict(chosen.samples.dify)["Model Type"]) == ("e5", "Text Embedding")
        assert as_bob.get(f"/keys/{key.prefix}/?model=none").context["example"].offer.name == "qwen"

    def test_who_is_responsible_may_look_but_not_touch(self, as_alice, research, alice):
        key = service_key_of(research, responsible=alice)
        assert not has(as_alice.get(f"/keys/{key.prefix}/"), "main form[method=post]")
        assert as_alice.get(f"/keys/{key.prefix}/edit/").status_code == 404
        for verb in ("rotate", "revoke"):
            assert as_alice.post(f"/keys/{key.prefix}/{verb}/", {"overlap": "0"}).status_code == 404
        assert ApiKey.objects.get().state == "active"

    @pytest.mark.parametrize("what", ["", "edit/", "rotate/", "revoke/"])
    def test_other_tenants_service_keys_are_not_there(self, as_bob, sales, what):
        key = service_key_of(sales)
        method = as_bob.post if what in ("rotate/", "revoke/") else as_bob.get
        assert method(f"/keys/{key.prefix}/{what}", {"overlap": "0"}).status_code == 404
        assert ApiKey.objects.count() == 1

    def test_it_says_that_who_was_responsible_has_left(self, as_bob, research, alice):
        key = service_key_of(research, responsible=alice)
        alice.is_active = False
        alice.save()
        assert any("Alice" in text for text in texts(as_bob.get(f"/keys/{key.prefix}/"), ".notice.warning"))

    def test_its_page_costs_the_same_whatever_it_holds(self, as_bob, research, alice, django_assert_max_num_queries):
        key = service_key_of(research, responsible=alice, allowed_models=[serve(f"m{n}") for n in range(12)])
        for window in ("day", "month", "minute"):
            Quota.objects.create(key=key, unit="tokens", window=window, amount=10)
        with django_assert_max_num_queries(17):
            as_bob.get(f"/keys/{key.prefix}/")


class TestChanging:
    def change(self, client, key, **fields):
        form = client.get(f"/keys/{key.prefix}/edit/").context["form"]
        sent = {field.name: field.value() for field in form if field.value() not in (None, [])}
        if "networks" in sent and isinstance(sent["networks"], list):
            sent["networks"] = "\n".join(sent["networks"])
        if "models" in sent:
            sent["models"] = [getattr(model, "pk", model) for model in sent["models"]]
        return client.post(f"/keys/{key.prefix}/edit/", {**sent, **fields})

    def test_what_is_sent_back_unchanged_changes_nothing(self, as_bob, research, alice):
        end = datetime(2027, 3, 31, 15, 0, tzinfo=UTC)  # midnight in Tokyo
        key = service_key_of(
            research, responsible=alice, networks=["10.0.0.0/8"], expires_at=end, allowed_models=[serve("qwen")]
        )
        before = AuditEvent.objects.count()
        assert self.change(as_bob, key).status_code == 302
        key.refresh_from_db()
        assert (key.expires_at, key.networks, key.responsible) == (end, ["10.0.0.0/8"], alice)
        assert [model.name for model in key.allowed_models.all()] == ["qwen"]
        assert AuditEvent.objects.count() == before

    def test_all_of_it_may_change(self, as_bob, research, alice, bob):
        qwen, e5 = serve("qwen"), serve("e5", task="embedding")
        key = service_key_of(research, responsible=alice, allowed_models=[qwen])
        self.change(
            as_bob, key, name="Dify 2", purpose="new", responsible="bob", expires_on="2030-01-31", every_model="no",
            models=[e5.pk], key_class="batch", networks="10.2.0.0/16",
        )  # fmt: skip
        key.refresh_from_db()
        assert (key.name, key.purpose, key.responsible, key.key_class) == ("Dify 2", "new", bob, "batch")
        assert (key.networks, key.every_model) == (["10.2.0.0/16"], False)
        assert list(key.allowed_models.all()) == [e5]
        assert key.expires_at == datetime(2030, 1, 31, 15, 0, tzinfo=UTC)  # the end of the day in Tokyo
        self.change(as_bob, key, every_model="yes", expires_on="")
        key.refresh_from_db()
        assert (key.every_model, key.expires_at) == (True, None)

    def test_p6_it_may_begin_and_cease_to_take_end_users_from_open_webui(self, as_bob, research):
        key = service_key_of(research)
        for sent in ({"takes_user_headers": "on"}, {}):
            form = {"name": key.name, "every_model": "yes", "key_class": "interactive", **sent}
            as_bob.post(f"/keys/{key.prefix}/edit/", form)
            key.refresh_from_db()
            assert key.takes_user_headers == bool(sent)
            told = AuditEvent.objects.filter(action="key.change").latest("pk")
            assert told.after == {"takes_user_headers": bool(sent)}
            shown = as_bob.get(f"/keys/{key.prefix}/").content.decode()
            assert ('id="user-headers"' in shown) == bool(sent)

    def test_its_answers_may_cease_to_be_watched_for_loops_and_be_again(self, as_bob, research):
        key = service_key_of(research)
        for sent in ({"without_loop_guard": "on"}, {}):
            form = {"name": key.name, "every_model": "yes", "key_class": "interactive", **sent}
            as_bob.post(f"/keys/{key.prefix}/edit/", form)
            key.refresh_from_db()
            assert key.loop_guard == (not sent)
            assert AuditEvent.objects.filter(action="key.change").latest("pk").after == {"loop_guard": not sent}
            assert ('id="no-loop-guard"' in as_bob.get(f"/keys/{key.prefix}/").content.decode()) == bool(sent)
            edited = as_bob.get(f"/keys/{key.prefix}/edit/")
            assert has(edited, "input[name=without_loop_guard][checked]") == bool(sent)

    def test_a_key_whose_models_are_gone_does_not_open_all(self, as_alice, alice, research):
        model = serve("qwen")
        key = key_of(alice, research, allowed_models=[model])
        model.delete()
        response = self.change(as_alice, key, name="desk")
        assert response.context["form"].errors.keys() == {"models"}
        key.refresh_from_db()
        assert key.every_model is False

    def test_a_model_that_is_not_offered_at_present_stays(self, as_alice, alice, research):
        model = serve("qwen")
        key = key_of(alice, research, allowed_models=[model])
        model.enabled = False
        model.save()
        assert self.change(as_alice, key, name="desk").status_code == 302
        assert list(key.allowed_models.all()) == [model]

    def test_no_key_is_made_to_end_in_the_past(self, as_alice, alice, research):
        key = key_of(alice, research)
        assert self.change(as_alice, key, expires_on="9999-12-31").status_code == 400
        response = self.change(as_alice, key, expires_on="2020-01-01")
        assert response.context["form"].errors.keys() == {"expires_on"}

    def test_who_left_does_not_stand_in_the_way(self, as_bob, research, alice):
        key = service_key_of(research, responsible=alice)
        alice.memberships.all().delete()
        assert self.change(as_bob, key, name="Dify 2").status_code == 302
        key.refresh_from_db()
        assert (key.name, key.responsible) == ("Dify 2", alice)

    def test_a_personal_key_names_nobody(self, as_alice, alice, research):
        key = key_of(alice, research)
        assert "responsible" not in as_alice.get(f"/keys/{key.prefix}/edit/").context["form"].fields

    def test_a_revoked_key_is_not_changed(self, as_alice, alice, research):
        key = key_of(alice, research)
        lifecycle.revoke_key(key)
        assert as_alice.get(f"/keys/{key.prefix}/edit/").status_code == 404


class TestReplacing:
    def test_the_new_key_is_shown_once_and_the_old_one_works_on(self, as_alice, alice, research):
        key = key_of(alice, research)
        response = as_alice.post(f"/keys/{key.prefix}/rotate/", {"overlap": "7"})
        new = ApiKey.objects.get(replaces=key)
        assert WHOLE_KEY.search(response.content.decode())[0].startswith(new.prefix)
        assert "no-store" in response.headers["cache-control"]
        key.refresh_from_db()
        assert timedelta(days=7) - (key.expires_at - timezone.now()) < timedelta(minutes=1)
        assert new.created_by == alice
        assert has(as_alice.get(f"/keys/{key.prefix}/"), f".notice a[href='/keys/{new.prefix}/']")
        assert has(as_alice.get(f"/keys/{new.prefix}/"), f"dd a[href='/keys/{key.prefix}/']")

    def test_sent_again_it_says_so(self, as_alice, alice, research):
        key = key_of(alice, research)
        as_alice.post(f"/keys/{key.prefix}/rotate/", {"overlap": "7"})
        again = as_alice.post(f"/keys/{key.prefix}/rotate/", {"overlap": "7"}, follow=True)
        assert has(again, ".notice")
        assert ApiKey.objects.count() == 2

    @pytest.mark.parametrize("overlap", ["", "5", "x"])
    def test_how_long_is_one_of_those_offered(self, as_alice, alice, research, overlap):
        key = key_of(alice, research)
        as_alice.post(f"/keys/{key.prefix}/rotate/", {"overlap": overlap})
        assert ApiKey.objects.count() == 1

    def test_a_leaked_key_is_made_anew(self, as_alice, alice, research):
        key = key_of(alice, research)
        lifecycle.revoke_key(key, because="leaked")
        assert has(as_alice.get(f"/keys/{key.prefix}/"), "form[action$='/rotate/'] [name=overlap][value='0']")
        as_alice.post(f"/keys/{key.prefix}/rotate/", {"overlap": "0"})
        assert [one.replaces for one in ApiKey.objects.usable()] == [key]


class TestRevoking:
    def test_the_reason_is_kept_shown_and_told(self, as_bob, research, alice, bob):
        key = service_key_of(research, responsible=alice)
        assert as_bob.post(f"/keys/{key.prefix}/revoke/", {"because": "the bot is gone"}).headers["location"] == (
            "/keys/services/"
        )
        key.refresh_from_db()
        assert key.revoked_because == "the bot is gone"
        assert "the bot is gone" in text_of(as_bob, f"/keys/{key.prefix}/")
        [notice] = Notice.objects.all()
        assert (notice.user, notice.kind, notice.facts["by"]) == (alice, "key-revoked", "Bob")

    def test_a_reason_that_is_too_long_revokes_nothing(self, as_alice, alice, research):
        key = key_of(alice, research)
        answer = as_alice.post(f"/keys/{key.prefix}/revoke/", {"because": "x" * 201}, follow=True)
        assert has(answer, ".notice.error")
        assert ApiKey.objects.get().state == "active"


def test_any_admin_of_the_tenant_manages_what_another_made(client, research, bob):
    dora = person("dora", research, role="admin", first_name="Dora")
    key = service_key_of(research, created_by=bob, responsible=bob)
    bob.delete()
    client.force_login(dora)
    assert client.get(f"/keys/{key.prefix}/edit/").status_code == 200
    client.post(f"/keys/{key.prefix}/revoke/")
    assert ApiKey.objects.get().state == "revoked"


def test_tenants_are_offered_where_there_are_some(client, olivia):
    for number in range(3):
        Tenant.objects.create(slug=f"t{number}", name=f"T{number}")
    client.force_login(olivia)
    assert len(client.get("/keys/services/").context["tenants"]) == 3


@pytest.mark.parametrize("page", ["/keys/services/", "/tenant/research/keys/", "/keys/{prefix}/"])
def test_who_is_responsible_is_written_as_they_write_it(as_bob, research, alice, page):
    alice.first_name, alice.last_name = "花子", "青葉"
    alice.save()
    key = service_key_of(research, responsible=alice)
    assert "青葉 花子" in text_of(as_bob, page.format(prefix=key.prefix))


class TestKeyOfTheCanary:
    @pytest.fixture
    def key(self, olivia, client) -> ApiKey:
        canary_key.renew_key()
        client.force_login(olivia)
        return ApiKey.objects.get()

    def test_it_has_no_form_no_replacement_and_no_example(self, client, key):
        serve()
        page = client.get(f"/keys/{key.prefix}/").content.decode()

        for absent in (f"/keys/{key.prefix}/edit/", f"/keys/{key.prefix}/rotate/", 'id="use"'):
            assert absent not in page
        assert f"/keys/{key.prefix}/revoke/" in page
        assert client.get(f"/keys/{key.prefix}/edit/").status_code == 404

    def test_no_page_changes_or_replaces_it(self, client, key):
        form = {"name": "canary", "responsible": "", "expires_on": ""}
        assert client.post(f"/keys/{key.prefix}/edit/", form).status_code == 404
        client.post(f"/keys/{key.prefix}/rotate/", {"overlap": "0"})

        key.refresh_from_db()
        assert (ApiKey.objects.count(), key.key_class, key.state) == (1, ApiKey.Class.CANARY, "active")

    def test_the_admin_site_shows_it_and_changes_nothing_of_it(self, client, key):
        address = f"/admin/keys/apikey/{key.pk}/change/"
        assert 'name="key_class"' not in client.get(address).content.decode()

        client.post(address, {"name": "mine", "key_class": "interactive"})

        key.refresh_from_db()
        assert (key.name, key.key_class) == ("canary", ApiKey.Class.CANARY)

    def test_the_admin_site_makes_no_other_key_one_of_the_canary(self, client, key, research):
        other = service_key_of(research, "Dify")

        page = client.get(f"/admin/keys/apikey/{other.pk}/change/").content.decode()

        assert 'value="batch"' in page
        assert 'value="canary"' not in page
