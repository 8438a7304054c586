"""The LDAP_* variables: what they become, and what operators read when one is wrong."""

import json
import os
import re
import subprocess
import sys

import environs
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from portal import settings as portal_settings
from portal.accounts import ldap as company
from portal.accounts.checks import directory_is_encrypted
from portal.accounts.directory_sync import Outcome
from portal.accounts.ldap.configuration import VARIABLES, InvalidSetting
from tests.ports import unused_port
from tests.slapd import GROUP_BASE, SERVICE_PASSWORD, USER_BASE, group_dn


@pytest.fixture
def read(monkeypatch):
    """Read these variables on top of the least that works."""

    def read(**variables: str | None) -> company.DirectorySettings | None:
        least = {"LDAP_SERVER_URI": "ldaps://ldap.example.com", "LDAP_USER_BASE": USER_BASE}
        with monkeypatch.context() as patch:
            for name, value in {**least, **variables}.items():
                if value is not None:
                    patch.setenv(name, value)
            return company.read_settings(environs.FileAwareEnv(strip_whitespace=True))

    return read


def test_without_an_address_there_is_no_directory(read):
    assert read(LDAP_SERVER_URI=None, LDAP_USER_BASE=None) is None


def test_what_need_not_be_said(read):
    found = read()
    assert found.servers == ("ldaps://ldap.example.com",)
    assert (found.start_tls, found.timeout) == (False, 5.0)
    assert found.user_filter == "(&(objectClass=person)(uid=%(user)s))"
    assert found.attributes[:5] == ["uid", "entryUUID", "givenName", "sn", "mail"]
    assert read(LDAP_SERVER_URI="ldap://ldap.example.com").start_tls is True


def test_active_directory_is_asked_for_its_own_attributes(read):
    found = read(LDAP_KIND="activedirectory")
    assert found.attributes[:2] == ["sAMAccountName", "objectGUID"]
    assert "(sAMAccountName=%(user)s)" in found.user_filter
    assert {"userAccountControl", "accountExpires", "primaryGroupID"} <= set(found.attributes)


def test_several_servers_by_spaces_or_commas(read):
    found = read(LDAP_SERVER_URI=" ldaps://a.example.com:1636, ldaps://b.example.com\n")
    assert found.servers == ("ldaps://a.example.com:1636", "ldaps://b.example.com")


def test_secrets_may_come_from_files_and_are_not_shown(read, tmp_path):
    (tmp_path / "password").write_text(f"{SERVICE_PASSWORD}\n")
    found = read(LDAP_BIND_DN="cn=x", LDAP_BIND_PASSWORD_FILE=str(tmp_path / "password"))
    assert found.bind_password == SERVICE_PASSWORD
    assert SERVICE_PASSWORD not in repr(found)


def test_groups_lead_to_one_or_several_places(read):
    mapping = {"CN=A,ou=groups": "research", "cn=b, ou=groups": ["research:admin", "sales:member"]}
    found = read(LDAP_GROUP_BASE=GROUP_BASE, LDAP_GROUP_TENANTS=json.dumps(mapping))
    assert found.roles({"cn=a,ou=groups"}) == {"research": "member"}
    assert found.roles({"cn=a,ou=groups", "cn=b,ou=groups"}) == {"research": "admin", "sales": "member"}
    assert found.roles(set()) == {}


