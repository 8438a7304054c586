"""What is Active Directory's, against a real domain controller: Samba's."""

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from axes.models import AccessAttempt
from django.core.management import CommandError, call_command

from portal.accounts import ldap as company
from portal.accounts.ldap import connection as servers
from portal.accounts.models import DirectoryState, Tenant, User
from portal.keys.lifecycle import issue_key
from portal.keys.models import ApiKey
from tests.domain_controller import (
    DISABLED,
    GROUP_BASE,
    NORMAL,
    STALE,
    SUFFIX,
    TENANTS,
    add_group,
    group_dn,
    person_dn,
)
from tests.portal.accounts.findings import check, failure_codes, failures, texts
from tests.portal.recorded import notice_facts, roles_of

pytestmark = pytest.mark.django_db
EXPIRED = 131_000_000_000_000_000  # in 2016, as accountExpires has it


@pytest.fixture
def recruit(domain) -> Iterator[Callable[..., str]]:
    """Provide a function that hires a person and returns the name; dismiss them at the end."""
    hired = []

    def recruit(name: str, *groups: str, **attributes: Any) -> str:
        hired.append(name)
        return domain.hire(name, *groups, **attributes)

    yield recruit
    for name in hired:
        domain.dismiss(name)


@pytest.fixture
def found_group(domain) -> Iterator[Callable[..., str]]:
    """Make a group of these people (or groups, with a leading @), give its DN, and remove it, wherever it is."""
    made = []

    def found_group(name: str, *members: str) -> str:
        with domain.as_admin() as admin:
            add_group(admin, name, list(members))
            made.append(admin.search_s(group_dn(name), 0, attrlist=["objectGUID"])[0][1]["objectGUID"][0].hex())
        return group_dn(name)

    yield found_group
    for guid in made:
        domain.remove(f"<GUID={guid}>")


def with_a_key(user: User) -> User:
    issue_key(tenant=Tenant.objects.get(slug="research"), user=user, name="laptop")
    assert ApiKey.objects.usable().filter(user=user).exists()
    return user


class TestSignIn:
    @pytest.mark.parametrize("encryption", ["ldaps", "starttls"])
    def test_search_and_bind(self, connect_domain, domain, door, encryption):
        connect_domain(LDAP_SERVER_URI=domain.tls_uri if encryption == "ldaps" else domain.uri)
        user = door.enter("SUZUKI", "password of suzuki")
        assert (user.username, user.first_name, user.last_name) == ("suzuki", "一郎", "鈴木")
        assert roles_of(user) == {"research": "member"}
        assert door.enter("suzuki", "password of tanaka") is None

    def test_d4_every_form_of_a_name_is_the_same_person(self, connect_domain, door, recruit):
        connect_domain()
        recruit("ono", userPrincipalName="h.ono@brand.example")
        names = ["ono", "CORP\\ono", "corp.example.com\\Ono", "ono@corp.example.com", "H.Ono@brand.example"]
        people = {door.enter(name, "password of ono") for name in [*names, "ono.mail@example.com"]}
        assert people == {User.objects.get()}
        assert User.objects.get().username == "ono"
        for name in ("OTHER\\ono", "ono@elsewhere.example", "CORP\\", "\\ono", "@corp.example.com"):
            assert door.enter(name, "password of ono") is None
            assert door.error == "invalid_login"

    def test_d4_nobody_s_mail_address_stands_in_another_s_way(self, connect_domain, door, recruit):
        connect_domain()
        recruit("mallory", mail="suzuki@corp.example.com")
        assert door.enter("suzuki@corp.example.com", "password of suzuki").username == "suzuki"
        assert door.enter("suzuki@corp.example.com", "password of mallory") is None
        recruit("ono", userPrincipalName="h.ono@brand.example")
        recruit("trudy", mail="ono@corp.example.com")
        assert door.enter("ono@corp.example.com", "password of ono").username == "ono"

    def test_d4_the_forms_of_a_name_share_their_attempts(self, connect_domain, door, recruit):
        connect_domain()
        assert door.enter(recruit("endo"), "password of endo")
        for name in ("endo", "CORP\\endo", "endo@corp.example.com"):
            door.enter(name, "wrong")
        [attempt] = AccessAttempt.objects.all()
        assert (attempt.username, attempt.failures_since_start) == ("endo", 3)

    @pytest.mark.parametrize("template", ["%(user)s@corp.example.com", "CORP\\%(user)s"])
    def test_direct_bind(self, connect_domain, door, template):
        connect_domain(LDAP_USER_DN_TEMPLATE=template, LDAP_BIND_DN=None, LDAP_BIND_PASSWORD=None)
        for name in ("mori", (template % {"user": "Mori"})):
            assert roles_of(door.enter(name, "password of mori")) == {"research": "admin"}
        assert door.enter("mori", "password of suzuki") is None

    def test_who_gets_a_new_name_is_the_same_person(self, connect_domain, domain, door, recruit):
        connect_domain()
        user = door.enter(recruit("sasaki", "Sales"), "password of sasaki")
        domain.change(person_dn("sasaki"), sAMAccountName="hayashi", sn="林", userPrincipalName="hayashi@x.example")
        domain.move(person_dn("sasaki"), "CN=hayashi", f"OU=Elsewhere,{SUFFIX}")
        try:
            call_command("syncdirectory")
            user.refresh_from_db()
            assert (user.username, user.last_name, user.is_active) == ("hayashi", "林", True)
            assert roles_of(user) == {"sales": "member"}
            assert door.enter("hayashi", "password of sasaki") == user
        finally:
            domain.remove(f"CN=hayashi,OU=Elsewhere,{SUFFIX}")


