"""The verbs of API keys: issue, rotate, change, revoke; and whose keys a person may see and manage."""

from datetime import UTC, datetime, timedelta

import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.utils import timezone

from portal.accounts.models import Membership
from portal.audit.models import AuditEvent
from portal.keys import lifecycle, management_keys, networks, playground, queries
from portal.keys.models import ApiKey, ManagementKey
from portal.notifications.models import Notice
from portal.quotas.models import Quota
from tests.conftest import person
from tests.pages import key_of, serve, service_key_of
from tests.portal.recorded import catalogue_revision

pytestmark = pytest.mark.django_db


class TestIssuing:
    def test_a_key_keeps_all_that_was_said_of_it(self, research, alice, bob):
        key = service_key_of(
            research,
            responsible=alice,
            purpose="the help desk’s bot",
            key_class="batch",
            networks=["10.1.0.0/16"],
            created_by=bob,
        )
        key.refresh_from_db()
        assert (key.user, key.responsible, key.created_by) == (None, alice, bob)
        assert (key.purpose, key.key_class, key.networks) == ("the help desk’s bot", "batch", ["10.1.0.0/16"])
        key.full_clean()

    @pytest.mark.parametrize("role", ["user", "responsible"])
    def test_it_is_only_for_and_answered_for_by_members(self, research, charlie, role):
        with pytest.raises(lifecycle.NotAMember):
            lifecycle.issue_key(tenant=research, name="x", service="" if role == "user" else "x", **{role: charlie})
        assert not ApiKey.objects.exists()

    @pytest.mark.parametrize("years", [101, 7000])
    def test_p3_an_end_that_is_no_time_everywhere_is_refused(self, research, years):
        """At 9999-12-31T14:59Z it is the year 10000 in Sydney: every page with the key was a 500, an admin's too."""
        far = timezone.now() + timedelta(days=365.25 * years)
        with pytest.raises(ValidationError):
            service_key_of(research, expires_at=far)
        key = service_key_of(research)
        with pytest.raises(ValidationError):
            lifecycle.change_key(key, expires_at=far)
        with pytest.raises(CommandError, match="100"):
            call_command("createkey", "--tenant", "research", "--service", "x", "--expires", f"{far:%Y-%m-%d}")

    def test_p3_a_key_that_had_such_an_end_can_be_rotated(self, research):
        key = service_key_of(research)
        key.expires_at = datetime(9999, 12, 30, tzinfo=UTC)
        key.created_at = timezone.now() - timedelta(days=1000)
        key.save()
        new, _ = lifecycle.rotate_key(key, timedelta())
        assert new.expires_at.year <= timezone.now().year + 100

    def test_what_is_no_network_is_refused(self, research):
        with pytest.raises(ValidationError):
            service_key_of(research, networks=["10.1.0.1/16"])
        assert not ApiKey.objects.exists()


class TestNetworks:
    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("", []),
            ("10.1.0.0/16", ["10.1.0.0/16"]),
            ("10.1.2.3\n192.168.0.0/24, 10.1.2.3", ["10.1.2.3/32", "192.168.0.0/24"]),
            ("2001:DB8::/32、2001:db8::1", ["2001:db8::/32", "2001:db8::1/128"]),
            ("10.0.0.0/255.0.0.0", ["10.0.0.0/8"]),
        ],
    )
    def test_they_are_read_as_people_type_them(self, text, found):
        assert networks.parse_networks(text) == found
        assert networks.parse_networks(networks.format_networks(found)) == found

    @pytest.mark.parametrize(
        ("text", "code", "named"),
        [
            ("10.1.2.3/16", "host-bits", ["10.1.2.3/16", "10.1.0.0/16", "10.1.2.3 "]),
            ("office", "not-a-network", ["office"]),
            ("10.1.0.0/33", "not-a-network", ["10.1.0.0/33"]),
        ],
    )
    def test_what_is_wrong_is_named(self, text, code, named):
        with pytest.raises(ValidationError) as refused:
            networks.parse_networks(f"10.0.0.0/8 {text}")
        assert refused.value.code == code
        assert [name in refused.value.messages[0] for name in named] == [True] * len(named)


