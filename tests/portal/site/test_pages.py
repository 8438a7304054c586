"""Home, the catalogue of models, the frame around all pages, and Django's admin."""

import re
from datetime import timedelta

import pytest
from django.conf import settings as django_settings
from django.test import RequestFactory
from django.utils import timezone, translation
from django.views.defaults import server_error

from modelregistry.models import Host
from portal.audit.models import AuditEvent
from portal.keys.models import ApiKey
from portal.quotas.models import Quota
from portal.usage.models import UsageRecord
from portal.web.templatetags import formatting
from tests.conftest import person
from tests.html import all_of, has, one_of, parse, texts
from tests.pages import key_of, serve, service_key_of, use
from tests.portal.browsing import read

pytestmark = pytest.mark.django_db


class TestFrame:
    @pytest.mark.parametrize("path", ["/", "/models/", "/usage/"])
    def test_who_is_signed_out_is_sent_to_sign_in_and_back(self, client, path):
        assert client.get(path).headers["location"] == f"/sign-in/?next={path}"

    def test_the_browser_s_language_is_spoken(self, client):
        assert 'lang="ja"' in read(client, "/sign-in/", accept_language="ja,en;q=0.5")
        assert 'lang="en"' in read(client, "/sign-in/", accept_language="en-GB,en")
        assert 'lang="en"' in read(client, "/sign-in/", accept_language="fr")

    def test_the_language_can_be_switched_and_stays(self, as_alice):
        response = as_alice.post("/language/", {"language": "ja", "next": "/keys/"})
        assert response.headers["location"] == "/keys/"
        assert has(read(as_alice, "/keys/", accept_language="en"), "html[lang=ja]")
        as_alice.post("/language/", {"language": "en", "next": "/keys/"})
        assert has(read(as_alice, "/keys/", accept_language="ja"), "html[lang=en]")

    def test_messages_about_keys_follow_the_language_that_was_chosen(self, as_alice, alice):
        as_alice.post("/language/", {"language": "en", "next": "/"})
        alice.refresh_from_db()
        assert alice.language == "en"
        as_alice.post("/language/", {"language": "fr", "next": "/"})
        alice.refresh_from_db()
        assert alice.language == "en"

    def test_looking_at_the_switch_s_address_changes_nothing(self, as_alice, alice):
        as_alice.get("/language/", {"language": "en"})
        alice.refresh_from_db()
        assert alice.language == ""

    def test_the_language_cannot_be_switched_where_a_key_is_shown(self, as_alice, research):
        token = as_alice.get("/keys/new/").context["form"]["token"].value()
        form = {"name": "k", "lifetime": "90", "token": token, "tenant": research.pk}
        assert "/language/" not in as_alice.post("/keys/new/", form).content.decode()

    def test_the_colours_of_the_cookie_are_there_from_the_first_byte(self, as_alice):
        assert "data-theme" not in read(as_alice, "/").split("<head>")[0]
        as_alice.cookies["theme"] = "dark"
        assert 'data-theme="dark"' in read(as_alice, "/")
        as_alice.cookies["theme"] = '"><script>'
        assert "data-theme" not in read(as_alice, "/").split("<head>")[0]

    def test_only_operators_are_shown_the_way_to_the_admin(self, client, alice, olivia):
        client.force_login(alice)
        assert 'href="/admin/"' not in read(client, "/keys/")
        client.force_login(olivia)
        assert 'href="/admin/"' in read(client, "/keys/")

    @pytest.mark.parametrize("path", ["/", "/keys/", "/keys/new/", "/usage/", "/models/", "/sign-in/"])
    def test_nothing_is_inline_and_nothing_comes_from_elsewhere(self, as_alice, alice, research, path):
        serve()
        use(key_of(alice, research))
        page = read(as_alice, path)
        assert "style=" not in page
        assert "<style" not in page
        assert " onclick" not in page
        scripts = re.findall("<script[^>]*>", page)
        kinds = ('(type="module"|defer) src="/static/[^"]+"', 'id="[^"]+" type="application/json"')
        ours = re.compile("|".join(f"<script {kind}>" for kind in kinds))
        assert [script for script in scripts if not ours.fullmatch(script)] == []
        assert not [link for link in page.split('href="')[1:] if link.startswith(("http", "//"))]

    def test_an_unknown_address_gets_a_page_of_ours(self, as_alice):
        response = as_alice.get("/nothing/", headers={"accept-language": "ja"})
        assert response.status_code == 404
        assert has(response, "html[lang=ja] main a[href='/']")

    def test_a_fault_gets_a_page_of_ours_without_asking_the_database(self, django_assert_num_queries):
        with translation.override("ja"), django_assert_num_queries(0):
            response = server_error(RequestFactory().get("/"))
        assert response.status_code == 500
        assert has(response, "html[lang=ja] main a[href='/']")

    def test_every_page_has_an_icon(self, client):
        assert client.get("/favicon.ico").headers["location"] == "/static/favicon.svg"