STATES = [
    (company.AccountExpired, {"accountExpires": EXPIRED}),
    (company.AccountDisabled, {"userAccountControl": DISABLED}),
    (company.PasswordMustChange, {"pwdLastSet": 0}),
    (company.SignInRestricted, {"logonHours": [bytes(21)]}),  # at no hour of the week
]


class TestStates:
    @pytest.mark.parametrize(("kind", "state"), STATES)
    def test_d4_each_cause_has_its_sentence_and_counts_as_no_attempt(self, connect_domain, door, recruit, kind, state):
        connect_domain()
        name = recruit("nakamura", **state)
        assert door.enter(name, f"password of {name}") is None
        assert door.error == kind.code
        assert not AccessAttempt.objects.exists()
        assert door.enter(name, "wrong") is None  # and a stranger learns nothing
        assert door.error == "invalid_login"
        assert AccessAttempt.objects.get().failures_since_start == 1

    def test_a_password_that_has_expired(self, connect_domain, door):
        found = connect_domain()
        assert door.enter(STALE, f"password of {STALE}") is None
        assert door.error == company.PasswordExpired.code
        assert not AccessAttempt.objects.exists()
        assert door.enter(STALE, "wrong") is None
        assert door.error == "invalid_login"
        assert company.find_person(found, STALE).has_lapsed
        assert not company.find_person(found, "suzuki").has_lapsed

    def test_d4_a_lock_is_told(self, connect_domain, domain, door, recruit):
        connect_domain()
        user = with_a_key(door.enter(recruit("ogawa", "Research"), "password of ogawa"))
        for _ in range(3):  # as many as the domain allows
            door.enter("ogawa", "wrong")
        before = AccessAttempt.objects.get().failures_since_start
        assert door.enter("ogawa", "password of ogawa") is None
        assert door.error == company.AccountLocked.code
        assert AccessAttempt.objects.get().failures_since_start == before
        call_command("syncdirectory")
        assert ApiKey.objects.usable().filter(user=user).exists()  # else anybody could stop them

    @pytest.mark.parametrize(
        ("state", "back"),
        [
            ({"accountExpires": EXPIRED}, {"accountExpires": 0}),
            ({"userAccountControl": DISABLED}, {"userAccountControl": NORMAL}),
        ],
    )
    def test_d1_the_keys_of_an_account_that_ended_stop(self, connect_domain, domain, door, recruit, state, back):
        connect_domain()
        assert door.enter("suzuki", "password of suzuki")  # one of two may go without --force
        user = with_a_key(door.enter(recruit("hasegawa", "Research"), "password of hasegawa"))
        domain.change(person_dn("hasegawa"), **state)
        call_command("syncdirectory")
        user.refresh_from_db()
        assert (user.is_active, user.left_directory_at is None) == (False, False)
        assert not ApiKey.objects.usable().filter(user=user).exists()
        domain.change(person_dn("hasegawa"), **back)
        call_command("syncdirectory")
        assert ApiKey.objects.usable().filter(user=user).exists()

    def test_d1_a_password_that_must_be_changed_stops_keys_after_a_while(self, connect_domain, domain, door, recruit):
        connect_domain()
        assert door.enter("suzuki", "password of suzuki")  # one of two may go without --force
        user = with_a_key(door.enter(recruit("fujita", "Research"), "password of fujita"))
        domain.change(person_dn("fujita"), pwdLastSet=0)
        call_command("syncdirectory")
        assert ApiKey.objects.usable().filter(user=user).exists()
        with time_machine.travel(datetime.now(UTC) + timedelta(days=31)):
            call_command("syncdirectory")
        assert not ApiKey.objects.usable().filter(user=user).exists()
        domain.change(person_dn("fujita"), pwdLastSet=-1)  # as if it had been changed now
        assert door.enter("fujita", "password of fujita") == user
        assert ApiKey.objects.usable().filter(user=user).exists()


