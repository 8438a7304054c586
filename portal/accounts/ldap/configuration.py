"""The LDAP_* variables, read once when Django reads its settings. deploy/LDAP.md explains them to operators."""

import json
import os
import re
import ssl
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any
from urllib.parse import SplitResult, urlsplit

import environs
import ldap
import ldap.dn
import ldap.filter

from portal.accounts.ldap import account_state

VARIABLES = (
    "LDAP_SERVER_URI",
    "LDAP_KIND",
    "LDAP_START_TLS",
    "LDAP_CA_FILE",
    "LDAP_TIMEOUT",
    "LDAP_BIND_DN",
    "LDAP_BIND_PASSWORD",
    "LDAP_USER_BASE",
    "LDAP_USER_FILTER",
    "LDAP_USER_DN_TEMPLATE",
    "LDAP_USERNAME_ATTRIBUTE",
    "LDAP_ID_ATTRIBUTE",
    "LDAP_FIRST_NAME_ATTRIBUTE",
    "LDAP_LAST_NAME_ATTRIBUTE",
    "LDAP_MAIL_ATTRIBUTE",
    "LDAP_GROUP_BASE",
    "LDAP_GROUP_TYPE",
    "LDAP_NESTED_GROUPS",
    "LDAP_GROUP_TENANTS",
    "LDAP_OPERATOR_GROUP",
    "LDAP_REQUIRED_GROUP",
)
# Per LDAP_KIND: the attributes that name and identify a person, and the filter that finds one. Disabled accounts are
# found as well: else a person with the right password could not be shown why it is not enough.
KINDS = {
    "openldap": ("uid", "entryUUID", "(&(objectClass=person)({username}=%(user)s))"),
    "activedirectory": (
        "sAMAccountName",
        "objectGUID",
        "(&(objectCategory=person)(objectClass=user)({username}=%(user)s))",
    ),
}
# Where systems keep the certificate authorities that they trust: Debian and Ubuntu, Red Hat, SUSE.
SYSTEM_CA_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
)
FIRST_NAME, LAST_NAME, MAIL = "givenName", "sn", "mail"  # the attributes unless the settings name others
# The attribute that links groups and members, and whether groups may contain groups.
GROUP_TYPES = {"member": True, "uniqueMember": True, "memberUid": False, "memberOf": False}
ROLES = ("member", "admin")  # the later one wins when several groups lead to one tenant
# An attribute as it is requested: its name or number and its options (RFC 4512 2.5).
ATTRIBUTE = re.compile(r"([a-z][a-z0-9-]*|\d+(\.\d+)+)(;[a-z0-9-]+)*", re.IGNORECASE)
CONTROLS = ("Cc", "Zl", "Zp")  # Unicode's categories of control characters and line breaks
LONGEST_HOST = 253  # characters (RFC 1035 2.3.4)


