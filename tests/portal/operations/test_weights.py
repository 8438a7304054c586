"""The weights that operators set: on their page and in the API, what they mean there, and who may set them."""

from fractions import Fraction

import pytest
from django.core.exceptions import ValidationError

from apiproxy.bridge import catalogue_loader
from apiproxy.bridge.models import CatalogueRevision
from portal.audit.models import AuditEvent
from portal.keys import end_user_secret
from portal.keys.models import ClassWeight
from portal.keys.weights import USUAL_SERVICE_WEIGHT
from portal.operations.forms import ServedModelForm
from portal.operations.weights import read_weights
from tests.html import all_of, has, one_of
from tests.pages import key_of, service_key_of
from tests.portal.browsing import client_of, read

pytestmark = pytest.mark.django_db(transaction=True)  # as the catalogue is loaded by a thread of a gateway

PAGE = "/operations/weights/"


def post(client, **form) -> bool:
    """Return whether it was taken."""
    page = client.post(PAGE, form, follow=True).content.decode()
    return not has(page, ".notice.error")


def catalogue_key(key):
    return next(one for one in catalogue_loader.load().keys.values() if one.id == key.pk)


def test_the_example_adds_up_to_all_answers(research, sales):
    research.weight = 2
    research.save()
    found = read_weights()
    shares = {row.name: row.share for row in found.tenants}
    assert shares == {research.name: Fraction(2, 7), sales.name: Fraction(1, 7)}
    assert {row.name: row.answers for row in found.classes} == {"interactive": (4, 7), "batch": None}
    assert found.example.name == research.name


def test_where_many_tenants_share_per_cent_are_shown(research, sales):
    research.weight = 0.37
    research.save()
    (row,) = (row for row in read_weights().tenants if row.name == research.name)
    assert row.answers is None
    assert row.percent == pytest.approx(100 * 0.37 / 5.37)


@pytest.mark.parametrize("of", ["tenant", "class", "key"])
def test_an_operator_sets_a_weight_on_the_page_and_gateways_follow(research, olivia, of):
    key = service_key_of(research, "Open WebUI")
    before = CatalogueRevision.objects.get().number
    name = {"tenant": "tenant:research", "class": "class:interactive", "key": f"key:{key.prefix}"}[of]
    assert post(client_of(olivia), of=name, weight="2.5")
    assert CatalogueRevision.objects.get().number > before
    caller = catalogue_key(key)
    weights = (2.5, USUAL_SERVICE_WEIGHT) if of == "tenant" else (1.0, 2.5)
    assert (caller.weight, caller.service_weight) == weights
    page = read(client_of(olivia), PAGE)
    assert one_of(page, f"[data-weight-of='{name}'] [name=weight]")["value"] == "2.5"
    assert AuditEvent.objects.filter(actor=olivia, after__weight=2.5).exists()


def test_a_wrong_weight_stays_in_its_field_to_be_mended(research, sales, olivia):
    page = client_of(olivia).post(PAGE, {"of": "tenant:research", "weight": "99"}).content.decode()
    field = one_of(page, "[data-weight-of='tenant:research'] [name=weight]")
    assert (field["value"], field["aria-invalid"]) == ("99", "true")
    assert one_of(page, "[data-weight-of='tenant:sales'] [name=weight]")["value"] == "1"
    assert has(page, ".notice.error")


def test_a_key_s_own_weight_goes_before_that_of_its_class_and_can_be_taken_away(research, olivia):
    key = service_key_of(research, "Open WebUI")
    client = client_of(olivia)
    assert post(client, of="class:interactive", weight="8")
    assert post(client, of=f"key:{key.prefix}", weight="3")
    assert catalogue_key(key).service_weight == 3
    assert post(client, of=f"key:{key.prefix}", weight="")
    assert catalogue_key(key).service_weight == 8


def test_only_where_an_operator_allows_it_people_behind_a_key_take_their_own_turns(research, olivia):
    key = service_key_of(research, "Open WebUI", takes_user_headers=True)
    assert not catalogue_key(key).separates_users
    assert post(client_of(olivia), of=f"key:{key.prefix}", people="apart")
    assert catalogue_key(key).separates_users
    assert post(client_of(olivia), of=f"key:{key.prefix}", people="together")
    assert not catalogue_key(key).separates_users


def test_a_tenant_s_admin_can_not_let_a_key_count_as_many(research, bob, call):
    key = service_key_of(research, "Open WebUI")
    for change in ({"separates_users": True}, {"weight": 50}):
        call(bob)("PATCH", f"keys/{key.prefix}/", change)
    found = catalogue_key(key)
    assert (found.separates_users, found.service_weight) == (False, USUAL_SERVICE_WEIGHT)


@pytest.mark.parametrize(
    "form",
    [
        *(
            {"of": "tenant:research", "weight": wrong}
            for wrong in ("", "0", "11", "nan", "-1", "much", "1_0", "２", "1e0")
        ),
        *({"of": "class:batch", "weight": wrong} for wrong in ("", "0", "101", "inf")),
        {"of": "tenant:research"},
    ],
)
def test_what_is_no_weight_is_refused(research, olivia, form):
    assert not post(client_of(olivia), **form)
    research.refresh_from_db()
    assert research.weight == 1
    assert not ClassWeight.objects.exists()


