"""The gateway's paths, and how they may also be written."""

import re

PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
# Requested by clients of Cohere's second version and of other servers, beside `/v1/rerank`.
RERANKERS = frozenset({"/rerank", "/v2/rerank"})
# Requested by clients whose base URL lacks `/v1`. The gateway says so: they cannot read the portal's pages.
WITHOUT_V1 = frozenset(
    {
        "/audio/transcriptions",
        "/audio/translations",
        "/chat/completions",
        "/completions",
        "/embeddings",
        "/messages",
        "/messages/count_tokens",
        "/models",
        "/responses",
        "/score",
    }
)
OTHERS = PROBES | RERANKERS | WITHOUT_V1

SLASHES = re.compile("//+")


def is_gateway_path(path: str) -> bool:
    """Return whether the gateway answers this path itself; any other is the portal's."""
    return path.startswith(("/v1/", "//")) or path in OTHERS


def normalise_path(path: str) -> str:
    """Return the path that is meant: base URLs are often written with a slash too many."""
    return SLASHES.sub("/", path).rstrip("/") or "/"
