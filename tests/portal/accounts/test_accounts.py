"""Who may see which tenant; people made by hand; the operators' pages about them."""

import io
from datetime import timedelta

import pytest
from django.contrib.sessions.models import Session
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.management import CommandError, call_command
from django.db import IntegrityError, transaction
from django.http import Http404
from django.urls import reverse
from django.utils import timezone

from modelregistry.supervisor import tasks
from portal.accounts import directory_users, membership
from portal.accounts.models import Membership, Tenant, User
from portal.accounts.permissions import tenant_for, visible_tenants
from portal.keys import lifecycle, management_keys
from portal.operations import actions
from portal.operations.directory import synchronise_now
from portal.web.templatetags import formatting
from tests.pages import key_of, management_key_of, serve, service_key_of

pytestmark = pytest.mark.django_db


class TestTenancy:
    def test_a_member_sees_their_tenant(self, alice, research):
        assert tenant_for(alice, "research") == (research, False)

    def test_its_admin_may_administer_it(self, bob, research):
        assert tenant_for(bob, "research") == (research, True)

    def test_an_outsider_cannot_tell_it_from_one_that_is_not_there(self, charlie, research):
        for slug in ("research", "no-such-tenant"):
            with pytest.raises(Http404) as caught:
                tenant_for(charlie, slug)
            assert str(caught.value) == ""

    def test_an_admin_of_one_tenant_is_nobody_in_another(self, bob, sales):
        with pytest.raises(Http404):
            tenant_for(bob, "sales")

    def test_operators_may_administer_all_that_there_are(self, olivia, research):
        assert tenant_for(olivia, "research") == (research, True)
        with pytest.raises(Http404):
            tenant_for(olivia, "no-such-tenant")

    def test_an_operator_who_is_a_member_too_may_administer(self, olivia, research):
        Membership.objects.create(user=olivia, tenant=research)
        assert tenant_for(olivia, "research") == (research, True)

    def test_visible_are_those_that_would_be_given(self, alice, bob, charlie, olivia, research, sales):
        seen = {user.username: set(visible_tenants(user)) for user in (alice, bob, charlie, olivia)}
        assert seen == {"alice": {research}, "bob": {research}, "charlie": {sales}, "olivia": {research, sales}}

    def test_it_costs_one_query(self, bob, django_assert_num_queries):
        with django_assert_num_queries(1):
            tenant_for(bob, "research")


class TestNames:
    def test_upper_and_lower_case_make_one_person(self, alice):
        with pytest.raises(IntegrityError), transaction.atomic():
            User.objects.create_user("Alice")
        assert User.objects.get_by_natural_key("ALICE") == alice

    def test_a_form_is_told_in_words(self, alice):
        [words] = [
            str(constraint.violation_error_message)
            for constraint in User._meta.constraints
            if constraint.name == "one_user_per_name"
        ]
        with pytest.raises(ValidationError) as caught:
            User(username="ALICE", password="x").full_clean()
        assert caught.value.messages == [words]


class TestEnsurePerson:
    def test_it_makes_person_tenant_and_membership(self):
        user = directory_users.ensure_person(
            "demo", tenant_slug="demo", tenant_name="Demo", password="pass phrase", role="admin", is_operator=True
        )
        assert user.check_password("pass phrase")
        assert (user.is_staff, user.is_superuser, user.directory_id) == (True, True, None)
        assert [(str(place.tenant), place.role, place.source) for place in user.memberships.all()] == [
            ("Demo", "admin", "manual")
        ]

    def test_it_leaves_what_is_there(self, alice, research):
        again = directory_users.ensure_person(
            "Alice", tenant_slug="research", tenant_name="X", password="other", role="admin", is_operator=True
        )
        again.refresh_from_db()
        research.refresh_from_db()
        assert (again, again.is_staff, again.check_password("correct horse")) == (alice, False, True)
        assert (research.name, alice.memberships.get().role) == ("研究部", "member")

    @pytest.mark.parametrize(("name", "slug"), [("", "ok"), ("with space", "ok"), ("ok", "two words"), ("ok", "研究")])
    def test_it_refuses_what_is_no_name(self, name, slug):
        with pytest.raises(ValidationError):
            directory_users.ensure_person(name, tenant_slug=slug, password="x")
        assert not User.objects.exists()
        assert not Tenant.objects.exists()


def reasons_of(error: CommandError) -> set[str]:
    """Return the fields that the command names, or the codes of what has no field."""
    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        return set()
    return set(cause.error_dict) if hasattr(cause, "error_dict") else {one.code for one in cause.error_list}


