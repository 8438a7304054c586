"""What is recorded of who changed what; the registry's rows are examples of all that is tracked."""

import getpass

import pytest
from django.core.management import call_command
from django.db import transaction
from django.test import AsyncClient, Client
from django.utils import timezone

from modelregistry.models import Alias, Host, ServedModel
from portal.accounts.models import Membership, User
from portal.audit.models import AuditEvent, ImmutableEvent
from portal.keys.models import ModelAccess
from portal.operations import actions
from portal.quotas.models import Quota, QuotaRequest
from tests.pages import external

pytestmark = pytest.mark.django_db


def recorded_events() -> list[tuple[str, str]]:
    """Return (action, object) of all events, oldest first."""
    return list(AuditEvent.objects.order_by("pk").values_list("action", "object_name"))


def last() -> AuditEvent:
    return AuditEvent.objects.latest("pk")


def form_of(model: ServedModel, **more) -> dict[str, object]:
    """Return what the administration's form of this model would send."""
    fields = {
        "name": model.name,
        "task": model.task,
        "engine": model.engine,
        "url": model.url,
        "replicas": 1,
        "tensor_parallel": 1,
        "nodes": 1,
        "args": "[]",
        "gpus": "[]",
        "allowed_risks": "[]",
        "loops": model.loops,
        "loop_sensitivity": model.loop_sensitivity,
        "sampling": "{}",
        "sleep_mode": model.sleep_mode,
        "enabled": "on",
        "replica_set-TOTAL_FORMS": 0,
        "replica_set-INITIAL_FORMS": 0,
    }
    return fields | more


def test_it_tells_only_the_fields_that_changed():
    model = external(context=4096)
    model.context = 8192
    model.save()
    event = last()
    assert (event.action, event.object_kind, event.object_id) == ("model.change", "model", str(model.pk))
    assert (event.before, event.after) == ({"context": 4096}, {"context": 8192})


def test_it_tells_nothing_of_a_save_that_changed_nothing():
    model = external()
    model.save()
    assert recorded_events() == [("model.add", "far")]


def test_it_never_tells_a_secret():
    model = external(upstream_key="sk-first")
    assert last().after["upstream_key"] == "set"
    model.upstream_key = "sk-second"
    model.save()
    assert (last().before, last().after) == ({"upstream_key": "set"}, {"upstream_key": "changed"})
    model.upstream_key = ""
    model.save()
    assert (last().before, last().after) == ({"upstream_key": "set"}, {"upstream_key": ""})
    model.upstream_key = "sk-third"
    model.delete()
    assert "sk-" not in str(list(AuditEvent.objects.values()))


def test_a_row_that_is_gone_is_still_named():
    external().delete()
    event = last()
    assert (event.action, event.object_name, event.after) == ("model.remove", "far", None)
    assert event.before["url"] == "http://10.0.0.5:8000"


def test_a_removed_model_takes_its_aliases_along_and_that_is_told():
    model = external()
    Alias.objects.create(name="default", model=model)
    model.delete()
    assert recorded_events()[2:] == [("alias.remove", "default"), ("model.remove", "far")]


def test_an_alias_that_moves_tells_from_where_to_where():
    alias = Alias.objects.create(name="default", model=external("old"))
    alias.model = external("new")
    alias.save()
    assert (last().before, last().after) == ({"model": "old"}, {"model": "new"})


def test_visibility_is_told_under_its_tenant(research):
    ModelAccess.objects.create(model=external(), tenant=research)
    assert (last().action, last().tenant) == ("access.add", research)


def test_a_host_that_says_that_it_lives_is_no_event():
    host = Host.objects.create(name="gpu-01")
    host.save(update_fields=["seen_at"])
    assert recorded_events() == [("host.add", "gpu-01")]


def test_a_change_that_is_rolled_back_was_never_told():
    model = external()
    with transaction.atomic():
        actions.stop_model(None, model)
        assert last().action == "model.stop"
        transaction.set_rollback(True)
    assert recorded_events() == [("model.add", "far")]


