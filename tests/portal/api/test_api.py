"""The API as a whole: who calls, with what, and how it describes itself to them."""

import re
from datetime import timedelta

import pytest
from django.contrib.staticfiles.finders import find
from django.core.cache import cache
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.core.validators import ProhibitNullCharactersValidator
from django.test import Client
from django.utils import timezone
from django.utils.translation import override
from drf_spectacular.generators import SchemaGenerator
from rest_framework.exceptions import ValidationError as WrongField

from portal.accounts.models import User
from portal.accounts.serializers import NewTenant
from portal.api import urls
from portal.audit.models import AuditEvent
from portal.keys import leaked_keys, management_key_throttle, management_keys
from portal.keys.lifecycle import issue_key
from portal.keys.management_keys import usable_scopes
from portal.keys.models import ManagementKey
from portal.operations.serializers import Model
from portal.web.rest import scopes
from portal.web.rest.strict_fields import CharField, KnownFields
from tests.pages import management_key_of, serve
from tests.portal.calling import Caller
from tests.translations import japanese  # noqa: F401 - a fixture

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _nobody_was_wrong_before():
    cache.clear()


def names_within(part) -> set[str]:
    """Return the names of the components to which a part of the description refers."""
    values = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    found = {part["$ref"].rpartition("/")[2]} if isinstance(part, dict) and "$ref" in part else set()
    return found.union(*map(names_within, values))


def subclasses(of: type) -> set[type]:
    return {of}.union(*map(subclasses, of.__subclasses__()))


def test_every_body_refuses_fields_that_it_does_not_know():
    described = SchemaGenerator().get_schema(request=None, public=True)
    components = described["components"]["schemas"]
    operations = [one for path in described["paths"].values() for one in path.values() if isinstance(one, dict)]
    found, left = set(), {name for one in operations for name in names_within(one.get("requestBody", {}))}
    while left - found:
        found |= left
        left = {name for one in left for name in names_within(components[one])}
    bodies = {
        name.removeprefix("Patched").removesuffix("Request") for name in found if "properties" in components[name]
    }
    assert len(bodies) > 30
    assert bodies - {one.__name__ for one in subclasses(KnownFields)} == set()


@pytest.mark.parametrize(("method", "path"), [("POST", "prices/"), ("PATCH", "me/settings/")])
def test_an_unknown_field_is_named(call, olivia, method, path):
    answer = call(olivia)(method, path, {"kind": "model", "model": "a", "until": "2026-12-01"})
    assert answer.status_code == 400
    assert "#/until" in [one["pointer"] for one in answer.json()["errors"]]


def test_a_body_of_null_and_a_null_character_are_refused_in_the_language_of_the_request(client, olivia):
    client.force_login(olivia)
    found = {}
    for language in ("en", "ja"):
        for name, body in (("null", "null"), ("character", r'{"slug": "x", "name": "a\u0000b"}')):
            sent = {"content_type": "application/json", "headers": {"accept-language": language}}
            answer = client.post("/api/v1/tenants/", body, **sent)
            assert answer.status_code == 400
            found[name, language] = {one["detail"] for one in answer.json()["errors"]}
    for name in ("null", "character"):
        assert all(map(str.isascii, found[name, "en"]))
        assert not any(map(str.isascii, found[name, "ja"]))
    with override("ja"):
        assert str(ProhibitNullCharactersValidator.message) in found["character", "ja"]
    assert "何か文字を入力してください。" not in found["character", "ja"]  # Django's translation


def key_for(user: User, *held: str, days: float = 30) -> str:
    """Return the text of a new management key."""
    return management_key_of(user, *held, life=timedelta(days=days))[1]


def with_key(text: str) -> Client:
    return Client(headers={"authorization": f"Bearer {text}"})


# --- with what


