"""The pages of one's own API keys."""

import json
import logging
import shlex
from datetime import timedelta

import pytest
from django.contrib.sessions.models import Session
from django.core import serializers
from django.utils import timezone

from portal.keys import form_tokens, secret
from portal.keys.models import ApiKey, ModelAccess
from tests.conftest import person
from tests.html import has, one_of
from tests.pages import key_of, serve, use
from tests.portal.browsing import WHOLE_KEY

pytestmark = pytest.mark.django_db


def ask(client, **fields):
    """Fill in the form as a browser does and send it."""
    token = client.get("/keys/new/").context["form"]["token"].value()
    form = {"name": "laptop", "lifetime": "90", "token": token, **fields}
    return client.post("/keys/new/", form), form


def the_key_in(response) -> str:
    return WHOLE_KEY.search(response.content.decode())[0]


def everything_stored() -> str:
    """Return all rows of keys and sessions as text, sessions decoded."""
    rows = serializers.serialize("json", ApiKey.objects.all())
    return rows + json.dumps([session.get_decoded() for session in Session.objects.all()])


@pytest.mark.parametrize("path", ["/keys/", "/keys/new/", "/keys/mdg_whatever/"])
def test_who_is_signed_out_is_sent_to_sign_in_and_back(client, path):
    assert client.get(path).headers["location"] == f"/sign-in/?next={path}"


class TestMaking:
    def test_a_new_key_works_and_is_the_person_s_own(self, as_alice, alice, research, settings):
        response, _ = ask(as_alice, tenant=research.pk)
        text = the_key_in(response)
        key = ApiKey.objects.get()
        assert secret.is_well_formed(text)
        assert key.digest == secret.digest_of(text, settings.API_KEY_SECRET)
        assert (key.user, key.created_by, key.tenant, key.name) == (alice, alice, research, "laptop")

    def test_it_is_shown_once_and_kept_nowhere(self, as_alice, research, caplog):
        caplog.set_level(logging.DEBUG)
        serve()
        response, _ = ask(as_alice, tenant=research.pk)
        text = the_key_in(response)
        assert set(WHOLE_KEY.findall(response.content.decode())) == {text}
        pages = ["/", "/keys/", f"/keys/{text[:12]}/", "/keys/new/", "/usage/", "/models/"]
        afterwards = "".join(as_alice.get(page).content.decode() for page in pages)
        for place in (afterwards, everything_stored(), caplog.text, str(as_alice.cookies)):
            assert text not in place
            assert text[12:] not in place

    def test_no_cache_may_keep_the_page(self, as_alice, research):
        response, _ = ask(as_alice, tenant=research.pk)
        assert "no-store" in response.headers["cache-control"]

    def test_a_reload_makes_no_second_key(self, as_alice, research):
        _, form = ask(as_alice, tenant=research.pk)
        again = as_alice.post("/keys/new/", form, follow=True)
        assert ApiKey.objects.count() == 1
        assert again.redirect_chain == [("/keys/", 302)]
        assert has(again, ".notice")
        assert not WHOLE_KEY.search(again.content.decode())

    def test_a_made_up_ticket_makes_no_key(self, as_alice, research):
        ask(as_alice, tenant=research.pk, token="made-up")
        assert not ApiKey.objects.exists()

    def test_two_open_forms_make_two_keys(self, as_alice, research):
        tokens = [as_alice.get("/keys/new/").context["form"]["token"].value() for _ in range(2)]
        for token in tokens:
            as_alice.post("/keys/new/", {"name": "k", "lifetime": "90", "token": token, "tenant": research.pk})
        assert ApiKey.objects.count() == 2

    def test_a_ticket_is_good_once_even_for_a_request_that_read_the_session_before(self, as_alice):
        as_alice.get("/keys/new/")
        early, late = as_alice.session, as_alice.session
        [token] = early[form_tokens.OPEN]
        assert late[form_tokens.OPEN] == [token]
        assert form_tokens.redeem_token(early, token)
        assert not form_tokens.redeem_token(late, token)

    @pytest.mark.parametrize(("lifetime", "days"), [("30", 30), ("90", 90), ("365", 365)])
    def test_it_ends_after_the_chosen_time(self, as_alice, research, lifetime, days):
        ask(as_alice, tenant=research.pk, lifetime=lifetime)
        left = ApiKey.objects.get().expires_at - timezone.now()
        assert timedelta(days=days) - left < timedelta(minutes=1)

    def test_it_may_have_no_end(self, as_alice, research):
        ask(as_alice, tenant=research.pk, lifetime="never")
        assert ApiKey.objects.get().expires_at is None

    @pytest.mark.parametrize(
        "wrong", [{"name": ""}, {"name": "x" * 61}, {"lifetime": "4"}, {"models": ["0"]}, {"tenant": "0"}]
    )
    def test_what_is_wrong_is_said_and_what_was_typed_is_kept(self, as_alice, research, wrong):
        response, form = ask(as_alice, **{"tenant": research.pk, "name": "my laptop", **wrong})
        assert not ApiKey.objects.exists()
        assert response.context["form"].errors.keys() == wrong.keys()
        assert response.context["form"]["name"].value() == form["name"]
        # The same form, put right, still counts.
        as_alice.post("/keys/new/", {**form, "name": "k", "lifetime": "90", "models": [], "tenant": research.pk})
        assert ApiKey.objects.count() == 1

    def test_only_one_s_own_tenants_can_be_chosen(self, as_alice, alice, research, sales):
        response, _ = ask(as_alice, tenant=sales.pk)
        assert "tenant" in response.context["form"].errors
        assert not ApiKey.objects.exists()

    def test_an_inactive_tenant_cannot_be_chosen(self, as_alice, research):
        research.is_active = False
        research.save()
        assert has(as_alice.get("/keys/new/"), "#no-tenant")

    def test_a_key_can_be_for_some_models_only(self, as_alice, research):
        serve("other")
        chosen = serve("qwen")
        ask(as_alice, tenant=research.pk, models=[chosen.pk])
        assert list(ApiKey.objects.get().allowed_models.all()) == [chosen]

    def test_a_model_of_another_tenant_is_not_offered(self, as_alice, research, sales):
        hidden = serve("sales-only")
        ModelAccess.objects.create(model=hidden, tenant=sales)
        response, _ = ask(as_alice, tenant=research.pk, models=[hidden.pk])
        assert "sales-only" not in as_alice.get("/keys/new/").content.decode()
        assert "models" in response.context["form"].errors

    def test_a_model_must_fit_the_tenant_of_the_key(self, as_alice, alice, research, sales):
        alice.memberships.create(tenant=sales)
        theirs = serve("sales-only")
        ModelAccess.objects.create(model=theirs, tenant=sales)
        response, _ = ask(as_alice, tenant=research.pk, models=[theirs.pk])
        assert response.context["form"].errors.keys() == {"models"}
        assert not ApiKey.objects.exists()

    def test_who_has_no_tenant_is_told_whom_to_ask(self, client, olivia):
        client.force_login(person("newcomer"))
        page = client.get("/keys/new/")
        assert has(page, "a[href='mailto:olivia@example.com']")
        assert not has(page, "main form")


