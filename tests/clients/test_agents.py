"""Claude Code and Codex from npm, as one types them: each reads a file for the model and reports what it said."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from modelregistry.install.build_cache import CannotFetch
from modelregistry.models import ServedModel
from portal.keys import code_samples, model_access
from portal.keys.recipes import CODEX_VARIABLE, ClientRecipe
from tests.clients import environment
from tests.clients.agent_engine import COMPLETION, PROMPT
from tests.clients.office import offline

NOTE = "The canteen opens at 11:30."
QUESTION = "What does note.txt say?"


@pytest.fixture(scope="module")
def urls() -> dict[str, str]:
    """Provide no engines but the fake one that each test has."""
    return {}


@pytest.fixture
def desk(tmp_path, office) -> Path:
    """Return a directory with a note in it, beside a home that no agent has been in."""
    (tmp_path / "home").mkdir()
    place = tmp_path / "desk"
    place.mkdir()
    (place / "note.txt").write_text(NOTE)
    office.agent.tools = {"Read": {"file_path": str(place / "note.txt")}, "exec_command": {"cmd": "cat note.txt"}}
    return place


def run(desk: Path, command: list[str], *, status: int = 0, **variables: str) -> str:
    """Return what the command prints, which ends with this exit status."""
    done = subprocess.run(
        command,
        cwd=desk,
        env=offline(HOME=str(desk.parent / "home"), **variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def calls_of_tools(office) -> list[dict[str, Any]]:
    """Return the requests of a conversation in which tools were offered."""
    return [request["body"] for request in office.agent.requests if request["body"].get("tools")]


def claude_code(office, desk: Path, *options: str, status: int = 0) -> dict[str, Any]:
    """Return how a question to it ended."""
    told = run(
        desk,
        [str(environment.claude_code()), "-p", QUESTION, "--output-format", "json", *options],
        status=status,
        ANTHROPIC_BASE_URL=office.url,
        ANTHROPIC_AUTH_TOKEN=office.key,
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
        DISABLE_AUTOUPDATER="1",
    )
    ended: dict[str, Any] = json.loads(told)
    return ended


def test_claude_code_reads_a_file(office, desk):
    answer = claude_code(office, desk, "--model", "agent", "--allowedTools", "Read")
    assert (answer["is_error"], answer["result"].endswith(NOTE)) == (False, True)
    assert all(body["stream"] for body in calls_of_tools(office))  # it did not fall back to whole answers
    rows = office.rows(2)
    assert {(row.endpoint, row.status, row.estimated) for row in rows} == {("/v1/messages", "finished", False)}
    assert {(row.prompt_tokens, row.completion_tokens) for row in rows} == {(PROMPT, COMPLETION)}


def test_claude_code_sees_that_there_is_no_such_model(office, desk):
    ended = claude_code(office, desk, "--model", "nope", status=1)
    assert (ended["is_error"], ended["api_error_status"]) == (True, 404)
    assert office.agent.requests == []


@pytest.mark.parametrize("left_out", [environment.CLAUDE_CODE, environment.CODEX])
def test_an_agent_that_npm_could_not_get_is_missed(tmp_path, left_out):
    for program in {environment.CLAUDE_CODE, environment.CODEX} - {left_out}:
        (tmp_path / program.replace("*", "linux-x64")).mkdir(parents=True)
    with pytest.raises(CannotFetch):
        environment.check(tmp_path)


def test_codex_reads_a_file(office, desk):
    server = f'{{name="Madoguchi",base_url="{office.v1}",env_key="MADOGUCHI_KEY",wire_api="responses"}}'
    settings = ["-c", 'model_provider="madoguchi"', "-c", f"model_providers.madoguchi={server}", "--model", "agent"]
    # Its sandbox wants rights that a container has not; the one command that it is asked to run is `cat`.
    alone = ["--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
    command = [*environment.codex(), "exec", "--json", *alone, *settings, QUESTION]
    (desk.parent / "home" / ".codex").mkdir()
    told = run(desk, command, CODEX_HOME=str(desk.parent / "home" / ".codex"), MADOGUCHI_KEY=office.key)
    events = [json.loads(line) for line in told.splitlines()]
    answers = [event["item"]["text"] for event in events if event.get("item", {}).get("type") == "agent_message"]
    assert NOTE in answers[-1]
    (end,) = [event for event in events if event["type"] == "turn.completed"]
    assert (end["usage"]["input_tokens"], end["usage"]["output_tokens"]) == (2 * PROMPT, 2 * COMPLETION)
    rows = office.rows(2)
    assert {(row.endpoint, row.status, row.estimated) for row in rows} == {("/v1/responses", "finished", False)}


# --- As our pages print their settings


def recipe_of(office, program: str) -> ClientRecipe:
    [offer] = model_access.available_models(ServedModel.objects.filter(name="agent"))
    made = code_samples.make_samples(offer, base_url=office.v1, key=office.key).recipes
    return next(recipe for recipe in made if recipe.key == program)


def put(recipe: ClientRecipe, home: Path) -> None:
    settings = recipe.pastes[0]
    path = home / settings.into.removeprefix("~/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(settings.text)


def test_claude_code_reads_a_file_with_the_settings_that_our_pages_print(office, desk):
    put(recipe_of(office, "claude-code"), desk.parent / "home")
    command = [str(environment.claude_code()), "-p", QUESTION, "--output-format", "json", "--allowedTools", "Read"]
    answer = json.loads(run(desk, command, DISABLE_AUTOUPDATER="1"))
    assert (answer["is_error"], answer["result"].endswith(NOTE)) == (False, True)
    assert {(row.model, row.endpoint, row.status) for row in office.rows(2)} == {("agent", "/v1/messages", "finished")}


def test_codex_reads_a_file_with_the_settings_that_our_pages_print(office, desk):
    recipe, home = recipe_of(office, "codex"), desk.parent / "home"
    put(recipe, home)
    export, _, start = recipe.pastes[1].text.partition("\n")
    assert (export, start) == (f"export {CODEX_VARIABLE}={office.key}", "codex")
    alone = ["--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
    told = run(desk, [*environment.codex(), "exec", "--json", *alone, QUESTION], **{CODEX_VARIABLE: office.key})
    events = [json.loads(line) for line in told.splitlines()]
    answers = [event["item"]["text"] for event in events if event.get("item", {}).get("type") == "agent_message"]
    assert NOTE in answers[-1]
    assert {(row.model, row.endpoint, row.status) for row in office.rows(2)} == {("agent", "/v1/responses", "finished")}
