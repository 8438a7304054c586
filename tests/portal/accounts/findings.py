"""What `manage.py checkdirectory` finds in the directory to which the portal is connected."""

from django.conf import settings

from portal.accounts import directory_examination
from portal.accounts.ldap import Finding


def check(name: str = "") -> list[Finding]:
    """Return all findings; with `name` those about this person as well."""
    assert settings.DIRECTORY is not None
    sections = directory_examination.examine(settings.DIRECTORY, name)
    return [finding for section in sections for finding in section.findings]


def failures(name: str = "") -> list[Finding]:
    """Return what does not work."""
    return [finding for finding in check(name) if finding.ok is False]


def failure_codes(name: str = "") -> list[str]:
    return [finding.code for finding in failures(name)]


def texts(code: str, findings: list[Finding]) -> list[str]:
    """Return the texts of the findings with this code."""
    return [finding.text for finding in findings if finding.code == code]
