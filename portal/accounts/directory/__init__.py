"""The company directory (LDAP, Active Directory). Nothing outside this package knows LDAP.

`read` takes the LDAP_* variables, `Backend` signs people in over django-auth-ldap, `look_up` reads many people at once.
The last two give a `Person`: what the directory says about somebody, in our terms. `people.follow` writes it down.
Django's settings import this package, so nothing here imports a model before it is called.
"""

from portal.accounts.directory.backend import Backend, auth_settings
from portal.accounts.directory.configuration import Directory, read
from portal.accounts.directory.entries import Findings, Person, find, look_up
from portal.accounts.directory.errors import (
    AccountDisabled,
    AccountExpired,
    AccountLocked,
    AccountRefused,
    DirectoryError,
    NameTaken,
    NoAnswer,
    NotAdmitted,
    PasswordExpired,
    PasswordMustChange,
    Refused,
    SignInRestricted,
)
from portal.accounts.directory.examination import Section, examine
from portal.accounts.directory.findings import Finding
from portal.accounts.directory.groups import Group, Groups

__all__ = [
    "AccountDisabled",
    "AccountExpired",
    "AccountLocked",
    "AccountRefused",
    "Backend",
    "Directory",
    "DirectoryError",
    "Finding",
    "Findings",
    "Group",
    "Groups",
    "NameTaken",
    "NoAnswer",
    "NotAdmitted",
    "PasswordExpired",
    "PasswordMustChange",
    "Person",
    "Refused",
    "Section",
    "SignInRestricted",
    "auth_settings",
    "examine",
    "find",
    "look_up",
    "read",
]
