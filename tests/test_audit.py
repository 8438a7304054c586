"""What `make audit` makes of pip-audit's reports."""

from tests.audit import INCOMPLETE, LOCK, VULNERABLE, Audit, exit_status, lock_files, read_report
from tests.installation import ROOT

SAFE = {"name": "django", "version": "5.2.19", "vulns": []}
VULNERABLE_ROW = {"name": "old", "version": "1.0", "vulns": [{"id": "PYSEC-1"}, {"id": "PYSEC-2"}]}
UNKNOWN = {"name": "ours", "skip_reason": "not found on PyPI"}


def test_vulnerable_packages_are_named_with_their_ids():
    found = read_report("a.lock", {"dependencies": [SAFE, VULNERABLE_ROW]})
    assert found == Audit("a.lock", 2, ("old 1.0: PYSEC-1, PYSEC-2",))
    assert exit_status([Audit("b.lock", 1), found]) == VULNERABLE
    assert any("PYSEC-2" in line for line in found.lines())


def test_what_could_not_be_asked_about_is_no_success():
    found = read_report("a.lock", {"dependencies": [SAFE, UNKNOWN]})
    assert (found.vulnerable, found.unknown) == ((), ("ours",))
    assert exit_status([found]) == INCOMPLETE
    assert exit_status([Audit("a.lock", failure="no network")]) == INCOMPLETE


def test_a_lock_file_without_a_finding_is_a_success():
    assert exit_status([read_report("a.lock", {"dependencies": [SAFE]})]) == 0


def test_every_lock_file_is_audited_its_own_too():
    assert {LOCK, ROOT / "requirements.lock", ROOT / "deploy" / "release" / "build.lock"} <= set(lock_files())