class TestHowToUseIt:
    def test_the_curl_line_is_complete(self, as_alice, research):
        serve("qwen")
        response, _ = ask(as_alice, tenant=research.pk)
        line = shlex.split(response.context["example"].samples.curl.replace("\\\n", ""))
        assert line[:2] == ["curl", "http://testserver/v1/chat/completions"]
        assert f"Authorization: Bearer {the_key_in(response)}" in line
        body = json.loads(line[line.index("-d") + 1])
        assert body["model"] == "qwen"
        assert body["messages"][0]["role"] == "user"
        assert body["max_tokens"] <= 200

    def test_the_python_lines_are_python(self, as_alice, research):
        serve("qwen")
        response, _ = ask(as_alice, tenant=research.pk)
        python = response.context["example"].samples.python
        compile(python, "example", "exec")
        assert f'api_key="{the_key_in(response)}"' in python

    def test_dify_s_form_is_filled_in(self, as_alice, research):
        serve("qwen", context=2048)
        response, _ = ask(as_alice, tenant=research.pk)
        fields = dict(response.context["example"].samples.dify)
        assert fields["API Base URL"] == "http://testserver/v1"
        assert fields["API Key"] == the_key_in(response)
        assert fields["Model Name"] == "qwen"
        assert fields["Completion mode"] == "Chat"
        assert fields["Model context size"] == "2048"
        assert int(fields["Upper bound for max tokens"]) < 2048
        assert fields["Stream mode auth"] == "Use"
        assert fields["Function Call Type"] == "Not Support"

    def test_dify_and_open_webui_are_told_what_a_model_can_do(self, as_alice, research):
        model = serve("qwen")
        model.args = ["--jinja", "--mmproj=/m/mmproj.gguf"]
        model.save()
        response, _ = ask(as_alice, tenant=research.pk)
        fields = dict(response.context["example"].samples.dify)
        assert [fields[name] for name in ("Function Call Type", "Stream function calling", "Vision Support")] == [
            "Tool Call",
            "Support",
            "Support",
        ]

    @pytest.mark.parametrize(
        ("task", "place", "fields", "variable"),
        [
            ("chat", "Connections", {"URL": "http://testserver/v1"}, "OPENAI_API_BASE_URL=http://testserver/v1"),
            (
                "embedding",
                "Documents",
                {"API Base URL": "http://testserver/v1", "Embedding Model": "m"},
                "RAG_EMBEDDING_MODEL=m",
            ),
            (
                "rerank",
                "Hybrid Search",
                {"API Base URL": "http://testserver/v1/rerank", "Reranking Model": "m"},
                "RAG_EXTERNAL_RERANKER_URL=http://testserver/v1/rerank",
            ),
            ("transcription", "Audio", {"STT Model": "m"}, "AUDIO_STT_MODEL=m"),
        ],
    )
    def test_open_webui_s_form_is_filled_in(self, as_alice, research, task, place, fields, variable):
        serve("m", task=task)
        response, _ = ask(as_alice, tenant=research.pk)
        told = response.context["example"].samples.open_webui
        assert place in told.place
        assert fields.items() <= dict(told.fields).items()
        assert dict(told.fields)["API Key"] == the_key_in(response)
        assert variable in told.environment.splitlines()

    def test_the_public_address_is_used_when_there_is_one(self, as_alice, research, settings):
        settings.PUBLIC_URL = "https://llm.example.com"
        serve("qwen")
        response, _ = ask(as_alice, tenant=research.pk)
        assert response.context["example"].base_url == "https://llm.example.com/v1"

    def test_it_names_a_model_that_answers_now(self, as_alice, research):
        serve("a-stopped", state="stopped")
        serve("b-embeds", task="embedding")
        serve("c-asleep", state="asleep")
        serve("d-answers")
        response, _ = ask(as_alice, tenant=research.pk)
        assert response.context["example"].offer.name == "d-answers"

    def test_it_names_a_model_that_the_key_may_call(self, as_alice, research):
        serve("a-answers")
        chosen = serve("b-answers")
        response, _ = ask(as_alice, tenant=research.pk, models=[chosen.pk])
        assert response.context["example"].offer.name == "b-answers"

    def test_it_says_so_when_no_model_answers(self, as_alice, research):
        serve("qwen", state="failed")
        response, _ = ask(as_alice, tenant=research.pk)
        assert has(response, ".card .notice.warning")

    def test_it_says_so_when_there_is_no_model(self, as_alice, research):
        response, _ = ask(as_alice, tenant=research.pk)
        assert has(response, ".card .notice.warning")
        assert not has(response, ".tabs")
        assert the_key_in(response)

    def test_an_embedding_model_is_called_as_one(self, as_alice, research):
        serve("e5", task="embedding")
        response, _ = ask(as_alice, tenant=research.pk)
        samples = response.context["example"].samples
        assert "/v1/embeddings" in samples.curl
        assert "client.embeddings.create" in samples.python
        assert dict(samples.dify)["Model Type"] == "Text Embedding"


