"""Questions to the directory: who is this, which groups hold them, is anybody there."""

import socket
import ssl
import unicodedata
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import ldap
import ldap.filter
from django_auth_ldap.config import LDAPSearch

from portal.accounts.directory.configuration import Directory, normal
from portal.accounts.directory.errors import DirectoryError, NoAnswer, Refused

# LDAP_MATCHING_RULE_IN_CHAIN: Active Directory follows groups within groups by itself.
IN_CHAIN = "member:1.2.840.113556.1.4.1941:"
CHUNK = 50  # entries asked for at once in `look_up`; far below the 1,000 that Active Directory gives at most
# libldap says the same of a certificate that it does not accept as of a server that is gone.
UNTRUSTED = (ldap.SERVER_DOWN, ldap.CONNECT_ERROR)
# What a server that is away, ending or overloaded makes of a question.
SILENCE = (
    *UNTRUSTED,
    ldap.TIMEOUT,
    ldap.TIMELIMIT_EXCEEDED,
    ldap.UNAVAILABLE,
    ldap.BUSY,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """What the directory says about somebody. `roles` maps tenants' short names to "member" or "admin";
    `is_operator` is None when the directory does not decide it."""

    id: str
    username: str
    first_name: str
    last_name: str
    mail: str
    roles: Mapping[str, str]
    is_operator: bool | None
    is_admitted: bool


def answering_server(directory: Directory) -> str:
    """The first server that answers; waits up to `timeout` seconds for each that does not.

    Asked before every connection, because libldap itself (2.5 with GnuTLS, as in Debian 12) turns to the next server
    only when a connection is refused, and never returns, with one core at 100 %, when a server accepts the connection
    and then says nothing to the TLS handshake. Raises NoAnswer.
    """
    for server in directory.servers:
        if _answers(server, directory.timeout):
            return server
    raise NoAnswer(f"The directory does not answer within {directory.timeout:g} s ({' '.join(directory.servers)})")


def _answers(server: str, timeout: float) -> bool:
    """Whether anybody is there; whether it is the right one is for libldap to say, whose errors say more."""
    parts = urlsplit(server)
    if parts.scheme == "ldaps":
        return _shakes_hands(parts.hostname or "", parts.port or 636, timeout)
    connection = ldap.initialize(server)
    connection.set_option(ldap.OPT_NETWORK_TIMEOUT, timeout)
    connection.set_option(ldap.OPT_TIMEOUT, timeout)
    try:
        connection.search_s("", ldap.SCOPE_BASE, attrlist=["1.1"])
    except SILENCE:
        return False
    except ldap.LDAPError:
        return True  # a refusal is an answer
    else:
        return True
    finally:
        connection.unbind_s()


def _shakes_hands(host: str, port: int, timeout: float) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), timeout) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return True
    except ssl.SSLError:
        return True  # a refusal is an answer
    except OSError:
        return False


def look_up(directory: Directory, ids: Collection[str]) -> dict[str, Person]:
    """Who of these is in the directory and could sign in (or lacks only the required group), by id.

    Blocks for as long as the directory needs: a search for every 50 people and one or more for the groups of each.
    Raises NoAnswer or Refused, then nothing is known about anybody.
    """
    wanted = sorted(ids)
    found: dict[str, Person] = {}
    with _service_connection(directory) as connection:
        for start in range(0, len(wanted), CHUNK):
            anybody = directory.user_filter % {"user": "*"}
            these = "".join(_by_id(directory, id) for id in wanted[start : start + CHUNK])
            for dn, attributes in _search(
                connection, directory.user_base, f"(&{anybody}(|{these}))", directory.attributes
            ):
                person = person_of(directory, connection, dn, attributes)
                found[person.id] = person
    return found


def find(directory: Directory, username: str) -> Person | None:
    """Who signs in by this name. Raises NoAnswer or Refused."""
    with _service_connection(directory) as connection:
        this = directory.user_filter % {"user": ldap.filter.escape_filter_chars(username)}
        entries = _search(connection, directory.user_base, this, directory.attributes)
        return person_of(directory, connection, *entries[0]) if len(entries) == 1 else None


@contextmanager
def _service_connection(directory: Directory) -> Iterator[Any]:
    """A connection bound as LDAP_BIND_DN (or nobody, if the directory answers nobody)."""
    if not directory.user_base or (directory.user_dn_template and not directory.bind_dn):
        raise Refused("LDAP_USER_BASE and LDAP_BIND_DN are needed to look people up who do not sign in themselves")
    with errors_of_ours():
        connection = ldap.initialize(answering_server(directory))
        try:
            for option, value in directory.options().items():
                connection.set_option(option, value)
            if directory.start_tls:
                connection.start_tls_s()
            connection.simple_bind_s(directory.bind_dn, directory.bind_password)
            yield connection
        finally:
            connection.unbind_s()


@contextmanager
def errors_of_ours() -> Iterator[None]:
    """LDAP's errors inside become NoAnswer or Refused."""
    try:
        yield
    except ldap.LDAPError as error:
        raise our_error(error) from error


