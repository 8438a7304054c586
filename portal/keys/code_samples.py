"""Ready-to-paste ways to call a model, from curl to Dify. Pure text; what is shown must run as it stands."""

import json
from dataclasses import dataclass

from django.utils.translation import gettext as _

from portal.keys.integrations import Fields, OpenWebUI, dify, open_webui
from portal.keys.model_access import AvailableModel

# The variables that the OpenAI SDK reads by itself; the first is used where the key cannot be shown any more.
VARIABLE = "OPENAI_API_KEY"
ADDRESS = "OPENAI_BASE_URL"
# Without a bound a small model may ramble to the end of its context: seen, 164 s for a first try that looks broken.
ANSWER = 200  # tokens
RECORDING = "meeting.mp3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """One model and key, all ways. `python` is empty for tasks that the OpenAI SDK has no call for.

    `environment`: for what reads the OpenAI SDK's variables, which most programs with it do.
    """

    curl: str
    python: str
    environment: str
    dify: Fields
    open_webui: OpenWebUI


def calls(offer: AvailableModel, *, base_url: str, key: str = "") -> Calls:
    """Return the calls of a model at `base_url` (ends in /v1). Without a key they read it from the environment."""
    given = key or _("your API key")
    return Calls(
        curl=curl(offer, base_url, key),
        python=python(offer, base_url, key),
        environment=f"{ADDRESS}={base_url}\n{VARIABLE}={given}",
        dify=dify(offer, base_url, key),
        open_webui=open_webui(offer, base_url, key),
    )


def question(task: str) -> tuple[str, dict[str, object]]:
    """Return the path after /v1 and the rest of the body for a first try of such a model."""
    if task == "embedding":
        return "/embeddings", {"input": _("Where do I hand in travel expenses?")}
    if task == "rerank":
        documents = [_("Travel expenses go to accounting."), _("The canteen opens at 11:30.")]
        return "/rerank", {"query": _("Where do I hand in travel expenses?"), "documents": documents}
    return "/chat/completions", {
        "messages": [{"role": "user", "content": _("Introduce yourself in one sentence.")}],
        "max_tokens": ANSWER,
    }


def curl(offer: AvailableModel, base_url: str, key: str) -> str:
    if offer.task == "transcription":
        return (
            f"curl {base_url}/audio/transcriptions \\\n"
            f'  -H "Authorization: Bearer {key or "$" + VARIABLE}" \\\n'
            f'  -F "model={offer.name}" \\\n'
            f'  -F "file=@{RECORDING}"'
        )
    path, body = question(offer.task)
    # An apostrophe would end the shell's quotes around the body (translations may well hold one).
    text = json.dumps({"model": offer.name, **body}, ensure_ascii=False).replace("'", "\\u0027")
    return (
        f"curl {base_url}{path} \\\n"
        f'  -H "Authorization: Bearer {key or "$" + VARIABLE}" \\\n'
        f'  -H "Content-Type: application/json" \\\n'
        f"  -d '{text}'"
    )


def python(offer: AvailableModel, base_url: str, key: str) -> str:
    given = f', api_key="{key}"' if key else ""
    head = f'from openai import OpenAI\n\nclient = OpenAI(base_url="{base_url}"{given})\n'
    if offer.task == "transcription":
        return (
            f'{head}with open("{RECORDING}", "rb") as recording:\n'
            f'    answer = client.audio.transcriptions.create(model="{offer.name}", file=recording)\n'
            "print(answer.text)"
        )
    __, body = question(offer.task)
    if offer.task == "embedding":
        return (
            f"{head}answer = client.embeddings.create(\n"
            f'    model="{offer.name}",\n'
            f"    input={literal(body['input'])},\n)\n"
            "print(len(answer.data[0].embedding))"
        )
    if offer.task == "rerank":
        return ""
    return (
        f"{head}stream = client.chat.completions.create(\n"
        f'    model="{offer.name}",\n'
        f"    messages={literal(body['messages'])},\n"
        f"    max_tokens={ANSWER},\n"
        "    stream=True,\n)\n"
        "for chunk in stream:\n"
        "    if chunk.choices:\n"
        '        print(chunk.choices[0].delta.content or "", end="", flush=True)\n'
        "print()"
    )


def literal(value: object) -> str:
    """As Python source. JSON with texts, lists and objects alone is the same in Python."""
    return json.dumps(value, ensure_ascii=False)
