"""Tests that failed beside others are run once more, alone, and count as failed if they fail again."""

import json

import pytest

from tests import alone


@pytest.fixture
def failed(tmp_path, monkeypatch):
    """Have so many tests of a file be those that failed, all of which pass or fail now."""

    def failed(number: int, verdict: str) -> None:
        path = tmp_path / "test_some.py"
        path.write_text("".join(f"def test_{n}(): assert {verdict}\n" for n in range(number)))
        written = tmp_path / "lastfailed"
        written.write_text(json.dumps({f"{path}::test_{n}": True for n in range(number)}))
        monkeypatch.setattr(alone, "FAILED", written)

    return failed


@pytest.mark.parametrize(("number", "verdict", "status"), [(2, "True", 0), (1, "False", 1), (13, "True", 1)])
def test_few_that_pass_alone_are_no_failure_and_all_else_is(failed, number, verdict, status):
    failed(number, verdict)
    assert alone.main() == status


def test_a_run_that_failed_without_a_failed_test_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(alone, "FAILED", tmp_path / "nothing")
    assert alone.main() == 1


def test_a_file_that_cannot_be_read_has_failed(tmp_path, monkeypatch):
    written = tmp_path / "lastfailed"
    written.write_text(json.dumps({"tests/test_broken.py": True}))
    monkeypatch.setattr(alone, "FAILED", written)
    assert alone.main() == 1