@pytest.mark.parametrize("language", ["ja", "en"])
@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b"{bad", ["1", "2"]),
        (b'{"name": 1,\n "a" 2}', ["2", "6"]),
        (b'{"name": "\x82\xa0"}', ["8", "11"]),
        (b"\xff\xfe{", ["8", "1"]),
        (b'{"name": NaN}', []),
        (b'{"name": ' + b"9" * 5000 + b"}", []),
        (b"[" * 50_000, []),
        (b'{"name": "\\ud800"}', []),
    ],
)
@pytest.mark.parametrize("charset", ["", "; charset=utf-16"])
def test_what_is_wrong_with_a_body_is_said_in_the_readers_words_with_the_place(olivia, body, language, place, charset):
    client = with_key(key_for(olivia))
    answer = client.generic(
        *("POST", "/api/v1/keys/", body),
        content_type=f"application/json{charset}",
        headers={"accept-language": language},
    )
    assert (answer.status_code, answer["content-type"]) == (400, "application/problem+json")
    detail = answer.json().get("errors", [answer.json()])[0]["detail"]
    assert sorted(re.findall(r"\d+", detail)) == sorted(place)
    foreign = set(re.findall("[A-Za-z]+", detail)) - {"JSON", "UTF", "NaN"}
    assert bool(foreign) is (language == "en")


def test_a_body_may_begin_with_a_byte_order_mark(olivia):
    body = b'\xef\xbb\xbf{"name": "k"}'
    answer = with_key(key_for(olivia)).generic("POST", "/api/v1/keys/", body, content_type="application/json")
    assert [fault["pointer"] for fault in answer.json()["errors"]] == ["#/tenant"]


@pytest.mark.parametrize("bracket", ["[", '{"a":'])
def test_p3_brackets_without_end_are_the_sender_s_mistake(olivia, bracket):
    """RecursionError made them a 500, and 100 lines of the log."""
    body = bracket * 100_000
    answer = with_key(key_for(olivia)).post("/api/v1/keys/", body, content_type="application/json")
    assert (answer.status_code, answer.json()["status"]) == (400, 400)


def test_a_key_does_what_its_person_may(olivia, described):
    model = serve()
    caller = Caller(olivia, described, key=key_for(olivia))
    assert caller.get("hosts/")["count"] == 1
    assert caller("POST", f"models/{model.pk}/stop/").status_code == 200
    event = AuditEvent.objects.get(action="model.stop")
    assert (event.actor, event.via) == (olivia, "api")


def test_a_key_does_not_do_more_than_its_person_may(alice, olivia):
    text = key_for(olivia)
    ManagementKey.objects.update(user=alice)
    assert with_key(text).get("/api/v1/hosts/").status_code == 403


def test_a_key_does_not_do_more_than_its_scopes_say(olivia, described):
    model = serve()
    reader = Caller(olivia, described, key=key_for(olivia, "operations:read"))
    assert reader.get("hosts/")["count"] == 1
    refused = reader("POST", f"models/{model.pk}/stop/")
    assert (refused.status_code, refused["content-type"]) == (403, "application/problem+json")
    assert "operations:write" in refused.json()["detail"]
    other = Caller(olivia, described, key=key_for(olivia, "usage:read"))
    assert other("GET", "hosts/").status_code == 403


def test_who_may_write_may_read(olivia):
    assert with_key(key_for(olivia, "operations:write")).get("/api/v1/hosts/").status_code == 200


def test_every_view_has_a_subject_that_scopes_know():
    """Or no key could be made for it."""
    subjects = {name.partition(":")[0] for name in scopes.SCOPES}
    found = list(views(urls.urlpatterns))
    assert found
    for view in found:
        assert view.subject in subjects | {"", None}, view


def views(patterns):
    for pattern in patterns:
        if hasattr(pattern, "url_patterns"):
            yield from views(pattern.url_patterns)
        elif hasattr(pattern.callback, "cls"):
            yield pattern.callback.cls


def test_a_key_needs_no_token_against_forged_requests_and_a_session_does(olivia):
    model = serve()
    path = f"/api/v1/models/{model.pk}/stop/"
    client = Client(enforce_csrf_checks=True, headers={"authorization": f"Bearer {key_for(olivia)}"})
    assert client.post(path, content_type="application/json").status_code == 200
    client = Client(enforce_csrf_checks=True)
    client.force_login(olivia)
    assert client.post(path, content_type="application/json").status_code == 403


