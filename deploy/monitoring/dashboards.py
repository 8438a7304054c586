"""Build the Grafana dashboards: `python3 deploy/monitoring/dashboards.py` writes dashboards/*.json beside it.

Needs nothing but Python 3.11. The files are what this writes, byte for byte; change this, never them.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 24, 8  # Grafana's columns; rows of a panel
SCHEMA = 37  # of dashboards, as Grafana 9.0 and newer read it
SOURCE = {"type": "prometheus", "uid": "${source}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Curves over time. `queries`: PromQL by the legend of its curves; `unit`: one of Grafana's."""

    title: str
    queries: Mapping[str, str]
    unit: str = "short"
    help_text: str = ""
    most: float | None = None  # the end of the axis


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """`uid`: by which its address is known. `choices`: what is chosen above it, a query of labels by its name."""

    uid: str
    title: str
    panels: Sequence[Panel]
    choices: Mapping[str, str]


MODEL = {"model": "label_values(madoguchi_model_replicas, model)"}
HOST = {"host": "label_values(madoguchi_host_up, host)"}
INSTANCE = {"instance": 'label_values(up{job="madoguchi"}, instance)'}
# Figures of the site are the same at every gateway.
SITE = "max without (instance) "


def quantile(name: str, share: float) -> str:
    """Return a quantile of a histogram over five minutes, by model."""
    buckets = f'rate({name}_bucket{{model=~"$model"}}[5m])'
    return f"histogram_quantile({share}, sum by (model, le) ({buckets}))"


DASHBOARDS = (
    Dashboard(
        uid="madoguchi-overview",
        title="Madoguchi: overview",
        choices={},
        panels=(
            Panel(
                title="Calls a second, by how they ended",
                queries={"{{ending}}": "sum by (ending) (madoguchi:requests:rate5m)"},
                unit="reqps",
            ),
            Panel(
                title="Tokens a second",
                queries={"{{kind}}": "sum by (kind) (madoguchi:tokens:rate5m)"},
                help_text="prompt: read; completion: made.",
            ),
            Panel(
                title="Calls under way, and waiting",
                queries={"under way": "sum(madoguchi_in_flight)", "waiting": "sum(madoguchi_queued)"},
            ),
            Panel(
                title="First token, 95 in 100 calls",
                queries={"{{model}}": "madoguchi:first_token_seconds:p95"},
                unit="s",
            ),
            Panel(
                title="Refused calls a second",
                queries={"{{code}}": "sum by (code) (rate(madoguchi_refusals_total[5m]))"},
                unit="reqps",
            ),
            Panel(
                title="Replicas by state",
                queries={"{{state}}": f"sum by (state) ({SITE}(madoguchi_model_replicas)) > 0"},
            ),
            Panel(
                title="Hosts that answer",
                queries={"{{host}}": f"{SITE}(madoguchi_host_up)"},
                most=1,
            ),
            Panel(
                title="Gateways, their database and their disk",
                queries={
                    "{{instance}} answers": 'up{job="madoguchi"}',
                    "{{instance}} database": "madoguchi_database_up",
                    "{{instance}} can write usage": "madoguchi_spool_accepting",
                },
                most=1,
            ),
        ),
    ),
    Dashboard(
        uid="madoguchi-models",
        title="Madoguchi: models",
        choices=MODEL,
        panels=(
            Panel(
                title="Replicas by state",
                queries={"{{model}} {{state}}": f'{SITE}(madoguchi_model_replicas{{model=~"$model"}}) > 0'},
            ),
            Panel(
                title="Calls a second, by how they ended",
                queries={"{{model}} {{ending}}": 'madoguchi:requests:rate5m{model=~"$model"}'},
                unit="reqps",
            ),
            Panel(
                title="First token",
                queries={
                    "{{model}} half": quantile("madoguchi_first_byte_seconds", 0.5),
                    "{{model}} 95 in 100": quantile("madoguchi_first_byte_seconds", 0.95),
                },
                unit="s",
            ),
            Panel(
                title="Between two tokens",
                queries={"{{model}} half": quantile("madoguchi_inter_token_seconds", 0.5)},
                unit="s",
            ),
            Panel(
                title="Waiting for their turn, those who waited",
                queries={"{{model}} 95 in 100": quantile("madoguchi_waited_seconds", 0.95)},
                unit="s",
            ),
            Panel(
                title="Tokens a second",
                queries={"{{model}} {{kind}}": 'madoguchi:tokens:rate5m{model=~"$model"}'},
            ),
            Panel(
                title="Requests in engines",
                queries={
                    "{{model}} #{{replica}} running": f'{SITE}(madoguchi_replica_running{{model=~"$model"}})',
                    "{{model}} #{{replica}} waiting": f'{SITE}(madoguchi_replica_waiting{{model=~"$model"}})',
                },
            ),
            Panel(
                title="Cache of engines in use",
                queries={"{{model}} #{{replica}}": f'{SITE}(madoguchi_replica_cache_used_ratio{{model=~"$model"}})'},
                unit="percentunit",
                most=1,
            ),
            Panel(
                title="Answers in a word loop",
                queries={"{{model}}": 'madoguchi:looped_answers:ratio1h{model=~"$model"}'},
                unit="percentunit",
            ),
            Panel(
                title="Starts again within the hour",
                queries={
                    "{{model}} #{{replica}} {{host}}": (
                        f'{SITE}(increase(madoguchi_replica_restarts_total{{model=~"$model"}}[1h]))'
                    )
                },
            ),
        ),
    ),
    Dashboard(
        uid="madoguchi-hosts",
        title="Madoguchi: hosts",
        choices=HOST,
        panels=(
            Panel(
                title="Utilisation of GPUs",
                queries={"{{host}} {{device}}": f'{SITE}(madoguchi_gpu_utilisation_ratio{{host=~"$host"}})'},
                unit="percentunit",
                most=1,
            ),
            Panel(
                title="Memory in use",
                queries={
                    "{{host}} {{device}}": (
                        f'{SITE}(madoguchi_device_memory_used_bytes{{host=~"$host"}})'
                        f' / {SITE}(madoguchi_device_memory_bytes{{host=~"$host"}})'
                    )
                },
                unit="percentunit",
                most=1,
            ),
            Panel(
                title="Temperature of GPUs",
                queries={"{{host}} {{device}}": f'{SITE}(madoguchi_gpu_temperature_celsius{{host=~"$host"}})'},
                unit="celsius",
            ),
            Panel(
                title="Power of GPUs",
                queries={"{{host}} {{device}}": f'{SITE}(madoguchi_gpu_power_watts{{host=~"$host"}})'},
                unit="watt",
            ),
            Panel(
                title="Memory errors that were not corrected, within the day",
                queries={
                    "{{host}} {{device}}": f'{SITE}(increase(madoguchi_gpu_ecc_errors_total{{host=~"$host"}}[1d]))'
                },
            ),
            Panel(
                title="Free on disks",
                queries={"{{host}} {{path}}": f'{SITE}(madoguchi_disk_free_bytes{{host=~"$host"}})'},
                unit="bytes",
            ),
            Panel(
                title="Replicas by state",
                queries={"{{host}} {{state}}": f'{SITE}(madoguchi_host_replicas{{host=~"$host"}}) > 0'},
            ),
            Panel(
                title="Silent for",
                queries={"{{host}}": f'{SITE}(madoguchi_host_silent_seconds{{host=~"$host"}})'},
                unit="s",
            ),
        ),
    ),
    Dashboard(
        uid="madoguchi-gateway",
        title="Madoguchi: gateway",
        choices=INSTANCE,
        panels=(
            Panel(
                title="Workers",
                queries={"{{instance}}": 'madoguchi_workers{instance=~"$instance"}'},
            ),
            Panel(
                title="Calls under way, and waiting",
                queries={
                    "{{instance}} under way": 'madoguchi_in_flight{instance=~"$instance"}',
                    "{{instance}} waiting": 'madoguchi_queued{instance=~"$instance"}',
                },
            ),
            Panel(
                title="Usage that is not in the database yet",
                queries={"{{instance}}": 'madoguchi_spool_bytes{instance=~"$instance"}'},
                unit="bytes",
            ),
            Panel(
                title="Usage set aside",
                queries={"{{instance}}": 'madoguchi_usage_set_aside{instance=~"$instance"}'},
                help_text="Lines for `manage.py setaside`.",
            ),
            Panel(
                title="Age of the catalogue",
                queries={"{{instance}}": 'madoguchi_catalogue_age_seconds{instance=~"$instance"}'},
                unit="s",
            ),
            Panel(
                title="Workers without Redis",
                queries={"{{instance}}": 'madoguchi_limits_alone{instance=~"$instance"}'},
            ),
            Panel(
                title="Background tasks that fail or hang",
                queries={"{{instance}}": 'madoguchi_tasks_down{instance=~"$instance"}'},
            ),
            Panel(
                title="Replicas that it does not reach",
                queries={"{{instance}} {{model}}": 'madoguchi_replicas_unreachable{instance=~"$instance"} > 0'},
            ),
            Panel(
                title="Periodic tasks whose last run failed",
                queries={"{{task}}": f"{SITE}(madoguchi_periodic_task_failing) > 0"},
            ),
            Panel(
                title="Term of the controller",
                queries={"term": "max(madoguchi_controller_term)", "there is one": "max(madoguchi_controller_up)"},
            ),
        ),
    ),
)


