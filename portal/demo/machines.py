"""Write the hosts, models and replicas of the company, as their supervisors would.

The hosts have other names than this machine, so a supervisor that runs here leaves them alone. No other supervisor
reports for them, so they are marked as made up, which pages treat as alive.
"""

from datetime import datetime, timedelta
from random import Random
from typing import Any

from modelregistry.models import Alias, FileReport, Host, HostReport, Replica, ServedModel
from modelregistry.overview import MADE_UP
from portal.accounts.models import Tenant
from portal.demo.plan import CHAT, CODE, ENGINES, HOSTS, LARGE, NEW, OLD, SMALL, VISION, SimulatedModel
from portal.demo.rows import insert_row
from portal.keys.models import ModelAccess

SEEN = timedelta(days=3650)
VERSIONS = {"vllm": "0.32.0", "llama-server": "b11549"}
GB = 10**9
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
    hosts = {
        name: insert_row(Host(name=name, address=name, seen_at=MADE_UP, holder=f"madoguchi-supervisor@{name}"))
        for name in HOSTS
    }
    models = {engine.name: _model(engine, hosts, now, tenants) for engine in ENGINES}
    held: dict[tuple[str, int], float] = {}
    for engine in ENGINES:
        for index, (host, devices) in enumerate(engine.on):
            replica = _replica(engine, models[engine.name], hosts[host], index, devices, chance, now)
            for device, size in replica.memory_by_device.items():
                held[host, int(device)] = held.get((host, int(device)), 0) + size
    for name, machine in hosts.items():
        installed = {launcher: [version] for launcher, version in VERSIONS.items()}
        seen = _devices(name, held, chance)
        HostReport.objects.create(host=machine, at=now + SEEN, engines=VERSIONS, installed=installed, devices=seen)
    # When they became ready; saving has written "now".
    for replica in Replica.objects.all():
        Replica.objects.filter(pk=replica.pk).update(changed_at=now - timedelta(hours=chance.uniform(3, 400)))
    return models


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
            host=hosts[engine.on[0][0]],
            replicas=len(engine.on),
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
            "weight_bytes": int(engine.memory[0] * len(engine.on[0][1]) * GB),
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
    held = [int((weights + cache + overhead) * chance.uniform(0.97, 1.02)) for _ in devices] if ready else []
    launcher = "vllm" if engine.engine == "vllm" else "llama-server"
    return Replica.objects.create(
        model=model,
        host=host,
        index=index,
        state=engine.state,
        # A name that does not resolve: a call of such a model fails at once, as it cannot be reached.
        url=f"http://{host.name}.invalid:{18100 + chance.randrange(900)}" if ready else "",
        launcher=launcher,
        version=VERSIONS[launcher],
        slots=engine.slots,
        pid=chance.randrange(4000, 90000) if ready else None,
        run_id=f"{chance.getrandbits(64):016x}" if ready else "",
        devices=list(devices),
        predicted=_prediction(engine, weights, cache, overhead, len(devices)),
        memory_bytes=sum(held) or None,
        memory_by_device={str(device): size for device, size in zip(devices, held, strict=False)},
        live=_live(engine, chance, now) if ready else None,
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


def _devices(host: str, held: dict[tuple[str, int], float], chance: Random) -> list[dict[str, Any]]:
    name, size, count = HOSTS[host]
    total, devices = int(size * GB), []
    for index in range(count):
        used = int(held.get((host, index), 0) + 0.5 * GB)
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