class TestOneKey:
    def test_its_page_names_it_and_what_it_used_this_month(self, as_alice, alice, research):
        key = key_of(alice, research)
        use(key, tokens=(1000, 234))
        use(key_of(alice, research, "another"), tokens=(7, 7))
        response = as_alice.get(f"/keys/{key.prefix}/")
        assert has(response, "dd code")
        assert f"{key.prefix}…" in response.content.decode()
        used = response.context["this_month"]
        assert (used["total_tokens"], used["requests"]) == (1234, 1)

    def test_another_s_key_is_not_there(self, client, alice, bob, charlie, olivia, research):
        key = key_of(alice, research)
        for stranger in (bob, charlie, olivia):
            client.force_login(stranger)
            assert client.get(f"/keys/{key.prefix}/").status_code == 404
            assert client.post(f"/keys/{key.prefix}/revoke/").status_code == 404
            assert key.name not in client.get("/keys/").content.decode()
        key.refresh_from_db()
        assert key.revoked_at is None

    def test_revoking_asks_first_and_says_what_will_happen(self, as_alice, alice, research):
        key = key_of(alice, research, "laptop")
        asked = one_of(as_alice.get(f"/keys/{key.prefix}/"), "details.danger")
        assert "laptop" in asked.one("button.danger").text
        assert "401" in asked.text  # what programs are answered from then on

    def test_revoking_ends_the_key_for_good(self, as_alice, alice, research):
        key = key_of(alice, research)
        response = as_alice.post(f"/keys/{key.prefix}/revoke/", follow=True)
        key.refresh_from_db()
        assert key.state == "revoked"
        assert has(response, ".notice.success")
        page = as_alice.get(f"/keys/{key.prefix}/")
        assert not has(page, "form[action$='/revoke/']")
        assert not has(page, ".tab.curl")

    def test_looking_at_the_address_revokes_nothing(self, as_alice, alice, research):
        key = key_of(alice, research)
        assert as_alice.get(f"/keys/{key.prefix}/revoke/").url == f"/keys/{key.prefix}/"
        key.refresh_from_db()
        assert key.revoked_at is None

    def test_a_form_from_elsewhere_is_refused(self, alice, research):
        from django.test import Client

        strict = Client(enforce_csrf_checks=True)
        strict.force_login(alice)
        key = key_of(alice, research)
        response = strict.post(f"/keys/{key.prefix}/revoke/")
        assert response.status_code == 403
        key.refresh_from_db()
        assert key.revoked_at is None


