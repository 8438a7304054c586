"""manage.py checkdirectory: what it tries, what it says, and its status, against OpenLDAP."""

import re

import pytest
from django.core.management import CommandError, call_command

from portal.accounts import people
from portal.accounts.models import User
from tests.slapd import GROUP_BASE, SUFFIX, group_dn, unused_port

pytestmark = pytest.mark.django_db


@pytest.fixture
def check(capsys):
    """Runs it; gives the lines by their mark, and whether all of it works."""

    def check(*arguments: str) -> tuple[dict[str, list[str]], bool]:
        try:
            call_command("checkdirectory", *arguments)
            works = True
        except CommandError:
            works = False
        lines: dict[str, list[str]] = {"ok": [], "FAIL": [], "": []}
        for line in capsys.readouterr().out.splitlines():
            if line.startswith("  "):
                lines[line[2:6].strip()].append(line[8:])
        assert works == (not lines["FAIL"])
        return lines, works

    return check


def test_all_is_well(connect, check):
    connect()
    lines, works = check()
    assert works
    assert any("certificate for 127.0.0.1" in line for line in lines["ok"])
    assert any(
        line.startswith(f"{group_dn('research-leads')} (tenants research:admin): 2 members") for line in lines["ok"]
    )
    [research] = [line for line in lines["ok"] if line.startswith(f"{group_dn('research')} ")]
    assert "counting those of 1 groups within it" in research


def test_it_is_told_when_nothing_is_encrypted(connect, check):
    connect(LDAP_START_TLS="false", LDAP_CA_FILE=None)
    lines, works = check()
    assert works
    assert any("nothing is encrypted" in line for line in lines[""])


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ({"LDAP_SERVER_URI": f"ldap://127.0.0.1:{unused_port()}"}, "refused"),
        ({"LDAP_BIND_PASSWORD": "changed last night"}, "does not take"),
        ({"LDAP_BIND_DN": None, "LDAP_BIND_PASSWORD": None}, "LDAP_USER_BASE|may not read"),
        ({"LDAP_USER_BASE": f"ou=nowhere,{SUFFIX}"}, "there is no such place"),
        ({"LDAP_USER_BASE": f"ou=posix,{SUFFIX}"}, "nobody there matches LDAP_USER_FILTER"),
        ({"LDAP_ID_ATTRIBUTE": "employeeNumber"}, "LDAP_ID_ATTRIBUTE"),
        ({"LDAP_GROUP_BASE": f"ou=nowhere,{SUFFIX}"}, "LDAP_GROUP_BASE"),
        ({"LDAP_OPERATOR_GROUP": f"cn=gone,{GROUP_BASE}"}, f"cn=gone,{GROUP_BASE} \\(operators\\): not found"),
    ],
)
def test_what_does_not_work_is_named(connect, check, mistake, told):
    connect(**mistake)
    lines, works = check()
    assert not works
    assert re.search(told, lines["FAIL"][-1]), lines["FAIL"]


def test_d4_servers_and_certificates_are_tried_one_by_one(connect, check, directory):
    bad = directory.tls_uri.replace("127.0.0.1", "localhost")
    dead = f"ldaps://127.0.0.1:{unused_port()}"
    connect(LDAP_SERVER_URI=f"{bad} {dead} {directory.tls_uri}")
    lines, _ = check()
    assert [line.split(" ")[0] for line in lines["FAIL"]] == [f"{bad}:", f"{dead}:"]
    assert "certificate is not trusted" in lines["FAIL"][0]
    assert any(line.startswith(f"{directory.tls_uri} takes") for line in lines["ok"])
    connect(LDAP_SERVER_URI=directory.tls_uri, LDAP_CA_FILE=str(directory.other_ca_file))
    lines, _ = check()
    assert "certificate is not trusted" in lines["FAIL"][0]


def test_direct_bind_alone_notices_no_leavers(connect, check):
    connect(LDAP_USER_DN_TEMPLATE=f"uid=%(user)s,{SUFFIX}", LDAP_BIND_DN=None, LDAP_BIND_PASSWORD=None)
    lines, works = check()
    assert not works
    assert "LDAP_BIND_DN" in lines["FAIL"][0]


def test_a_person_s_way_to_a_role(connect, check):
    connect()
    lines, works = check("yamada")
    assert works
    way = f"person → {group_dn('research-lab')} → {group_dn('research')}"
    assert f"in {group_dn('research')} (tenants research:member): {way}" in lines["ok"]
    assert "tenants: research (member)" in lines[""]
    assert f"not in {group_dn('operators')} (operators)" in lines[""]


@pytest.mark.parametrize(
    ("variables", "name", "group"),
    [
        ({"LDAP_GROUP_TYPE": "memberOf", "LDAP_GROUP_BASE": None}, "bob", group_dn("research-leads")),
        (
            {"LDAP_GROUP_TYPE": "memberUid", "LDAP_OPERATOR_GROUP": f"cn=unix-research,ou=posix,{SUFFIX}"},
            "alice",
            f"cn=unix-research,ou=posix,{SUFFIX}",
        ),
    ],
)
def test_groups_of_the_other_types(connect, check, variables, name, group):
    connect(**variables)
    lines, works = check(name)
    assert works
    assert [line for line in lines["ok"] if line.startswith(f"in {group} ") and line.endswith(f"person → {group}")]


def test_a_person_who_may_not_sign_in(connect, check):
    connect(LDAP_REQUIRED_GROUP=group_dn("employees"))
    _, works = check("dave")
    assert works
    for name in ("erin", "nobody-at-all"):
        _, works = check(name)
        assert not works


def test_what_the_portal_knows_of_a_person(connect, check, door):
    connect()
    assert any("no account yet" in line for line in check("alice")[0][""])
    user = door.enter("alice", "password of alice")
    assert "here alice, active" in check("alice")[0][""]
    people.leave(user)
    assert any("because of the directory" in line for line in check("alice")[0][""])
    User.objects.filter(pk=user.pk).update(left_directory_at=None)
    assert not check("alice")[1]
    User.objects.create_user("bob", password="x")
    assert not check("bob")[1]


def test_without_a_directory_it_says_so():
    with pytest.raises(CommandError, match="LDAP_SERVER_URI is not set"):
        call_command("checkdirectory")
