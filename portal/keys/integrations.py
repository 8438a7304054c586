"""What to enter in other programs so that they call a model here: Dify and Open WebUI. Pure text.

Fields have the names of the English forms: Dify's provider "OpenAI-API-compatible" 0.0.64, Open WebUI 0.6 to 0.12.
"""

from dataclasses import dataclass

from django.utils.translation import gettext as _

from portal.keys.model_access import AvailableModel

Fields = list[tuple[str, str]]

# Dify needs a number. This is the one that its form proposes, used if the operator has not specified the model's own.
DIFY_CONTEXT = 4096
# Of recordings, in the form's spelling. The form proposes `zh-Hans` and sends that with each recording, so Japanese
# would be transcribed as Chinese. Newer versions have a field for a language code instead and propose none.
DIFY_LANGUAGE = "ja-JP"
# Texts in one call when documents are imported. Dify proposes 1, which makes one call for each piece of a document.
DIFY_CHUNKS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenWebUI:
    """The settings in Open WebUI for a model."""

    place: str  # where the form with these fields is
    fields: Fields
    environment: str  # the same as environment variables


def dify_fields(offer: AvailableModel, base_url: str, key: str) -> Fields:
    """Return the fields of Dify's form that matter for this model; its other fields keep their defaults."""
    kinds = {"embedding": "Text Embedding", "rerank": "Rerank", "transcription": "Speech2text"}
    kind = kinds.get(offer.task, "LLM")
    fields = [
        ("Model Type", kind),
        ("Model Name", offer.name),
        ("API Key", key or _("your API key")),
        ("API Base URL", base_url),
    ]
    if offer.task == "transcription":
        return [*fields, ("Language", DIFY_LANGUAGE)]
    context = offer.context or DIFY_CONTEXT
    size = ("Model context size", str(context))
    if offer.task == "embedding":
        return [*fields, ("Model max chunks per batch", str(DIFY_CHUNKS)), size]
    if offer.task == "rerank":
        return [*fields, size]
    return [
        *fields,
        ("Completion mode", "Chat"),
        size,
        # An answer longer than half the context would leave no room for the question.
        ("Upper bound for max tokens", str(min(DIFY_CONTEXT, max(1, context // 2)))),
        ("Function Call Type", "Tool Call" if offer.tools else "Not Support"),
        ("Stream function calling", "Support" if offer.tools else "Not Support"),
        ("Vision Support", "Support" if offer.vision else "Not Support"),
        ("Stream mode auth", "Use"),
        ("Delimiter for streaming results", r"\n\n"),
    ]


def open_webui_settings(offer: AvailableModel, base_url: str, key: str) -> OpenWebUI:
    """Return how Open WebUI's administrator adds this model. Chat models are added all at once, with their names."""
    shown = key or _("your API key")
    if offer.task == "embedding":
        return OpenWebUI(
            place="Admin Panel → Settings → Documents → Embedding",
            fields=[
                ("Embedding Model Engine", "OpenAI"),
                ("API Base URL", base_url),
                ("API Key", shown),
                ("Embedding Model", offer.name),
            ],
            environment=format_variables(
                RAG_EMBEDDING_ENGINE="openai",
                RAG_OPENAI_API_BASE_URL=base_url,
                RAG_OPENAI_API_KEY=shown,
                RAG_EMBEDDING_MODEL=offer.name,
            ),
        )
    if offer.task == "rerank":
        # Unlike the others this is the whole address: Open WebUI appends nothing to it.
        address = f"{base_url}/rerank"
        return OpenWebUI(
            place="Admin Panel → Settings → Documents → Retrieval → Hybrid Search",
            fields=[
                ("Reranking Engine", "External"),
                ("API Base URL", address),
                ("API Key", shown),
                ("Reranking Model", offer.name),
            ],
            environment=format_variables(
                ENABLE_RAG_HYBRID_SEARCH="true",
                RAG_RERANKING_ENGINE="external",
                RAG_EXTERNAL_RERANKER_URL=address,
                RAG_EXTERNAL_RERANKER_API_KEY=shown,
                RAG_RERANKING_MODEL=offer.name,
            ),
        )
    if offer.task == "transcription":
        return OpenWebUI(
            place="Admin Panel → Settings → Audio → Speech-to-Text",
            fields=[
                ("Speech-to-Text Engine", "OpenAI"),
                ("API Base URL", base_url),
                ("API Key", shown),
                ("STT Model", offer.name),
            ],
            environment=format_variables(
                AUDIO_STT_ENGINE="openai",
                AUDIO_STT_OPENAI_API_BASE_URL=base_url,
                AUDIO_STT_OPENAI_API_KEY=shown,
                AUDIO_STT_MODEL=offer.name,
            ),
        )
    return OpenWebUI(
        place="Admin Panel → Settings → Connections → OpenAI API → +",
        fields=[("URL", base_url), ("API Key", shown)],
        environment=format_variables(
            ENABLE_OPENAI_API="true", OPENAI_API_BASE_URL=base_url, OPENAI_API_KEY=shown, DEFAULT_MODELS=offer.name
        ),
    )


def format_variables(**values: str) -> str:
    return "\n".join(f"{name}={value}" for name, value in values.items())