class TestGroups:
    def test_groups_within_groups(self, connect_domain, door):
        connect_domain()
        assert roles_of(door.enter("tanaka", "password of tanaka")) == {"research": "member"}
        connect_domain(LDAP_NESTED_GROUPS="false")
        assert roles_of(door.enter("tanaka", "password of tanaka")) == {}
        assert roles_of(door.enter("suzuki", "password of suzuki")) == {"research": "member"}

    def test_operators_are_members_of_their_group(self, connect_domain, door):
        connect_domain()
        assert door.enter("ito", "password of ito").is_staff
        assert not door.enter("kimura", "password of kimura").is_staff

    @pytest.mark.parametrize("nested", ["true", "false"])
    def test_sign_in_and_sync_agree(self, connect_domain, door, found_group, nested):
        """The one asks the server to follow groups, the other reads them."""
        circle = found_group("Circle", "@Research", "kimura")
        users = f"CN=Domain Users,CN=Users,{SUFFIX}"
        mapping = {**TENANTS, circle: "circle:admin", users: "everybody"}
        found = connect_domain(LDAP_GROUP_TENANTS=json.dumps(mapping), LDAP_NESTED_GROUPS=nested)
        names = ["suzuki", "tanaka", "mori", "ito", "kimura"]
        people = {door.enter(name, f"password of {name}") for name in names}
        synced = company.look_up_people(found, [user.directory_id for user in people]).people
        for user in people:
            assert dict(synced[user.directory_id].roles) == roles_of(user)
            assert synced[user.directory_id].is_operator == user.is_staff
            assert roles_of(user)["everybody"] == "member"  # the primary group, which lists no members
        assert ("circle" in roles_of(User.objects.get(username="tanaka"))) == (nested == "true")

    def test_a_group_of_which_the_primary_group_is_a_member(self, connect_domain, door, found_group, domain):
        everybody = found_group("Everybody")
        domain.join(f"CN=Domain Users,CN=Users,{SUFFIX}", "Everybody")
        found = connect_domain(LDAP_REQUIRED_GROUP=everybody)
        user = door.enter("suzuki", "password of suzuki")
        assert user
        assert company.look_up_people(found, [user.directory_id]).people[user.directory_id].is_admitted

    def test_groups_by_memberof_and_the_primary_group(self, connect_domain, door):
        users = f"CN=Domain Users,CN=Users,{SUFFIX}"
        mapping = json.dumps({**TENANTS, users: "everybody"})
        found = connect_domain(LDAP_GROUP_TYPE="memberOf", LDAP_GROUP_BASE=None, LDAP_GROUP_TENANTS=mapping)
        user = door.enter("mori", "password of mori")
        assert roles_of(user) == {"research": "admin", "everybody": "member"}
        assert company.look_up_people(found, [user.directory_id]).people[user.directory_id].roles == roles_of(user)

    def test_members_come_in_ranges(self, connect_domain, door, monkeypatch):
        """Samba gives ranges only when asked, Active Directory also unasked, 1,500 at a time."""
        monkeypatch.setattr(servers, "RANGE", 2)
        found = connect_domain()
        ids = [door.enter(name, f"password of {name}").directory_id for name in ("suzuki", "mori", "tanaka")]
        assert [dict(person.roles) for person in map(company.look_up_people(found, ids).people.get, ids)] == [
            {"research": "member"},
            {"research": "admin"},
            {"research": "member"},
        ]

    def test_answers_come_in_pages(self, connect_domain, door, monkeypatch):
        monkeypatch.setattr(servers, "PAGE", 2)
        found = connect_domain()
        ids = [door.enter(name, f"password of {name}").directory_id for name in ("suzuki", "mori", "tanaka", "ito")]
        assert set(company.look_up_people(found, ids).people) == set(ids)