class InvalidSetting(environs.EnvValidationError):
    """A variable has a value that cannot be meant. `code`: why, of a fixed set."""

    def __init__(self, variable: str, code: str, why: str) -> None:
        super().__init__(f'Environment variable "{variable}" invalid: {why}', [why])
        self.variable = variable
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectorySettings:
    """The LDAP_* settings; deploy/LDAP.md explains them. DNs of groups are in normal form (`normalize_dn`)."""

    servers: tuple[str, ...]
    kind: str
    start_tls: bool
    ca_file: str
    timeout: float
    bind_dn: str
    bind_password: str = field(repr=False)
    user_base: str
    user_filter: str
    other_names: tuple[str, ...]  # attributes that are tried as well for names with an @; none if the filter is set
    user_dn_template: str
    username_attribute: str
    id_attribute: str
    first_name_attribute: str
    last_name_attribute: str
    mail_attribute: str
    group_base: str
    group_type: str
    nested_groups: bool
    group_tenants: Mapping[str, tuple[tuple[str, str], ...]]
    operator_group: str
    required_group: str

    @property
    def attributes(self) -> list[str]:
        """The attributes that are read of a person's entry."""
        names = [self.username_attribute, self.id_attribute]
        names += [self.first_name_attribute, self.last_name_attribute, self.mail_attribute]
        names += {"memberUid": ["gidNumber"]}.get(self.group_type, [])
        if self.group_type == "memberOf":
            names.append("memberOf")
        if self.kind == "activedirectory":
            names += ["objectSid", "primaryGroupID"]
        return [*names, *account_state.ATTRIBUTES[self.kind]]

    @property
    def groups(self) -> tuple[str, ...]:
        """The DNs of all groups that the settings name, each once."""
        named = (*self.group_tenants, self.operator_group, self.required_group)
        return tuple(dict.fromkeys(dn for dn in named if dn))

    @property
    def can_look_up(self) -> bool:
        """Whether people can be looked up who are not signing in themselves."""
        return bool(self.user_base and (self.bind_dn or not self.user_dn_template))

    def filter_by(self, attribute: str, value: str) -> str:
        """Return the filter that finds a person by another attribute than the account name."""
        return KINDS[self.kind][2].format(username=attribute) % {"user": ldap.filter.escape_filter_chars(value)}

    def filter_by_name(self, name: str) -> str:
        return self.user_filter % {"user": ldap.filter.escape_filter_chars(name)}

    @property
    def has_own_filter(self) -> bool:
        """Whether LDAP_USER_FILTER is set."""
        return not self.other_names

    @property
    def filter_of_all(self) -> str:
        return self.user_filter % {"user": "*"}

    def settings_of(self, group: str) -> tuple[str, ...]:
        """Return the variables that name this group."""
        named = {
            "LDAP_GROUP_TENANTS": group in self.group_tenants,
            "LDAP_OPERATOR_GROUP": group == self.operator_group,
            "LDAP_REQUIRED_GROUP": group == self.required_group,
        }
        return tuple(name for name, holds in named.items() if holds)

    @property
    def binds_by_dn(self) -> bool:
        """Whether the template of a direct bind gives a DN (else a name such as alice@corp.example)."""
        return bool(ldap.dn.is_dn(self.user_dn_template % {"user": "x"}))

    @property
    def group_variable(self) -> str:
        """A variable for which groups must be read; empty if none is set."""
        wanted = {
            "LDAP_GROUP_TENANTS": self.group_tenants,
            "LDAP_OPERATOR_GROUP": self.operator_group,
            "LDAP_REQUIRED_GROUP": self.required_group,
        }
        return next((name for name, value in wanted.items() if value), "")

    def connection_options(self) -> dict[int, Any]:
        """Return the options of every connection, to be set in this order. The host's ldap.conf is not used."""
        options = {
            ldap.OPT_NETWORK_TIMEOUT: self.timeout,
            ldap.OPT_TIMEOUT: self.timeout,
            ldap.OPT_REFERRALS: 0,  # Active Directory's lead to servers where we have no account
            ldap.OPT_X_TLS_REQUIRE_CERT: ldap.OPT_X_TLS_DEMAND,
        }
        if self.ca_file:  # libldap by itself knows none, not even the system's, unless an ldap.conf names some
            options[ldap.OPT_X_TLS_CACERTFILE] = self.ca_file
        return options | {ldap.OPT_X_TLS_NEWCTX: 0}  # last: makes the options above count

    def roles(self, groups: Collection[str]) -> dict[str, str]:
        """Return the tenants and roles that membership in these groups gives."""
        roles: dict[str, str] = {}
        for group, places in self.group_tenants.items():
            for tenant, role in places if group in groups else ():
                roles[tenant] = max(role, roles.get(tenant, ROLES[0]), key=ROLES.index)
        return roles


def read_settings(env: environs.Env) -> DirectorySettings | None:
    """Return the LDAP_* settings, or None without LDAP_SERVER_URI.

    Raises environs.EnvError, whose text names the variable, for what is unreadable, misspelt or contradictory.
    """
    try:
        _check_names()
        _check_texts(env)
        return _read_directory(env)
    except environs.EnvError:
        raise
    except ValueError as error:  # environs' own for a NAME_FILE that cannot be read
        raise environs.EnvValidationError(str(error), [str(error)]) from error


