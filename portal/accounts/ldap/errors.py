"""What can go wrong besides a wrong password. None of it counts as a failed attempt to sign in.

DirectoryError
├── DirectoryUnavailable  no server answers within the time-out, or none that we may trust
├── DirectoryRefused      a server answers, but refuses the request: our own account, a base or a filter is wrong
├── NotAdmitted           the password is right, but the person is not in the group that may sign in
├── NameTaken             the password is right, but the name belongs to a local account
└── AccountRefused        the directory refuses this account, whatever the password, or with the right one
    ├── AccountDisabled     switched off there
    ├── AccountExpired      its last day has passed
    ├── AccountLocked       after too many wrong passwords, for a while or until it is unlocked there
    ├── PasswordExpired     the right password, but too old
    ├── PasswordMustChange  the right password, but only to be changed
    └── SignInRestricted    the right password, but not at this hour or from this machine
"""


class DirectoryError(Exception):
    """The directory cannot say whether this person may sign in, or says no for a reason other than the password.

    `code` names the kind of error, `cause` what was found to be its reason.
    """

    code = "directory"

    def __init__(self, sentence: str = "", cause: str = "") -> None:
        super().__init__(sentence)
        self.cause = cause or self.code


class DirectoryUnavailable(DirectoryError):
    code = "unavailable"


class DirectoryRefused(DirectoryError):
    code = "refused"


class NotAdmitted(DirectoryError):
    code = "not-admitted"


class NameTaken(DirectoryError):
    code = "name-taken"


class AccountRefused(DirectoryError):
    code = "account-refused"


class AccountDisabled(AccountRefused):
    code = "account-disabled"


class AccountExpired(AccountRefused):
    code = "account-expired"


class AccountLocked(AccountRefused):
    code = "account-locked"


class PasswordExpired(AccountRefused):
    code = "password-expired"


class PasswordMustChange(AccountRefused):
    code = "password-must-change"


class SignInRestricted(AccountRefused):
    code = "sign-in-restricted"
