"""Three GPU hosts with eight models, as a company might run them: what the pages of operators are tried with."""

from datetime import timedelta
from typing import Any

from django.utils import timezone

from modelregistry.models import Alias, FileReport, Host, HostReport, Replica, ServedModel
from portal.keys.models import ApiKey
from tests.pages import use


def gigabytes(amount: float) -> int:
    return int(amount * 10**9)


def gpu(index: int, name: str, total: float, used: float) -> dict[str, Any]:
    return {
        "index": index,
        "uuid": f"GPU-{index:04}",
        "name": name,
        "kind": "gpu",
        "total": gigabytes(total),
        "free": gigabytes(total - used),
        "used": gigabytes(used),
        "processes": [],
        "fault": "",
    }


def ram(total: float, used: float) -> dict[str, Any]:
    return {**gpu(-1, "RAM", total, used), "uuid": "", "kind": "ram"}


def predicted(weights: float, cache: float, overhead: float, devices: int = 1) -> dict[str, Any]:
    return {
        "devices": devices,
        "weights": gigabytes(weights),
        "cache": gigabytes(cache),
        "overhead": gigabytes(overhead),
        "total": gigabytes(weights + cache + overhead),
        "rule_of_thumb": gigabytes(1.5 * weights),
    }


def host(name: str, *devices: dict[str, Any], silent: timedelta = timedelta(), **report: Any) -> Host:
    seen = timezone.now() - silent
    made, _ = Host.objects.update_or_create(name=name, defaults={"address": "10.0.0.5", "seen_at": seen})
    HostReport.objects.create(host=made, devices=list(devices), at=seen, **report)
    return made


def model(name: str, engine: str = "vllm", **values: Any) -> ServedModel:
    path = f"/srv/models/{name}" + ("" if engine == "vllm" else ".gguf")
    return ServedModel.objects.create(name=name, engine=engine, path="" if "url" in values else path, **values)


def replica(of: ServedModel, on: Host, state: str = "ready", **values: Any) -> Replica:
    busy = {"at": timezone.now().isoformat(), "running": 0, "waiting": 0, "tokens_per_second": 0.0, "cache_used": 0.0}
    now = {**busy, **values.pop("live", {})}
    version = "0.32.0" if of.engine == "vllm" else "b11549"
    launcher = "vllm" if of.engine == "vllm" else "llama-server"
    return Replica.objects.create(
        model=of,
        host=on,
        state=state,
        live=now if state == "ready" else None,
        version=version,
        launcher=launcher,
        **values,
    )