class TestHome:
    def test_without_a_key_it_leads_to_one(self, as_alice):
        serve("qwen")
        page = read(as_alice, "/")
        assert has(page, "#first-key a[href='/keys/new/']")
        assert texts(page, "#first-key code") == ["qwen"]

    def test_without_a_model_that_answers_it_says_so(self, as_alice, alice, research):
        serve(state="failed")
        assert has(read(as_alice, "/"), "#first-key .state.watch")
        key_of(alice, research)
        assert has(read(as_alice, "/"), ".card .notice.warning")

    def test_without_any_model_it_says_whom_to_ask(self, as_alice, alice, research, olivia):
        key_of(alice, research)
        page = read(as_alice, "/")
        assert has(page, ".card .notice.warning")
        assert "olivia@example.com" in page

    def test_without_a_tenant_it_says_whom_to_ask(self, client, olivia):
        client.force_login(person("newcomer"))
        page = read(client, "/")
        assert has(page, "#no-tenant a[href='mailto:olivia@example.com']")

    def test_a_question_can_be_typed_right_there(self, as_alice):
        assert not has(read(as_alice, "/"), "[data-ask]")
        serve("qwen")
        assert has(read(as_alice, "/"), "#try-it form[data-ask][action='/try/'] [data-question]")

    def test_the_limit_that_stops_first_is_shown_and_the_others_are_folded_away(self, as_alice, alice, research):
        key = key_of(alice, research)
        use(key, tokens=(60, 0))
        for amount, window in ((1000, "day"), (100, "month")):
            Quota.objects.create(user=alice, unit="tokens", window=window, amount=amount)
        Quota.objects.create(user=alice, unit="requests", window="minute", amount=1)
        page = parse(read(as_alice, "/"))
        assert page.one("#left .one [data-amount]")["data-amount"] == "100"
        folded = page.all("#left details.more [data-amount]")
        assert {line["data-amount"] for line in folded} == {"1000", "1"}

    def test_a_limit_that_blocks_comes_before_all(self, as_alice, alice, research):
        use(key_of(alice, research), tokens=(100, 0))
        Quota.objects.create(user=alice, unit="tokens", window="day", amount=100)
        Quota.objects.create(user=alice, unit="requests", window="day", amount=0)
        assert one_of(read(as_alice, "/"), "#left .one [data-amount]")["data-amount"] == "0"

    def test_an_operator_sees_what_needs_attention_before_anything_else(self, as_olivia, olivia, research):
        olivia.memberships.create(tenant=research)
        serve("broken", state="failed")
        service_key_of(research, expires_at=timezone.now() + timedelta(days=3))
        page = read(as_olivia, "/")
        sections = [one["id"] for one in all_of(page, "main section[id]")]
        assert sections[0] == "operator"
        assert has(page, "#operator a[href='/operations/models/broken/']")
        assert has(page, "#operator [data-expiring] a[href='/keys/services/']")

    def test_nothing_is_said_to_need_attention_where_nothing_does(self, as_olivia):
        serve()
        page = one_of(read(as_olivia, "/"), "#operator")
        assert not page.all(".state")

    def test_a_tenant_admin_sees_the_month_of_the_tenant_and_who_is_near_a_limit(self, as_bob, alice, research):
        use(key_of(alice, research), tokens=(90, 0))
        assert not has(read(as_bob, "/"), "[data-near]")
        Quota.objects.create(tenant=research, user=alice, unit="tokens", window="day", amount=100)
        card = one_of(read(as_bob, "/"), "[data-tenant-of-admin=research]")
        assert card.all("a[data-near][href='/tenant/research/']")
        assert "90" in card.text

    def test_an_employee_sees_nothing_of_these(self, as_alice):
        serve("broken", state="failed")
        page = read(as_alice, "/")
        assert not has(page, "#operator")
        assert not has(page, "[data-tenant-of-admin]")

    def test_an_operator_without_a_tenant_is_led_to_the_admin(self, client, olivia):
        client.force_login(olivia)
        assert has(read(client, "/"), "#operator a[href='/operations/']")

    def test_it_shows_a_call_for_the_newest_key(self, as_alice, alice, research):
        serve("a-open")
        mine = serve("b-mine")
        key = key_of(alice, research, "laptop", allowed_models=[mine])
        page = read(as_alice, "/")
        assert f"{key.prefix}…" in page
        assert as_alice.get("/").context["example"].offer.name == "b-mine"
        assert "$OPENAI_API_KEY" in page

    def test_it_tells_what_was_used_today_and_this_month(self, as_alice, alice, research, time_machine):
        time_machine.move_to("2026-11-20T03:00:00Z")  # noon in Tokyo
        key = key_of(alice, research)
        use(key, tokens=(1000, 200))
        use(key, tokens=(3, 4), at=timezone.now() - timedelta(days=5), estimated=True)
        use(key, tokens=(50_000, 0), at=timezone.now() - timedelta(days=25))
        as_alice.force_login(alice)
        usage = as_alice.get("/").context["usage"]
        assert (usage.today["total_tokens"], usage.today["requests"], usage.today["estimated"]) == (1200, 1, 0)
        assert (usage.month["total_tokens"], usage.month["requests"], usage.month["estimated"]) == (1207, 2, 1)

    def test_days_are_those_of_the_tenant(self, as_alice, alice, research, time_machine):
        time_machine.move_to("2026-11-20T15:30:00Z")  # half past midnight of the 21st in Tokyo
        use(key_of(alice, research), at=timezone.now() - timedelta(hours=1))
        as_alice.force_login(alice)
        usage = as_alice.get("/").context["usage"]
        assert usage.today["requests"] == 0
        assert usage.month["requests"] == 1

    def test_the_usage_of_others_is_not_mine(self, as_alice, bob, research):
        use(key_of(bob, research), tokens=(77_777, 0))
        assert "77,777" not in read(as_alice, "/")

    def test_its_cost_does_not_grow(self, as_alice, alice, research, django_assert_num_queries):
        def fill(count):
            for n in range(count):
                key = key_of(alice, research, f"key {n}")
                Quota.objects.create(key=key, unit="tokens", window="day", amount=10)
                for _ in range(3):
                    use(key, at=timezone.now() - timedelta(days=n))

        serve()
        fill(1)
        # session, user; the bar on top; tenants; keys; models, replicas, aliases; quotas, spent; requests
        # of one's own, those to answer; usage; use cases; seminars; courses, two that may show more steps
        as_alice.get("/")  # stores the steps that are done by now
        with django_assert_num_queries(18):
            as_alice.get("/")
        fill(9)
        with django_assert_num_queries(18):
            as_alice.get("/")


