"""Sign-in against the directory: django-auth-ldap searches and binds; the rest, from the entry on, is ours."""

import logging
from datetime import UTC, datetime
from typing import Any

import ldap
from django.conf import settings
from django.dispatch import receiver
from django_auth_ldap.backend import LDAPBackend, ldap_error
from django_auth_ldap.config import LDAPSearch

from portal.accounts.ldap import account_state, connection, entries
from portal.accounts.ldap.configuration import DirectorySettings, normalize_dn
from portal.accounts.ldap.errors import AccountLocked, DirectoryError, DirectoryRefused, NotAdmitted

log = logging.getLogger(__name__)

# What servers answer to a person's own bind, besides INVALID_CREDENTIALS, because of what was typed.
REFUSED_SIGN_IN = (ldap.INAPPROPRIATE_AUTH, ldap.INVALID_DN_SYNTAX, ldap.NO_SUCH_OBJECT)


def auth_settings(directory: DirectorySettings) -> dict[str, Any]:
    """Return the settings of django-auth-ldap, without what `Connections` and `NameSearch` do in its place."""
    direct = bool(directory.user_dn_template)
    return {
        "AUTH_LDAP_SERVER_URI": directory.servers[0],
        "AUTH_LDAP_START_TLS": False,
        "AUTH_LDAP_CONNECTION_OPTIONS": {},
        "AUTH_LDAP_BIND_DN": directory.bind_dn,
        "AUTH_LDAP_BIND_PASSWORD": directory.bind_password,
        "AUTH_LDAP_USER_SEARCH": NameSearch(directory) if directory.user_base else None,
        "AUTH_LDAP_USER_ATTRLIST": directory.attributes,
        "AUTH_LDAP_USER_DN_TEMPLATE": directory.user_dn_template or None,
        "AUTH_LDAP_BIND_AS_AUTHENTICATING_USER": direct,
        "AUTH_LDAP_REFRESH_DN_ON_BIND": direct and not directory.binds_by_dn,
        "AUTH_LDAP_ALWAYS_UPDATE_USER": False,
        "AUTH_LDAP_PERMIT_EMPTY_PASSWORD": False,
    }


class NameSearch(LDAPSearch):  # type: ignore[misc]
    """The search for the person meant by what was typed: `entries.find_entry`."""

    def __init__(self, directory: DirectorySettings) -> None:
        super().__init__(directory.user_base, ldap.SCOPE_SUBTREE, directory.user_filter, directory.attributes)
        self.directory = directory

    def execute(self, bound: Any, filterargs: Any = (), escape: bool = True) -> list[connection.Entry]:
        found = entries.find_entry(self.directory, bound, filterargs["user"])
        return [found] if found else []


class Connections:
    """Opens the connections of django-auth-ldap, in place of the module `ldap`."""

    @staticmethod
    def initialize(_uri: str, **_: Any) -> connection.LdapConnection:
        """Connect to the directory. Raises DirectoryError, which django-auth-ldap lets through."""
        directory = settings.DIRECTORY
        assert directory is not None  # without it this backend is not in the settings
        return connection.connect(directory, bind=not directory.user_dn_template)