def fleet() -> None:
    """Make the hosts gpu-01 (two large cards), gpu-02 (others use its card) and edge-03 (RAM, silent for 3 minutes)."""
    big = host(
        "gpu-01",
        gpu(0, "NVIDIA RTX 6000 Ada", 51.5, 41.3),
        gpu(1, "NVIDIA RTX 6000 Ada", 51.5, 40.9),
        engines={"vllm": "0.32.0", "llama-server": "b11549"},
    )
    shared = host(
        "gpu-02",
        gpu(0, "NVIDIA GeForce RTX 4090", 25.8, 9.4),
        strangers=[
            {"pid": 48213, "name": "python train_lora.py", "device": 0, "bytes": gigabytes(6.4)},
            {"pid": 3120, "name": "Xorg", "device": 0, "bytes": gigabytes(0.3)},
        ],
        engines={"vllm": "0.32.0", "llama-server": "b11549"},
        problems=[{"code": "disk-full", "detail": "/var/lib/madoguchi: 812 MB"}],
    )
    edge = host("edge-03", ram(67.4, 19), silent=timedelta(minutes=3), engines={"xllamacpp": "b11549"})

    llama = model(
        "llama-3.1-70b-japanese",
        tensor_parallel=2,
        context=16384,
        slots=16,
        host=big,
        description_ja="長い文章の要約、翻訳、社内文書の下書きに向いています。",
        description_en="Good at summaries, translation and drafts of longer documents.",
        args=["--quantization=awq_marlin", "--dtype=half"],
    )
    FileReport.objects.create(
        model=llama,
        at=timezone.now(),
        facts={
            "architecture": "LlamaForCausalLM",
            "task": "chat",
            "parameters": 70_553_706_496,
            "quantisation": "AWQ-INT4",
            "bits_per_weight": 4.51,
            "context": 131072,
            "has_chat_template": True,
            "weight_bytes": gigabytes(37.0),
            "layers": 80,
            "heads": 64,
            "hidden": 8192,
            "vocabulary": 128256,
            "files": 9,
        },
    )
    Alias.objects.create(name="default", model=llama)
    Alias.objects.create(name="gpt-4o", model=llama)
    replica(
        llama,
        big,
        devices=[0, 1],
        pid=21870,
        predicted=predicted(18.5, 5.0, 2.4, devices=2),
        memory_bytes=gigabytes(52.4),
        memory_by_device={"0": gigabytes(26.3), "1": gigabytes(26.1)},
        live={"running": 11, "waiting": 4, "tokens_per_second": 312.4, "cache_used": 0.83},
    )
    ezo = model("ezo-common-9b", context=8192, slots=8, host=big)
    replica(
        ezo,
        big,
        devices=[0],
        pid=21901,
        predicted=predicted(9.3, 3.1, 1.6),
        memory_bytes=gigabytes(14.6),
        memory_by_device={"0": gigabytes(14.6)},
        live={"running": 2, "waiting": 0, "tokens_per_second": 96.2, "cache_used": 0.21},
    )
    coder = model("qwen2.5-coder-14b", context=32768, replicas=2)
    replica(
        coder,
        big,
        devices=[1],
        pid=22014,
        predicted=predicted(9.1, 4.2, 1.5),
        memory_bytes=gigabytes(14.4),
        memory_by_device={"1": gigabytes(14.4)},
        live={"running": 1, "tokens_per_second": 44.8, "cache_used": 0.09},
    )
    replica(coder, shared, "starting", index=1, devices=[0], pid=4410, predicted=predicted(9.1, 4.2, 1.5))
    replica(
        model("multilingual-e5-large", "llama.cpp", task="embedding", context=512),
        shared,
        devices=[0],
        pid=4102,
        predicted=predicted(0.6, 0.02, 0.4),
        memory_bytes=gigabytes(1.1),
        memory_by_device={"0": gigabytes(1.1)},
        live={"running": 3, "tokens_per_second": None},
    )
    replica(
        model("gemma-3-27b-it", context=65536),
        shared,
        "failed",
        predicted=predicted(16.8, 9.4, 1.9),
        cause="gpu-memory",
        restarts=5,
        detail=OUT_OF_MEMORY,
    )
    replica(
        model("bge-reranker-v2", "llama.cpp", task="rerank"),
        edge,
        memory_bytes=gigabytes(1.3),
        live={"running": 0},
    )
    replica(model("tinyswallow-1.5b", "llama.cpp", idle_after=900), edge, "asleep")
    model("old-elyza-7b", "llama.cpp", enabled=False, retires_on=timezone.localdate() + timedelta(days=9))


def calls(key: ApiKey) -> None:
    """Make requests of the last quarter of an hour, the large model slower than the small ones."""
    names = {"llama-3.1-70b-japanese": 620, "ezo-common-9b": 140, "qwen2.5-coder-14b": 210}
    for name, quickest in names.items():
        for number in range(20):
            record = use(key, model=name, at=timezone.now() - timedelta(seconds=30 * number))
            record.first_token_ms = quickest + 37 * number + (2400 if number == 19 else 0)
            record.save()


OUT_OF_MEMORY = """\
ended with status 1: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.31 GiB.
(EngineCore_DP0 pid=5120) INFO 11-22 13:04:11 [gpu_model_runner.py:2602] Starting to load model /srv/models/gemma-3-27b
(EngineCore_DP0 pid=5120) ERROR 11-22 13:04:58 [core.py:708] torch.OutOfMemoryError: CUDA out of memory. Tried to
allocate 1.31 GiB. GPU 0 has a total capacity of 23.99 GiB of which 812.00 MiB is free.
RuntimeError: Engine core initialization failed. See root cause above."""