class TestRotating:
    def test_the_successor_is_for_the_same(self, research, alice, bob):
        model = serve()
        old = service_key_of(
            research, responsible=alice, purpose="bot", key_class="batch", networks=["10.0.0.0/8"],
            takes_user_headers=True, loop_guard=False, allowed_models=[model],
            expires_at=timezone.now() + 90 * timedelta(days=1),
        )  # fmt: skip
        new, text = lifecycle.rotate_key(old, timedelta(days=7), by=bob)
        same = (
            *("tenant", "user", "service", "responsible", "name", "purpose", "key_class", "networks", "every_model"),
            *("takes_user_headers", "loop_guard"),
        )
        assert [getattr(new, name) for name in same] == [getattr(old, name) for name in same]
        assert list(new.allowed_models.all()) == [model]
        assert (new.replaces, new.created_by, text[:12]) == (old, bob, new.prefix)
        assert new.prefix != old.prefix

    def test_both_work_for_the_overlap_and_then_only_the_new_one(self, research, time_machine):
        old = service_key_of(research)
        new, _ = lifecycle.rotate_key(old, timedelta(days=7))
        both = {old.prefix, new.prefix}
        now = timezone.now()
        for hours, working in ((7 * 24 - 1, both), (7 * 24 + 1, {new.prefix})):
            time_machine.move_to(now + timedelta(hours=hours), tick=False)
            assert {key.prefix for key in ApiKey.objects.usable()} == working

    def test_without_an_overlap_the_old_one_ends_now(self, research):
        old = service_key_of(research)
        new, _ = lifecycle.rotate_key(old, timedelta())
        assert list(ApiKey.objects.usable()) == [new]

    def test_no_overlap_makes_a_key_live_longer(self, research):
        end = timezone.now() + timedelta(days=2)
        old = service_key_of(research, expires_at=end)
        lifecycle.rotate_key(old, timedelta(days=30))
        old.refresh_from_db()
        assert old.expires_at == end

    def test_the_successor_lives_as_long_as_its_predecessor_was_to(self, research, time_machine):
        old = service_key_of(research, expires_at=timezone.now() + timedelta(days=90))
        time_machine.move_to(timezone.now() + timedelta(days=80))
        new, _ = lifecycle.rotate_key(old, timedelta(days=7))
        assert abs(new.expires_at - timezone.now() - timedelta(days=90)) < timedelta(minutes=1)
        assert lifecycle.rotate_key(service_key_of(research), timedelta())[0].expires_at is None

    def test_its_quotas_go_with_it(self, research):
        old = service_key_of(research)
        Quota.objects.create(key=old, unit="tokens", window="day", amount=1000)
        new, _ = lifecycle.rotate_key(old, timedelta(days=7))
        assert [(quota.key, quota.amount) for quota in Quota.objects.order_by("pk")] == [(old, 1000), (new, 1000)]

    def test_it_is_replaced_once(self, research):
        old = service_key_of(research)
        new, _ = lifecycle.rotate_key(old, timedelta(days=7))
        with pytest.raises(lifecycle.AlreadyReplaced):
            lifecycle.rotate_key(old, timedelta(days=7))
        lifecycle.rotate_key(new, timedelta(days=7))
        assert ApiKey.objects.count() == 3

    def test_a_revoked_key_stays_so_and_has_a_successor(self, research):
        old = service_key_of(research)
        lifecycle.revoke_key(old, because="leaked")
        new, _ = lifecycle.rotate_key(old, timedelta(days=7))
        old.refresh_from_db()
        assert (old.state, old.expires_at) == ("revoked", None)
        assert list(ApiKey.objects.usable()) == [new]

    def test_who_has_left_gets_no_new_key(self, research, alice):
        old = key_of(alice, research)
        alice.memberships.all().delete()
        with pytest.raises(lifecycle.NotAMember):
            lifecycle.rotate_key(old, timedelta(days=7))


class TestChanging:
    def test_only_what_is_given_changes_and_gateways_are_told(self, research, alice):
        key = key_of(alice, research, purpose="tests")
        before = catalogue_revision()
        lifecycle.change_key(key, name="desk", networks=["10.0.0.0/8"], key_class="batch")
        key.refresh_from_db()
        assert (key.name, key.networks, key.key_class, key.purpose) == ("desk", ["10.0.0.0/8"], "batch", "tests")
        assert catalogue_revision() > before

    def test_models_are_narrowed_and_opened_again(self, research, alice):
        key, model = key_of(alice, research), serve()
        lifecycle.change_key(key, allowed_models=[model])
        key.refresh_from_db()
        assert (key.every_model, list(key.allowed_models.all())) == (False, [model])
        lifecycle.change_key(key, allowed_models=None)
        key.refresh_from_db()
        assert (key.every_model, list(key.allowed_models.all())) == (True, [])
        told = AuditEvent.objects.filter(action="key.models").order_by("pk")
        assert [(event.before["models"], event.after["models"]) for event in told] == [
            (None, ["qwen"]),
            (["qwen"], None),
        ]

    def test_a_key_for_no_model_is_not_one_for_all(self, research, alice):
        key = key_of(alice, research)
        lifecycle.change_key(key, allowed_models=[])
        key.refresh_from_db()
        assert key.every_model is False

    def test_a_revoked_key_changes_no_more(self, research, alice):
        key = key_of(alice, research)
        lifecycle.revoke_key(key)
        with pytest.raises(lifecycle.KeyRevoked):
            lifecycle.change_key(key, expires_at=None)

    def test_only_a_member_becomes_responsible(self, research, alice, charlie):
        key = service_key_of(research)
        with pytest.raises(lifecycle.NotAMember):
            lifecycle.change_key(key, responsible=charlie)
        lifecycle.change_key(key, responsible=alice)
        key.refresh_from_db()
        assert key.responsible == alice

    def test_who_is_responsible_and_left_does_not_stand_in_the_way_of_other_changes(self, research, alice):
        key = service_key_of(research, responsible=alice)
        alice.memberships.all().delete()
        lifecycle.change_key(key, name="Dify 2", responsible=alice)
        key.refresh_from_db()
        assert key.name == "Dify 2"

    def test_what_is_no_network_changes_nothing(self, research, alice):
        key = key_of(alice, research)
        with pytest.raises(ValidationError):
            lifecycle.change_key(key, name="desk", networks=["office"])
        key.refresh_from_db()
        assert key.name == "laptop"


