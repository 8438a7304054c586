"""Which paths are the gateway's, and how they may also be written."""

import re

PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
# As rerankers of Cohere's second version and clients of other servers ask for them, beside `/v1/rerank`.
RERANKERS = frozenset({"/rerank", "/v2/rerank"})
# What clients ask for whose base URL lacks its `/v1`. The gateway tells them so: they cannot read the portal's pages.
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


def is_gateways(path: str) -> bool:
    """Return whether the gateway answers this path itself; any other is the portal's."""
    return path.startswith(("/v1/", "//")) or path in OTHERS


def tidied(path: str) -> str:
    """Return the path that is meant: base URLs are often written with a slash too many."""
    return SLASHES.sub("/", path).rstrip("/") or "/"
