"""Real engines and models for tests, out of the per-user cache that `make setup` fills."""

from pathlib import Path

from django.conf import settings

from modelregistry import engines


def xllamacpp_python() -> Path:
    """The Python that can import `xllamacpp`."""
    found = engines.find({}, settings.CACHE, "")
    if "xllamacpp" not in found:
        raise LookupError(f"no xllamacpp under {settings.CACHE}: run `make setup`")
    return Path(found["xllamacpp"][0])


def chat_model() -> Path:
    """SmolLM2-135M-Instruct, GGUF, Q4_1: small, quick, and talks."""
    return _model("SmolLM2-135M-Instruct.Q4_1.gguf")


def embedding_model() -> Path:
    """all-MiniLM-L6-v2, GGUF: 384 dimensions."""
    return _model("all-MiniLM-L6-v2.gguf")


def _model(name: str) -> Path:
    path = settings.CACHE / "models" / name
    if not path.exists():
        raise LookupError(f"no {name} under {settings.CACHE}: run `make setup`")
    return path