class TestRevoking:
    def notices_of(self, key) -> dict:
        notices = Notice.objects.filter(kind="key-revoked", ref=key.prefix).select_related("user")
        return {notice.user.username: notice.facts for notice in notices}

    def test_whose_key_another_ends_is_told_why_and_by_whom(self, research, alice, charlie):
        key = key_of(alice, research)
        lifecycle.revoke_leaked_key(key, charlie)
        told = self.notices_of(key)["alice"]
        assert (told["by"], told["because"], told["tenant"]) == ("Charlie", "leaked", "研究部")

    def test_who_ends_a_key_need_not_be_told(self, research, alice):
        key = key_of(alice, research)
        lifecycle.revoke_key(key, by=alice)
        assert self.notices_of(key) == {}

    def test_of_a_service_key_the_admins_and_who_is_responsible_are_told(self, research, alice, bob, charlie):
        key = service_key_of(research, responsible=alice)
        lifecycle.revoke_leaked_key(key, charlie)
        assert set(self.notices_of(key)) == {"alice", "bob"}

    def test_who_no_longer_belongs_there_is_not_told(self, research, alice, bob):
        key = service_key_of(research, responsible=alice)
        alice.memberships.all().delete()
        lifecycle.revoke_key(key, because="unused")
        assert set(self.notices_of(key)) == {"bob"}

    def test_where_nobody_is_left_operators_are_told(self, research, olivia):
        key = service_key_of(research)
        lifecycle.revoke_key(key, because="unused")
        assert set(self.notices_of(key)) == {"olivia"}

    def test_once_is_enough(self, research, alice):
        key = key_of(alice, research)
        lifecycle.revoke_key(key, because="first")
        lifecycle.revoke_key(key, because="second")
        key.refresh_from_db()
        assert key.revoked_because == "first"
        assert self.notices_of(key)["alice"]["because"] == "first"


class TestWhoseKeys:
    def test_the_playground_s_are_not_listed(self, research, alice):
        key = key_of(alice, research)
        ApiKey.objects.filter(pk=key.pk).update(is_playground=True)
        assert not queries.keys_of(alice).exists()
        assert not queries.manageable_by(alice).exists()

    def test_members_manage_their_own_and_admins_the_service_keys_too(
        self, research, sales, alice, bob, charlie, olivia
    ):
        own, service, other = key_of(alice, research), service_key_of(research), service_key_of(sales, "Open WebUI")
        assert list(queries.manageable_by(alice)) == [own]
        assert list(queries.manageable_by(bob)) == [service]
        assert not queries.manageable_by(charlie).exists()
        assert set(queries.manageable_by(olivia)) == {service, other}
        assert list(queries.service_keys_of(research)) == [service]

    def test_who_is_responsible_sees_a_key_and_manages_it_not(self, research, alice):
        key = service_key_of(research, responsible=alice)
        assert list(queries.viewable_service_keys(alice)) == [key]
        assert not queries.manageable_by(alice).exists()
        Membership.objects.filter(user=alice).delete()
        assert not queries.viewable_service_keys(alice).exists()

    def test_a_service_key_survives_who_made_it(self, research, bob):
        key = service_key_of(research, responsible=bob, created_by=bob)
        bob.is_active = False
        bob.save()
        assert list(ApiKey.objects.usable()) == [key]
        bob.delete()
        key.refresh_from_db()
        assert (key.created_by, key.responsible) == (None, None)
        assert list(ApiKey.objects.usable()) == [key]

    @pytest.mark.parametrize("leaves", ["account", "membership"])
    def test_it_is_known_when_who_is_responsible_has_left(self, research, alice, leaves):
        key = service_key_of(research, responsible=alice)
        keys = queries.service_keys_of(research)
        assert queries.key_rows(keys, timezone.now())[0].responsible_is_member
        if leaves == "account":
            alice.is_active = False
            alice.save()
        else:
            alice.memberships.all().delete()
        [held] = queries.key_rows(keys, timezone.now())
        assert (held.prefix, held.responsible, held.responsible_is_member) == (key.prefix, "Alice", False)

    def test_a_list_of_many_costs_no_more(self, research, alice, django_assert_num_queries):
        model = serve()
        for number in range(7):
            key = service_key_of(
                research, f"s{number}", responsible=person(f"p{number}", research), allowed_models=[model]
            )
            lifecycle.rotate_key(key, timedelta(days=1))
        with django_assert_num_queries(2):
            held = queries.key_rows(queries.service_keys_of(research), timezone.now())
        assert len([key for key in held if key.replaced_by]) == 7
        assert len([key for key in held if key.replaces]) == 7


