"""What prevents a backup or its restoration."""


class BackupRefused(Exception):
    """Something prevents it; `str()` says what, and what to do. What was there before is unchanged."""