def our_error(error: ldap.LDAPError) -> DirectoryError:
    """The sentence is for operators; people are told by the kind of error."""
    facts = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
    said = ": ".join(str(facts[name]) for name in ("desc", "info") if facts.get(name)) or type(error).__name__
    if isinstance(error, UNTRUSTED):
        said += "; if the server is up: LDAP_CA_FILE does not vouch for its certificate, or that is for another name"
    if isinstance(error, SILENCE):
        return NoAnswer(f"The directory does not answer ({said})")
    return Refused(f"The directory refuses what the portal asks ({said})")


def _search(connection: Any, base: str, query: str, attributes: list[str]) -> list[tuple[str, Mapping[str, Any]]]:
    """Entries as (DN, attributes); the values are str where they are UTF-8, else bytes."""
    # LDAPSearch fills its filter by %, so a percent sign in a DN would be taken for a place to fill
    return list(LDAPSearch(base, ldap.SCOPE_SUBTREE, query.replace("%", "%%"), attributes).execute(connection))


def _groups(directory: Directory, connection: Any, dn: str, attributes: Mapping[str, Any]) -> set[str]:
    """The DNs, in normal form, of all groups of this person; none if no setting asks for groups."""
    if not directory.group_variable:
        return set()
    if directory.group_type == "memberOf":
        return {normal(group) for group in attributes.get("memberOf", [])}
    if directory.group_type == "memberUid":
        member = _matches("memberUid", [first(attributes, directory.username_attribute)])
        primary = _matches("gidNumber", attributes.get("gidNumber", []))
        return _groups_that(directory, connection, f"(|{member}{primary})")
    if directory.nested_groups and directory.kind == "activedirectory":
        return _groups_that(directory, connection, _matches(IN_CHAIN, [dn]))
    found: set[str] = set()
    members = {dn}
    while members:  # the groups of these, then the groups of those; every group is asked about once
        holders = _groups_that(directory, connection, f"(|{_matches(directory.group_type, sorted(members))})")
        members = holders - found if directory.nested_groups else set()
        found |= holders
    return found


def _groups_that(directory: Directory, connection: Any, query: str) -> set[str]:
    return {normal(dn) for dn, _ in _search(connection, directory.group_base, query, ["1.1"])}


def _matches(attribute: str, values: Iterable[str]) -> str:
    return "".join(f"({attribute}={ldap.filter.escape_filter_chars(value)})" for value in values)


# What our columns hold of a name that tells people apart.
LONGEST_NAME, LONGEST_ID = 150, 255


def person_of(directory: Directory, connection: Any, dn: str, attributes: Mapping[str, Any]) -> Person:
    """Raises Refused for an entry without a name or an id, or with one that is longer than our columns."""
    groups = _groups(directory, connection, dn, attributes)
    username = unicodedata.normalize("NFKC", first(attributes, directory.username_attribute)).strip().lower()
    identity = _id(directory, attributes)
    for value, most, variable in (
        (username, LONGEST_NAME, "LDAP_USERNAME_ATTRIBUTE"),
        (identity, LONGEST_ID, "LDAP_ID_ATTRIBUTE"),
    ):
        if not value:
            raise Refused(f"{dn} has no value, or none that we may read, of the attribute in {variable}")
        if len(value) > most:  # cut off, it might be another person's
            raise Refused(f"{dn} has a value of more than {most} characters in the attribute in {variable}")
    return Person(
        id=identity,
        username=username,
        first_name=first(attributes, directory.first_name_attribute),
        last_name=first(attributes, directory.last_name_attribute),
        mail=first(attributes, directory.mail_attribute),
        roles=directory.roles(groups),
        is_operator=directory.operator_group in groups if directory.operator_group else None,
        is_admitted=not directory.required_group or directory.required_group in groups,
    )


def first(attributes: Mapping[str, Any], name: str) -> str:
    values = attributes.get(name) or [""]
    return values[0] if isinstance(values[0], str) else ""


def security_id(attributes: Mapping[str, Any]) -> bytes:
    """A person's own; only of Active Directory, empty if it may not be read."""
    return _first_bytes(attributes, "objectSid")


def security_ids_of_asker(connection: Any) -> list[bytes]:
    """The person's own and those of their groups; none if the server has no such thing."""
    answer = connection.search_s("", ldap.SCOPE_BASE, attrlist=["tokenGroups"])
    return [value for _, attributes in answer for value in attributes.get("tokenGroups", []) if value]


def _first_bytes(attributes: Mapping[str, Any], name: str) -> bytes:
    """LDAPSearch makes str of what happens to be UTF-8."""
    value = (attributes.get(name) or [b""])[0]
    return value.encode() if isinstance(value, str) else bytes(value)


def _id(directory: Directory, attributes: Mapping[str, Any]) -> str:
    """What stays when a person's name changes. objectGUID is 16 bytes; it is kept as Windows' own tools print it."""
    if directory.id_attribute.lower() != "objectguid":
        return first(attributes, directory.id_attribute)
    value = _first_bytes(attributes, directory.id_attribute)
    return str(uuid.UUID(bytes_le=value)) if value else ""


def _by_id(directory: Directory, identity: str) -> str:
    if directory.id_attribute.lower() == "objectguid":
        value = "".join(f"\\{byte:02x}" for byte in uuid.UUID(identity).bytes_le)
        return f"({directory.id_attribute}={value})"
    return _matches(directory.id_attribute, [identity])