class TestNumbers:
    """A loop that makes keys ends at a number, wherever it runs."""

    @pytest.fixture(autouse=True)
    def few(self, settings):
        settings.KEYS_PER_PERSON = settings.SERVICE_KEYS_PER_TENANT = 3

    def test_p8_a_person_has_so_many_keys_that_work_in_all_tenants(self, alice, research, sales):
        Membership.objects.create(user=alice, tenant=sales)
        first, *_ = [key_of(alice, tenant) for tenant in (research, sales, sales)]
        for tenant in (research, sales):
            with pytest.raises(lifecycle.TooManyKeys):
                key_of(alice, tenant)
        lifecycle.revoke_key(first)
        with pytest.raises(lifecycle.TooManyKeys):  # or a loop would revoke and make
            key_of(alice, research)
        ApiKey.objects.update(created_at=timezone.now() - timedelta(days=2))
        key_of(alice, research)
        assert service_key_of(research)

    def test_p8_a_tenant_has_so_many_service_keys(self, research, sales):
        for _ in range(3):
            service_key_of(research)
        with pytest.raises(lifecycle.TooManyKeys):
            service_key_of(research)
        service_key_of(sales)

    def test_p8_a_key_can_be_replaced_though_there_are_as_many_as_may_be(self, alice, research):
        keys = [key_of(alice, research) for _ in range(3)]
        ApiKey.objects.update(created_at=timezone.now() - timedelta(days=2))
        for _ in range(3):
            keys.append(lifecycle.rotate_key(keys[-1], timedelta())[0])
        with pytest.raises(lifecycle.TooManyKeys):
            lifecycle.rotate_key(keys[-1], timedelta())

    def test_p8_the_playground_does_not_count(self, alice, research):
        playground.renew_key(alice, research, timezone.now())
        for _ in range(3):
            key_of(alice, research)
        playground.renew_key(alice, research, timezone.now())

    def test_p8_pages_api_and_command_say_so(self, client, alice, research):
        client.force_login(alice)
        for _ in range(3):
            key_of(alice, research)
        token = client.get("/keys/new/").context["form"]["token"].value()
        form = {"name": "x", "tenant": research.pk, "lifetime": "90", "token": token}
        page = client.post("/keys/new/", form, follow=True)
        assert [message.level_tag for message in page.context["messages"]] == ["error"]
        key = {"tenant": "research", "name": "x"}
        answer = client.post("/api/v1/keys/", key, content_type="application/json")
        assert answer.status_code == 409
        with pytest.raises(CommandError):
            call_command("createkey", "--tenant=research", "--user=alice")
        assert ApiKey.objects.count() == 3

    def test_p8_management_keys_are_bounded_as_well(self, client, alice):
        client.force_login(alice)
        tomorrow = timezone.now() + timedelta(days=1)
        for _ in range(3):
            management_keys.issue_management_key(user=alice, name="x", scopes_=["usage:read"], expires_at=tomorrow)
        body = {"name": "x", "scopes": ["usage:read"], "expires_at": tomorrow.isoformat()}
        answer = client.post("/api/v1/management-keys/", body, content_type="application/json")
        assert answer.status_code == 400
        form = client.get("/keys/management/new/").context["form"]
        days = form.fields["lifetime"].choices[0][0]
        sent = {"name": "x", "scopes": ["usage:read"], "lifetime": days, "token": form["token"].value()}
        page = client.post("/keys/management/new/", sent, follow=True)
        assert [message.level_tag for message in page.context["messages"]] == ["error"]
        assert ManagementKey.objects.count() == 3
