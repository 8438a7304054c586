"""What a step of a course gives to paste: filled in with a model of the person and the address. Pure text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from portal.keys import code_samples, model_access
from portal.keys.integrations import Fields, dify_fields, open_webui_settings
from portal.keys.model_access import AvailableModel


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSample:
    """`code` to paste, or `fields` to fill in. Neither: there is no model for it."""

    code: str = ""
    language: str = ""
    fields: Fields = field(default_factory=list)


def make_step_samples(offered: Mapping[str, Sequence[AvailableModel]], base_url: str) -> dict[str, StepSample]:
    """Return the samples by their names. `offered`: the person's models by task; `base_url` ends in /v1."""
    chat = model_access.suggested_model(list(offered.get("chat", ())))
    embedding = model_access.suggested_model(list(offered.get("embedding", ())))
    found = {}
    if chat is not None:
        found["curl"] = StepSample(code=code_samples.curl_sample(chat, base_url, ""), language="curl")
        found["python"] = StepSample(code=whole_answer(chat, base_url), language="Python")
        found["stream"] = StepSample(code=code_samples.python_sample(chat, base_url, ""), language="Python")
        found["dify"] = StepSample(fields=dify_fields(chat, base_url, ""))
        found["openwebui"] = StepSample(fields=open_webui_settings(chat, base_url, "").fields)
    if embedding is not None:
        found["embedding"] = StepSample(code=code_samples.python_sample(embedding, base_url, ""), language="Python")
    return found


def whole_answer(offer: AvailableModel, base_url: str) -> str:
    """Return a program that prints an answer when all of it has come."""
    body = code_samples.sample_request(offer.task)[1]
    return (
        f'from openai import OpenAI\n\nclient = OpenAI(base_url="{base_url}")\n'
        "answer = client.chat.completions.create(\n"
        f'    model="{offer.name}",\n'
        f"    messages={code_samples.to_python_literal(body['messages'])},\n"
        f"    max_tokens={body['max_tokens']},\n)\n"
        "print(answer.choices[0].message.content)"
    )
