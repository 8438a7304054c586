"""The Grafana dashboards: they are what their script builds, and Prometheus can answer each query."""

import json
import re
import subprocess
import sys
from typing import Any

import yaml

from tests.installation import ROOT

MONITORING = ROOT / "deploy" / "monitoring"
DASHBOARDS = MONITORING / "dashboards"


def read_dashboards() -> dict[str, dict[str, Any]]:
    return {path.name: json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))}


def queries_of(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_the_files_are_what_the_script_builds(tmp_path):
    script = MONITORING / "dashboards.py"
    subprocess.run([sys.executable, script, tmp_path / "built"], check=True, timeout=60)
    built = {path.name: path.read_bytes() for path in (tmp_path / "built").iterdir()}
    assert len(built) == 4
    assert built == {path.name: path.read_bytes() for path in DASHBOARDS.iterdir()}


def test_prometheus_understands_every_query(tmp_path):
    """Each as a rule, which promtool checks. What is chosen above a dashboard is in quotes everywhere."""
    queries = [query for dashboard in read_dashboards().values() for query in queries_of(dashboard)]
    rules = [{"record": f"of_a_panel:{number}", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(queries) > 30


def test_recorded_figures_are_those_of_the_rules():
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    recorded = {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}
    text = " ".join(query for dashboard in read_dashboards().values() for query in queries_of(dashboard))
    assert set(re.findall(r"madoguchi:[\w:]+", text)) <= recorded


def test_dashboards_have_the_form_that_grafana_imports():
    """Ids and addresses are unique, panels do not overlap, and every choice that a query names is there."""
    dashboards = read_dashboards()
    assert len({one["uid"] for one in dashboards.values()}) == len(dashboards)
    for dashboard in dashboards.values():
        panels = dashboard["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        cells = [
            (x, y)
            for place in (panel["gridPos"] for panel in panels)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ]
        assert len(set(cells)) == len(cells)
        assert max(x for x, _ in cells) == 23
        chosen = {choice["name"] for choice in dashboard["templating"]["list"]}
        assert set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard))) - {"__all"} == chosen


def test_dashboards_show_nothing_of_people():
    for dashboard in read_dashboards().values():
        assert not re.search(r"\b(user|person|tenant|key|people)\b", " ".join(queries_of(dashboard)))
