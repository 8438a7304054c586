"""What `/metrics` shows of the whole site: hosts, their devices, models, replicas, periodic tasks, the controller.

Labels are names of hosts, models and tasks, indices and fixed words: nothing of people, keys or calls.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator

from apiproxy.dataplane.metrics import Gauge, Labels, escape_label
from modelregistry.host_figures import HostFigures, ReplicaFigures, SiteFigures, TaskFigures
from modelregistry.models import Replica
from portal.backups.figures import BackupFigures

# By the names of `host_figures.SENSORS`: the metric, its help, by what its value is divided.
SENSORS = {
    "utilisation": (
        "madoguchi_gpu_utilisation_ratio",
        "In how much of the last second a program ran on the GPU, 0 to 1.",
        100,
    ),
    "temperature": ("madoguchi_gpu_temperature_celsius", "Temperature of the GPU's chip.", 1),
    "power": ("madoguchi_gpu_power_watts", "What the GPU takes.", 1),
    "ecc_errors": (
        "madoguchi_gpu_ecc_errors_total",
        "Errors of the GPU's memory that could not be corrected, since the driver was loaded.",
        1,
    ),
    "xid_errors": (
        "madoguchi_gpu_xid_errors_total",
        "Xid errors of the GPU's driver, since the host's part of Madoguchi started.",
        1,
    ),
    "xid_faults": (
        "madoguchi_gpu_xid_faults_total",
        "Of these, errors after which the GPU needs an operator.",
        1,
    ),
    "last_xid": ("madoguchi_gpu_last_xid", "The code of the last one that needs an operator, else of the last.", 1),
}
# By the names of `host_figures.LIVE`: the metric, its help.
LIVE = {
    "running": ("madoguchi_replica_running", "Requests that the engine works on, as it last reported."),
    "waiting": ("madoguchi_replica_waiting", "Requests that wait in the engine, as it last reported."),
    "tokens_per_second": ("madoguchi_replica_tokens_per_second", "Tokens that the engine makes, as it last reported."),
    "cache_used": ("madoguchi_replica_cache_used_ratio", "How much of the engine's cache is in use, 0 to 1."),
}


def site_gauges_of(figures: SiteFigures, backups: BackupFigures) -> list[Gauge]:
    """Return the figures as gauges, those of one name adjacent."""
    by_name: dict[str, list[Gauge]] = defaultdict(list)
    for gauge in (*_all_gauges(figures), *_backup_gauges(backups)):
        by_name[gauge[0]].append(gauge)
    return [gauge for gauges in by_name.values() for gauge in gauges]


def _all_gauges(figures: SiteFigures) -> Iterator[Gauge]:
    for host in figures.hosts:
        yield from _host_gauges(host)
    yield from _model_gauges(figures)
    for replica in figures.replicas:
        yield from _replica_gauges(replica)
    for task in figures.tasks:
        yield from _task_gauges(task)
    if controller := figures.controller:
        yield "madoguchi_controller_up", "1 while the site has a controller.", (), float(controller.alive)
        yield "madoguchi_controller_term", "One more with each election of a controller.", (), controller.term
        yield "madoguchi_replica_moves_total", "Replicas that were moved to another host.", (), controller.moves


def _host_gauges(host: HostFigures) -> Iterator[Gauge]:
    labels = (("host", escape_label(host.name)),)
    yield "madoguchi_host_up", "1 while the host answers the controller, by host.", labels, float(host.up)
    silent = "Since the host last answered the controller; 0: it answers."
    yield "madoguchi_host_silent_seconds", silent, labels, host.silent_seconds
    yield "madoguchi_host_maintenance", "1 while the host is in maintenance.", labels, float(host.maintenance)
    for state, count in host.replicas.items():
        help_text = "Replicas that are placed on the host, by state."
        yield "madoguchi_host_replicas", help_text, (*labels, ("state", state)), count
    for disk in host.disks:
        on_disk = (*labels, ("path", escape_label(disk.path)))
        yield "madoguchi_disk_bytes", "A disk with state, engines or models.", on_disk, disk.total
        yield "madoguchi_disk_free_bytes", "Of that, what is free.", on_disk, disk.free
    for device in host.devices:
        of_device = (*labels, ("device", device.name))
        yield "madoguchi_device_memory_bytes", "Memory of a GPU or the RAM.", of_device, device.total
        used = "Of that, what any process holds."
        yield "madoguchi_device_memory_used_bytes", used, of_device, device.used
        if device.name != "ram":
            readable = "1 while the driver reports the GPU; 0: its other figures are old."
            yield "madoguchi_gpu_readable", readable, of_device, float(device.readable)
        for name, value in device.sensors.items():
            metric, help_text, divisor = SENSORS[name]
            yield metric, help_text, of_device, value / divisor


def _model_gauges(figures: SiteFigures) -> Iterator[Gauge]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for replica in figures.replicas:
        counts[replica.model][replica.state] += 1
    for model, states in counts.items():
        for state in Replica.State.values:
            labels = (("model", escape_label(model)), ("state", state))
            yield "madoguchi_model_replicas", "Replicas of the model, by state.", labels, states[state]
    short = "Since one replica more is wanted for which there is no place; 0: none is."
    for model, seconds in figures.shortages.items():
        yield "madoguchi_replica_shortage_seconds", short, (("model", escape_label(model)),), seconds


def _replica_gauges(replica: ReplicaFigures) -> Iterator[Gauge]:
    labels: Labels = (
        ("model", escape_label(replica.model)),
        ("host", escape_label(replica.host)),
        ("replica", str(replica.number)),
        ("rank", str(replica.rank)),
    )
    restarts = "Starts of the engine again after it died, on this host."
    yield "madoguchi_replica_restarts_total", restarts, labels, replica.restarts
    if replica.memory is not None:
        yield "madoguchi_replica_memory_bytes", "What the engine's processes hold.", labels, replica.memory
    for name, value in replica.live.items():
        yield *LIVE[name], labels, value


def _backup_gauges(backups: BackupFigures) -> Iterator[Gauge]:
    if backups.made_at is not None:
        made = "When the last backup was made, in Unix seconds."
        yield "madoguchi_backup_timestamp_seconds", made, (), backups.made_at
    if backups.max_age is not None:
        yield "madoguchi_backup_max_age_seconds", "How old it may become (BACKUP_MAX_AGE).", (), backups.max_age


def _task_gauges(task: TaskFigures) -> Iterator[Gauge]:
    labels = (("task", escape_label(task.name)),)
    every = "How often the periodic task is due."
    yield "madoguchi_periodic_task_interval_seconds", every, labels, task.every_seconds
    failing = "1 if the last run of the periodic task failed."
    yield "madoguchi_periodic_task_failing", failing, labels, float(task.failing)
    if task.ended_at is not None:
        ended = "When the last run of the periodic task ended, in Unix seconds."
        yield "madoguchi_periodic_task_ended_timestamp_seconds", ended, labels, task.ended_at
