"""Which kind of program made a call: a short code, from the first product of its User-Agent. Pure.

Only the code is recorded. The gateway notes the product anyway (`apiproxy.dataplane.client_address`), so lines of older
gateways that wait in a spool are classified as well, and no call waits for it.
"""

from functools import lru_cache

OPENAI, DIFY, OPEN_WEBUI, BROWSER, CURL, OTHER = "openai", "dify", "openwebui", "browser", "curl", "other"
CODING_AGENTS = ("claude-code", "codex", "cline", "continue", "agent")
UNKNOWN = ""  # the call named no program, or an older version recorded it
# Beginnings of products in small letters. Dify, Cline and others that call through the OpenAI library without a name
# of their own are seen as that library.
BEGINNINGS = (
    ("claude-cli", "claude-code"),
    ("claude-code", "claude-code"),
    ("codex", "codex"),
    ("cline", "cline"),
    ("roo", "cline"),
    ("kilo", "cline"),
    ("continue", "continue"),
    ("opencode", "agent"),
    ("aider", "agent"),
    ("githubcopilot", "agent"),
    ("qwencode", "agent"),
    ("zed/", "agent"),
    ("dify", DIFY),
    ("open-webui", OPEN_WEBUI),
    ("openwebui", OPEN_WEBUI),
    ("openai", OPENAI),
    ("asyncopenai", OPENAI),
    ("azureopenai", OPENAI),
    ("asyncazureopenai", OPENAI),
    ("mozilla", BROWSER),
    ("curl/", CURL),
)


@lru_cache(maxsize=1024)
def classify_client(product: str) -> str:
    """Return the code of a program, as "OpenAI/Python"; UNKNOWN for "".

    Cached: 0.1 µs for each call instead of 2.
    """
    if not product:
        return UNKNOWN
    name = product.lower()
    return next((code for beginning, code in BEGINNINGS if name.startswith(beginning)), OTHER)