def normalize_dn(dn: str) -> str:
    """Return the DN in one spelling: lower case, no spaces around commas, one way of escaping."""
    return str(ldap.dn.dn2str(ldap.dn.str2dn(dn))).lower()


def _read_directory(env: environs.Env) -> DirectorySettings | None:
    uri = env.str("LDAP_SERVER_URI", "")
    if not uri.strip():
        for name in VARIABLES:
            if env.str(name, ""):
                raise InvalidSetting(name, "no-server", "LDAP_SERVER_URI is not set, so it has no effect")
        return None
    servers = _read_servers(uri)
    kind = _read_choice(env, "LDAP_KIND", "openldap", KINDS)
    username, identity, user_filter = KINDS[kind]
    username = _read_attribute(env, "LDAP_USERNAME_ATTRIBUTE", username)
    group_type = _read_choice(env, "LDAP_GROUP_TYPE", "member", GROUP_TYPES)
    start_tls = _read_flag(env, "LDAP_START_TLS", default=servers[0].startswith("ldap:"))
    mail = _read_attribute(env, "LDAP_MAIL_ATTRIBUTE", MAIL)
    directory = DirectorySettings(
        servers=servers,
        kind=kind,
        start_tls=start_tls,
        ca_file=_read_ca_file(env, encrypted=start_tls or servers[0].startswith("ldaps:")),
        timeout=_read_timeout(env),
        bind_dn=env.str("LDAP_BIND_DN", ""),
        bind_password=env.str("LDAP_BIND_PASSWORD", "").rstrip("\r\n"),
        user_base=_read_dn(env, "LDAP_USER_BASE"),
        user_filter=_read_filter(env, user_filter.format(username=username)),
        other_names=_other_name_attributes(env, kind, mail),
        user_dn_template=_read_template(env),
        username_attribute=username,
        id_attribute=_read_attribute(env, "LDAP_ID_ATTRIBUTE", identity),
        first_name_attribute=_read_attribute(env, "LDAP_FIRST_NAME_ATTRIBUTE", FIRST_NAME),
        last_name_attribute=_read_attribute(env, "LDAP_LAST_NAME_ATTRIBUTE", LAST_NAME),
        mail_attribute=mail,
        group_base=_read_dn(env, "LDAP_GROUP_BASE"),
        group_type=group_type,
        nested_groups=_read_flag(env, "LDAP_NESTED_GROUPS", default=GROUP_TYPES[group_type]),
        group_tenants=_read_group_tenants(env),
        operator_group=_read_dn(env, "LDAP_OPERATOR_GROUP"),
        required_group=_read_dn(env, "LDAP_REQUIRED_GROUP"),
    )
    _check_consistency(directory)
    return directory


def _check_names() -> None:
    """Raise for a misspelt name, which would silently mean the default, for some settings the less strict one."""
    known = {name + ending for name in VARIABLES for ending in ("", "_FILE")}
    for name in sorted(os.environ):
        if name not in known and (name.startswith("LDAP_") or name.upper() in known):
            near = get_close_matches(name.upper(), sorted(known), 1)
            raise InvalidSetting(name, "unknown", f"there is no such setting{f'; is {near[0]} meant?' if near else ''}")
        if name in VARIABLES and f"{name}_FILE" in os.environ:
            raise InvalidSetting(name, "set-twice", f"{name}_FILE is set as well; remove one of them")


def _check_texts(env: environs.Env) -> None:
    """Raise unless each value is one line of text, except for lists and JSON. A file may hold anything."""
    for name in VARIABLES:
        try:
            value = env.str(name, "").strip()
        except UnicodeDecodeError as error:
            raise InvalidSetting(f"{name}_FILE", "not-text", "the file is not text in UTF-8") from error
        odd = next((character for character in value if unicodedata.category(character) in CONTROLS), "")
        if odd and not (odd.isspace() and name in ("LDAP_SERVER_URI", "LDAP_GROUP_TENANTS")):
            raise InvalidSetting(
                name,
                "control-character",
                f"it has a line break or another control character in it ({odd!r}); it must be one line",
            )


def _check_consistency(directory: DirectorySettings) -> None:
    """Raise for values that are valid by themselves but not together."""
    _check_encryption(directory)
    _check_base_and_account(directory)
    _check_groups(directory)