@pytest.mark.parametrize(
    ("variable", "variables", "code", "named"),
    [
        ("LDAP_SERVER_URL", {"LDAP_SERVER_URL": "ldap://x"}, "unknown", "LDAP_SERVER_URI"),
        (
            "LDAP_BIND_DN",
            {"LDAP_SERVER_URI": None, "LDAP_USER_BASE": None, "LDAP_BIND_DN": "cn=x"},
            "no-server",
            "LDAP_SERVER_URI",
        ),
        ("LDAP_SERVER_URI", {"LDAP_SERVER_URI": "ldap.example.com"}, "bad-address", ""),
        ("LDAP_SERVER_URI", {"LDAP_SERVER_URI": "https://ldap.example.com"}, "bad-address", ""),
        ("LDAP_SERVER_URI", {"LDAP_SERVER_URI": "ldaps://x:seven"}, "bad-address", "seven"),
        ("LDAP_SERVER_URI", {"LDAP_SERVER_URI": "ldap://a ldaps://b"}, "mixed-schemes", ""),
        ("LDAP_SERVER_URI", {"LDAP_SERVER_URI": "ldap://[::1"}, "bad-address", ""),
        ("LDAP_SERVER_URI", {"LDAP_SERVER_URI": "ldap://x:"}, "bad-port", ""),
        ("LDAP_SERVER_URI", {"LDAP_SERVER_URI": "ldap://x:0"}, "bad-port", ""),
        ("LDAP_SERVER_URI", {"LDAP_SERVER_URI": "ldap://x:70000"}, "bad-address", ""),
        ("LDAP_SERVER_URI", {"LDAP_SERVER_URI": "ldap://cn=a:secret@x"}, "account-in-address", "LDAP_BIND_DN"),
        ("LDAP_SERVER_URI", {"LDAP_SERVER_URI": "ldap://x?uid"}, "bad-address", ""),
        ("LDAP_SERVER_URI", {"LDAP_SERVER_URI": "ldap://x#y"}, "bad-address", ""),
        ("LDAP_SERVER_URI", {"LDAP_SERVER_URI": "ldap://.example.com"}, "bad-address", ""),
        ("LDAP_SERVER_URI", {"LDAP_SERVER_URI": f"ldap://{'a' * 64}.example.com"}, "bad-address", ""),
        ("LDAP_SERVER_URI", {"LDAP_SERVER_URI": f"ldap://{'a.' * 127}com"}, "bad-address", ""),
        ("LDAP_START_TLS", {"LDAP_START_TLS": "maybe"}, "not-a-boolean", ""),
        ("LDAP_NESTED_GROUPS", {"LDAP_NESTED_GROUPS": "deep"}, "not-a-boolean", ""),
        ("LDAP_START_TLS", {"LDAP_START_TLS": "true"}, "encrypted-already", ""),
        ("LDAP_KIND", {"LDAP_KIND": "novell"}, "not-a-choice", "openldap, activedirectory"),
        ("LDAP_CA_FILE", {"LDAP_CA_FILE": "/nowhere/ca.pem"}, "unreadable", "/nowhere/ca.pem"),
        ("LDAP_CA_FILE", {"LDAP_CA_FILE": "/dev/zero"}, "not-a-file", ""),
        ("LDAP_CA_FILE", {"LDAP_CA_FILE": "/etc"}, "not-a-file", ""),
        ("LDAP_CA_FILE", {"LDAP_CA_FILE": __file__}, "unreadable", ""),
        (
            "LDAP_CA_FILE",
            {"LDAP_CA_FILE": "{ca}", "LDAP_SERVER_URI": "ldap://x", "LDAP_START_TLS": "0"},
            "unencrypted",
            "",
        ),
        ("LDAP_TIMEOUT", {"LDAP_TIMEOUT": "soon"}, "not-a-number", ""),
        ("LDAP_TIMEOUT", {"LDAP_TIMEOUT": "5s"}, "not-a-number", ""),
        ("LDAP_TIMEOUT", {"LDAP_TIMEOUT": "0"}, "out-of-range", "0.1"),
        ("LDAP_TIMEOUT", {"LDAP_TIMEOUT": "nan"}, "not-a-number", ""),
        ("LDAP_BIND_PASSWORD", {"LDAP_BIND_DN": "cn=x"}, "needed", "LDAP_BIND_DN"),
        ("LDAP_BIND_DN", {"LDAP_BIND_PASSWORD": "x"}, "needed", "LDAP_BIND_PASSWORD"),
        (
            "LDAP_BIND_PASSWORD",
            {"LDAP_BIND_PASSWORD": "x", "LDAP_BIND_PASSWORD_FILE": os.devnull},
            "set-twice",
            "LDAP_BIND_PASSWORD_FILE",
        ),
        ("LDAP_BIND_DN", {"LDAP_BIND_DN": "cn=x\ncn=y", "LDAP_BIND_PASSWORD": "x"}, "control-character", ""),
        ("ldap_user_base", {"ldap_user_base": "dc=x"}, "unknown", "LDAP_USER_BASE"),
        ("LDAP_USERNAME_ATTRIBUTE", {"LDAP_USERNAME_ATTRIBUTE": "uid,mail"}, "not-an-attribute", ""),
        ("LDAP_ID_ATTRIBUTE", {"LDAP_ID_ATTRIBUTE": "uid)("}, "not-an-attribute", ""),
        ("LDAP_FIRST_NAME_ATTRIBUTE", {"LDAP_FIRST_NAME_ATTRIBUTE": "given name"}, "not-an-attribute", ""),
        ("LDAP_LAST_NAME_ATTRIBUTE", {"LDAP_LAST_NAME_ATTRIBUTE": "sn="}, "not-an-attribute", ""),
        ("LDAP_MAIL_ATTRIBUTE", {"LDAP_MAIL_ATTRIBUTE": "*"}, "not-an-attribute", ""),
        ("LDAP_USER_BASE", {"LDAP_USER_BASE": "people"}, "not-a-dn", ""),
        ("LDAP_USER_BASE", {"LDAP_USER_BASE": None}, "needed", "LDAP_USER_DN_TEMPLATE"),
        ("LDAP_USER_BASE", {"LDAP_USER_BASE": None, "LDAP_USER_DN_TEMPLATE": "%(user)s@corp"}, "needed", ""),
        ("LDAP_USER_FILTER", {"LDAP_USER_FILTER": "(uid=alice)"}, "no-user", "%(user)s"),
        ("LDAP_USER_FILTER", {"LDAP_USER_FILTER": "(uid=%(name)s)"}, "no-user", "%(user)s"),
        ("LDAP_USER_FILTER", {"LDAP_USER_FILTER": "(uid=%(user)s"}, "not-a-filter", ""),
        ("LDAP_USER_FILTER", {"LDAP_USER_FILTER": "uid=%(user)s"}, "not-a-filter", ""),
        ("LDAP_USER_FILTER", {"LDAP_USER_FILTER": "(uid=%(user)s)(mail=%(user)s)"}, "not-a-filter", ""),
        ("LDAP_USER_FILTER", {"LDAP_USER_FILTER": "(uid=%(user)s))("}, "not-a-filter", ""),
        ("LDAP_USER_FILTER", {"LDAP_USER_FILTER": "(&(uid=%(user)s)((objectClass=person)))"}, "not-a-filter", ""),
        ("LDAP_USER_FILTER", {"LDAP_USER_FILTER": "(%(user)s)"}, "not-a-filter", ""),
        ("LDAP_USER_FILTER", {"LDAP_USER_FILTER": "(&(uid=%(user)s)(!(x)))"}, "not-a-filter", ""),
        ("LDAP_USER_FILTER", {"LDAP_USER_FILTER": "(uid=%s)"}, "no-user", "%(user)s"),
        ("LDAP_USER_FILTER", {"LDAP_USER_FILTER": "(|(uid=%(user)s)(mail=%s))"}, "percent", "%%"),
        ("LDAP_USER_FILTER", {"LDAP_USER_FILTER": "(uid=*%(user)s*)"}, "not-for-all", ""),
        ("LDAP_USER_FILTER", {"LDAP_USER_FILTER": "(uid>=%(user)s)"}, "not-for-all", ""),
        ("LDAP_USER_DN_TEMPLATE", {"LDAP_USER_DN_TEMPLATE": "uid=alice,dc=x"}, "no-user", "%(user)s"),
        ("LDAP_USER_DN_TEMPLATE", {"LDAP_USER_DN_TEMPLATE": "uid=%s,dc=x"}, "no-user", "%(user)s"),
        ("LDAP_GROUP_TYPE", {"LDAP_GROUP_TYPE": "netgroup"}, "not-a-choice", "memberUid"),
        (
            "LDAP_GROUP_TYPE",
            {"LDAP_KIND": "activedirectory", "LDAP_GROUP_TYPE": "uniqueMember"},
            "not-in-active-directory",
            "memberOf",
        ),
        ("LDAP_NESTED_GROUPS", {"LDAP_GROUP_TYPE": "memberOf", "LDAP_NESTED_GROUPS": "1"}, "not-nested", ""),
        ("LDAP_GROUP_BASE", {"LDAP_OPERATOR_GROUP": "cn=ops"}, "needed", "LDAP_OPERATOR_GROUP"),
        ("LDAP_GROUP_BASE", {"LDAP_GROUP_TENANTS": '{"cn=a": "b"}'}, "needed", "LDAP_GROUP_TENANTS"),
        ("LDAP_REQUIRED_GROUP", {"LDAP_REQUIRED_GROUP": "employees"}, "not-a-dn", ""),
        ("LDAP_GROUP_TENANTS", {"LDAP_GROUP_TENANTS": "cn=a: b"}, "not-json", ""),
        ("LDAP_GROUP_TENANTS", {"LDAP_GROUP_TENANTS": '["cn=a"]'}, "not-an-object", ""),
        ("LDAP_GROUP_TENANTS", {"LDAP_GROUP_TENANTS": "3"}, "not-an-object", ""),
        ("LDAP_GROUP_TENANTS", {"LDAP_GROUP_TENANTS": "[]"}, "not-an-object", ""),
        ("LDAP_GROUP_TENANTS", {"LDAP_GROUP_TENANTS": "[" * 100_000}, "not-json", ""),
        ("LDAP_GROUP_TENANTS", {"LDAP_GROUP_TENANTS": "/etc/tenants.json"}, "not-json", "LDAP_GROUP_TENANTS_FILE"),
        ("LDAP_GROUP_TENANTS", {"LDAP_GROUP_TENANTS": '{"cn=a": []}'}, "no-tenant", ""),
        ("LDAP_GROUP_TENANTS", {"LDAP_GROUP_TENANTS": '{"cn=a": null}'}, "not-a-tenant", ""),
        ("LDAP_GROUP_TENANTS", {"LDAP_GROUP_TENANTS": '{"cn=a": 7}'}, "not-a-tenant", ""),
        ("LDAP_GROUP_TENANTS", {"LDAP_GROUP_TENANTS": '{"cn=a": "b:"}'}, "not-a-tenant", ""),
        ("LDAP_GROUP_TENANTS", {"LDAP_GROUP_TENANTS": '{"a": "b"}'}, "not-a-dn", ""),
        ("LDAP_GROUP_TENANTS", {"LDAP_GROUP_TENANTS": '{"cn=a": "b", "CN=A": "c"}'}, "group-twice", ""),
        ("LDAP_GROUP_TENANTS", {"LDAP_GROUP_TENANTS": '{"cn=a": "b:owner"}'}, "not-a-tenant", ":admin"),
        ("LDAP_GROUP_TENANTS", {"LDAP_GROUP_TENANTS": '{"cn=a": "研究部"}'}, "not-a-tenant", ""),
        ("LDAP_GROUP_TENANTS", {"LDAP_GROUP_TENANTS": '{"cn=a": {"tenant": "b"}}'}, "not-a-tenant", ""),
    ],
)
def test_a_value_that_cannot_be_meant_is_named(read, directory, variable, variables, code, named):
    variables = {key: value and value.replace("{ca}", str(directory.ca_file)) for key, value in variables.items()}
    with pytest.raises(InvalidSetting) as caught:
        read(**variables)
    assert (caught.value.variable, caught.value.code) == (variable, code)
    assert variable in str(caught.value)
    assert named in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(read):
    with pytest.raises(environs.EnvError, match="LDAP_BIND_PASSWORD_FILE"):
        read(LDAP_BIND_PASSWORD_FILE="/nowhere")