class TestCreatePerson:
    def test_it_prints_the_password_and_nothing_else(self, capsys, door):
        call_command("createperson", "Mori", "--tenant", "research", "--admin")
        password = capsys.readouterr().out.strip()
        assert len(password) >= 20
        user = door.enter("mori", password)
        assert [(place.tenant.slug, place.role) for place in user.memberships.all()] == [("research", "admin")]

    def test_a_break_glass_account_needs_no_tenant(self, capsys, monkeypatch, door):
        monkeypatch.setattr("sys.stdin", io.StringIO("a long enough phrase\n"))
        call_command("createperson", "breakglass", "--operator", "--password-stdin")
        assert capsys.readouterr().out == ""
        assert door.enter("breakglass", "a long enough phrase").is_superuser

    @pytest.mark.parametrize(
        ("arguments", "named", "reasons"),
        [
            (["ALICE"], "ALICE", set()),
            (["new", "--admin"], "--tenant", set()),
            (["not a name"], "", {"username"}),
            (["new", "--tenant", "not a slug"], "", {"slug"}),
            (["new", "--password-stdin"], "", {"password_too_short"}),
        ],
    )
    def test_bad_input_changes_nothing(self, alice, monkeypatch, arguments, named, reasons):
        monkeypatch.setattr("sys.stdin", io.StringIO("short\n"))
        before = User.objects.count(), Tenant.objects.count()
        with pytest.raises(CommandError) as caught:
            call_command("createperson", *arguments)
        assert named in str(caught.value)
        assert reasons_of(caught.value) == reasons
        assert (User.objects.count(), Tenant.objects.count()) == before


class TestAdmin:
    @pytest.mark.parametrize("model", ["tenant", "user", "membership"])
    def test_operators_can_list_add_and_change(self, client, olivia, alice, model):
        client.force_login(olivia, "portal.accounts.backends.LocalBackend")
        assert client.get(reverse(f"admin:accounts_{model}_changelist")).status_code == 200
        assert client.get(reverse(f"admin:accounts_{model}_add")).status_code == 200
        number = {"tenant": Tenant, "user": User, "membership": Membership}[model].objects.first().pk
        assert client.get(reverse(f"admin:accounts_{model}_change", args=[number])).status_code == 200

    def test_others_cannot(self, client, bob):
        client.force_login(bob, "portal.accounts.backends.LocalBackend")
        assert client.get(reverse("admin:accounts_user_changelist")).status_code in (302, 403)

    def test_saving_a_local_account_leaves_it_local(self, client, olivia, alice, research):
        client.force_login(olivia, "portal.accounts.backends.LocalBackend")
        place = alice.memberships.get()
        form = {
            "username": "alice", "first_name": "Alice", "last_name": "L.", "email": "", "language": "ja",
            "is_active": "on", "directory_id": "",
            "memberships-TOTAL_FORMS": "1", "memberships-INITIAL_FORMS": "1", "memberships-0-id": place.pk,
            "memberships-0-user": alice.pk, "memberships-0-tenant": research.pk, "memberships-0-role": "admin",
            "memberships-0-source": "manual",
        }  # fmt: skip
        response = client.post(reverse("admin:accounts_user_change", args=[alice.pk]), form)
        assert response.status_code == 302, response.context["errors"]
        alice.refresh_from_db()
        assert (alice.last_name, alice.language, alice.directory_id) == ("L.", "ja", None)
        assert alice.memberships.get().role == "admin"

    def test_the_list_of_people_costs_no_more_queries_with_more_people(self, client, olivia, alice, bob, charlie):
        client.force_login(olivia, "portal.accounts.backends.LocalBackend")
        address = reverse("admin:accounts_user_changelist")
        client.get(address)
        from django.db import connection
        from django.test.utils import CaptureQueriesContext

        with CaptureQueriesContext(connection) as few:
            client.get(address)
        for number in range(20):
            User.objects.create_user(f"person{number}")
        with CaptureQueriesContext(connection) as many:
            client.get(address)
        assert len(many) == len(few)


