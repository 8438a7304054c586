"""What operators do to models: the same verbs are behind the pages and the API."""

from concurrent.futures import ThreadPoolExecutor
from datetime import date

import pytest
from django.core.exceptions import PermissionDenied
from django.db import connection, connections
from django.test.utils import CaptureQueriesContext

from modelregistry.models import Alias, Host, Replica, ServedModel
from portal.accounts import permissions
from portal.audit.models import AuditEvent
from portal.keys.models import ModelAccess
from portal.operations import actions
from portal.operations.actions import ActionRefused
from tests.pages import FAR, external
from tests.portal.recorded import audited, catalogue_revision

pytestmark = pytest.mark.django_db


def replica(model: ServedModel, state: str) -> Replica:
    host, _ = Host.objects.get_or_create(name="gpu-01")
    return Replica.objects.create(model=model, host=host, state=state, index=model.replica_set.count())


def changes_recorded(kind: str = "model") -> list[str]:
    """Return the actions in the audit log, except for the additions with which the tests begin."""
    return [action for action in audited(object_kind=kind) if not action.endswith(".add")]


def test_stopping_and_starting():
    model = external()
    assert not actions.stop_model(None, model).enabled
    row = actions.start_model(None, model)
    assert (row.enabled, row.generation) == (True, 0)
    assert changes_recorded() == ["model.stop", "model.start"]


def test_what_is_so_already_is_not_done_again():
    model = external()
    replica(model, "ready")
    assert actions.start_model(None, model).generation == 0  # a running engine is left alone
    actions.stop_model(None, model)
    actions.stop_model(None, model)
    assert changes_recorded() == ["model.stop"]


@pytest.mark.parametrize("state", ["failed", "backoff"])
def test_starting_tries_again_what_gave_up(state):
    model = external()
    replica(model, state)
    assert actions.start_model(None, model).generation == 1


def test_a_restart_raises_the_generation_and_says_so():
    assert actions.restart_model(None, external()).generation == 1
    assert changes_recorded() == ["model.restart"]


def test_two_operators_who_looked_at_the_same_page_restart_once():
    model = external()
    for _ in ("Olivia", "Oscar"):
        actions.restart_model(None, model, seen=model.generation)
    assert ServedModel.objects.get().generation == 1
    assert actions.restart_model(None, model, seen=1).generation == 2  # she looked again


def test_a_stopped_model_cannot_be_restarted():
    model = external(enabled=False)
    with pytest.raises(ActionRefused, match="far") as caught:
        actions.restart_model(None, model)
    assert caught.value.code == "stopped"


def test_whoever_comes_after_an_unregistration_is_told():
    model = external()
    actions.unregister_model(None, ServedModel.objects.get())
    for verb in (actions.start_model, actions.stop_model, actions.restart_model, actions.unregister_model):
        with pytest.raises(ActionRefused) as caught:
            verb(None, model)
        assert caught.value.code == "gone"


def test_registering_with_names_and_tenants(research):
    model = actions.register_model(None, name="far", aliases=["default", "chat"], tenants=[research], **FAR)
    assert set(model.aliases.values_list("name", flat=True)) == {"default", "chat"}
    assert ModelAccess.objects.get().tenant == research


def test_a_registration_that_is_wrong_leaves_nothing_and_names_each_field():
    with pytest.raises(ActionRefused) as caught:
        actions.register_model(None, name="no spaces here", engine="external", url="ftp://x", aliases=["default"])
    assert set(caught.value.fields) == {"name", "url"}
    assert not ServedModel.objects.exists()
    assert not AuditEvent.objects.exists()


def test_a_bad_alias_takes_the_whole_registration_back():
    external("taken")
    with pytest.raises(ActionRefused) as caught:
        actions.register_model(None, name="far", aliases=["taken"], **FAR)
    assert list(caught.value.fields) == ["aliases"]
    assert not ServedModel.objects.filter(name="far").exists()


def test_changing_is_checked_as_registering_is():
    model = external()
    assert actions.change_model(None, model, context=8192).context == 8192
    with pytest.raises(ActionRefused) as caught:
        actions.change_model(None, model, context=1)
    assert list(caught.value.fields) == ["context"]
    assert ServedModel.objects.get().context == 8192


def test_a_change_keeps_what_somebody_else_changed_meanwhile():
    mine = external()
    actions.change_model(None, ServedModel.objects.get(), slots=8)
    actions.change_model(None, mine, context=8192)
    row = ServedModel.objects.get()
    assert (row.slots, row.context) == (8, 8192)


@pytest.mark.parametrize("name", ["id", "generation", "created_at", "colour"])
def test_only_what_operators_decide_can_be_given(name):
    with pytest.raises(TypeError):
        actions.change_model(None, external(), **{name: 1})


def test_retiring_and_thinking_better_of_it():
    model = external()
    assert actions.retire_model(None, model, date(2027, 3, 31)).retires_on == date(2027, 3, 31)
    assert actions.retire_model(None, model, None).retires_on is None
    assert changes_recorded() == ["model.retire", "model.retire"]


def test_an_alias_moves_in_one_step_that_gateways_see():
    old, new = external("old"), external("new")
    alias = actions.give_alias(None, "default", old)
    before = catalogue_revision()
    assert actions.give_alias(None, "default", new).pk == alias.pk  # the row stayed: there was no moment without it
    assert Alias.objects.get().model == new
    assert catalogue_revision() == before + 1
    actions.give_alias(None, "default", new)
    assert catalogue_revision() == before + 1


def test_an_alias_cannot_be_a_model_s_name():
    external("qwen")
    with pytest.raises(ActionRefused) as caught:
        actions.give_alias(None, "qwen", external())
    assert list(caught.value.fields) == ["name"]


def test_the_whole_set_of_aliases():
    old, new = external("old"), external("new")
    actions.set_aliases(None, old, ["a", "b"])
    actions.set_aliases(None, new, ["b", "c"])
    assert list(Alias.objects.values_list("name", "model__name")) == [("a", "old"), ("b", "new"), ("c", "new")]
    actions.set_aliases(None, new, [])
    assert list(Alias.objects.values_list("name", flat=True)) == ["a"]


def test_a_restricted_model_is_at_no_moment_open_to_all(research, sales):
    model = external()
    actions.set_visibility(None, model, [research])
    with CaptureQueriesContext(
        connection,
    ) as queries:
        actions.set_visibility(None, model, [sales])
    written = [query["sql"][:6] for query in queries if "keys_modelaccess" in query["sql"]]
    assert [verb for verb in written if verb in ("INSERT", "DELETE")] == ["INSERT", "DELETE"]
    assert ModelAccess.objects.get().tenant == sales
    actions.set_visibility(None, model, [])
    assert not ModelAccess.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_presses_at_the_same_moment_do_not_lose_each_other():
    model = external()

    def press(_: int) -> None:
        try:
            actions.restart_model(None, model, seen=0)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(press, range(4)))
    assert ServedModel.objects.get().generation == 1


def test_who_may_operate(alice, bob, charlie, olivia):
    assert permissions.require_operator(olivia) == olivia
    for somebody in (alice, bob, charlie):
        with pytest.raises(PermissionDenied):
            permissions.require_operator(somebody)
    olivia.is_active = False
    with pytest.raises(PermissionDenied):
        permissions.require_operator(olivia)
