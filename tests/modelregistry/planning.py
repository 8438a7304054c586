"""A model and devices to plan memory with."""

from dataclasses import replace

from modelregistry.files.metadata import Attention, ModelMetadata
from modelregistry.memory.estimate import GIB
from modelregistry.process.gpus import RAM, Device

# 8 billion parameters in 16 bits, as Llama 3.1 8B: 128 KiB for each token.
LLAMA_8B = ModelMetadata(
    architecture="LlamaForCausalLM",
    quantisation="BF16",
    weight_bytes=16_060_000_000,
    hidden=4096,
    vocabulary=128_256,
    layers=32,
    heads=32,
    context=131_072,
    attention=(Attention(8, 128, 128),) * 32,
)


def card(index: int = 0, total: int = 80, used: int = 0, kind: str = "gpu", fault: str = "") -> Device:
    """Return a device; sizes in GiB."""
    size = total * GIB
    return Device(
        index=index, uuid="", name="A", kind=kind, total=size, used=used * GIB, free=size - used * GIB, fault=fault
    )


def ram(total: int = 256, used: int = 8) -> Device:
    return replace(card(RAM, total, used), kind="ram", name="RAM")