class TestChangedGroups:
    @pytest.fixture
    def operated(self, connect_domain, door, found_group):
        """Connect the portal with a group of operators of its own, one of them here; return its DN."""
        dn = found_group("Keepers", "suzuki")
        connect_domain(LDAP_OPERATOR_GROUP=dn)
        assert door.enter("suzuki", "password of suzuki").is_staff
        assert door.enter("kimura", "password of kimura")
        call_command("syncdirectory")
        return dn

    @pytest.mark.parametrize("superior", [None, f"OU=Elsewhere,{SUFFIX}"])
    def test_d2_a_renamed_or_moved_group_is_followed_and_told(self, operated, domain, door, superior):
        domain.move(operated, "CN=Wardens", superior)
        for _ in range(2):
            call_command("syncdirectory")
            assert door.enter("suzuki", "password of suzuki").is_staff
        [facts] = notice_facts("directory-group")
        assert (facts["problem"], facts["now"]) == ("moved", f"CN=Wardens,{superior or GROUP_BASE}")
        assert DirectoryState.objects.get().outcome["moved_groups"] == [[operated.lower(), facts["now"]]]

    def test_d2_a_group_that_is_gone_takes_nothing_and_is_told(self, operated, domain, door):
        domain.remove(operated)
        for _ in range(2):
            with pytest.raises(CommandError, match="LDAP_OPERATOR_GROUP"):
                call_command("syncdirectory")
        assert door.enter("suzuki", "password of suzuki").is_staff
        assert not door.enter("mori", "password of mori").is_staff
        [facts] = notice_facts("directory-group")
        assert (facts["problem"], facts["settings"]) == ("missing", "LDAP_OPERATOR_GROUP")

    def test_d2_another_group_of_the_same_name_counts_and_is_told(self, operated, domain, door, found_group):
        domain.remove(operated)
        found_group("Keepers", "kimura")
        call_command("syncdirectory")
        assert list(User.objects.filter(is_staff=True).values_list("username", flat=True)) == ["kimura"]
        assert {facts["problem"] for facts in notice_facts("directory-group")} == {"replaced"}

    def test_d2_the_last_operator_stays_one_and_is_told(self, operated, domain, door, recruit):
        domain.change(operated, member=[])
        call_command("syncdirectory")
        assert User.objects.get(username="suzuki").is_staff
        assert door.enter("suzuki", "password of suzuki").is_staff
        assert [facts["person"] for facts in notice_facts("last-operator-kept")] == ["suzuki"]
        domain.join(person_dn("kimura"), "Keepers")
        call_command("syncdirectory")
        assert list(User.objects.filter(is_staff=True).values_list("username", flat=True)) == ["kimura"]

    def test_d2_members_of_a_group_that_is_gone_keep_their_tenant(self, connect_domain, domain, door, found_group):
        labs = found_group("Labs", "suzuki", "kimura")
        connect_domain(LDAP_GROUP_TENANTS=json.dumps({labs: "labs:admin", group_dn("Sales"): "labs"}))
        user = door.enter("suzuki", "password of suzuki")
        domain.remove(labs)
        with pytest.raises(CommandError, match="LDAP_GROUP_TENANTS"):
            call_command("syncdirectory")
        assert roles_of(user) == {"labs": "admin"}
        assert roles_of(door.enter("kimura", "password of kimura")) == {"labs": "member"}

    def test_d2_without_the_required_group_nobody_leaves_and_nobody_new_comes(
        self, connect_domain, domain, door, found_group
    ):
        users = found_group("LLM Users", "suzuki", "kimura")
        connect_domain(LDAP_REQUIRED_GROUP=users)
        user = door.enter("suzuki", "password of suzuki")
        domain.remove(users)
        with pytest.raises(CommandError, match="LDAP_REQUIRED_GROUP"):
            call_command("syncdirectory")
        assert door.enter("suzuki", "password of suzuki") == user
        assert door.enter("kimura", "password of kimura") is None
        assert door.error == company.DirectoryRefused.code
        User.objects.filter(pk=user.pk).update(is_active=False, left_directory_at="2026-01-01T00:00:00Z")
        with pytest.raises(CommandError):
            call_command("syncdirectory")
        user.refresh_from_db()
        assert not user.is_active