class TestList:
    def test_it_is_empty_at_first_and_says_what_to_do(self, as_alice):
        assert has(as_alice.get("/keys/"), ".empty a[href='/keys/new/']")

    def test_keys_that_work_stand_apart_from_those_that_no_longer_do(self, as_alice, alice, research, sales):
        works = key_of(alice, research, "works")
        key_of(alice, research, "expired", expires_at=timezone.now() - timedelta(minutes=1))
        as_alice.post(f"/keys/{key_of(alice, research, 'revoked').prefix}/revoke/")
        alice.memberships.create(tenant=sales)
        key_of(alice, sales, "left")
        alice.memberships.get(tenant=sales).delete()
        key_page = as_alice.get("/keys/").context["key_page"]
        assert [key.prefix for key in key_page.keys] == [works.prefix]
        assert (key_page.working, key_page.ended) == (1, 3)
        assert {key.name: str(key.state) for key in as_alice.get("/keys/?ended=1").context["key_page"].keys} == {
            "expired": "expired",
            "revoked": "revoked",
            "left": "stopped",
        }

    def test_a_key_that_ends_soon_is_marked(self, as_alice, alice, research):
        key_of(alice, research, expires_at=timezone.now() + timedelta(days=3))
        assert has(as_alice.get("/keys/"), "td .state.watch")

    def test_names_are_text_and_not_markup(self, as_alice, alice, research):
        key_of(alice, research, "<script>alert(1)</script>")
        assert "<script>alert" not in as_alice.get("/keys/").content.decode()

    def test_many_keys_cost_no_more_queries_than_one(self, as_alice, alice, research, django_assert_num_queries):
        model = serve()
        key_of(alice, research, allowed_models=[model])
        # session, user, the bar on top, how many, keys, their models, service keys, zone
        with django_assert_num_queries(8):
            as_alice.get("/keys/")
        for _ in range(20):
            key_of(alice, research, allowed_models=[model])
        with django_assert_num_queries(8):
            as_alice.get("/keys/")

    def test_two_thousand_keys_come_page_by_page(self, as_alice, alice, research):
        ApiKey.objects.bulk_create(
            ApiKey(tenant=research, user=alice, name=f"k{n}", prefix=f"mdg_{n:08}", digest=f"{n}") for n in range(2000)
        )
        first, last = (as_alice.get(f"/keys/?page={n}").context["key_page"] for n in (1, 40))
        assert (len(first.keys), first.working, first.page.paginator.num_pages) == (50, 2000, 40)
        assert {key.prefix for key in first.keys}.isdisjoint(key.prefix for key in last.keys)
        assert 'href="?page=2"' in as_alice.get("/keys/").content.decode()
