"""What makes each alert of `deploy/monitoring/alerts.yml` fire, and what does not, as input for promtool."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Series by their names, as promtool writes values ("0+1x60": one sample a minute), and what fires `at`.

    `fires`: the labels of each alert that fires beside `severity`; none: it must not fire.
    """

    alert: str
    series: dict[str, str]
    at: str
    fires: list[dict[str, str]] = field(default_factory=list)


GATEWAY = 'instance="a",job="madoguchi"'
AT_A = {"instance": "a", "job": "madoguchi"}
# Of the site: the same at two gateways, so it must fire once.
SITE = {"job": "madoguchi"}


def at_both(name: str, labels: str, values: str) -> dict[str, str]:
    """Return a series of the site as two gateways show it."""
    own = f",{labels}" if labels else ""
    return {f'{name}{{instance="{instance}",job="madoguchi"{own}}}': values for instance in ("a", "b")}


def of_gateway(name: str, values: str, labels: str = "") -> dict[str, str]:
    return {f"{name}{{{GATEWAY}{',' if labels else ''}{labels}}}": values}


def buckets(name: str, below: str, above: str) -> dict[str, str]:
    """Return a histogram of "qwen": its calls that took at most 30 s, and those that took up to 120 s."""
    of = 'model="qwen",instance="a",job="madoguchi"'
    return {
        f'{name}_bucket{{{of},le="30.0"}}': below,
        f'{name}_bucket{{{of},le="120.0"}}': above,
        f'{name}_bucket{{{of},le="+Inf"}}': above,
    }


def requests(failed: str, finished: str) -> dict[str, str]:
    return {
        f'madoguchi_requests_total{{{GATEWAY},endpoint="/v1/chat/completions",model="qwen",ending="{ending}"}}': values
        for ending, values in (("failed", failed), ("finished", finished))
    }


QWEN = {"model": "qwen"}
GPU = 'host="gpu-1",device="0"'
ON_GPU = {**SITE, "host": "gpu-1", "device": "0"}
REPLICA = 'model="qwen",host="gpu-1",replica="0",rank="0"'
OF_REPLICA = {**SITE, "model": "qwen", "host": "gpu-1", "replica": "0", "rank": "0"}

HOURLY = at_both("madoguchi_backup_max_age_seconds", "", "3600+0x240")
BACKUP = "madoguchi_backup_timestamp_seconds"