def test_a_file_that_is_no_text_is_named(read, tmp_path):
    (tmp_path / "password").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(environs.EnvError, match="LDAP_BIND_PASSWORD_FILE"):
        read(LDAP_BIND_DN="cn=x", LDAP_BIND_PASSWORD_FILE=str(tmp_path / "password"))


def test_a_certificate_in_windows_form_is_told_how_to_convert(read, directory, tmp_path):
    pem = x509.load_pem_x509_certificate(directory.ca_file.read_bytes())
    (tmp_path / "ca.crt").write_bytes(pem.public_bytes(serialization.Encoding.DER))
    with pytest.raises(environs.EnvError, match="openssl x509 -inform der"):
        read(LDAP_CA_FILE=str(tmp_path / "ca.crt"))


def test_a_password_in_the_address_is_not_repeated(read):
    with pytest.raises(environs.EnvError) as caught:
        read(LDAP_SERVER_URI="ldaps://cn=a:secret@ldap.example.com")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "query",
    ["(uid=%(user)s)", "(&(uid=%(user)s)(!(nsAccountLock=TRUE)))", "(memberOf:1.2.840.113556.1.4.1941:=cn=100%%,dc=x)"],
)
def test_what_libldap_takes_as_a_filter_is_one(read, query):
    query = query if "%(user)s" in query else f"(&(uid=%(user)s){query})"
    assert read(LDAP_USER_FILTER=query).user_filter == query