def test_a_wrong_key_is_not_helped_by_a_session(olivia):
    client = Client(headers={"authorization": "Bearer mdm_wrong"})
    client.force_login(olivia)
    assert client.get("/api/v1/hosts/").status_code == 401


@pytest.mark.parametrize("header", ["Bearer", "Bearer ", "Bearer mdm_short", "Bearer " + "x" * 5000, "Bearer ｍｄｍ"])
def test_what_is_no_key_is_told_how_to_ask(db, header):
    answer = Client().get("/api/v1/hosts/", headers={"authorization": header.encode().decode("latin-1")})
    assert (answer.status_code, answer["www-authenticate"]) == (401, 'Bearer realm="Madoguchi"')
    assert answer["content-type"] == "application/problem+json"


def test_nobody_is_told_how_to_ask(db):
    answer = Client().get("/api/v1/hosts/")
    assert (answer.status_code, answer["www-authenticate"]) == (401, 'Bearer realm="Madoguchi"')
    assert answer["content-type"] == "application/problem+json"


def test_a_key_for_models_is_told_from_a_management_key(alice, research):
    _, text = issue_key(tenant=research, user=alice, name="laptop")
    answer = with_key(text).get("/api/v1/hosts/")
    assert (answer.status_code, "mdm_" in answer.json()["detail"]) == (401, True)


def test_a_key_of_somebody_who_was_stopped_stops_at_once(olivia):
    text = key_for(olivia)
    assert with_key(text).get("/api/v1/hosts/").status_code == 200
    olivia.is_active = False
    olivia.save()
    assert with_key(text).get("/api/v1/hosts/").status_code == 401


def test_a_revoked_and_an_expired_key_stop_at_once(olivia, time_machine):
    first, second = key_for(olivia), key_for(olivia, days=1)
    management_keys.revoke_management_key(
        olivia, ManagementKey.objects.get(digest=leaked_keys.find_in_text(ManagementKey, first)[0][0].digest)
    )
    assert with_key(first).get("/api/v1/hosts/").status_code == 401
    assert with_key(second).get("/api/v1/hosts/").status_code == 200
    time_machine.move_to(timezone.now() + timedelta(days=1, seconds=1), tick=False)
    assert with_key(second).get("/api/v1/hosts/").status_code == 401


def test_who_was_an_operator_is_none_with_an_old_key_either(olivia):
    text = key_for(olivia)
    olivia.is_staff = False
    olivia.save()
    assert with_key(text).get("/api/v1/hosts/").status_code == 403


def test_use_is_noted_at_most_once_a_minute(olivia, time_machine, django_assert_num_queries):
    client = with_key(key_for(olivia))
    begun = timezone.now()
    time_machine.move_to(begun, tick=False)
    client.get("/api/v1/presets/")
    assert ManagementKey.objects.get().last_used_at == begun
    time_machine.move_to(begun + timedelta(seconds=59), tick=False)
    with django_assert_num_queries(1):
        client.get("/api/v1/presets/")
    assert ManagementKey.objects.get().last_used_at == begun
    time_machine.move_to(begun + timedelta(seconds=60), tick=False)
    client.get("/api/v1/presets/")
    assert ManagementKey.objects.get().last_used_at == begun + timedelta(seconds=60)
    assert not AuditEvent.objects.filter(action="management-key.change").exists()


def test_who_tries_many_wrong_keys_is_told_to_wait_and_a_right_one_still_works(olivia):
    text = key_for(olivia)
    client = with_key("mdm_wrong")
    told = [client.get("/api/v1/hosts/").status_code for _ in range(management_key_throttle.MAX_WRONG + 1)]
    assert told == [401] * management_key_throttle.MAX_WRONG + [429]
    answer = client.get("/api/v1/hosts/")
    assert (answer["retry-after"], answer["content-type"]) == ("60", "application/problem+json")
    assert re.findall(r"\d+", answer.json()["detail"]) == ["60"]  # the waiting time is said once
    assert with_key(text).get("/api/v1/hosts/").status_code == 200
    elsewhere = Client(REMOTE_ADDR="10.9.8.7", headers={"authorization": "Bearer mdm_wrong"})
    assert elsewhere.get("/api/v1/hosts/").status_code == 401


# --- making and ending keys