def test_a_command_is_told_under_the_name_of_who_ran_it():
    call_command("registermodel", "far", "--engine", "external", "--url", "http://10.0.0.5:8000")
    event = last()
    assert (event.action, event.via, event.actor, event.address) == ("model.add", "command", None, None)
    assert event.actor_name == getpass.getuser()
    call_command("unregistermodel", "far")
    assert last().action == "model.remove"


def test_the_administration_is_told_with_person_and_address(client: Client, olivia):
    model = external()
    client.force_login(olivia)
    form = form_of(model, slots="8")
    url = f"/admin/modelregistry/servedmodel/{model.pk}/change/"
    assert client.post(url, form, REMOTE_ADDR="10.1.2.3").status_code == 302
    event = last()
    assert (event.action, event.after, event.via) == ("model.change", {"slots": 8}, "admin")
    assert (event.actor, event.actor_name, event.address) == (olivia, "olivia", "10.1.2.3")


@pytest.mark.django_db(transaction=True)
async def test_who_asked_is_known_under_the_server_s_own_way_of_calling_views(olivia):
    client = AsyncClient()
    await client.aforce_login(olivia)
    model = await ServedModel.objects.acreate(name="far", engine="external", url="http://10.0.0.5:8000")
    await client.post(f"/admin/modelregistry/servedmodel/{model.pk}/delete/", {"post": "yes"})
    event = await AuditEvent.objects.select_related("actor").alatest("pk")
    assert (event.action, event.actor, event.via) == ("model.remove", olivia, "admin")


def test_the_address_is_the_one_that_our_proxy_saw(client: Client, olivia, settings):
    settings.TRUSTED_PROXIES = 1
    model = external()
    client.force_login(olivia)
    headers = {"x-forwarded-for": "1.1.1.1, 10.9.9.9"}
    client.post(f"/admin/modelregistry/servedmodel/{model.pk}/delete/", {"post": "yes"}, headers=headers)
    assert last().address == "10.9.9.9"


def test_one_person_s_request_leaves_no_trace_in_what_comes_after_it(client: Client, olivia):
    client.force_login(olivia)
    client.get("/admin/")
    external()
    assert (last().via, last().actor) == ("command", None)


def test_signing_in_and_out_is_told(door, olivia):
    door.enter("olivia", "correct horse")
    assert (last().action, last().actor, last().address) == ("session.begin", olivia, "10.0.0.7")
    door.client.post("/sign-out/")
    assert (last().action, last().actor, last().via) == ("session.end", olivia, "page")


def test_a_wrong_password_writes_nothing(door, olivia):
    before = recorded_events()
    assert door.enter("olivia", "wrong") is None
    assert recorded_events() == before


def test_an_event_outlives_its_person_and_tenant(research, olivia, client: Client):
    client.force_login(olivia)
    access = ModelAccess.objects.create(model=external(), tenant=research)
    access.delete()
    research.delete()
    olivia.delete()
    assert {event.actor for event in AuditEvent.objects.all()} == {None}
    assert AuditEvent.objects.get(action="session.begin").actor_name == "olivia"


def test_an_event_cannot_be_changed_or_taken_away():
    external()
    event = last()
    event.actor_name = "somebody else"
    for attempt in (event.save, event.delete, AuditEvent.objects.all().delete, AuditEvent.objects.filter(pk=1).delete):
        with pytest.raises(ImmutableEvent):
            attempt()
    with pytest.raises(ImmutableEvent):
        AuditEvent.objects.update(actor_name="")
    with pytest.raises(ImmutableEvent):
        AuditEvent.objects.bulk_update([event], ["actor_name"])


def test_the_administration_shows_events_and_changes_none(client: Client, olivia):
    external()
    client.force_login(olivia)
    url = f"/admin/audit/auditevent/{last().pk}/"
    assert client.get("/admin/audit/auditevent/").status_code == 200
    assert client.get(f"{url}change/").status_code == 200
    assert client.post(f"{url}change/", {"actor_name": "x"}).status_code == 403
    assert client.post(f"{url}delete/", {"post": "yes"}).status_code == 403
    assert client.get("/admin/audit/auditevent/add/").status_code == 403


# --- people, tenants, quotas


