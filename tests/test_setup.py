"""The set-up behind `make`: what it installs, when it does nothing, and what it says when it cannot go on."""

import importlib.util
import re
import subprocess
import threading
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
VARIABLE = re.compile(r'\benv\.\w+\(\s*"([A-Z_]+)"')


@pytest.fixture
def setup():
    spec = importlib.util.spec_from_file_location("madoguchi_setup", ROOT / "deploy" / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- System packages --------------------------------------------------------------------------------------------
LISTING = """
# a comment
run    {python}-venv   # why
run    gcc
test   slapd
test   debian:chromium
bench  gcc
bench  nginx
"""


def wanted(setup, *marks, system="debian", system_python=True):
    return setup.wanted(LISTING, marks, system=system, system_python=system_python, python="python3.12")


def test_each_target_installs_its_own_packages_and_each_once(setup):
    assert wanted(setup, "run") == ["python3.12-venv", "gcc"]
    assert wanted(setup, "run", "bench") == ["python3.12-venv", "gcc", "nginx"]


def test_a_python_from_elsewhere_needs_no_packages_of_the_systems(setup):
    assert wanted(setup, "run", system_python=False) == ["gcc"]


def test_a_package_of_one_distribution_is_left_out_on_others(setup):
    assert wanted(setup, "test") == ["slapd", "chromium"]
    assert wanted(setup, "test", system="ubuntu") == ["slapd"]


def test_every_line_of_the_real_list_is_read(setup):
    listing = (ROOT / "deploy" / "packages").read_text()
    every = {mark for marks in setup.MARKS.values() for mark in marks}
    lines = [line for line in listing.splitlines() if line and not line.startswith("#")]
    names = setup.wanted(listing, tuple(every), system="debian", system_python=True, python="python3.11")
    assert len(names) == len({line.split()[1] for line in lines})


def test_what_is_installed_is_not_missing(setup):
    assert setup.missing(["gcc", "no-such-package"]) == ["no-such-package"]


def test_without_root_and_sudo_it_prints_the_command_and_stops(setup, tmp_path, monkeypatch):
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "packages").write_text("run gcc\nrun no-such-package\n")
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setattr("shutil.which", lambda name: None if name == "sudo" else f"/usr/bin/{name}")
    with pytest.raises(SystemExit, match=r"\n    sudo sh deploy/install-packages no-such-package\n"):
        setup.system_packages("run")


def test_nothing_missing_needs_no_rights(setup, tmp_path, monkeypatch):
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "packages").write_text("run gcc\n")
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    setup.system_packages("run")


