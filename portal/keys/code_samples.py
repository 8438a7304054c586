"""Ready-to-paste ways to call a model, from curl to Dify. Pure text, which must run unchanged."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from django.utils.translation import gettext as _

from portal.keys.integrations import Fields, OpenWebUI, dify_fields, open_webui_settings
from portal.keys.model_access import AvailableModel
from portal.keys.recipes import RECORDING, VARIABLE, ClientRecipe, make_recipes

# What the OpenAI SDK reads by itself, beside VARIABLE.
ADDRESS = "OPENAI_BASE_URL"
# Without a limit a small model may ramble to the end of its context: a first try took 164 s and looked broken.
ANSWER = 200  # tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeSamples:
    """All ways to call one model with one key."""

    curl: str
    python: str  # empty for tasks that the OpenAI SDK has no call for
    environment: str  # for programs that read the OpenAI SDK's variables, as most programs with this SDK do
    dify: Fields
    open_webui: OpenWebUI
    recipes: tuple[ClientRecipe, ...]  # of more programs and libraries


def make_samples(offer: AvailableModel, *, base_url: str, key: str = "") -> CodeSamples:
    """Return the samples for a model at `base_url` (ends in /v1). Without a key they read it from the environment."""
    shown_key = key or _("your API key")
    return CodeSamples(
        curl=curl_sample(offer, base_url, key),
        python=python_sample(offer, base_url, key),
        environment=f"{ADDRESS}={base_url}\n{VARIABLE}={shown_key}",
        dify=dify_fields(offer, base_url, key),
        open_webui=open_webui_settings(offer, base_url, key),
        recipes=make_recipes(offer, base_url=base_url, key=key),
    )


def sample_request(task: str) -> tuple[str, dict[str, object]]:
    """Return the path after /v1, and the body without the model, for a first call of a model for this task."""
    if task == "embedding":
        return "/embeddings", {"input": _("Where do I hand in travel expenses?")}
    if task == "rerank":
        documents = [_("Travel expenses go to accounting."), _("The canteen opens at 11:30.")]
        return "/rerank", {"query": _("Where do I hand in travel expenses?"), "documents": documents}
    return "/chat/completions", {
        "messages": [{"role": "user", "content": _("Introduce yourself in one sentence.")}],
        "max_tokens": ANSWER,
    }


def curl_sample(offer: AvailableModel, base_url: str, key: str, body: Mapping[str, object] | None = None) -> str:
    """Return the command. `body`: of a chat, without the model; without it the one of `sample_request`."""
    if offer.task == "transcription":
        return (
            f"curl {base_url}/audio/transcriptions \\\n"
            f'  -H "Authorization: Bearer {key or "$" + VARIABLE}" \\\n'
            f'  -F "model={offer.name}" \\\n'
            f'  -F "file=@{RECORDING}"'
        )
    path, usual = sample_request(offer.task)
    # An apostrophe would end the shell's quotes around the body (translations may well contain one).
    text = json.dumps({"model": offer.name, **(body or usual)}, ensure_ascii=False).replace("'", "\\u0027")
    return (
        f"curl {base_url}{path} \\\n"
        f'  -H "Authorization: Bearer {key or "$" + VARIABLE}" \\\n'
        f'  -H "Content-Type: application/json" \\\n'
        f"  -d '{text}'"
    )


def python_sample(offer: AvailableModel, base_url: str, key: str, body: Mapping[str, object] | None = None) -> str:
    """Return the program, or "". `body`: of a chat, with `messages` and `max_tokens`; as in `curl_sample`."""
    key_argument = f', api_key="{key}"' if key else ""
    head = f'from openai import OpenAI\n\nclient = OpenAI(base_url="{base_url}"{key_argument})\n'
    if offer.task == "transcription":
        return (
            f'{head}with open("{RECORDING}", "rb") as recording:\n'
            f'    answer = client.audio.transcriptions.create(model="{offer.name}", file=recording)\n'
            "print(answer.text)"
        )
    body = body or sample_request(offer.task)[1]
    if offer.task == "embedding":
        return (
            f"{head}answer = client.embeddings.create(\n"
            f'    model="{offer.name}",\n'
            f"    input={to_python_literal(body['input'])},\n)\n"
            "print(len(answer.data[0].embedding))"
        )
    if offer.task == "rerank":
        return ""
    return (
        f"{head}stream = client.chat.completions.create(\n"
        f'    model="{offer.name}",\n'
        f"    messages={to_python_literal(body['messages'])},\n"
        f"    max_tokens={body['max_tokens']},\n"
        "    stream=True,\n)\n"
        "for chunk in stream:\n"
        "    if chunk.choices:\n"
        '        print(chunk.choices[0].delta.content or "", end="", flush=True)\n'
        "print()"
    )


def to_python_literal(value: object) -> str:
    """Return a value as Python source. JSON of strings, lists and objects alone is the same in Python."""
    return json.dumps(value, ensure_ascii=False)