@pytest.mark.parametrize("form", [{}, {"of": "planet:mars", "weight": "1"}, {"of": "class:canary", "weight": "2"}])
def test_what_has_no_weight_is_a_bad_request(research, olivia, form):
    assert client_of(olivia).post(PAGE, form).status_code == 400


def test_a_person_s_key_is_not_listed_and_has_no_weight(research, alice, olivia):
    key = key_of(alice, research)
    assert client_of(olivia).post(PAGE, {"of": f"key:{key.prefix}", "weight": "2"}).status_code == 404
    assert [one["data-weight-of"] for one in all_of(read(client_of(olivia), PAGE), "[data-weight-of^=key]")] == []


def test_the_api_shows_and_sets_them(research, olivia, call):
    key = service_key_of(research, "Open WebUI")
    caller = call(olivia)
    changed = caller("PATCH", "weights/", {"of": f"key:{key.prefix}", "weight": 6, "people": "apart"}).json()
    found = {one["of"]: one for one in changed["weights"]}
    assert changed == caller.get("weights/")
    assert (found[f"key:{key.prefix}"]["weight"], found[f"key:{key.prefix}"]["people"]) == (6, "apart")
    assert found["class:batch"]["weight"] == USUAL_SERVICE_WEIGHT
    for wrong in ({"of": "class:batch", "weight": 0}, {"of": "class:x", "weight": 1}, {"of": "tenant:research"}):
        assert caller("PATCH", "weights/", wrong).status_code == 400


def test_the_api_names_the_field_that_is_wrong(olivia, research, call):
    caller = call(olivia)
    key = f"key:{service_key_of(research, 'Dify').prefix}"
    for change, field in (
        ({"of": "user:x", "weight": 2}, "of"),
        ({"of": "class:canary", "weight": 2}, "of"),
        ({"of": "tenant:research"}, "weight"),
        ({"of": "tenant:research", "weight": 99}, "weight"),
        ({"of": "tenant:research", "weight": True}, "weight"),
        ({"of": key, "weight": False}, "weight"),
        ({"of": "tenant:research", "people": "apart"}, "people"),
        ({"of": "tenant:research", "weight": 2, "wieght": 3}, "wieght"),
    ):
        answer = caller("PATCH", "weights/", change)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, f"#/{field}"), change


# --- the secret of a service key


def test_the_secret_is_shown_once_and_signs_until_it_is_removed(research, bob):
    key = service_key_of(research, "Open WebUI", takes_user_headers=True)
    client = client_of(bob)
    assert has(read(client, f"/keys/{key.prefix}/"), "#user-secret")
    page = client.post(f"/keys/{key.prefix}/user-secret/", {"secret": "new"}).content.decode()
    key.refresh_from_db()
    secret = end_user_secret.secret_of(key.end_user_nonce)
    assert secret in one_of(page, "#webui").text
    assert catalogue_key(key).user_secret == secret.encode()
    assert secret not in read(client, f"/keys/{key.prefix}/")
    assert secret not in str(AuditEvent.objects.values_list())
    assert key.end_user_nonce not in str(AuditEvent.objects.values_list("before", "after"))
    client.post(f"/keys/{key.prefix}/user-secret/", {"secret": "none"})
    assert catalogue_key(key).user_secret == b""


def test_a_form_sent_again_by_a_reload_leaves_the_secret_that_was_just_copied(research, bob):
    key = service_key_of(research, "Open WebUI", takes_user_headers=True)
    client, address = client_of(bob), f"/keys/{key.prefix}/user-secret/"
    for times in (1, 2):  # the first secret, and one that replaces it
        form = {"secret": "new", "replaces": one_of(read(client, f"/keys/{key.prefix}/"), "[name=replaces]")["value"]}
        assert has(client.post(address, form), "#webui")
        copied = catalogue_key(key).user_secret
        again = client.post(address, form, follow=True)
        assert has(again, ".notice.warning"), times
        assert catalogue_key(key).user_secret == copied


def test_the_api_gives_a_secret_once_and_another_one_replaces_it(research, bob, call):
    key = service_key_of(research, "Open WebUI")
    caller = call(bob)
    first, second = (caller("POST", f"keys/{key.prefix}/user-secret/").json()["secret"] for _ in range(2))
    assert first != second
    assert catalogue_key(key).user_secret == second.encode()
    shown = caller.get(f"keys/{key.prefix}/")
    assert (shown["has_user_secret"], shown["takes_user_headers"]) == (True, True)
    assert caller("DELETE", f"keys/{key.prefix}/user-secret/").status_code == 204
    assert caller.get(f"keys/{key.prefix}/")["has_user_secret"] is False


def test_a_person_s_key_gets_no_secret(research, alice, call):
    key = key_of(alice, research)
    assert call(alice)("POST", f"keys/{key.prefix}/user-secret/").status_code == 409
    assert catalogue_key(key).user_secret == b""


@pytest.mark.parametrize("field", ["context", "slots", "idle_after", "idle_timeout", "temperature_least", "gpus"])
@pytest.mark.parametrize("text", ["1_0", "１０"])
def test_the_form_of_a_model_reads_numbers_as_the_command_line_does(field, text):
    known = ServedModelForm().fields[field]
    assert known.clean("1") in (1, 1.0, [1])
    with pytest.raises(ValidationError):
        known.clean(text)
