"""What can go wrong besides a wrong password. None of it counts as a failed attempt to sign in.

DirectoryError
├── NoAnswer      no server answers within the time-out, or none that we may trust
├── Refused       a server answers, but not what we ask: our own account, a base or a filter is wrong
├── NotAdmitted   the password is right, but the person is not in the group that may sign in
└── NameTaken     the password is right, but the name belongs to a local account
"""


class DirectoryError(Exception):
    """The directory could not say whether this person may sign in, or says no for another reason than the password."""


class NoAnswer(DirectoryError):
    pass


class Refused(DirectoryError):
    pass


class NotAdmitted(DirectoryError):
    pass


class NameTaken(DirectoryError):
    pass
