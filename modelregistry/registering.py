"""What is wrong with a model that somebody wants to register, told before an engine would find out minutes later."""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from django.utils.translation import gettext as _

# Set by the supervisor for each replica; a second value would win and move the engine to where nobody looks, open
# it to every interface, or let it answer without a key.
RESERVED = frozenset(
    [
        *("--host", "--port", "--uds", "--api-key", "--api_key", "--api-key-file", "--interrupt_requests"),
        *("--model", "-m", "--alias", "-a", "--model_alias", "--served-model-name"),
    ]
)


def problems(
    *,
    engine: str,
    launcher: str,
    task: str,
    path: str,
    url: str,
    args: object,
    connect_timeout: float | None,
    first_byte_timeout: float | None,
    idle_timeout: float | None,
    total_timeout: float | None,
    look_at_path: bool,
) -> dict[str, str]:
    """One sentence for each field that cannot be right; empty: fine. Reads a few bytes of the model's files."""
    found: dict[str, str] = {}
    if engine == "external":
        found |= _external(path, url)
    else:
        if url:
            found["url"] = _("Only an external engine has a URL; this one is started here, from a path.")
        if fault := path_fault(engine, path) if look_at_path else _unseen_path_fault(path):
            found["path"] = fault
    if launcher and engine != "llama.cpp":
        found["launcher"] = _("Only llama.cpp has a choice of launchers.")
    if launcher == "llama-cpp-python" and task == "rerank":
        found["launcher"] = _("llama-cpp-python cannot rerank; choose llama-server or xllamacpp.")
    if engine == "llama.cpp" and task == "transcription":
        found["task"] = _("llama.cpp transcribes with chat models that can hear (--mmproj): register it for chat.")
    if fault := _args_fault(args):
        found["args"] = fault
    parts = [given for given in (connect_timeout, first_byte_timeout, idle_timeout) if given is not None]
    if total_timeout is not None and total_timeout < max(parts, default=0.0):
        found["total_timeout"] = _("The time in all cannot be shorter than one of its parts, %(longest)g seconds.") % {
            "longest": max(parts)
        }
    return found


def _external(path: str, url: str) -> dict[str, str]:
    if path:
        return {"path": _("An external engine has a URL, not a path.")}
    if not url:
        return {"url": _("An external engine needs a URL, for example http://10.0.0.5:8000.")}
    try:
        parts = urlsplit(url)
        well_formed = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        well_formed = False
    if not well_formed:
        return {"url": _("%(url)s is not a URL like http://10.0.0.5:8000.") % {"url": url}}
    if parts.query or parts.fragment or parts.username:
        return {"url": _("The URL must not hold a user name, a query or a fragment.")}
    if parts.path.rstrip("/").endswith("/v1"):
        return {"url": _("Leave /v1 off the URL: it is added to each call.")}
    return {}


def path_fault(engine: str, path: str) -> str:
    """Why a model cannot be read from there, on this machine; empty: it can, as far as its first bytes tell."""
    if fault := _unseen_path_fault(path):
        return fault
    try:
        return _gguf_fault(Path(path)) if engine == "llama.cpp" else _directory_fault(Path(path))
    except OSError as error:
        return _("%(path)s cannot be read: %(reason)s.") % {"path": path, "reason": error.strerror}


def _unseen_path_fault(path: str) -> str:
    if not path:
        return _("This engine needs the path of a model.")
    return "" if Path(path).is_absolute() else _("%(path)s is not an absolute path.") % {"path": path}


def _gguf_fault(path: Path) -> str:
    if not path.exists():
        return _("%(path)s does not exist.") % {"path": path}
    if path.is_dir():
        return _("%(path)s is a directory; llama.cpp needs a GGUF file.") % {"path": path}
    with path.open("rb") as file:
        magic = file.read(4)
    return "" if magic == b"GGUF" else _("%(path)s is not a GGUF file.") % {"path": path}


def _directory_fault(path: Path) -> str:
    if not path.exists():
        return _("%(path)s does not exist.") % {"path": path}
    if not path.is_dir():
        return _("%(path)s is not a directory; vLLM needs a model directory.") % {"path": path}
    if not (path / "config.json").is_file():
        return _("%(path)s has no config.json; it does not hold a model for vLLM.") % {"path": path}
    return ""


def _args_fault(args: object) -> str:
    if not isinstance(args, Sequence) or isinstance(args, str) or not all(isinstance(arg, str) for arg in args):
        return _('More arguments are a list of texts, for example ["--dtype=half"].')
    taken = [arg for arg in args if arg.split("=", 1)[0] in RESERVED]
    return _("%(arg)s is set for each replica and cannot be given here.") % {"arg": taken[0]} if taken else ""
