"""The gateway's paths, and how they may also be written."""

import re

PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
# Requested by clients of Cohere's second version and of other servers, beside `/v1/rerank`.
RERANKERS = frozenset({"/rerank", "/v2/rerank"})
# Requested by clients whose base URL lacks `/v1`, has it twice, has more after it, or has another prefix before it. The
# gateway says so: they cannot read the pages of the portal. `deploy/nginx.conf` sends it the same paths.
MISPLACED = re.compile(
    r"(?!/v1/models/|/api/v1/models$)"  # the second is the portal's
    r"(?:(?:/.+)?(/(?:audio/transcriptions|audio/translations|chat/completions|messages/count_tokens))"
    r"|(?:(?:/.+)?/v1|/v1/.+)?(/(?:completions|embeddings|messages|models|rerank|responses|score)))"
)
OTHERS = PROBES | RERANKERS | {"/v1"}

SLASHES = re.compile("//+")


def is_gateway_path(path: str) -> bool:
    """Return whether the gateway answers this path itself; any other is the portal's."""
    return path.startswith(("/v1/", "//")) or path in OTHERS or MISPLACED.fullmatch(path) is not None


def find_intended_path(path: str) -> str | None:
    """Return the path that a client with a wrong base URL wants, of one that is not served."""
    match = MISPLACED.fullmatch(path)
    return f"/v1{match[1] or match[2]}" if match else None


def normalise_path(path: str) -> str:
    """Return the path that is meant: base URLs are often written with a slash too many."""
    return SLASHES.sub("/", path).rstrip("/") or "/"
