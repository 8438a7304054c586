"""Sign-in against the directory, over django-auth-ldap: it finds and binds; what follows from an entry is ours."""

import logging
from datetime import UTC, datetime
from typing import Any

import ldap
from django.conf import settings
from django.dispatch import receiver
from django_auth_ldap.backend import LDAPBackend, ldap_error
from django_auth_ldap.config import LDAPSearch

from portal.accounts.ldap import account_state, connection, entries
from portal.accounts.ldap.configuration import Directory, normal
from portal.accounts.ldap.errors import AccountLocked, DirectoryError, NotAdmitted, Refused

log = logging.getLogger(__name__)

# What servers say to a person's own bind besides INVALID_CREDENTIALS, because of what was typed.
REFUSED_SIGN_IN = (ldap.INAPPROPRIATE_AUTH, ldap.INVALID_DN_SYNTAX, ldap.NO_SUCH_OBJECT)


def auth_settings(directory: Directory) -> dict[str, Any]:
    """Return the settings of django-auth-ldap, less what `Connections` and `NameSearch` do in its place."""
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
    """Who is meant by what was typed: `entries.by_name`."""

    def __init__(self, directory: Directory) -> None:
        super().__init__(directory.user_base, ldap.SCOPE_SUBTREE, directory.user_filter, directory.attributes)
        self.directory = directory

    def execute(self, bound: Any, filterargs: Any = (), escape: bool = True) -> list[connection.Entry]:
        found = entries.by_name(self.directory, bound, filterargs["user"])
        return [found] if found else []


class Connections:
    """What django-auth-ldap opens its connection with, in place of the module `ldap`."""

    @staticmethod
    def initialize(_uri: str, **_: Any) -> connection.Connection:
        """Raise DirectoryError, which django-auth-ldap lets through."""
        directory = settings.DIRECTORY
        assert directory is not None  # without it this backend is not in the settings
        return connection.connect(directory, bind=not directory.user_dn_template)


class Backend(LDAPBackend):  # type: ignore[misc]
    """Signs people in by their password in the directory, whose word on them is then written down.

    A name of a local account is never asked about: whoever holds it here keeps it. Raises DirectoryError.
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
            return super().authenticate(request, _as_template_wants(username), password, **kwargs)
        except DirectoryError as error:
            log.warning("Sign-in of %s: %s", username, error)
            raise

    def authenticate_ldap_user(self, ldap_user: Any, password: str) -> Any:
        try:
            return super().authenticate_ldap_user(ldap_user, password)
        except AccountLocked:
            # By an administrator: told whatever was typed, and it takes no wrong passwords to come to that.
            is_found = not ldap_user.settings.USER_DN_TEMPLATE and ldap_user.attrs is not None
            if is_found and account_state.ended(ldap_user.attrs, datetime.now(UTC)):
                return None
            raise

    def get_or_build_user(self, username: str, ldap_user: Any) -> tuple[Any, bool]:
        """Called when the password has proved right."""
        from portal.accounts import directory_users
        from portal.accounts.models import User

        directory = settings.DIRECTORY
        assert directory is not None  # without it this backend is not in the settings
        with connection.translate_errors():
            person = _proved(directory, ldap_user)
        if person.ended:
            raise account_state.ENDED[person.ended](f"{ldap_user.dn} is {person.ended}")
        if person.is_admitted is None:  # who came in before still does, but nobody new
            if not User.objects.filter(directory_id=person.id, is_active=True).exists():
                raise Refused(f"There is no {directory.required_group}, or we may not read it (LDAP_REQUIRED_GROUP)")
        elif not person.is_admitted:
            raise NotAdmitted(f"not in {directory.required_group}")
        return directory_users.apply_entry(person)[0], False

    def get_user(self, user_id: Any) -> Any:
        """None for who is no longer active, so that a leaver's open session ends with the next click."""
        user = super().get_user(user_id)
        return user if user is not None and user.is_active and user.directory_id else None


def _as_template_wants(username: str) -> str:
    """Without the domain that LDAP_USER_DN_TEMPLATE adds: alice@corp.example and alice are then typed alike."""
    directory = settings.DIRECTORY
    template = directory.user_dn_template if directory else ""
    if not template or directory is None or directory.binds_by_dn:
        return username
    before, after = template.split("%(user)s", 1)
    name = username.strip()
    inner = name[len(before) : len(name) - len(after)]
    return inner if inner and name.casefold() == f"{before}{inner}{after}".casefold() else username


def _proved(directory: Directory, ldap_user: Any) -> entries.Person:
    from portal.accounts import directory_groups

    if ldap_user.attrs is None:
        raise Refused(f"{ldap_user.dn} may not read its own entry")
    if directory.user_dn_template and not directory.binds_by_dn and not _is_bound_as(directory, ldap_user):
        raise ldap_user.AuthenticationFailed("who bound is not who was found")
    entry = connection.Entry(ldap_user.dn, ldap_user.attrs)
    return entries.in_full(directory, ldap_user.connection, entry, directory_groups.remembered_groups())


def _is_bound_as(directory: Directory, ldap_user: Any) -> bool:
    """Return whether the server means the entry that was found by the person who bound.

    In Active Directory alice@corp.example may be one person's userPrincipalName and `alice` another's sAMAccountName.
    There the root entry shows the security ids of whoever asks ([MS-ADTS] 3.1.1.3.2, tokenGroups), of which a person's
    own is one; elsewhere "Who am I?" (RFC 4532) gives a DN.
    """
    if directory.kind == "activedirectory":
        return entries.security_id(ldap_user.attrs) in entries.security_ids_of_asker(ldap_user.connection)
    form, _, who = ldap_user.connection.whoami_s().partition(":")
    return form == "dn" and normal(who) == normal(ldap_user.dn)


@receiver(ldap_error, sender=Backend)
def _tell(context: str, exception: ldap.LDAPError, **_: Any) -> None:
    """django-auth-ldap would take any trouble for a wrong password; what a receiver raises, it lets through."""
    if context == "authenticate" and isinstance(exception, REFUSED_SIGN_IN):
        return
    raise connection.our_error(exception) from exception
