"""python deploy/setup.py run|test|bench|host|release|rehearse: what a target of the Makefile needs, quick if unchanged.

Run by the Python that `deploy/find-python` found, before there is anything else: standard library only.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
# Each kind of set-up needs the packages of these marks and this lock; the second lock holds the first.
# A GPU host of a cluster needs Ray and nothing of the portal, so the whole of its .venv/ is what that lock lists.
MARKS = {"run": ("run",), "test": ("run", "test"), "bench": ("run", "bench"), "host": ("host",), "release": ("run",)}
MARKS["rehearse"] = ("run", "rehearse")
RAY_LOCK = "modelregistry/install/locks/ray/ray.lock"
LOCKS = {
    "run": "requirements.lock",
    "test": "requirements-dev.lock",
    "bench": "requirements-dev.lock",
    "host": RAY_LOCK,
    "rehearse": "requirements.lock",
}


def say(text: str) -> None:
    print(f"→ {text}", flush=True)


def run(*command: str | Path, **more: str) -> None:
    """Run it in the project's directory, with `more` environment; ends the set-up with its message if it fails."""
    done = subprocess.run([str(part) for part in command], cwd=ROOT, env={**os.environ, **more}, check=False)
    if done.returncode:
        raise SystemExit(f"This did not work (exit status {done.returncode}): {' '.join(map(str, command))}")


# --- System packages --------------------------------------------------------------------------------------------
def distribution() -> str:
    try:
        return platform.freedesktop_os_release()["ID"]
    except (OSError, KeyError):
        return "unknown"


def wanted(listing: str, marks: tuple[str, ...], *, system: str, system_python: bool, python: str) -> list[str]:
    """Return the packages of `deploy/packages` that carry one of the marks.

    On this distribution and for this Python.
    """
    names = []
    for line in listing.splitlines():
        mark, name, *_ = [*line.partition("#")[0].split(), "", ""]
        only, _, name = name.rpartition(":")
        of_python = "{python}" in name
        if mark in marks and only in ("", system) and (system_python or not of_python):
            names.append(name.replace("{python}", python))
    return list(dict.fromkeys(names))


def missing(names: list[str]) -> list[str]:
    query = ["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n", *names]
    known = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    return [name for name in names if f"{name} installed" not in known.splitlines()]


def system_packages(kind: str) -> None:
    names = wanted(
        (ROOT / "deploy" / "packages").read_text(),
        MARKS[kind],
        system=distribution(),
        system_python=sys.base_prefix == "/usr",
        python=f"python{sys.version_info.major}.{sys.version_info.minor}",
    )
    if not shutil.which("dpkg-query"):
        say(f"this is not Debian or Ubuntu: make sure of the equivalents of {', '.join(names)}")
        return
    absent = missing(names)
    if not absent:
        return
    command = ["sh", "deploy/install-packages", *absent]
    if os.geteuid() != 0:
        free = shutil.which("sudo") and subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode == 0
        command.insert(0, "sudo")
        if not free:
            raise SystemExit(f"System packages are missing. Run this, then make again:\n\n    {' '.join(command)}\n")
    say(f"system packages: {', '.join(absent)}")
    run(*command)


# --- Python -----------------------------------------------------------------------------------------------------
def environment() -> None:
    """Create `.venv/`, unless `deploy/find-python` found it in order and it runs this."""
    if Path(sys.prefix).resolve() == VENV.resolve():
        return
    say(f"virtual environment .venv/ from Python {platform.python_version()}")
    run(sys.executable, "-m", "venv", "--clear", VENV)


def digest(*paths: Path) -> str:
    """Return a digest that changes with the content of one of the files, or with which files there are."""
    content = hashlib.sha256()
    for path in sorted(paths):
        content.update(f"{path}\0".encode())
        content.update(path.read_bytes())
    return content.hexdigest()