class TestAdmin:
    def test_there_is_one_way_to_sign_in(self, client):
        response = client.get("/admin/", follow=True)
        assert response.redirect_chain[-1][0] == "/sign-in/?next=/admin/"

    def test_who_is_no_operator_is_told_so(self, as_alice, olivia):
        response = as_alice.get("/admin/", follow=True)
        assert response.status_code == 403
        assert has(response, "main a[href='/']")

    def test_a_key_can_be_revoked_but_not_made_or_deleted(self, client, alice, olivia, research):
        key = key_of(alice, research)
        client.force_login(olivia)
        page = read(client, "/admin/keys/apikey/")
        assert key.prefix in page
        assert key.digest not in page + read(client, f"/admin/keys/apikey/{key.pk}/change/")
        assert client.get("/admin/keys/apikey/add/").status_code == 403
        assert client.post(f"/admin/keys/apikey/{key.pk}/delete/", {"post": "yes"}).status_code == 403
        client.post("/admin/keys/apikey/", {"action": "revoke_keys", "_selected_action": [key.pk]})
        assert ApiKey.objects.get().state == "revoked"
        assert alice.notices.get().facts["by"] == "Olivia"

    def test_the_models_of_a_key_are_changed_with_a_trace(self, client, alice, olivia, research):
        key, model = key_of(alice, research), serve("qwen")
        client.force_login(olivia)
        form = {"name": "laptop", "key_class": "interactive", "networks": "[]", "allowed_models": [model.pk]}
        client.post(f"/admin/keys/apikey/{key.pk}/change/", {**form, "expires_at_0": "", "expires_at_1": ""})
        assert [served.name for served in key.allowed_models.all()] == ["qwen"]
        event = AuditEvent.objects.get(action="key.models")
        assert (event.actor, event.after) == (olivia, {"models": ["qwen"]})

    def test_whose_key_it_is_cannot_be_changed(self, client, alice, bob, olivia, research):
        key = key_of(alice, research)
        client.force_login(olivia)
        client.post(
            f"/admin/keys/apikey/{key.pk}/change/",
            {
                "name": "renamed",
                "key_class": "batch",
                "networks": "[]",
                "user": bob.pk,
                "tenant": research.pk,
                "expires_at_0": "",
                "expires_at_1": "",
            },
        )
        key.refresh_from_db()
        assert (key.name, key.user) == ("renamed", alice)

    def test_usage_can_be_read_but_not_changed(self, client, alice, olivia, research):
        record = use(key_of(alice, research))
        client.force_login(olivia)
        assert record.request_id in read(client, "/admin/usage/usagerecord/")
        assert read(client, f"/admin/usage/usagerecord/{record.pk}/change/")
        assert client.post(f"/admin/usage/usagerecord/{record.pk}/change/", {}).status_code == 403
        assert client.post(f"/admin/usage/usagerecord/{record.pk}/delete/", {"post": "yes"}).status_code == 403
        assert client.get("/admin/usage/usagerecord/add/").status_code == 403
        assert UsageRecord.objects.count() == 1

    def test_a_quota_can_be_set_and_nonsense_is_explained(self, client, alice, olivia):
        client.force_login(olivia)
        quota = {"user": alice.pk, "unit": "tokens", "window": "day", "amount": 1000}
        refused = client.post("/admin/quotas/quota/add/", {**quota, "window": ""})
        assert refused.context["adminform"].form.errors
        assert not Quota.objects.exists()
        client.post("/admin/quotas/quota/add/", quota)
        assert Quota.objects.get().amount == 1000