def test_checkdirectory_tells_a_person_s_way_to_a_role(connect_domain, recruit):
    users = f"CN=Domain Users,CN=Users,{SUFFIX}".lower()
    connect_domain(LDAP_GROUP_TENANTS=json.dumps({**TENANTS, users: "everybody"}))
    findings = check("CORP\\tanaka")
    research, lab = group_dn("Research").lower(), group_dn("Research Lab").lower()
    ways = [text.split(" → ")[1:] for text in texts("member", findings)]
    assert sorted(ways) == sorted([[lab, research], [users]])
    [members] = [text for text in texts("members", findings) if text.startswith(users)]
    assert int(re.findall(r"\d+", members.rpartition(":")[2])[-1]) > 1  # people whose primary group it is
    assert "account-expired" in failure_codes(recruit("ishii", accountExpires=EXPIRED))


class TestCheck:
    """manage.py checkdirectory with one thing wrong."""

    def test_the_kind_is_seen(self, connect_domain):
        connect_domain(LDAP_KIND="openldap")
        assert "is-active-directory" in failure_codes()

    @pytest.mark.parametrize(
        ("mistake", "code", "named"),
        [
            ({"LDAP_USER_BASE": "DC=other,DC=example,DC=com"}, "no-such-place", SUFFIX),
            ({"LDAP_USER_BASE": f"OU=Peple,{SUFFIX}"}, "no-such-place", f" {SUFFIX.lower()}"),
            ({"LDAP_GROUP_BASE": f"OU=Grps,{SUFFIX}"}, "no-such-place", "LDAP_GROUP_BASE"),
            ({"LDAP_OPERATOR_GROUP": person_dn("ito")}, "not-a-group", person_dn("ito").lower()),
            ({"LDAP_REQUIRED_GROUP": f"OU=Groups,{SUFFIX}"}, "not-a-group", f"OU=Groups,{SUFFIX}".lower()),
            ({"LDAP_USER_DN_TEMPLATE": "%(user)s"}, "template-without-domain", "LDAP_USER_DN_TEMPLATE"),
            ({"LDAP_USER_DN_TEMPLATE": "%(user)s@other.example"}, "template-other-domain", "other.example"),
            ({"LDAP_BIND_PASSWORD": "changed last night"}, "INVALID_CREDENTIALS", "LDAP_BIND_PASSWORD"),
            (
                {"LDAP_BIND_DN": "stale@corp.example.com", "LDAP_BIND_PASSWORD": "password of stale"},
                "password-expired",
                "LDAP_BIND_PASSWORD",
            ),
        ],
    )
    def test_the_only_line_that_fails_leads_to_the_cause(self, connect_domain, mistake, code, named):
        connect_domain(**mistake)
        [failure] = failures()
        assert failure.code == code
        assert named in failure.text
        assert "acl_read" not in failure.text

    @pytest.mark.parametrize("group_type", ["memberUid"])
    def test_a_list_that_its_groups_do_not_have(self, connect_domain, group_type):
        connect_domain(LDAP_GROUP_TYPE=group_type)
        assert failure_codes() == ["other-group-type"] * 4

    def test_without_an_account_it_says_so(self, connect_domain):
        connect_domain(LDAP_BIND_DN=None, LDAP_BIND_PASSWORD=None)
        assert failures()
        assert all("LDAP_BIND_DN" in failure.text for failure in failures())

    def test_a_password_without_encryption(self, connect_domain, domain):
        connect_domain(LDAP_SERVER_URI=domain.uri, LDAP_START_TLS="false", LDAP_CA_FILE=None)
        assert failure_codes() == ["STRONG_AUTH_REQUIRED"]

    def test_templates_that_fit(self, connect_domain):
        for template in ("%(user)s@corp.example.com", "CORP\\%(user)s"):
            connect_domain(LDAP_USER_DN_TEMPLATE=template)
            assert failure_codes() == []

    def test_whoever_may_not_sign_in_is_not_said_to(self, connect_domain, recruit):
        connect_domain()
        codes = [finding.code for finding in check(recruit("ishii", accountExpires=EXPIRED))]
        assert "account-expired" in codes
        assert "admitted" not in codes

    def test_another_domain_before_the_name_is_named(self, connect_domain):
        connect_domain()
        [failure] = failures("OTHER\\suzuki")
        assert failure.code == "other-domain"
        for name in ("OTHER", "corp", "corp.example.com"):
            assert name in failure.text

    def test_where_nobody_can_be_a_person_is_told_in_words(self, connect_domain):
        connect_domain(LDAP_USER_BASE=f"OU=Peple,{SUFFIX}")
        assert not any("acl_read" in finding.text for finding in check("suzuki"))
