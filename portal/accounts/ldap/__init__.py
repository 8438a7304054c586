"""The company directory (LDAP, Active Directory). Nothing outside this package knows LDAP.

`read_settings` reads the LDAP_* variables, `Backend` signs people in over django-auth-ldap, `look_up_people` reads many
people at once. The last two return a `Person`: what the directory says about a person, in our terms; `directory_users`
applies it to accounts. Django's settings import this package, so nothing here imports a model before it is called.
"""

from portal.accounts.ldap.backend import Backend, auth_settings
from portal.accounts.ldap.configuration import DirectorySettings, read_settings
from portal.accounts.ldap.entries import Findings, Person, find_person, look_up_people
from portal.accounts.ldap.errors import (
    AccountDisabled,
    AccountExpired,
    AccountLocked,
    AccountRefused,
    DirectoryError,
    DirectoryRefused,
    DirectoryUnavailable,
    NameTaken,
    NotAdmitted,
    PasswordExpired,
    PasswordMustChange,
    SignInRestricted,
)
from portal.accounts.ldap.examination import Section, examine_directory
from portal.accounts.ldap.findings import Finding
from portal.accounts.ldap.groups import Groups, LdapGroup

__all__ = [
    "AccountDisabled",
    "AccountExpired",
    "AccountLocked",
    "AccountRefused",
    "Backend",
    "DirectoryError",
    "DirectoryRefused",
    "DirectorySettings",
    "DirectoryUnavailable",
    "Finding",
    "Findings",
    "Groups",
    "LdapGroup",
    "NameTaken",
    "NotAdmitted",
    "PasswordExpired",
    "PasswordMustChange",
    "Person",
    "Section",
    "SignInRestricted",
    "auth_settings",
    "examine_directory",
    "find_person",
    "look_up_people",
    "read_settings",
]
