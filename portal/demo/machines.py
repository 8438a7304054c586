"""Write the hosts, models and replicas of the company, as its controller would.

The hosts have other names than this machine, so a controller that runs here leaves them alone. None reports for them,
so they are marked as made up, which pages treat as alive. One host of the cluster is silent for three minutes, and the
model that ran there was moved to another one. One model is split over two hosts. One host is shared with other work of
the cluster, which has booked so much of its card that a model whose calls wait finds no room for one replica more.
"""

from datetime import datetime, timedelta
from random import Random
from typing import Any
from uuid import NAMESPACE_DNS, uuid5

from modelregistry.models import (
    Alias,
    ControllerClaim,
    FileReport,
    Host,
    HostReport,
    Replica,
    ReplicaMove,
    ReplicaPlacement,
    ReplicaShortage,
    ServedModel,
)
from modelregistry.overview import MADE_UP
from modelregistry.version import VERSION
from portal.accounts.models import Tenant
from portal.demo.plan import (
    BOOKED_BY_OTHERS,
    CHAT,
    CODE,
    CONTROLLER,
    ENGINES,
    HOSTS,
    JOINT_HOSTS,
    JOINT_MODEL,
    LARGE,
    NEW,
    OLD,
    SHARED,
    SHARED_HOST,
    SILENT,
    SILENT_HOST,
    SMALL,
    VISION,
    SimulatedModel,
)
from portal.demo.rows import insert_row
from portal.keys.models import ModelAccess

SEEN = timedelta(days=3650)
SILENT_FOR = timedelta(minutes=3)
MOVED_AFTER = timedelta(seconds=9)
TERM = 12
VERSIONS = {"vllm": "0.32.0", "llama-server": "b11549"}
GB = 10**9
UNBOOKED = GB // 2  # of a card: what its driver holds
OUT_OF_MEMORY = """\
ended with status 1: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.31 GiB.
(EngineCore_DP0 pid=5120) INFO [gpu_model_runner.py:2602] Starting to load model /srv/models/gpt-oss-120b
(EngineCore_DP0 pid=5120) ERROR [core.py:708] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.31 GiB.
GPU 0 has a total capacity of 47.99 GiB of which 612.00 MiB is free.
RuntimeError: Engine core initialization failed. See root cause above."""
GIVEN_UP = {"detail": OUT_OF_MEMORY, "cause": "gpu-memory", "restarts": 5}


# What a model's arguments and files do not show in this company.
CAN = {VISION: ["vision"], LARGE: ["tools"]}
LICENCES = {CHAT: "gemma", LARGE: "llama3.3", CODE: "apache-2.0", VISION: "apache-2.0", SMALL: "gemma"}


def create_hosts(chance: Random, now: datetime, tenants: dict[str, Tenant]) -> dict[str, ServedModel]:
    """Create the hosts, models and replicas; return the models by name."""
    hosts = {name: _host(name) for name in HOSTS}
    models = {engine.name: _model(engine, hosts, now, tenants) for engine in ENGINES}
    held: dict[tuple[str, int], float] = {}
    for engine in ENGINES:
        for index, (host, devices) in enumerate(engine.on):
            replica = _replica(engine, models[engine.name], hosts[host], index, devices, chance, now)
            if replica.model.host_id is None:
                placed_at = now - timedelta(days=9)
                ReplicaPlacement.objects.create(model=replica.model, number=index, host=replica.host, at=placed_at)
            for device, size in replica.memory_by_device.items():
                held[host, int(device)] = held.get((host, int(device)), 0) + size
    for name, machine in hosts.items():
        _report(machine, now + SEEN, _devices(HOSTS[name], name, held, chance))
    _create_controller(now)
    # When they became ready; saving has written "now".
    for replica in Replica.objects.all():
        Replica.objects.filter(pk=replica.pk).update(changed_at=now - timedelta(hours=chance.uniform(3, 400)))
    _let_host_fall_silent(now)
    models[JOINT_MODEL.name] = _split_over_hosts(now)
    _let_others_book(models[CODE], now)
    return models


def _host(name: str, **more: Any) -> Host:
    agent = {"version": VERSION, "python": "3.11.2", "boot": str(uuid5(NAMESPACE_DNS, name)), "fenced": True}
    clustered = name != CONTROLLER
    values = {"address": name, "seen_at": MADE_UP, "clustered": clustered, "agent": agent if clustered else None}
    return insert_row(Host(name=name, **{**values, **more}))


def _report(host: Host, at: datetime, devices: list[dict[str, Any]]) -> None:
    installed = {launcher: [version] for launcher, version in VERSIONS.items()}
    HostReport.objects.create(host=host, at=at, engines=VERSIONS, installed=installed, devices=devices)
    if host.clustered:
        Host.objects.filter(pk=host.pk).update(bookings=_bookings(devices))