def test_names_are_taken_in_any_script_and_case(read):
    found = read(LDAP_SERVER_URI="LDAPS://窓口.example.com", LDAP_USER_BASE="ou=営業\u3000部,dc=example")
    assert found.servers == ("ldaps://窓口.example.com",)
    assert found.user_base == "ou=営業\u3000部,dc=example"


def test_an_address_that_is_there_twice_is_asked_once(read):
    assert read(LDAP_SERVER_URI="ldaps://a, ldaps://a/").servers == ("ldaps://a",)


def test_unencrypted_passwords_are_worth_a_warning(read, settings):
    settings.DIRECTORY = read(LDAP_SERVER_URI="ldap://x", LDAP_START_TLS="false")
    assert [warning.id for warning in directory_is_encrypted(None)] == ["accounts.W001"]
    settings.DIRECTORY = read(LDAP_SERVER_URI="ldap://x")
    assert directory_is_encrypted(None) == []
    settings.DIRECTORY = None
    assert directory_is_encrypted(None) == []


class TestManage:
    """The variables as they really arrive: from the environment of a process."""

    @pytest.fixture
    def manage(self, tmp_path):
        def manage(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, portal_settings.BASE_DIR / "manage.py", *arguments],
                env={**os.environ, "MADOGUCHI_VAR": str(tmp_path), **variables},
                capture_output=True,
                text=True,
                timeout=60,
            )

        return manage

    def test_a_wrong_value_stops_the_start_with_one_line(self, manage):
        done = manage("check", LDAP_SERVER_URI="ldap.example.com")
        assert done.returncode != 0
        assert done.stderr.count("\n") == 1
        assert "LDAP_SERVER_URI" in done.stderr

    def test_an_unreadable_file_stops_the_start_with_one_line(self, manage):
        done = manage("check", LDAP_SERVER_URI="ldaps://x", LDAP_BIND_PASSWORD_FILE="/nowhere/at/all")
        assert done.returncode != 0
        assert done.stderr.count("\n") == 1
        assert "LDAP_BIND_PASSWORD_FILE" in done.stderr

    def test_the_directory_is_in_use(self, manage, directory):
        who = "from django.contrib.auth import authenticate as a; from django.test import RequestFactory as F"
        ask = f"{who}; u = a(F().post('/'), username='BOB', password='password of bob'); p = u.memberships.get()"
        ask += "; print(u, p.tenant, p.role)"
        assert manage("migrate", "-v0", **directory.env()).returncode == 0
        done = manage("shell", "-v0", "-c", ask, **directory.env())
        assert done.stdout == "Bob Dodgson research admin\n"
        done = manage("syncdirectory", **directory.env())
        assert done.stdout == f"{Outcome(people=1, left=0, returned=0, changed=0)}\n"

    def test_a_directory_that_is_away_is_said_in_one_line(self, manage, directory):
        nowhere = directory.env(LDAP_SERVER_URI=f"ldap://127.0.0.1:{unused_port()}")
        assert manage("migrate", "-v0", **nowhere).returncode == 0
        done = manage("syncdirectory", **nowhere)
        assert done.returncode != 0
        assert done.stderr.count("\n") == 1
        assert nowhere["LDAP_SERVER_URI"] in done.stderr