def test_people_are_told_without_their_passwords(alice):
    [added] = AuditEvent.objects.filter(action="user.add")
    assert (added.object_name, added.after["username"]) == ("alice (Alice)", "alice")
    alice.set_password("another horse")
    alice.save()
    assert (last().action, last().before, last().after) == (
        "user.password",
        {"password": "set"},
        {"password": "changed"},
    )
    texts = str(list(AuditEvent.objects.values()))
    assert "horse" not in texts
    assert alice.password not in texts


def test_a_password_that_sign_in_hashed_anew_is_no_event(door, olivia, settings):
    """As after an upgrade of Django, which hashes with more rounds."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.PBKDF2PasswordHasher", *settings.PASSWORD_HASHERS]
    before = olivia.password
    assert door.enter("olivia", "correct horse")
    olivia.refresh_from_db()
    assert olivia.password != before
    assert [action for action, _ in recorded_events()][-2:] == ["user.add", "session.begin"]


def test_a_sign_in_itself_changes_nobody(alice):
    alice.last_login = timezone.now()
    alice.save()
    assert last().action == "membership.add"


@pytest.mark.parametrize(
    ("before", "after", "action"),
    [
        ({}, {"is_active": False}, "user.off"),
        ({"is_active": False}, {"is_active": True}, "user.on"),
        ({}, {"is_staff": True}, "user.change"),
        ({}, {"language": "ja"}, "user.change"),
    ],
)
def test_it_says_what_became_of_a_person(alice, before, after, action):
    for values in (before, after):
        for name, value in values.items():
            setattr(alice, name, value)
        alice.save()
    assert (last().action, last().after) == (action, after)


def test_a_role_is_told_under_its_tenant(alice, research):
    place = alice.memberships.get()
    place.role = "admin"
    place.save()
    event = last()
    assert (event.action, event.object_name, event.tenant) == ("membership.change", "alice · research", research)
    assert (event.before, event.after) == ({"role": "member"}, {"role": "admin"})


def test_a_tenant_that_goes_takes_its_people_along_and_that_is_told(alice, research):
    research.delete()
    assert recorded_events()[-2:] == [("membership.remove", "alice · research"), ("tenant.remove", "research (研究部)")]


def test_who_deletes_themselves_is_still_named(client: Client, olivia, research):
    """Their membership goes along with them, and is recorded while they are going."""
    Membership.objects.create(user=olivia, tenant=research)
    client.force_login(olivia)
    client.post(f"/admin/accounts/user/{olivia.pk}/delete/", {"post": "yes"})
    assert not User.objects.exists()
    assert last().action == "user.remove"
    assert AuditEvent.objects.get(action="membership.remove").actor_name == "olivia"


def test_quotas_are_told_in_no_language(alice, research):
    quota = Quota.objects.create(tenant=research, user=alice, unit="tokens", window="day", amount=1000)
    event = last()
    assert (event.action, event.object_name, event.tenant) == ("quota.add", "research · alice: tokens / day", research)
    assert event.after["amount"] == 1000
    quota.amount = 2000
    quota.save()
    assert (last().before, last().after) == ({"amount": 1000}, {"amount": 2000})
    Quota.objects.create(tenant=research, default_for="member", model=external(), unit="concurrent", amount=3)
    assert last().object_name == "research · each member: concurrent, far"


def test_what_became_of_a_request_is_told(alice, bob, research):
    asked = QuotaRequest.objects.create(
        tenant=research, user=alice, unit="tokens", window="day", amount=10, previous_amount=5, asked_by=alice
    )
    assert last().action == "request.add"
    asked.state, asked.granted, asked.decided_by, asked.note = "granted", 10, bob, "for the fair"
    asked.save()
    assert (last().action, last().tenant) == ("request.granted", research)
    assert last().after == {"state": "granted", "granted": 10, "decided_by": "bob (Bob)", "note": "for the fair"}


def test_a_change_costs_two_queries_more_with_the_audit(alice, django_assert_num_queries):
    """The row as it was, with what it points at, and the event; the rest notifies the gateways."""
    place = alice.memberships.select_related("user", "tenant").get()
    place.role = "admin"
    with django_assert_num_queries(9):
        place.save(update_fields=["role"])