def _check_encryption(directory: DirectorySettings) -> None:
    if directory.start_tls and directory.servers[0].startswith("ldaps:"):
        raise InvalidSetting(
            "LDAP_START_TLS",
            "encrypted-already",
            "ldaps:// is encrypted from the first byte; StartTLS goes with ldap://",
        )
    if directory.ca_file and not (directory.start_tls or directory.servers[0].startswith("ldaps:")):
        raise InvalidSetting(
            "LDAP_CA_FILE", "unencrypted", "LDAP_START_TLS is off and the address is ldap://, so nothing is encrypted"
        )


def _check_base_and_account(directory: DirectorySettings) -> None:
    if directory.user_dn_template:
        if not directory.binds_by_dn and not directory.user_base:
            raise InvalidSetting(
                "LDAP_USER_BASE", "needed", "needed to find the entry of a person who binds by a name that is not a DN"
            )
    elif not directory.user_base:
        raise InvalidSetting(
            "LDAP_USER_BASE", "needed", "needed to find people, unless LDAP_USER_DN_TEMPLATE says where they are"
        )
    if directory.bind_dn and not directory.bind_password:
        raise InvalidSetting("LDAP_BIND_PASSWORD", "needed", "needed for LDAP_BIND_DN")
    if directory.bind_password and not directory.bind_dn:
        raise InvalidSetting("LDAP_BIND_DN", "needed", "needed for LDAP_BIND_PASSWORD")


def _check_groups(directory: DirectorySettings) -> None:
    if directory.nested_groups and not GROUP_TYPES[directory.group_type]:
        raise InvalidSetting(
            "LDAP_NESTED_GROUPS",
            "not-nested",
            f"groups by {directory.group_type} are not nested; use LDAP_GROUP_TYPE=member",
        )
    if directory.kind == "activedirectory" and directory.group_type == "uniqueMember":
        raise InvalidSetting(
            "LDAP_GROUP_TYPE", "not-in-active-directory", "Active Directory has no uniqueMember; use member or memberOf"
        )
    if directory.group_variable and directory.group_type != "memberOf" and not directory.group_base:
        raise InvalidSetting("LDAP_GROUP_BASE", "needed", f"needed for {directory.group_variable}")


def _read_choice(env: environs.Env, name: str, default: str, choices: Iterable[str]) -> str:
    value = env.str(name, default)
    if value not in choices:
        raise InvalidSetting(name, "not-a-choice", f"{value!r} is none of {', '.join(choices)}")
    return value


def _read_flag(env: environs.Env, name: str, *, default: bool) -> bool:
    try:
        return env.bool(name, default)
    except environs.EnvError as error:
        raise InvalidSetting(name, "not-a-boolean", "Not a valid boolean: write true or false") from error


def _read_attribute(env: environs.Env, name: str, default: str) -> str:
    value = env.str(name, default).strip()
    if not ATTRIBUTE.fullmatch(value):
        raise InvalidSetting(name, "not-an-attribute", f"{value!r} is not the name of one attribute such as {default}")
    return value


def _read_servers(uri: str) -> tuple[str, ...]:
    servers = tuple(dict.fromkeys(map(_parse_server, re.split(r"[\s,]+", uri.strip()))))
    if len({urlsplit(server).scheme for server in servers}) > 1:
        raise InvalidSetting("LDAP_SERVER_URI", "mixed-schemes", "ldap:// and ldaps:// cannot be mixed")
    return servers


