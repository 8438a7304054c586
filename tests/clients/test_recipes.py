"""What our pages print for programs and libraries, run unchanged with the programs themselves against a gateway.

Dify's fields are in test_python.py, Open WebUI's in webui/, those of Claude Code and Codex in test_agents.py. Not tried
with the program itself: Cline and n8n, whose pages say so.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from modelregistry.models import ServedModel
from portal.keys import code_samples, model_access
from portal.keys.recipes import ClientRecipe
from tests.clients import environment
from tests.clients.office import Office, offline

NO_KEY = ""


def recipe_of(office: Office, model: str, key: str, program: str) -> ClientRecipe:
    """Return the recipe as a page prints it, with the key filled in or, without one, read from the environment."""
    [offer] = model_access.available_models(ServedModel.objects.filter(name=model))
    made = code_samples.make_samples(offer, base_url=office.v1, key=key).recipes
    return next(recipe for recipe in made if recipe.key == program)


def run(command: list[str], place: Path, **variables: str) -> str:
    """Return what the command prints, which must succeed."""
    done = subprocess.run(
        command,
        cwd=place,
        env=offline(HOME=str(place), **variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def put(recipe: ClientRecipe, place: Path) -> Path:
    """Write the recipe's file where it says, below `place` in place of the home directory."""
    [paste] = recipe.pastes
    path = place / paste.into.removeprefix("~/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(paste.text)
    return path


@pytest.fixture(params=["with the key", "with the key in the environment"])
def key(request, office) -> str:
    return office.key if request.param == "with the key" else NO_KEY


# What it prints at least of the answer of each of the office's models.
@pytest.mark.parametrize(("model", "printed"), [("chat", ""), ("embedding", "384"), ("rerank", "relevance_score")])
def test_the_javascript_runs(office, tmp_path, key, model, printed):
    (tmp_path / "node_modules").symlink_to(environment.packages() / "node_modules")
    path = put(recipe_of(office, model, key, "javascript"), tmp_path)
    told = run([str(environment.node()), path.name], tmp_path, OPENAI_API_KEY=office.key)
    assert told.strip() != ""
    assert printed in told
    assert [row.status for row in office.rows()] == ["finished"]


@pytest.mark.parametrize(("model", "printed"), [("chat", ""), ("embedding", "384")])
def test_the_code_for_langchain_runs(office, tmp_path, key, model, printed):
    path = put(recipe_of(office, model, key, "langchain"), tmp_path)
    told = run([sys.executable, path.name], tmp_path, OPENAI_API_KEY=office.key)
    assert told.strip() != ""
    assert printed in told
    assert [row.status for row in office.rows()] == ["finished"]


def test_continue_takes_its_configuration_and_answers(office, tmp_path):
    path = put(recipe_of(office, "fake", office.key, "continue"), tmp_path)
    # Without its tools, which the fake engine would call for ever.
    asked = ["-p", "Say hello.", "--exclude", "*", "--config", str(path)]
    command = [str(environment.node()), str(environment.continue_cli()), *asked]
    told = run(command, tmp_path, CONTINUE_GLOBAL_DIR=str(path.parent))
    assert told.strip() != ""
    rows = office.rows()
    assert {(row.model, row.endpoint, row.status) for row in rows} == {("fake", "/v1/chat/completions", "finished")}