def build_dashboard(dashboard: Dashboard) -> dict[str, Any]:
    """Return a dashboard as Grafana imports it."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": ["madoguchi"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": list(build_choices(dashboard.choices))},
        "annotations": {"list": []},
        "links": [
            {"type": "dashboards", "title": "Madoguchi", "tags": ["madoguchi"], "asDropdown": True, "keepTime": True}
        ],
        "panels": [build_panel(number, panel) for number, panel in enumerate(dashboard.panels)],
    }


def build_choices(choices: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield what is chosen above a dashboard: the Prometheus that is asked, and what of all is shown."""
    yield {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0}
    for name, query in choices.items():
        yield {
            "name": name,
            "label": name,
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": query, "refId": name},
            "refresh": 2,  # whenever the time range changes
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
            "hide": 0,
        }


def build_panel(number: int, panel: Panel) -> dict[str, Any]:
    """Return a panel, two of them beside each other."""
    half = WIDTH // 2
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0, "custom": {"fillOpacity": 10, "showPoints": "never"}}
    if panel.most is not None:
        defaults["max"] = panel.most
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.help_text,
        "datasource": SOURCE,
        "gridPos": {"x": number % 2 * half, "y": number // 2 * HEIGHT, "w": half, "h": HEIGHT},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": SOURCE, "expr": query, "legendFormat": legend}
            for place, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def write_dashboards(directory: Path) -> None:
    """Write the dashboards into a directory."""
    directory.mkdir(exist_ok=True)
    for dashboard in DASHBOARDS:
        text = json.dumps(build_dashboard(dashboard), indent=1, ensure_ascii=False)
        (directory / f"{dashboard.uid}.json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    write_dashboards(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).with_name("dashboards"))