class TestVerbsCheckTheirActor:
    """A page that forgot to ask who the person is opens nothing."""

    def test_t1_roles_are_changed_by_who_administers_the_tenant(self, alice, bob, charlie, research):
        row = Membership.objects.get(user=alice)
        for other in (alice, charlie):
            for verb in (
                lambda by: membership.change_role(by, row, "admin"),
                lambda by: membership.remove_member(by, row),
                lambda by: membership.add_member(by, research, "charlie"),
            ):
                with pytest.raises(PermissionDenied):
                    verb(other)
        row.refresh_from_db()
        assert (row.role, Membership.objects.count()) == ("member", 3)
        assert membership.change_role(bob, row, "admin").role == "admin"

    def test_t1_models_and_the_directory_are_for_operators(self, alice, bob):
        model = serve("qwen")
        for verb in (
            lambda by: actions.register_model(by, name="x", engine="external", url="http://127.0.0.1:9"),
            lambda by: actions.start_model(by, model),
            lambda by: actions.stop_model(by, model),
            lambda by: actions.restart_model(by, model),
            lambda by: actions.change_model(by, model, slots=2),
            lambda by: actions.retire_model(by, model, None),
            lambda by: actions.give_alias(by, "mine", model),
            lambda by: actions.set_aliases(by, model, ["mine"]),
            lambda by: actions.set_visibility(by, model, []),
            lambda by: actions.unregister_model(by, model),
            lambda by: synchronise_now(by, None, force=True),  # type: ignore[arg-type]
        ):
            for other in (alice, bob):
                with pytest.raises(PermissionDenied):
                    verb(other)

    def test_t1_keys_are_for_their_bearer_and_service_keys_for_admins(self, alice, bob, charlie, research):
        personal, service = key_of(alice, research), service_key_of(research, responsible=alice)
        managing, _ = management_key_of(alice, "usage:read")
        for key, other in ((personal, bob), (personal, charlie), (service, alice), (service, charlie)):
            for verb in (
                lambda by, key=key: lifecycle.change_key(key, by=by, name="x"),
                lambda by, key=key: lifecycle.rotate_key(key, timedelta(), by=by),
                lambda by, key=key: lifecycle.revoke_key(key, by=by),
            ):
                with pytest.raises(PermissionDenied):
                    verb(other)
        for kind in ({"user": alice}, {"service": "Dify"}):
            with pytest.raises(PermissionDenied):
                lifecycle.issue_key(tenant=research, name="x", created_by=charlie, **kind)
        with pytest.raises(PermissionDenied):
            management_keys.revoke_management_key(bob, managing)
        lifecycle.rotate_key(service, timedelta(), by=bob)
        lifecycle.change_key(personal, by=alice, name="x")


@pytest.mark.parametrize(
    ("family", "given", "shown"),
    [
        ("佐々木", "健", "佐々木 健"),
        ("〆木", "健", "〆木 健"),
        ("山﨑", "健", "山﨑 健"),
        ("辻\U000e0101", "健", "辻\U000e0101 健"),
        ("ﾔﾏﾀﾞ", "ｹﾝ", "ﾔﾏﾀﾞ ｹﾝ"),
        ("さとう", "けん", "さとう けん"),
        ("ブーケ", "ケン", "ブーケ ケン"),
        ("千々岩", "", "千々岩"),
        ("Sasaki", "Ken", "Ken Sasaki"),
        ("", "Ken", "Ken"),
    ],
)
def test_p5_a_name_is_shown_as_its_bearer_writes_it(family, given, shown):
    user = User(username="ken", last_name=family, first_name=given)
    assert str(user) == user.get_full_name() == formatting.person(user) == shown


def test_p5_messages_name_people_as_pages_do(client, bob, olivia, research):
    """Each sentence that has a person in it goes by the same name, also those of the API."""
    sasaki = User.objects.create_user("sasaki", last_name="佐々木", first_name="健")
    client.force_login(bob)
    page = client.post("/tenant/research/people/add/", {"username": "sasaki", "role": "member"}, follow=True)
    assert ["佐々木 健" in str(message) for message in page.context["messages"]] == [True]
    answer = client.get("/api/v1/tenants/research/members/sasaki/")
    assert answer.json()["name"] == "佐々木 健"
    with pytest.raises(membership.MembershipRefused, match="佐々木 健"):
        membership.add_member(bob, research, "sasaki")
    sasaki.is_active = False
    sasaki.save()
    with pytest.raises(membership.MembershipRefused, match="佐々木 健"):
        membership.add_member(bob, research, "sasaki")


def test_p8_sessions_that_are_over_are_cleared_by_a_periodic_task(client, alice):
    assert "clearsessions" in {work.name for work in tasks.registered_tasks()}
    client.force_login(alice)
    Session.objects.create(session_key="old", session_data="", expire_date=timezone.now() - timedelta(days=1))
    [work] = [work for work in tasks.registered_tasks() if work.name == "clearsessions"]
    call_command(*work.argv)
    assert [session.session_key for session in Session.objects.all()] == [client.session.session_key]
