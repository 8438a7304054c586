"""The parts of `make rehearse` that need no hosts: its protocol, settings as operators fill them in, versions."""

import json
import sys

import pytest

from deploy.rehearse.bundles import raise_version
from deploy.rehearse.protocol import Deviation, Protocol, Step, StepFailed, render
from deploy.rehearse.site import UnderLoad, fill_in
from tests.installation import ROOT


def test_a_step_that_fails_is_named_with_its_number_and_is_no_row():
    protocol = Protocol(say=lambda text: None)
    with protocol.step("Boot"):
        pass
    with pytest.raises(StepFailed, match=r"Step 2, 'Install', failed: no disk"), protocol.step("Install"):
        raise Deviation("no disk")
    assert [step.name for step in protocol.steps] == ["Boot"]


def test_a_step_is_a_row_with_its_seconds_and_what_was_seen():
    times = iter([10.0, 12.5])
    protocol = Protocol(say=lambda text: None, clock=lambda: next(times))
    with protocol.step("Boot") as step:
        step.see("running")
        step.see("in time")
    assert "| 1 | Boot | 2.5 | running; in time |" in render(protocol.steps, "2026-12-01", {}).splitlines()


def test_what_was_seen_cannot_break_the_table():
    text = render([Step("Boot", ["a | b\nc"], 1.0)], "2026-12-01", {})
    assert text.splitlines()[-1] == r"| 1 | Boot | 1.0 | a \| b c |"


def test_settings_are_filled_into_the_lines_of_the_shipped_example():
    example = (ROOT / "deploy" / "environment.example").read_text()
    filled = fill_in(example, {"PUBLIC_URL": "https://llm", "MADOGUCHI_VAR": "/srv/state"}).splitlines()
    assert "PUBLIC_URL=https://llm" in filled
    assert "MADOGUCHI_VAR=/srv/state" in filled
    assert filled == [line for line in filled if not line.startswith("#PUBLIC_URL")]
    assert example.splitlines()[0] not in filled


def test_a_setting_of_which_the_example_has_no_line_is_a_deviation():
    with pytest.raises(Deviation, match="LDAP_OTHER"):
        fill_in("# Fill in\n#LDAP_SERVER_URI=x\n", {"LDAP_SERVER_URI": "y", "LDAP_OTHER": "z"})


def test_the_next_version_changes_the_version_alone():
    text = '[project]\nname = "x"\nversion = "1.2.9"\nrequires = "1.2.9"\n'
    assert raise_version(text) == '[project]\nname = "x"\nversion = "1.2.10"\nrequires = "1.2.9"\n'


class Desk:
    """Takes the place of a site: its load is this program."""

    key = "key"

    def __init__(self, program: str) -> None:
        self.program = program

    def calls(self, *words: str) -> list[str]:
        return [sys.executable, "-c", self.program]


def test_a_load_that_fails_itself_is_a_deviation_with_what_it_printed():
    with (
        pytest.raises(Deviation, match=r"status 1.*no such certificate"),
        UnderLoad(Desk("exit('no such certificate')")),
    ):
        pass


def test_what_failed_under_a_load_is_not_hidden_by_a_load_that_failed_too():
    with pytest.raises(Deviation, match="no host"), UnderLoad(Desk("exit(1)")):
        raise Deviation("no host")


def load_with_failures(*failures: str) -> UnderLoad:
    with UnderLoad(Desk(f"print({json.dumps({'failures': failures})!r})")) as load:
        pass
    return load


def test_calls_may_fail_within_seconds_of_a_loss():
    load_with_failures("100.0 calls 503", "110.0 streams cut").check(100.0, 110.0)


@pytest.mark.parametrize("moment", [99.0, 110.5])
def test_a_call_that_fails_before_a_loss_or_long_after_it_is_a_deviation(moment):
    with pytest.raises(Deviation, match="calls failed"):
        load_with_failures(f"{moment} calls 503").check(100.0, 110.0)