class Backend(LDAPBackend):  # type: ignore[misc]
    """Signs people in by their password in the directory, and updates their account from their entry.

    The directory is not asked about the name of a local account, which keeps it. Raises DirectoryError.
    """

    @property
    def ldap(self) -> type[Connections]:
        return Connections

    def authenticate(
        self, request: Any, username: str | None = None, password: str | None = None, **kwargs: Any
    ) -> Any:
        from portal.accounts.models import User

        if username is None or User.objects.filter(username__iexact=username.strip(), directory_id=None).exists():
            return None
        try:
            return super().authenticate(request, _strip_template(username), password, **kwargs)
        except DirectoryError as error:
            log.warning("Sign-in of %s: %s", username, error)
            raise

    def authenticate_ldap_user(self, ldap_user: Any, password: str) -> Any:
        try:
            return super().authenticate_ldap_user(ldap_user, password)
        except AccountLocked:
            # Locked by an administrator: reported whatever was typed, and no wrong passwords precede it.
            is_found = not ldap_user.settings.USER_DN_TEMPLATE and ldap_user.attrs is not None
            if is_found and account_state.find_end_reason(ldap_user.attrs, datetime.now(UTC)):
                return None
            raise

    def get_or_build_user(self, username: str, ldap_user: Any) -> tuple[Any, bool]:
        """Return the updated account. Called when the password has proved right."""
        from portal.accounts import directory_users
        from portal.accounts.models import User

        directory = settings.DIRECTORY
        assert directory is not None  # without it this backend is not in the settings
        with connection.translate_errors():
            person = _load_person(directory, ldap_user)
        if person.end_reason:
            raise account_state.END_REASONS[person.end_reason](f"{ldap_user.dn} is {person.end_reason}")
        if person.is_admitted is None:  # people with an account still get in, but no new ones
            if not User.objects.filter(directory_id=person.id, is_active=True).exists():
                raise DirectoryRefused(
                    f"There is no {directory.required_group}, or we may not read it (LDAP_REQUIRED_GROUP)",
                    "group-missing",
                )
        elif not person.is_admitted:
            raise NotAdmitted(f"not in {directory.required_group}")
        return directory_users.apply_entry(person)[0], False

    def get_user(self, user_id: Any) -> Any:
        """Return the person of a session; None if inactive, so that a leaver's session ends with the next click."""
        user = super().get_user(user_id)
        return user if user is not None and user.is_active and user.directory_id else None


def _strip_template(username: str) -> str:
    """Return the name without the domain that LDAP_USER_DN_TEMPLATE adds, so that people may type it or not."""
    directory = settings.DIRECTORY
    template = directory.user_dn_template if directory else ""
    if not template or directory is None or directory.binds_by_dn:
        return username
    before, after = template.split("%(user)s", 1)
    name = username.strip()
    inner = name[len(before) : len(name) - len(after)]
    return inner if inner and name.casefold() == f"{before}{inner}{after}".casefold() else username


def _load_person(directory: DirectorySettings, ldap_user: Any) -> entries.Person:
    from portal.accounts import directory_groups

    if ldap_user.attrs is None:
        raise DirectoryRefused(f"{ldap_user.dn} may not read its own entry")
    if directory.user_dn_template and not directory.binds_by_dn and not is_bound_as(directory, ldap_user):
        raise ldap_user.AuthenticationFailed("the account that bound is not the one that was found")
    entry = connection.Entry(ldap_user.dn, ldap_user.attrs)
    return entries.read_person(directory, ldap_user.connection, entry, directory_groups.remembered_groups())


def is_bound_as(directory: DirectorySettings, ldap_user: Any) -> bool:
    """Return whether the account that bound is the entry that was found.

    In Active Directory alice@corp.example may be one person's userPrincipalName and `alice` another's sAMAccountName.
    There the root entry shows the security ids of the account that is bound ([MS-ADTS] 3.1.1.3.2, tokenGroups), of
    which a person's own is one; elsewhere "Who am I?" (RFC 4532) returns a DN.
    """
    if directory.kind == "activedirectory":
        return entries.security_id(ldap_user.attrs) in entries.token_groups(ldap_user.connection)
    form, _, who = ldap_user.connection.whoami_s().partition(":")
    return form == "dn" and normalize_dn(who) == normalize_dn(ldap_user.dn)


@receiver(ldap_error, sender=Backend)
def _raise_directory_error(context: str, exception: ldap.LDAPError, **_: Any) -> None:
    """Raise DirectoryError for an error that django-auth-ldap would take for a wrong password; it lets this through."""
    if context == "authenticate" and isinstance(exception, REFUSED_SIGN_IN):
        return
    raise connection.to_directory_error(exception) from exception