def _parse_server(address: str) -> str:
    """Return scheme://host or scheme://host:port: libldap takes nothing more, and fails silently on some of it."""
    try:
        parts = urlsplit(address)
        port = parts.port  # raises ValueError unless it is a number below 65,536
        (parts.hostname or "").encode("idna")  # as sockets do
    except ValueError as error:  # UnicodeError is one
        raise InvalidSetting("LDAP_SERVER_URI", "bad-address", f"{address!r}: {error}") from error
    if "@" in parts.netloc:  # not quoted: there may be a password in it
        raise InvalidSetting(
            "LDAP_SERVER_URI",
            "account-in-address",
            "an account goes into LDAP_BIND_DN and LDAP_BIND_PASSWORD, not the address",
        )
    if parts.scheme not in ("ldap", "ldaps") or not _is_host_alone(parts):
        raise InvalidSetting(
            "LDAP_SERVER_URI",
            "bad-address",
            f"{address!r} is not like ldaps://ldap.example.com or ldap://ldap.example.com",
        )
    if port == 0 or parts.netloc.endswith(":"):
        raise InvalidSetting("LDAP_SERVER_URI", "bad-port", f"{address!r}: the port is missing, or 0")
    return f"{parts.scheme}://{parts.netloc}"


def _is_host_alone(parts: SplitResult) -> bool:
    host = parts.hostname or ""
    return 0 < len(host) <= LONGEST_HOST and not (parts.path.strip("/") or parts.query or parts.fragment)


def _read_timeout(env: environs.Env) -> float:
    try:
        seconds = env.float("LDAP_TIMEOUT", 5.0)
    except environs.EnvError as error:
        raise InvalidSetting("LDAP_TIMEOUT", "not-a-number", "Not a valid number: write seconds, such as 5") from error
    if not 0.1 <= seconds <= 60:
        raise InvalidSetting("LDAP_TIMEOUT", "out-of-range", f"{seconds:g} is not between 0.1 and 60 seconds")
    return seconds


def _read_ca_file(env: environs.Env, *, encrypted: bool) -> str:
    """Return LDAP_CA_FILE or the system's file of authorities; empty if nothing is encrypted."""
    path = env.str("LDAP_CA_FILE", "")
    if path:
        if os.path.exists(path) and not os.path.isfile(path):  # a device may have no end
            raise InvalidSetting("LDAP_CA_FILE", "not-a-file", f"{path!r} is not a file with certificates in PEM form")
        try:
            ssl.create_default_context(cafile=path)
        except OSError as error:  # ssl.SSLError, for a file without certificates, is one
            hint = "; it is in DER form, which `openssl x509 -inform der` converts" if _is_der(path) else ""
            raise InvalidSetting(
                "LDAP_CA_FILE", "unreadable", f"{path!r} cannot be read as certificates in PEM form: {error}{hint}"
            ) from error
    return path or (_find_system_ca_file() if encrypted else "")


def _is_der(path: str) -> bool:
    """Return whether the file may be a certificate as Windows exports it: a SEQUENCE with a length of two bytes."""
    try:
        with open(path, "rb") as file:
            return file.read(2) == b"\x30\x82"
    except OSError:
        return False


def _find_system_ca_file() -> str:
    """Return SSL_CERT_FILE, as OpenSSL does, or the file of the distribution. Raises if there is none."""
    for path in (ssl.get_default_verify_paths().cafile, *SYSTEM_CA_FILES):
        if path and os.access(path, os.R_OK) and os.path.isfile(path):
            return path
    raise InvalidSetting(
        "LDAP_CA_FILE",
        "no-authorities",
        "this system has no certificate authorities (install ca-certificates), so name those to trust",
    )


def _other_name_attributes(env: environs.Env, kind: str, mail: str) -> tuple[str, ...]:
    if env.str("LDAP_USER_FILTER", ""):
        return ()
    return ("userPrincipalName", mail) if kind == "activedirectory" else (mail,)


def _read_dn(env: environs.Env, name: str) -> str:
    value = env.str(name, "").strip()
    if value and not ldap.dn.is_dn(value):
        raise InvalidSetting(name, "not-a-dn", f"{value!r} is not a DN such as ou=people,dc=example,dc=com")
    return normalize_dn(value)


