"""Open WebUI from PyPI, set up with the very lines that our pages print, used by its own HTTP API. `make test-clients`.

It is no part of `make test`: 1.2 GB, and a minute to start. Nothing of it asks the internet: it would fail here.
"""

import json
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import httpx2
import pytest
from django.conf import settings

from modelregistry.models import ServedModel
from portal.feedback.models import Feedback
from portal.keys import model_access
from portal.keys.integrations import open_webui_settings
from portal.keys.models import ApiKey
from portal.usage.models import UsageRecord
from tests.clients import environment
from tests.clients.office import Office, offline
from tests.waiting import until

pytestmark = pytest.mark.timeout(400)

YAMADA = {"name": "山田 太郎", "email": "yamada@example.com", "password": "correct horse"}
NOTE = "Travel expenses go to accounting. " * 20 + "\n\n" + "The canteen opens at 11:30. " * 20
SECONDS = 240  # until it answers, on a machine that has other work


def printed(office: Office) -> dict[str, str]:
    """Return the variables that our pages say, of a model of each kind."""
    by_name = {offer.name: offer for offer in model_access.available_models(ServedModel.objects.all())}
    speech = replace(by_name["fake"], task="transcription")
    lines: list[str] = []
    for offer in (by_name["chat"], by_name["embedding"], by_name["rerank"], speech):
        lines += open_webui_settings(offer, office.v1, office.key).environment.splitlines()
    return dict(line.split("=", 1) for line in lines)


@pytest.fixture(params=["in headers", "in a signed token"])
def web(request, office, tmp_path) -> Iterator[httpx2.Client]:
    """Provide its API, with its administrator signed up, who is named to us as the parameter says."""
    key = ApiKey.objects.get()
    key.takes_user_headers = True
    key.save()
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    variables = {
        **printed(office),
        "ENABLE_FORWARD_USER_INFO_HEADERS": "true",
        "ENABLE_OLLAMA_API": "false",
        "OFFLINE_MODE": "true",
        "HF_HUB_OFFLINE": "1",
        "ANONYMIZED_TELEMETRY": "false",
        "DATA_DIR": str(tmp_path),
        "WEBUI_SECRET_KEY": "of-this-test",
    }
    if request.param == "in a signed token":
        variables["FORWARD_USER_INFO_HEADER_JWT_SECRET"] = "that nobody else knows, 32 bytes"
    command = [environment.open_webui(), "-c", "from open_webui import app; app()", "serve"]
    log = tmp_path / "open-webui.log"
    with log.open("w") as written:
        process = subprocess.Popen(
            [*command, "--host=127.0.0.1", f"--port={port}"],
            cwd=tmp_path, env=offline(**variables), stdout=written, stderr=written,
        )  # fmt: skip
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=100) as client:
            until(lambda: process.poll() is not None or answers(client), SECONDS)
            assert process.poll() is None, log.read_text()[-5000:]
            token = client.post("/api/v1/auths/signup", json=YAMADA).raise_for_status().json()["token"]
            client.headers["authorization"] = f"Bearer {token}"
            yield client
    finally:
        process.kill()
        process.wait()


def answers(client: httpx2.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx2.TransportError:
        return False


def test_p6_open_webui_chats_embeds_ranks_and_transcribes_as_our_pages_set_it_up(office, web, tmp_path):
    models = web.get("/api/models").raise_for_status().json()["data"]
    assert {"chat", "embedding"} <= {model["id"] for model in models}

    assert "".join(chat(web, model="chat", max_tokens=16))

    file = web.post("/api/v1/files/", files={"file": ("note.txt", NOTE.encode(), "text/plain")}).raise_for_status()
    name = file.json()["id"]
    until(lambda: web.get(f"/api/v1/files/{name}/process/status").json()["status"] in ("completed", "failed"), 60)

    question = {"collection_names": [f"file-{name}"], "query": "When does the canteen open?", "k": 2, "hybrid": True}
    found = web.post("/api/v1/retrieval/query/collection", json=question).raise_for_status().json()
    assert any("canteen" in text for text in found["documents"][0])

    wave = b"RIFF$\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0@\x1f\0\0\x80>\0\0\x02\0\x10\0data\0\0\0\0" + bytes(3200)
    heard = web.post("/api/v1/audio/transcriptions", files={"file": ("speech.wav", wave, "audio/wav")})
    assert heard.raise_for_status().json()["text"] == "hello there"

    used = {"/v1/chat/completions", "/v1/embeddings", "/v1/rerank", "/v1/audio/transcriptions"}
    until(lambda: {row.endpoint for row in office.rows()} == used)
    rows = office.rows()
    assert {row.status for row in rows} == {"finished"}
    assert {row.end_user for row in rows} == {YAMADA["email"]}


@pytest.mark.parametrize("web", ["in headers"], indirect=True)
def test_its_people_judge_answers_with_our_two_functions(office, web):
    for name in ("madoguchi_models", "madoguchi_feedback"):
        content = (settings.BASE_DIR / "deploy" / "open-webui" / f"{name}.py").read_text()
        form = {"id": name, "name": name, "content": content, "meta": {"description": name}}
        web.post("/api/v1/functions/create", json=form).raise_for_status()
        valves = {"base_url": office.v1, "api_key": office.key}
        web.post(f"/api/v1/functions/id/{name}/valves/update", json=valves).raise_for_status()
        web.post(f"/api/v1/functions/id/{name}/toggle").raise_for_status()
    models = web.get("/api/models").raise_for_status().json()["data"]
    model = "madoguchi_models.chat"
    assert model in {one["id"] for one in models}

    place = {"chat_id": "local:one", "session_id": "here", "id": "answer-1"}
    body = {"model": model, "messages": [{"role": "user", "content": "Name three colours."}], "stream": True, **place}
    web.post("/api/chat/completions", json={**body, "params": {"max_tokens": 16}}).raise_for_status()
    row = until(lambda: UsageRecord.objects.filter(model="chat", status="finished").first())
    assert row.end_user == YAMADA["email"]

    for button, score in (("up", 1), ("down", -1)):
        pressed = {"model": model, "messages": [], **place}
        address = f"/api/chat/actions/madoguchi_feedback.{button}"
        assert web.post(address, json=pressed).raise_for_status().json() == {"status": "recorded"}
        given = Feedback.objects.get()
        assert (given.request_id, given.score, given.comment) == (row.request_id, score, "")
    unknown = web.post(address, json={**pressed, "id": "other"}).raise_for_status().json()
    assert unknown == {"status": "unknown"}


def chat(web: httpx2.Client, **fields: object) -> Iterator[str]:
    """Yield the pieces of a streamed answer."""
    body = {"messages": [{"role": "user", "content": "Name three colours."}], "stream": True, **fields}
    with web.stream("POST", "/api/chat/completions", json=body) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line.removeprefix("data: ")).get("choices", ()):
                    yield choice["delta"].get("content") or ""