def test_the_text_of_a_key_is_nowhere(olivia):
    text = key_for(olivia)
    row = ManagementKey.objects.get()
    assert (text[:4], len(text), row.prefix) == ("mdm_", 42, text[:12])
    assert text not in str(ManagementKey.objects.values()) + str(AuditEvent.objects.values())
    assert AuditEvent.objects.get(action="management-key.add").after["digest"] == "set"


@pytest.mark.parametrize(
    ("who", "held", "days"),
    [
        ("alice", ["operations:read"], 30),
        ("alice", ["tenants:write"], 30),
        ("bob", ["operations:read"], 30),
        ("olivia", [], 30),
        ("olivia", ["magic"], 30),
        ("olivia", ["usage:read"], 367),
        ("olivia", ["usage:read"], -1),
    ],
)
def test_a_key_that_may_not_be_is_not_made(alice, bob, olivia, who, held, days):
    with pytest.raises(ValidationError):
        management_keys.issue_management_key(
            user=User.objects.get(username=who),
            name="script",
            scopes_=held,
            expires_at=timezone.now() + timedelta(days=days),
        )
    assert not ManagementKey.objects.exists()


def test_scopes_are_offered_by_what_a_person_could_do(alice, bob, olivia):
    mine, his, hers = ({scope.name for scope in usable_scopes(user)} for user in (alice, bob, olivia))
    assert his - mine == {"lessons:write", "tenants:write"}
    assert hers - his == {"news:write", "operations:read", "operations:write"}


# --- description


def paths(user: User | None, client: Client | None = None) -> set[str]:
    if client is None:
        client = Client()
        client.force_login(user)
    answer = client.get("/api/schema/", headers={"accept": "application/vnd.oai.openapi+json"})
    assert answer.status_code == 200
    return {path.removeprefix("/api/v1/").partition("/")[0] for path in answer.json()["paths"]}


def test_everybody_reads_of_what_is_theirs(alice, olivia):
    assert {"hosts", "models", "replicas"} <= paths(olivia)
    assert not {"hosts", "models", "replicas", "overview", "presets"} & paths(alice)
    assert "hosts" not in paths(None, with_key(key_for(olivia, "usage:read")))


@pytest.mark.usefixtures("japanese")
def test_the_description_is_in_the_language_of_who_reads_it(alice):
    client = Client()
    client.force_login(alice)
    english, translated, again = (
        client.get("/api/schema/", headers={"accept-language": language}).json()["info"]["description"]
        for language in ("en", "ja", "en")
    )
    assert english == again != translated


def test_the_description_is_for_who_is_signed_in(alice):
    assert Client().get("/api/docs/")["location"] == "/sign-in/?next=/api/docs/"
    assert Client().get("/api/schema/").status_code == 401


def test_nobody_else_learns_which_addresses_there_are(db, alice):
    assert Client().get("/api/v1/nowhere/").status_code == 401
    client = Client()
    client.force_login(alice)
    answer = client.get("/api/v1/nowhere/")
    assert (answer.status_code, answer["content-type"]) == (404, "application/problem+json")


def test_the_page_needs_few_static_files_and_they_are_there(settings, tmp_path):
    assert find("swagger-ui/swagger-ui.css")
    assert not find("swagger-ui/swagger-ui-bundle.js.map")
    assert find("admin/css/base.css")
    assert not find("rest_framework/css/default.css")
    settings.STATIC_ROOT = tmp_path
    settings.STATICFILES_FINDERS = ["portal.web.rest.docs_files.Finder"]
    settings.STORAGES = {
        **settings.STORAGES,
        "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
    }
    call_command("collectstatic", interactive=False, verbosity=0)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*"))
    assert 2_000_000 < size < 6_000_000
    assert {path.name.split(".")[0] for path in (tmp_path / "swagger-ui").iterdir()} == {
        "swagger-ui",
        "swagger-ui-bundle",
    }


@pytest.mark.parametrize("text", [5, 5.5, True, ["a"], None])
def test_only_a_string_is_a_text(text):
    for field in (CharField(), NewTenant().fields["name"], Model().fields["path"]):
        with pytest.raises(WrongField):
            field.run_validation(text)