def _bookings(devices: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what would be booked in Ray of these: what engines hold of the cards."""
    booked = {str(one["index"]): one["used"] - UNBOOKED for one in devices if one["kind"] == "gpu"}
    taken = {device: size for device, size in booked.items() if size > 0}
    return {"offered": {str(one["index"]): one["total"] for one in devices}, "booked": taken, "others": {}, "late": []}


def _create_controller(now: datetime) -> None:
    """Create the claim of a controller that is made up. It is released: one that runs here need not wait."""
    holder = f"{CONTROLLER}, process 1184, /var/lib/madoguchi"
    since = now - timedelta(days=9, hours=4)
    ControllerClaim.objects.create(term=TERM, holder=holder, seen_at=MADE_UP, since=since, moves=1)


def _let_host_fall_silent(now: datetime) -> None:
    """Create the silent host, with what is left there of the replicas that were moved to where they run now."""
    since = now - SILENT_FOR
    silent = _host(SILENT, seen_at=since, silent_since=since, watched_at=MADE_UP)
    # Drawn apart, so that the rest of the company stays as it was.
    _report(silent, since, _devices(SILENT_HOST, SILENT, {}, Random(TERM)))  # noqa: S311 -- nothing secret follows
    moved_at = since + MOVED_AFTER
    for row in Replica.objects.filter(model__name__in=[one.name for one in ENGINES if one.moved]):
        ReplicaPlacement.objects.filter(model=row.model).update(at=moved_at)
        facts = {"model": row.model, "number": row.index, "source": SILENT, "target": row.host.name}
        ReplicaMove.objects.create(**facts, cause=ReplicaMove.Cause.SILENT, at=moved_at)
        Replica.objects.filter(pk=row.pk).update(changed_at=moved_at + timedelta(seconds=12))
        left = {"launcher": row.launcher, "version": row.version, "slots": row.slots, "devices": row.devices}
        remainder = Replica.objects.create(
            model=row.model,
            host=silent,
            index=row.index,
            state=Replica.State.UNHEALTHY,
            predicted=row.predicted,
            **left,
        )
        Replica.objects.filter(pk=remainder.pk).update(changed_at=since)


def _split_over_hosts(now: datetime) -> ServedModel:
    """Create the model over two hosts, with these."""
    # Drawn apart as well.
    chance, since = Random(TERM + 1), now - timedelta(days=4, hours=3)  # noqa: S311 -- nothing secret follows
    hosts = {name: _host(name) for name in JOINT_HOSTS}
    model = _model(JOINT_MODEL, hosts, now, {})
    for index, (host, devices) in enumerate(JOINT_MODEL.on):
        replica = _replica(JOINT_MODEL, model, hosts[host], index, devices, chance, now)
        ReplicaPlacement.objects.create(model=model, number=index, host=replica.host, at=since)
        Replica.objects.filter(pk=replica.pk).update(changed_at=since)
        held: dict[tuple[str, int], float] = {
            (host, int(device)): size for device, size in replica.memory_by_device.items()
        }
        _report(replica.host, now + SEEN, _devices(JOINT_HOSTS[host], host, held, chance))
    return model


def _let_others_book(model: ServedModel, now: datetime) -> None:
    """Create the host that other work shares, and have a model want one replica more, for which it has no room."""
    taken, total = int(BOOKED_BY_OTHERS * GB), int(SHARED_HOST[1] * GB)
    host, chance = _host(SHARED), Random(TERM + 2)  # noqa: S311 -- nothing secret follows
    held: dict[tuple[str, int], float] = {(SHARED, 0): 0.9 * taken}
    _report(host, now + SEEN, _devices(SHARED_HOST, SHARED, held, chance))
    HostReport.objects.filter(host=host).update(
        strangers=[{"pid": 48213, "name": "ray::train_step", "device": 0, "bytes": int(0.9 * taken)}]
    )
    row = Host.objects.get(pk=host.pk)
    Host.objects.filter(pk=host.pk).update(bookings={**row.bookings, "booked": {}, "others": {"0": taken}})
    ServedModel.objects.filter(pk=model.pk).update(replicas_max=model.replicas + 1)
    ReplicaShortage.objects.create(
        model=model,
        wanted=model.replicas + 1,
        since=now - timedelta(minutes=12),
        cause=ReplicaShortage.Cause.NO_ROOM,
        host=SHARED,
        free=total - taken,
        need=Replica.objects.filter(model=model).values_list("predicted__total", flat=True)[0],
    )
    for replica in Replica.objects.filter(model=model):
        Replica.objects.filter(pk=replica.pk).update(live={**replica.live, "running": model.slots, "waiting": 4})


def _model(engine: SimulatedModel, hosts: dict[str, Host], now: datetime, tenants: dict[str, Tenant]) -> ServedModel:
    directory = engine.engine == "vllm"
    model = insert_row(
        ServedModel(
            name=engine.name,
            description_ja=engine.ja,
            description_en=engine.en,
            declared_capabilities=CAN.get(engine.name, []),
            licence=LICENCES.get(engine.name, ""),
            engine=engine.engine,
            task=engine.task,
            path=f"/srv/models/{engine.name}" + ("" if directory else ".gguf"),
            host=None if engine.moved or len({host for host, _ in engine.on}) > 1 else hosts[engine.on[0][0]],
            replicas=len(engine.on) // engine.nodes,
            nodes=engine.nodes,
            context=engine.context,
            slots=engine.slots,
            tensor_parallel=len(engine.on[0][1]),
            args=list(engine.args),
            loops=ServedModel.Loops.STOP if engine.name == LARGE else ServedModel.Loops.COUNT,
            retires_on=(now + timedelta(days=24)).date() if engine.name == OLD else None,
        )
    )
    FileReport.objects.create(
        model=model,
        at=now,
        facts={
            "architecture": engine.architecture,
            "task": engine.task,
            "parameters": engine.parameters,
            "quantisation": engine.quantisation,
            "context": engine.context * 4,
            "has_chat_template": engine.task == "chat",
            "weight_bytes": int(engine.memory[0] * len(engine.on[0][1]) * engine.nodes * GB),
            "files": 9 if directory else 1,
        },
    )
    for alias in engine.aliases:
        insert_row(Alias(name=alias, model=model))
    for slug in engine.tenants:
        insert_row(ModelAccess(model=model, tenant=tenants[slug]))
    return model


def _replica(
    engine: SimulatedModel,
    model: ServedModel,
    host: Host,
    index: int,
    devices: tuple[int, ...],
    chance: Random,
    now: datetime,
) -> Replica:
    weights, cache, overhead = (int(size * GB) for size in engine.memory)
    ready = engine.state == "ready"
    leads = index % engine.nodes == 0  # it answers, also for other ranks
    held = [int((weights + cache + overhead) * chance.uniform(0.97, 1.02)) for _ in devices] if ready else []
    launcher = "vllm" if engine.engine == "vllm" else "llama-server"
    return Replica.objects.create(
        model=model,
        host=host,
        index=index,
        state=engine.state if leads else Replica.State.JOINED,
        # A name that does not resolve: a call of such a model fails at once, as it cannot be reached.
        url=f"http://{host.name}.invalid:{18100 + chance.randrange(900)}" if ready and leads else "",
        launcher=launcher,
        version=VERSIONS[launcher],
        slots=engine.slots,
        pid=chance.randrange(4000, 90000) if ready else None,
        run_id=f"{chance.getrandbits(64):016x}" if ready else "",
        devices=list(devices),
        predicted=_prediction(engine, weights, cache, overhead, len(devices)),
        memory_bytes=sum(held) or None,
        memory_by_device={str(device): size for device, size in zip(devices, held, strict=False)},
        live=_live(engine, chance, now) if ready and leads else None,
        **(GIVEN_UP if engine.name == NEW else {}),
    )


def _prediction(engine: SimulatedModel, weights: int, cache: int, overhead: int, devices: int) -> dict[str, Any]:
    return {
        "weights": weights,
        "cache": cache,
        "cache_least": cache // 2,
        "overhead": overhead,
        "total": weights + cache + overhead,
        "rule_of_thumb": weights * 3 // 2,
        "devices": devices,
        "context": engine.context,
        "sequences": engine.slots,
        "droppable": 0,
        "basis": "corrected",
    }


def _live(engine: SimulatedModel, chance: Random, now: datetime) -> dict[str, Any]:
    chat = engine.task == "chat"
    running = chance.choice((1, 2, 3, 5, 8)) if chat else chance.choice((0, 1, 2))
    return {
        "at": now.isoformat(),
        "running": running,
        "waiting": 0,
        "tokens_per_second": round(running * engine.speed * chance.uniform(0.7, 0.95), 2) if engine.speed else None,
        "cache_used": round(min(0.93, running * chance.uniform(0.04, 0.09)), 3) if chat else None,
    }


def _devices(
    cards: tuple[str, float, int], host: str, held: dict[tuple[str, int], float], chance: Random
) -> list[dict[str, Any]]:
    name, size, count = cards
    total, devices = int(size * GB), []
    for index in range(count):
        used = int(held.get((host, index), 0) + UNBOOKED)
        devices.append(_device(index, f"GPU-{chance.getrandbits(64):016x}", name, "gpu", total, used))
    return [*devices, _device(-1, "", "RAM", "ram", 540 * GB, int(chance.uniform(60, 180) * GB))]


def _device(index: int, uuid: str, name: str, kind: str, total: int, used: int) -> dict[str, Any]:
    return {
        "index": index,
        "uuid": uuid,
        "name": name,
        "kind": kind,
        "total": total,
        "used": used,
        "free": total - used,
        "processes": [],
        "fault": "",
        "utilisation": (37 + 29 * index) % 83 if kind == "gpu" else None,
        "temperature": 48 + 5 * (index % 4) if kind == "gpu" else None,
    }