class TestDocuments:
    """Check that what operators copy from deploy/*.md is taken as it is."""

    @pytest.fixture
    def copied(self, tmp_path, monkeypatch, directory):
        """Read the LDAP_* variables of an example, by the shell as systemd would; its files are others here."""
        (tmp_path / "password").write_text("x")
        files = {"LDAP_BIND_PASSWORD_FILE": tmp_path / "password", "LDAP_CA_FILE": directory.ca_file}

        def copied(document: str, heading: str = "") -> company.DirectorySettings | None:
            text = (portal_settings.BASE_DIR / "deploy" / document).read_text()
            if heading:
                examples = re.findall(r"```(?:sh|json)\n(.*?)```", text.partition(heading)[2], re.DOTALL)
            else:
                examples = [text.replace("#LDAP_", "LDAP_")]  # as they are once filled in
            lines = next(example for example in examples if "LDAP_" in example)
            lines = "".join(line for line in lines.splitlines(True) if line.startswith("LDAP_"))
            print_all = f"set -a; {lines}\nenv -0"
            said = subprocess.run(
                ["sh", "-c", print_all], capture_output=True, check=True, env={"PATH": os.environ["PATH"]}
            )
            given = dict(pair.split("=", 1) for pair in said.stdout.decode().split("\0") if pair.startswith("LDAP_"))
            tenants = next((example for example in examples if example.startswith("{")), "{}")
            (tmp_path / "tenants").write_text(tenants)
            files["LDAP_GROUP_TENANTS_FILE"] = tmp_path / "tenants"
            for name, value in given.items():
                monkeypatch.setenv(name, str(files.get(name, value)))
            return company.read_settings(environs.FileAwareEnv(strip_whitespace=True))

        return copied

    def test_d3_the_sample_environment_is_complete(self, copied):
        found = copied("environment.example")
        assert found.can_look_up
        assert found.ca_file
        assert found.groups == (found.operator_group,)

    @pytest.mark.parametrize(
        ("heading", "kind", "groups"), [("## OpenLDAP", "openldap", 3), ("## Active Directory", "activedirectory", 3)]
    )
    def test_the_examples_are_complete(self, copied, heading, kind, groups):
        found = copied("LDAP.md", heading)
        assert (found.kind, found.can_look_up, len(found.groups)) == (kind, True, groups)

    def test_every_variable_is_explained(self):
        text = (portal_settings.BASE_DIR / "deploy" / "LDAP.md").read_text().partition("## Every variable")[2]
        assert {name for name in VARIABLES if f"`{name}`" not in text} == set()


def test_group_names_of_the_tests_are_in_normal_form(read):
    found = read(LDAP_GROUP_BASE=GROUP_BASE, LDAP_OPERATOR_GROUP=group_dn("operators").upper())
    assert found.operator_group == group_dn("operators")
