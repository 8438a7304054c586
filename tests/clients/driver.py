"""Runs in the clients' environment: reads a JSON call per line, makes it with the real client, prints what came.

    {"do": "chat", …arguments}  ->  {"answer": …} or {"error": {"type": …, "text": …}}

Each function below is a call; what it prints is what an application of that client would see.
"""

import functools
import io
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import anthropic
import pydantic
import tiktoken
import tiktoken.registry
from dify_plugin.entities.model.message import (
    PromptMessageTool,
    SystemPromptMessage,
    UserPromptMessage,
)
from dify_plugin.interfaces.model.openai_compatible.llm import OAICompatLargeLanguageModel
from dify_plugin.interfaces.model.openai_compatible.rerank import OAICompatRerankModel
from dify_plugin.interfaces.model.openai_compatible.speech2text import OAICompatSpeech2TextModel
from dify_plugin.interfaces.model.openai_compatible.text_embedding import OAICompatEmbeddingModel

EVENT: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(anthropic.types.RawMessageStreamEvent)
DIFY = {"chat": OAICompatLargeLanguageModel, "embedding": OAICompatEmbeddingModel, "rerank": OAICompatRerankModel}
SPEAKERS = {"system": SystemPromptMessage, "user": UserPromptMessage}


def without_internet() -> None:
    """Dify estimates lengths with GPT-2's vocabulary, which tiktoken would download; here a byte is a token."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    tiktoken.registry.ENCODINGS["gpt2"] = tiktoken.Encoding(
        name="gpt2", pat_str=r"[\s\S]", mergeable_ranks=ranks, special_tokens={}
    )


def dify_validate(kind: str, model: str, credentials: dict[str, Any]) -> None:
    DIFY[kind]([]).validate_credentials(model, credentials)


def dify_chat(
    model: str, credentials: dict[str, Any], messages: list[list[str]], tools: list[dict[str, Any]], **more: Any
) -> dict[str, Any]:
    chunks = list(
        OAICompatLargeLanguageModel([]).invoke(
            model,
            credentials,
            [SPEAKERS[role](content=text) for role, text in messages],
            tools=[PromptMessageTool(**tool) for tool in tools],
            **more,
        )
    )
    usage = chunks[-1].delta.usage
    return {
        "texts": [chunk.delta.message.content for chunk in chunks if chunk.delta.message.content],
        "calls": [
            [call.id, call.function.name, call.function.arguments]
            for chunk in chunks
            for call in chunk.delta.message.tool_calls
        ],
        "finish_reason": chunks[-1].delta.finish_reason,
        "usage": [usage.prompt_tokens, usage.completion_tokens],
    }


def dify_embed(model: str, credentials: dict[str, Any], texts: list[str], user: str) -> dict[str, Any]:
    result = OAICompatEmbeddingModel([]).invoke(model, credentials, texts, user)
    return {"vectors": result.embeddings, "tokens": result.usage.total_tokens}


def dify_rank(model: str, credentials: dict[str, Any], query: str, docs: list[str], top_n: int) -> list[list[Any]]:
    result = OAICompatRerankModel([]).invoke(model, credentials, query, docs, top_n=top_n)
    return [[doc.index, doc.text, doc.score] for doc in result.docs]


def dify_hear(model: str, credentials: dict[str, Any], size: int) -> str:
    return OAICompatSpeech2TextModel([]).invoke(model, credentials, io.BytesIO(bytes(size)))


def claude_message(base_url: str, api_key: str, **fields: Any) -> dict[str, Any]:
    return client(base_url, api_key).messages.create(**fields).model_dump()


def claude_stream(base_url: str, api_key: str, **fields: Any) -> dict[str, Any]:
    with client(base_url, api_key).messages.stream(**fields) as stream:
        texts = list(stream.text_stream)
        return {"texts": texts, "message": stream.get_final_message().model_dump()}


def claude_events(base_url: str, api_key: str, **fields: Any) -> list[str]:
    """Return the types of a stream's events, each of which is valid by what the SDK publishes of the API."""
    events = list(client(base_url, api_key).messages.create(**fields, stream=True))
    return [EVENT.validate_python(event.model_dump()).type for event in events]


def claude_count(base_url: str, api_key: str, **fields: Any) -> int:
    return client(base_url, api_key).messages.count_tokens(**fields).input_tokens


def cohere_rank(base_url: str, api_key: str, **fields: Any) -> list[list[Any]]:
    import cohere

    result = cohere.ClientV2(api_key=api_key, base_url=base_url, timeout=60).rerank(**fields)
    return [[one.index, one.relevance_score] for one in result.results]


def lite_chat(**fields: Any) -> dict[str, Any]:
    return lite_told(litellm().completion(**LITE, **fields))


def lite_stream(**fields: Any) -> dict[str, Any]:
    chunks = list(litellm().completion(**LITE, **fields, stream=True, stream_options={"include_usage": True}))
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    return {"texts": texts, **lite_told(litellm().stream_chunk_builder(chunks))}


def lite_told(whole: Any) -> dict[str, Any]:
    message, usage = whole.choices[0].message, whole.usage
    calls = [[call.function.name, call.function.arguments] for call in message.tool_calls or ()]
    used = [usage.prompt_tokens, usage.completion_tokens]
    return {"text": message.content, "calls": calls, "usage": used, "finish_reason": whole.choices[0].finish_reason}


def lite_embed(texts: list[str], **fields: Any) -> list[list[float]]:
    return [one["embedding"] for one in litellm().embedding(input=texts, **LITE, **fields).data]


def lite_rank(**fields: Any) -> list[Any]:
    return list(litellm().rerank(**LITE, **fields).results)


LITE = {"num_retries": 0, "timeout": 60}


def litellm() -> Any:
    """Import LiteLLM when it is asked for (3 s), with the list of prices that it brings, not the internet's."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm as found

    return found


@functools.cache  # a client keeps its connection for its next call
def client(base_url: str, api_key: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=base_url, api_key=api_key, max_retries=0, timeout=60)


CALLS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        *(
            dify_validate,
            dify_chat,
            dify_embed,
            dify_rank,
            dify_hear,
            claude_message,
            claude_stream,
            claude_events,
            claude_count,
        ),
        *(cohere_rank, lite_chat, lite_stream, lite_embed, lite_rank),
    )
}


def main() -> None:
    without_internet()
    said, sys.stdout = sys.stdout, sys.stderr  # LiteLLM prints advice
    print("ready", file=said, flush=True)
    for line in sys.stdin:
        call = json.loads(line)
        try:
            told = {"answer": CALLS[call.pop("do")](**call)}
        except Exception as error:  # noqa: BLE001 - whatever a client raises is what is asked for
            told = {"error": {"type": type(error).__name__, "text": str(error)}}
        print(json.dumps(told, default=str), file=said, flush=True)


if __name__ == "__main__":
    main()