def dependencies(lock: str) -> None:
    """Install what the lock lists, by its checksums. Remembered in .venv/, so the same lock is not installed again."""
    stamp = VENV / ".installed"
    held = ["requirements.lock", lock] if lock == "requirements-dev.lock" else [lock]
    current = {name: f"{name} {digest(ROOT / name)}" for name in held}
    installed = stamp.read_text().splitlines() if stamp.exists() else []
    if current[lock] in installed:
        return
    say(f"dependencies of {lock} (half a minute)")
    stamp.unlink(missing_ok=True)
    pip = (PYTHON, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--progress-bar=on")
    run(*pip, "--require-hashes", "--requirement", lock)
    stamp.write_text("".join(f"{current[name]}\n" for name in held))


def browser() -> None:
    """Fetch Playwright's own Chromium on Ubuntu, whose package is a stub that needs a snap daemon."""
    if distribution() == "ubuntu" and not shutil.which("chromium"):
        say("a browser for the tests (kept in ~/.cache/ms-playwright)")
        run(PYTHON, "-m", "playwright", "install", "--with-deps", "chromium")


# --- Madoguchi --------------------------------------------------------------------------------------------------
def messages() -> None:
    """Compile the texts whose source is newer."""
    sources = [path for path in ROOT.glob("*/**/locale/*/LC_MESSAGES/*.po") if VENV not in path.parents]
    for source in sources:
        target = source.with_suffix(".mo")
        if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
            say(f"texts of {source.relative_to(ROOT)}")
            run("msgfmt", "--check-format", "--output-file", target, source)


def libraries() -> None:
    """Fetch the libraries that pages load beside our own scripts, into MADOGUCHI_CACHE."""
    run(PYTHON, "-m", "portal.frontend")


def state() -> None:
    """Set up static files and the database of the current state directory."""
    var = Path(os.environ.get("MADOGUCHI_VAR") or ROOT / "var")  # as portal.settings.VAR
    var.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = [path for path in (ROOT / "portal" / "static").rglob("*") if path.is_file()]
    stamp = var / "static.stamp"
    # Django's admin brings files as well, and so do the libraries from npm.
    current = digest(ROOT / "requirements.lock", ROOT / "portal" / "frontend" / "package-lock.json", *files)
    if not stamp.exists() or stamp.read_text() != current or not (var / "static").is_dir():
        say("static files")
        run(PYTHON, "manage.py", "collectstatic", "--noinput", "--clear", "--verbosity", "0")
        stamp.write_text(current)
    say("database")
    run(PYTHON, "manage.py", "migrate", "--verbosity", "0")


def vllm() -> None:
    """Fetch the largest of what the tests need in MADOGUCHI_CACHE."""
    say("vLLM for CPUs")
    run(PYTHON, "manage.py", "installengine", "vllm", "--cpu")


def engines_and_models() -> None:
    """Fetch the rest of it; a first run fetches all but Ray by itself."""
    say("llama.cpp, Ray and the demo models")
    run(PYTHON, "manage.py", "installengine", "xllamacpp")
    run(PYTHON, "manage.py", "installray")
    run(PYTHON, "manage.py", "fetchdemomodels")


def clients() -> None:
    """Real clients, for Python and Node.js, which the tests put before the gateway. Two minutes the first time."""
    say("clients for the tests")
    run(PYTHON, "-m", "tests.clients.environment")


def together(*steps: Callable[[], None]) -> None:
    """Take these steps at the same time: one waits for the network while another unpacks. Ends as the first to fail."""
    with ThreadPoolExecutor() as pool:
        for taken in [pool.submit(step) for step in steps]:
            taken.result()


def main(kind: str) -> None:
    system_packages(kind)
    if kind == "release":  # brings an environment of its own
        return
    environment()
    dependencies(LOCKS[kind])
    if kind in ("host", "rehearse"):
        return
    messages()
    libraries()
    if kind == "test":
        browser()
        together(vllm, engines_and_models, clients)
    if kind == "bench":
        run(PYTHON, "-m", "tests.bench.tools")
    if kind == "run":
        state()


if __name__ == "__main__":
    if sys.argv[1:] not in ([kind] for kind in MARKS):
        raise SystemExit(__doc__)
    main(sys.argv[1])