# --- Python -----------------------------------------------------------------------------------------------------
def find_python(directory: Path, path: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Return what it prints on a machine whose distribution's Python is `directory`/distribution."""
    script = (ROOT / "deploy" / "find-python").read_text().replace("/usr/bin/python3 ", f"{directory}/distribution ")
    return subprocess.run(
        ["/bin/sh", "-c", script],
        cwd=directory,
        env={"PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=10,
    )


def python(directory: Path, name: str, *, fits: bool) -> None:
    (directory / name).write_text(f"#!/bin/sh\nexit {0 if fits else 1}\n")
    (directory / name).chmod(0o755)


def test_a_python_that_is_too_old_is_passed_over(tmp_path):
    python(tmp_path, "python3", fits=False)
    python(tmp_path, "python3.12", fits=True)
    assert find_python(tmp_path, str(tmp_path)).stdout == "python3.12\n"


def test_the_distributions_comes_before_what_is_on_the_path(tmp_path):
    python(tmp_path, "python3", fits=True)
    python(tmp_path, "distribution", fits=True)
    assert find_python(tmp_path, str(tmp_path)).stdout == f"{tmp_path}/distribution\n"


def test_the_one_that_is_named_comes_first(tmp_path):
    python(tmp_path, "python3", fits=True)
    python(tmp_path, "distribution", fits=True)
    python(tmp_path, "mine", fits=True)
    assert find_python(tmp_path, str(tmp_path), PYTHON="mine").stdout == "mine\n"


def test_an_environment_in_order_is_used_and_an_interrupted_one_is_not(tmp_path):
    environment = tmp_path / ".venv" / "bin"
    environment.mkdir(parents=True)
    python(environment, "python", fits=True)
    python(tmp_path, "python3", fits=True)
    assert find_python(tmp_path, str(tmp_path)).stdout == ".venv/bin/python\n"
    (environment / "python").write_text("#!/bin/sh\ncase $2 in *pip*) exit 1 ;; esac\n")
    assert find_python(tmp_path, str(tmp_path)).stdout == "python3\n"


def test_without_any_it_says_which_it_needs(tmp_path):
    found = find_python(tmp_path, str(tmp_path))
    assert (found.returncode, found.stdout) == (1, "")
    assert "3.11" in found.stderr


@pytest.fixture
def project(setup, tmp_path, monkeypatch):
    """Return a project with two locks whose Python writes down how it is called."""
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    monkeypatch.setattr(setup, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(setup, "PYTHON", tmp_path / ".venv" / "bin" / "python")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").write_text('#!/bin/sh\necho "$@" >>calls\n')
    (tmp_path / ".venv" / "bin" / "python").chmod(0o755)
    (tmp_path / "calls").touch()
    for name in ("requirements.lock", "requirements-dev.lock"):
        (tmp_path / name).write_text(name)
    return tmp_path


def installed(project: Path) -> list[str]:
    """Return the locks that pip was given, in order."""
    return [call.split()[-1] for call in (project / "calls").read_text().splitlines()]


def test_a_lock_is_installed_once(setup, project):
    setup.dependencies("requirements.lock")
    setup.dependencies("requirements.lock")
    assert installed(project) == ["requirements.lock"]
    assert "--require-hashes" in (project / "calls").read_text()


def test_a_changed_lock_is_installed_again(setup, project):
    setup.dependencies("requirements.lock")
    (project / "requirements.lock").write_text("newer")
    setup.dependencies("requirements.lock")
    assert len(installed(project)) == 2


def test_the_lock_of_the_tests_holds_the_other(setup, project):
    setup.dependencies("requirements-dev.lock")
    setup.dependencies("requirements.lock")
    assert installed(project) == ["requirements-dev.lock"]


def test_an_installation_that_fails_is_tried_again(setup, project):
    (project / ".venv" / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(SystemExit):
        setup.dependencies("requirements.lock")
    (project / ".venv" / "bin" / "python").write_text('#!/bin/sh\necho "$@" >>calls\n')
    setup.dependencies("requirements.lock")
    assert installed(project) == ["requirements.lock"]


def test_the_libraries_of_the_pages_are_fetched_by_the_projects_python(setup, project):
    setup.libraries()
    assert (project / "calls").read_text() == "-m portal.frontend\n"


@pytest.mark.parametrize("kind", ["run", "test", "bench"])
def test_every_set_up_brings_the_libraries_before_static_files_are_collected(setup, monkeypatch, kind):
    steps = ("system_packages", "environment", "dependencies", "messages", "libraries", "browser", "state")
    steps += ("vllm", "engines_and_models", "clients", "run")
    taken = []
    for step in steps:
        monkeypatch.setattr(setup, step, lambda *_, step=step: taken.append(step))
    setup.main(kind)
    assert taken.index("libraries") > taken.index("dependencies")
    assert "state" not in taken[: taken.index("libraries")]


def test_steps_that_are_taken_together_wait_for_each_other_and_a_failure_of_one_ends_the_set_up(setup):
    both, taken = threading.Barrier(2), []

    def fail() -> None:
        both.wait(10)
        raise SystemExit("no network")

    def go_on() -> None:
        both.wait(10)
        taken.append("went on")

    with pytest.raises(SystemExit, match="no network"):
        setup.together(fail, go_on)
    assert taken == ["went on"]


def test_a_library_of_another_version_is_collected_again(setup, project, monkeypatch):
    monkeypatch.setenv("MADOGUCHI_VAR", str(project / "var"))
    (project / "var" / "static").mkdir(parents=True)
    lock = project / "portal" / "frontend" / "package-lock.json"
    lock.parent.mkdir(parents=True)
    for content in ("4.6.0", "4.6.0", "4.6.1"):
        lock.write_text(content)
        setup.state()
    assert (project / "calls").read_text().count("collectstatic") == 2


# --- What belongs together --------------------------------------------------------------------------------------
def pins(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)(?:\[[^]]*\])?==(\S+)", (ROOT / name).read_text(), re.MULTILINE))


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[A-Za-z0-9-]+", requirement)[0].lower() for requirement in requirements}


def test_the_locks_hold_what_the_project_asks_for_and_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    run, test = pins("requirements.lock"), pins("requirements-dev.lock")
    assert names(project["project"]["dependencies"]) <= run.keys()
    assert names(project["dependency-groups"]["dev"]) <= test.keys()
    assert run.items() <= test.items()


def test_every_variable_that_is_read_is_documented():
    read = set(VARIABLE.findall((ROOT / "portal" / "settings.py").read_text()))
    documented = (ROOT / "deploy" / "SETTINGS.md").read_text()
    assert {"DATABASE_URL", "MADOGUCHI_VAR"} <= read
    assert [name for name in sorted(read) if f"`{name}`" not in documented] == []


def test_every_documented_variable_is_read():
    # The variables that name an engine's command are declared by the engines.
    folders = ROOT / "portal", ROOT / "modelregistry" / "engines"
    sources = "".join(path.read_text() for folder in folders for path in folder.rglob("*.py"))
    documented = re.findall(r"^\| `([A-Z_]+)`", (ROOT / "deploy" / "SETTINGS.md").read_text(), re.MULTILINE)
    assert len(documented) > 20
    assert [name for name in documented if f'"{name}"' not in sources] == []


@pytest.mark.parametrize("page", ["README.md", "README.ja.md", "deploy/SETTINGS.md", "deploy/OPERATIONS.md"])
def test_links_between_the_documents_lead_somewhere(page):
    path = ROOT / page
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text())
    assert links
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("page", ["README.md", "README.ja.md"])
def test_the_readme_opens_with_the_two_commands(page):
    opening = (ROOT / page).read_text()[:900]
    assert opening.index("make run") < opening.index("make test")


def test_a_gpu_host_needs_ray_and_nothing_of_the_portal(setup):
    assert setup.LOCKS["host"] == "modelregistry/install/locks/ray/ray.lock"
    lock = (ROOT / setup.LOCKS["host"]).read_text()
    assert "\nray==" in lock
    assert "django" not in lock.lower()