class TestFigures:
    @pytest.mark.parametrize(
        ("number", "ja", "en"),
        [
            (0, "0", "0"),
            (9_999, "9,999", "9,999"),
            (10_000, "1万", "10K"),
            (1_234_567, "123.4万", "1.2M"),
            (99_999_999, "9,999.9万", "99.9M"),
            (250_000_000, "2.5億", "250M"),
        ],
    )
    def test_summaries_are_short_in_each_language_s_way(self, number, ja, en):
        with translation.override("ja"):
            assert formatting.short(number) == ja
        with translation.override("en"):
            assert formatting.short(number) == en

    def test_times_are_those_of_the_page_s_zone_with_the_instant_on_hover(self, time_machine, research):
        time_machine.move_to("2026-11-20T15:30:00Z")
        context = {"zone": research.zone}
        now = timezone.now()
        with translation.override("ja"):
            today = one_of(formatting.moment(context, now), "time")
            assert (today["datetime"], today["title"]) == ("2026-11-21T00:30:00+09:00", "2026-11-21 00:30:00 JST")
            assert re.fullmatch(r"\D+ 0:30", today.text)  # a word in place of the date
            assert ">11月20日 23:30<" in formatting.moment(context, now - timedelta(hours=1))
            assert ">2025年11月21日<" in formatting.moment(context, now - timedelta(days=365))
        with translation.override("en"):
            assert re.search(r">\D+ 00:30<", formatting.moment(context, now))
            assert ">20 Nov, 23:30<" in formatting.moment(context, now - timedelta(hours=1))

    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            *[(0, "0"), (0.004, "0.004"), (0.099, "0.10"), (0.424, "0.42"), (1.26, "1.3"), (1.96, "2.0"), (2.0, "2")],
            *[(30, "30"), (75.4, "75.4"), (239.999, "240"), (5400.4, "5,400")],
        ],
    )
    def test_seconds_are_rounded_and_grouped_alike_everywhere(self, value, shown):
        assert formatting.seconds(value) == f"{shown} s"
        assert formatting.ms_in_seconds(round(value * 1000)) == shown
        assert formatting.seconds(None) == ""

    @pytest.mark.parametrize(
        ("first", "last", "name"),
        [
            ("葵", "佐藤", "佐藤 葵"),
            ("Erin", "Fischer", "Erin Fischer"),
            ("José", "Núñez", "José Núñez"),
            ("", "", "x"),
        ],
    )
    def test_names_are_in_their_bearers_order(self, first, last, name):
        assert formatting.person(person("x", first_name=first, last_name=last)) == name


def test_signed_out_pages_offer_both_languages(client):
    assert {code for code, _ in django_settings.LANGUAGES} == {"ja", "en"}
    for shown, offered in (("en", "ja"), ("ja", "en")):
        page = read(client, "/sign-in/", accept_language=shown)
        assert one_of(page, f"[name=language][value={offered}]").text == dict(django_settings.LANGUAGES)[offered]


def test_the_admin_says_why_a_host_cannot_be_deleted(client, olivia):
    client.force_login(olivia, "portal.accounts.backends.LocalBackend")
    model = serve("qwen")
    host = Host.objects.get()
    model.host = host
    model.save()
    Host.objects.filter(pk=host.pk).update(seen_at=timezone.now() - timedelta(days=1))
    address = f"/admin/modelregistry/host/{host.pk}/change/"
    page = read(client, address)
    assert not has(page, ".deletelink")
    assert "qwen" in one_of(page, "#removal-obstacle").text
    model.delete()
    page = read(client, address)
    assert has(page, ".deletelink")
    assert not has(page, "#removal-obstacle")
    assert not has(read(client, "/admin/modelregistry/host/add/"), ".field-removal")
