"""The alert rules: each fires for what it is for and not otherwise, by promtool, and has its place in the runbook."""

import re
import subprocess
from itertools import chain
from typing import Any

import pytest
import yaml

from tests.installation import ROOT
from tests.monitoring.alerts import CASES, input_of

MONITORING = ROOT / "deploy" / "monitoring"
RULES = MONITORING / "alerts.yml"


def read_alerts() -> dict[str, dict[str, Any]]:
    """Return the rules of alerts by name."""
    rules = chain.from_iterable(group["rules"] for group in yaml.safe_load(RULES.read_text())["groups"])
    return {rule["alert"]: rule for rule in rules if "alert" in rule}


def promtool(*arguments: object) -> str:
    """Run promtool and return its output; fail if it fails."""
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_rules_are_well_formed():
    promtool("check", "rules", RULES)


def test_the_configuration_finds_the_rules_where_the_book_puts_them(tmp_path):
    (tmp_path / "prometheus.yml").write_text((MONITORING / "prometheus.yml").read_text())
    (tmp_path / "madoguchi").mkdir()
    (tmp_path / "madoguchi" / "alerts.yml").write_text(RULES.read_text())
    assert "1 rule files found" in promtool("check", "config", tmp_path / "prometheus.yml")


def test_each_alert_fires_for_what_it_is_for_and_only_then(tmp_path):
    alerts = read_alerts()
    tests = [input_of(case, alerts[case.alert]) for case in CASES]
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", file)


@pytest.mark.parametrize("fires", [True, False])
def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not(fires):
    assert {case.alert for case in CASES if bool(case.fires) == fires} == set(read_alerts())


def test_every_alert_has_a_place_in_the_runbook_and_says_what_is_wrong():
    headings = re.findall(r"^#+ (.+)$", (ROOT / "deploy" / "OPERATIONS.md").read_text(), re.MULTILINE)
    anchors = [re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings]
    for name, rule in read_alerts().items():
        document, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert (document, anchor) == ("OPERATIONS.md", name.lower())
        assert anchors.count(anchor) == 1, name
        assert rule["annotations"]["summary"].endswith("."), name
        assert rule["labels"]["severity"] in ("critical", "warning"), name


def test_the_runbook_names_no_alert_that_there_is_not():
    headings = re.findall(r"^#+ (Madoguchi[A-Z]\w+)$", (ROOT / "deploy" / "OPERATIONS.md").read_text(), re.MULTILINE)
    assert set(headings) == set(read_alerts())