def _read_filter(env: environs.Env, default: str) -> str:
    value = env.str("LDAP_USER_FILTER", default).strip()
    if "%(user)s" not in value:
        raise InvalidSetting("LDAP_USER_FILTER", "no-user", "%(user)s, the name that was typed, does not occur in it")
    if _has_other_percent(value):
        raise InvalidSetting(
            "LDAP_USER_FILTER", "percent", "write %(user)s for the name that was typed, and %% for a percent sign"
        )
    if not _is_filter(value % {"user": "x"}):
        raise InvalidSetting(
            "LDAP_USER_FILTER", "not-a-filter", f"{value!r} is not a filter in parentheses such as (uid=%(user)s)"
        )
    if not _is_filter(value % {"user": "*"}):
        raise InvalidSetting(
            "LDAP_USER_FILTER",
            "not-for-all",
            f"{value!r} does not find all people with * in place of %(user)s, as syncing needs it;"
            " write it as a whole value, such as (uid=%(user)s)",
        )
    return value


def _has_other_percent(value: str) -> bool:
    return "%" in value.replace("%(user)s", "").replace("%%", "")


def _is_filter(text: str) -> bool:
    """Return whether libldap parses the filter, which it does before it connects; nothing listens at this address."""
    if not text.startswith("("):
        return False  # which libldap takes as well, but not within (&…)
    connection = ldap.initialize("ldapi://%2Fdev%2Fnull")
    try:
        connection.search_ext("", ldap.SCOPE_BASE, text)
    except ldap.FILTER_ERROR:
        return False
    except ldap.SERVER_DOWN:
        return True
    finally:
        connection.unbind_s()
    return True


def _read_template(env: environs.Env) -> str:
    value = env.str("LDAP_USER_DN_TEMPLATE", "").strip()
    if value and ("%(user)s" not in value or _has_other_percent(value)):
        raise InvalidSetting(
            "LDAP_USER_DN_TEMPLATE",
            "no-user",
            "write %(user)s where the name that was typed belongs, and %% for a percent sign",
        )
    return value


class _Object(list[Any]):
    """A JSON object as a list of its pairs, so that a name that occurs twice is noticed."""


def _read_group_tenants(env: environs.Env) -> dict[str, tuple[tuple[str, str], ...]]:
    """Return the places by the DN of their group.

    Read from {"cn=research,ou=groups,dc=example,dc=com": "research", "cn=leads,…": ["research:admin", "sales"]}.
    """
    text = env.str("LDAP_GROUP_TENANTS", "")
    if not text.strip():
        return {}
    try:
        groups = json.loads(text, object_pairs_hook=_Object)
    except (json.JSONDecodeError, RecursionError) as error:
        path = "; a file goes into LDAP_GROUP_TENANTS_FILE" if text.strip().startswith("/") else ""
        raise InvalidSetting("LDAP_GROUP_TENANTS", "not-json", f"not JSON: {error}{path}") from error
    if not isinstance(groups, _Object):
        raise InvalidSetting(
            "LDAP_GROUP_TENANTS",
            "not-an-object",
            'not like {"cn=research,ou=groups,dc=example,dc=com": "research:member"}',
        )
    mapping: dict[str, tuple[tuple[str, str], ...]] = {}
    for group, places in groups:
        if not ldap.dn.is_dn(group) or not group:
            raise InvalidSetting("LDAP_GROUP_TENANTS", "not-a-dn", f"{group!r} is not the DN of a group")
        if normalize_dn(group) in mapping:
            raise InvalidSetting(
                "LDAP_GROUP_TENANTS", "group-twice", f"{group!r} is there twice; give it a list of tenants"
            )
        if places == []:
            raise InvalidSetting("LDAP_GROUP_TENANTS", "no-tenant", f"{group!r} leads to no tenant")
        places = places if isinstance(places, list) and not isinstance(places, _Object) else [places]
        mapping[normalize_dn(group)] = tuple(_parse_tenant_role(place) for place in places)
    return mapping


def _parse_tenant_role(text: Any) -> tuple[str, str]:
    """Return ("research", "admin") for "research:admin"."""
    tenant, separator, role = text.partition(":") if isinstance(text, str) else ("", "", "")
    if not separator:
        role = ROLES[0]
    if not re.fullmatch(r"[-a-zA-Z0-9_]{1,50}", tenant) or role not in ROLES:
        raise InvalidSetting(
            "LDAP_GROUP_TENANTS",
            "not-a-tenant",
            f"{text!r} is not a tenant's short name, alone or with :member or :admin",
        )
    return tenant, role