CASES = [
    Case(alert="MadoguchiGatewayDown", series=of_gateway("up", "1 1 0 0 0 0"), at="4m", fires=[AT_A]),
    Case(alert="MadoguchiGatewayDown", series=of_gateway("up", "1 1 0 1 1 1"), at="4m"),
    Case(alert="MadoguchiNotScraped", series={'up{job="node"}': "1+0x20"}, at="10m", fires=[{"job": "madoguchi"}]),
    Case(alert="MadoguchiNotScraped", series=of_gateway("up", "0+0x20"), at="10m"),
    Case(
        alert="MadoguchiUsageNotWritable",
        series=of_gateway("madoguchi_spool_accepting", "1 0 0 0"),
        at="3m",
        fires=[AT_A],
    ),
    Case(alert="MadoguchiUsageNotWritable", series=of_gateway("madoguchi_spool_accepting", "1 0 1 1"), at="3m"),
    Case(
        alert="MadoguchiSpoolGrowing",
        series=of_gateway("madoguchi_spool_bytes", "0+200000x60"),
        at="40m",
        fires=[AT_A],
    ),
    Case(alert="MadoguchiSpoolGrowing", series=of_gateway("madoguchi_spool_bytes", "9000000-100000x60"), at="40m"),
    Case(
        alert="MadoguchiUsageSetAside", series=of_gateway("madoguchi_usage_set_aside", "0 2+0x9"), at="8m", fires=[AT_A]
    ),
    Case(alert="MadoguchiUsageSetAside", series=of_gateway("madoguchi_usage_set_aside", "0+0x9"), at="8m"),
    Case(alert="MadoguchiDatabaseAway", series=of_gateway("madoguchi_database_up", "1 0 0 0 0"), at="4m", fires=[AT_A]),
    Case(alert="MadoguchiDatabaseAway", series=of_gateway("madoguchi_database_up", "1 0 0 1 0"), at="4m"),
    Case(
        alert="MadoguchiCatalogueOld",
        series=of_gateway("madoguchi_catalogue_age_seconds", "1 50 110 170"),
        at="3m",
        fires=[AT_A],
    ),
    Case(alert="MadoguchiCatalogueOld", series=of_gateway("madoguchi_catalogue_age_seconds", "1 50 1 1"), at="3m"),
    Case(alert="MadoguchiRedisAway", series=of_gateway("madoguchi_limits_alone", "0 2+0x9"), at="5m", fires=[AT_A]),
    Case(alert="MadoguchiRedisAway", series=of_gateway("madoguchi_limits_alone", "0 2 0+0x9"), at="5m"),
    Case(alert="MadoguchiGatewayTaskDown", series=of_gateway("madoguchi_tasks_down", "0 1+0x9"), at="5m", fires=[AT_A]),
    Case(alert="MadoguchiGatewayTaskDown", series=of_gateway("madoguchi_tasks_down", "0 1 0+0x9"), at="5m"),
    Case(
        alert="MadoguchiAnswersUnwatched",
        series=of_gateway("madoguchi_observer_failures_total", "0 0 1+0x9"),
        at="5m",
        fires=[AT_A],
    ),
    Case(alert="MadoguchiAnswersUnwatched", series=of_gateway("madoguchi_observer_failures_total", "7+0x9"), at="5m"),
    Case(alert="MadoguchiCallsFail", series=requests("0+1x30", "0+9x30"), at="25m", fires=[QWEN]),
    Case(alert="MadoguchiCallsFail", series=requests("0+1x30", "0+99x30"), at="25m"),
    Case(alert="MadoguchiCallsFail", series=requests("0+0x15 1+0x15", "0+0x30"), at="25m"),  # one call in an hour
    Case(
        alert="MadoguchiQueueLong",
        series=buckets("madoguchi_waited_seconds", "0+0x40", "0+3x40"),
        at="30m",
        fires=[QWEN],
    ),
    Case(alert="MadoguchiQueueLong", series=buckets("madoguchi_waited_seconds", "0+3x40", "0+3x40"), at="30m"),
    Case(
        alert="MadoguchiFirstTokenSlow",
        series=buckets("madoguchi_first_byte_seconds", "0+1x40", "0+3x40"),
        at="30m",
        fires=[QWEN],
    ),
    Case(alert="MadoguchiFirstTokenSlow", series=buckets("madoguchi_first_byte_seconds", "0+3x40", "0+3x40"), at="30m"),
    Case(
        alert="MadoguchiLoops",
        series={**of_gateway("madoguchi_loops_total", "0+1x90", 'model="qwen"'), **requests("0+0x90", "0+9x90")},
        at="80m",
        fires=[QWEN],
    ),
    Case(
        alert="MadoguchiLoops",
        series={**of_gateway("madoguchi_loops_total", "0+1x90", 'model="qwen"'), **requests("0+0x90", "0+99x90")},
        at="80m",
    ),
    Case(
        alert="MadoguchiModelFailed",
        series=at_both("madoguchi_model_replicas", 'model="qwen",state="failed"', "0 1+0x9"),
        at="5m",
        fires=[{**SITE, "model": "qwen", "state": "failed"}],
    ),
    Case(
        alert="MadoguchiModelFailed",
        series=at_both("madoguchi_model_replicas", 'model="qwen",state="stopped"', "0 1+0x9"),
        at="5m",
    ),
    Case(
        alert="MadoguchiModelCrashLooping",
        series=at_both("madoguchi_replica_restarts_total", REPLICA, "0 1 1 2 2 3 3+0x9"),
        at="10m",
        fires=[OF_REPLICA],
    ),
    Case(
        alert="MadoguchiModelCrashLooping",
        series=at_both("madoguchi_replica_restarts_total", REPLICA, "8 8 8 9 9 9+0x9"),
        at="10m",
    ),
    Case(
        alert="MadoguchiModelUnhealthy",
        series=at_both("madoguchi_model_replicas", 'model="qwen",state="unhealthy"', "0 1+0x20"),
        at="15m",
        fires=[{**SITE, "model": "qwen", "state": "unhealthy"}],
    ),
    Case(
        alert="MadoguchiModelUnhealthy",
        series=at_both("madoguchi_model_replicas", 'model="qwen",state="starting"', "0 1+0x20"),
        at="15m",
    ),
    Case(
        alert="MadoguchiReplicasUnreachable",
        series=of_gateway("madoguchi_replicas_unreachable", "0 1+0x9", 'model="qwen"'),
        at="5m",
        fires=[{**AT_A, **QWEN}],
    ),
    Case(
        alert="MadoguchiReplicasUnreachable",
        series=of_gateway("madoguchi_replicas_unreachable", "0 1 0+0x9", 'model="qwen"'),
        at="5m",
    ),
    Case(
        alert="MadoguchiReplicaShortage",
        series=at_both("madoguchi_replica_shortage_seconds", 'model="qwen"', "0+60x30"),
        at="20m",
        fires=[{**SITE, **QWEN}],
    ),
    Case(
        alert="MadoguchiReplicaShortage",
        series=at_both("madoguchi_replica_shortage_seconds", 'model="qwen"', "0+60x30"),
        at="10m",
    ),
    Case(alert="MadoguchiNoController", series=at_both("madoguchi_controller_up", "", "1 0+0x9"), at="5m", fires=[{}]),
    Case(alert="MadoguchiNoController", series=at_both("madoguchi_controller_up", "", "1 0 1+0x9"), at="5m"),
    Case(
        alert="MadoguchiControllersAlternate",
        series=at_both("madoguchi_controller_term", "", "1+1x60"),
        at="30m",
        fires=[SITE],
    ),
    Case(
        alert="MadoguchiControllersAlternate",
        series=at_both("madoguchi_controller_term", "", "40+0x20 41+0x9"),
        at="30m",
    ),
    Case(
        alert="MadoguchiHostSilent",
        series={
            **at_both("madoguchi_host_silent_seconds", 'host="gpu-1"', "0 60 120+0x9"),
            **at_both("madoguchi_host_maintenance", 'host="gpu-1"', "0+0x9"),
        },
        at="4m",
        fires=[{**SITE, "host": "gpu-1"}],
    ),
    Case(
        alert="MadoguchiHostSilent",
        series={
            **at_both("madoguchi_host_silent_seconds", 'host="gpu-1"', "0 60 120+0x9"),
            **at_both("madoguchi_host_maintenance", 'host="gpu-1"', "1+0x9"),
        },
        at="4m",
    ),
    *(
        Case(
            alert="MadoguchiDiskNearlyFull",
            series={
                **at_both("madoguchi_disk_free_bytes", 'host="gpu-1",path="/models"', f"{free}+0x20"),
                **at_both("madoguchi_disk_bytes", 'host="gpu-1",path="/models"', f"{size}+0x20"),
            },
            at="8m",
            fires=fires,
        )
        for size, free, fires in (
            (10**12, 30 * 10**9, [{**SITE, "host": "gpu-1", "path": "/models"}]),
            (10**12, 90 * 10**9, []),
            (10**11, 30 * 10**9, []),
        )
    ),
    Case(
        alert="MadoguchiGpuUnreadable",
        series=at_both("madoguchi_gpu_readable", GPU, "1 0+0x9"),
        at="5m",
        fires=[ON_GPU],
    ),
    Case(alert="MadoguchiGpuUnreadable", series=at_both("madoguchi_gpu_readable", GPU, "1 0 1+0x9"), at="5m"),
    Case(
        alert="MadoguchiGpuMemoryErrors",
        series=at_both("madoguchi_gpu_ecc_errors_total", GPU, "2 2 3+0x9"),
        at="5m",
        fires=[ON_GPU],
    ),
    Case(alert="MadoguchiGpuMemoryErrors", series=at_both("madoguchi_gpu_ecc_errors_total", GPU, "3+0x9"), at="5m"),
    Case(
        alert="MadoguchiGpuXid",
        series=at_both("madoguchi_gpu_xid_faults_total", GPU, "0 0 1+0x9"),
        at="5m",
        fires=[ON_GPU],
    ),
    Case(alert="MadoguchiGpuXid", series=at_both("madoguchi_gpu_xid_faults_total", GPU, "1+0x9"), at="5m"),
    Case(
        alert="MadoguchiGpuHot",
        series=at_both("madoguchi_gpu_temperature_celsius", GPU, "80 91+0x20"),
        at="15m",
        fires=[ON_GPU],
    ),
    Case(alert="MadoguchiGpuHot", series=at_both("madoguchi_gpu_temperature_celsius", GPU, "84+0x20"), at="15m"),
    *(
        Case(
            alert="MadoguchiRamNearlyFull",
            series={
                **at_both("madoguchi_device_memory_used_bytes", 'host="gpu-1",device="ram"', f"{used}+0x20"),
                **at_both("madoguchi_device_memory_bytes", 'host="gpu-1",device="ram"', "100+0x20"),
            },
            at="15m",
            fires=fires,
        )
        for used, fires in ((97, [{**SITE, "host": "gpu-1", "device": "ram"}]), (90, []))
    ),
    Case(
        alert="MadoguchiPeriodicTaskFails",
        series=at_both("madoguchi_periodic_task_failing", 'task="sendnotices"', "0 1+0x90"),
        at="70m",
        fires=[{**SITE, "task": "sendnotices"}],
    ),
    Case(
        alert="MadoguchiPeriodicTaskFails",
        series=at_both("madoguchi_periodic_task_failing", 'task="sendnotices"', "0 1+0x30 0+0x60"),
        at="70m",
    ),
    *(
        Case(
            alert="MadoguchiPeriodicTaskLate",
            series={
                **at_both("madoguchi_periodic_task_ended_timestamp_seconds", 'task="sendnotices"', "60+0x240"),
                **at_both("madoguchi_periodic_task_interval_seconds", 'task="sendnotices"', "600+0x240"),
            },
            at=at,
            fires=fires,
        )
        for at, fires in (("150m", [{**SITE, "task": "sendnotices"}]), ("130m", []))
    ),
    Case(alert="MadoguchiBackupOld", series={**HOURLY, **at_both(BACKUP, "", "60+0x240")}, at="130m", fires=[{}]),
    Case(alert="MadoguchiBackupOld", series={**HOURLY, **at_both(BACKUP, "", "60+0x100 6060+0x140")}, at="140m"),
    Case(alert="MadoguchiBackupOld", series=HOURLY, at="70m", fires=[{}]),
]


def input_of(case: Case, rule: dict[str, Any]) -> dict[str, Any]:
    """Return a case as a test of promtool. `rule`: that of its alert."""
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
        "alert_rule_test": [
            {
                "eval_time": case.at,
                "alertname": case.alert,
                "exp_alerts": [
                    {
                        "exp_labels": {**rule["labels"], **labels},
                        "exp_annotations": {name: fill_in(text, labels) for name, text in rule["annotations"].items()},
                    }
                    for labels in case.fires
                ],
            }
        ],
    }


def fill_in(text: str, labels: dict[str, str]) -> str:
    """Return an annotation with its labels in their places, of which promtool expects the final text."""
    for name, value in labels.items():
        text = text.replace(f"{{{{ $labels.{name} }}}}", value)
    return text
