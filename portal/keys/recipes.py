"""Ready-to-paste settings of more programs, and code for more libraries, that call a model here. Pure text.

`tests/clients` runs what is here with the programs themselves, but for those with `tried` False. Names of fields and
files: openai 7 for JavaScript, langchain-openai 1, Continue 1.5, Cline 3, Claude Code 2, Codex 0.171, n8n 1 and 2.
"""

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from django.utils.translation import gettext as _

from portal.keys.integrations import Fields
from portal.keys.model_access import AvailableModel

# The variable that code reads the key from where it can no longer be shown, and that Codex always reads.
VARIABLE = "OPENAI_API_KEY"
CODEX_VARIABLE = "MADOGUCHI_API_KEY"
RECORDING = "meeting.mp3"
# Agents send their own instructions and tools with each call. Measured: Claude Code 2.1 18,000 tokens, Codex 9,000.
CLAUDE_CODE_CONTEXT, CODEX_CONTEXT = 32_768, 16_384
# Claude Code asks for answers of up to 32,000 tokens, which a shorter context refuses.
CLAUDE_CODE_ANSWER = 32_000
# Continue asks for this much of an answer if nothing else is set.
CONTINUE_ANSWER = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Paste:
    """A text to paste, and where: a file ("" if `into` is a program to type it into)."""

    text: str
    into: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRecipe:
    """How one program or library calls one model.

    `key`: its short name; `needs_tools`: it does little without tool calls; `least_context`: in tokens, which its own
    instructions and a short answer take, 0: no more than others; `tried`: whether it was run with the program itself.
    """

    key: str
    title: str
    place: str = ""  # where the form with the fields is
    fields: tuple[tuple[str, str], ...] = ()
    pastes: tuple[Paste, ...] = ()
    install: str = ""
    needs_tools: bool = False
    least_context: int = 0
    tried: bool = True


def make_recipes(offer: AvailableModel, *, base_url: str, key: str = "") -> tuple[ClientRecipe, ...]:
    """Return the recipes for a model at `base_url` (ends in /v1). Without a key, code reads it from the environment."""
    return tuple(_recipes(offer, base_url, key))


def _recipes(offer: AvailableModel, base_url: str, key: str) -> Iterator[ClientRecipe]:
    yield javascript(offer, base_url, key)
    if offer.task == "embedding":
        yield langchain_embeddings(offer, base_url, key)
        yield continue_dev(offer, base_url, key)
        yield n8n(offer, base_url, key)
    if offer.task == "chat":
        yield langchain(offer, base_url, key)
        yield continue_dev(offer, base_url, key)
        yield cline(offer, base_url, key)
        yield claude_code(offer, base_url, key)
        yield codex(offer, base_url, key)
        yield n8n(offer, base_url, key)


def javascript(offer: AvailableModel, base_url: str, key: str) -> ClientRecipe:
    """Return a module that runs as it is, with the OpenAI SDK; for ranking, which that has no call for, without."""
    pasted = Paste(text=_javascript_of(offer, base_url, key), into="call.mjs")
    install = "" if offer.task == "rerank" else "npm install openai"
    return ClientRecipe(key="javascript", title="JavaScript", pastes=(pasted,), install=install)


def _javascript_of(offer: AvailableModel, base_url: str, key: str) -> str:
    model, question = quote(offer.name), quote(_("Where do I hand in travel expenses?"))
    if offer.task == "rerank":
        documents = [_("Travel expenses go to accounting."), _("The canteen opens at 11:30.")]
        bearer = quote(f"Bearer {key}") if key else f"`Bearer ${{process.env.{VARIABLE}}}`"
        return (
            f"const answer = await fetch({quote(base_url + '/rerank')}, {{\n"
            '  method: "POST",\n'
            f'  headers: {{ "Authorization": {bearer}, "Content-Type": "application/json" }},\n'
            "  body: JSON.stringify({\n"
            f"    model: {model},\n"
            f"    query: {question},\n"
            f"    documents: {quote(documents)},\n"
            "  }),\n"
            "});\n"
            "console.log(await answer.json());"
        )
    key_member = f", apiKey: {quote(key)}" if key else ""
    head = f"const client = new OpenAI({{ baseURL: {quote(base_url)}{key_member} }});\n"
    if offer.task == "transcription":
        return (
            f'import fs from "node:fs";\nimport OpenAI from "openai";\n\n{head}'
            "const answer = await client.audio.transcriptions.create({\n"
            f"  model: {model},\n"
            f"  file: fs.createReadStream({quote(RECORDING)}),\n"
            "});\n"
            "console.log(answer.text);"
        )
    head = f'import OpenAI from "openai";\n\n{head}'
    if offer.task == "embedding":
        return (
            f"{head}const answer = await client.embeddings.create({{\n"
            f"  model: {model},\n"
            f"  input: {question},\n"
            "});\n"
            "console.log(answer.data[0].embedding.length);"
        )
    task = quote(_("Introduce yourself in one sentence."))
    return (
        f"{head}const stream = await client.chat.completions.create({{\n"
        f"  model: {model},\n"
        f'  messages: [{{ role: "user", content: {task} }}],\n'
        "  max_tokens: 200,\n"
        "  stream: true,\n"
        "});\n"
        'for await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta?.content ?? "");\n'
        "console.log();"
    )


def langchain(offer: AvailableModel, base_url: str, key: str) -> ClientRecipe:
    key_argument = f"    api_key={quote(key)},\n" if key else ""
    task = quote(_("Introduce yourself in one sentence."))
    text = (
        "from langchain_openai import ChatOpenAI\n\n"
        "model = ChatOpenAI(\n"
        f"    model={quote(offer.name)},\n"
        f"    base_url={quote(base_url)},\n"
        f"{key_argument}"
        "    max_tokens=200,\n)\n"
        f"for chunk in model.stream({task}):\n"
        '    print(chunk.content, end="", flush=True)\n'
        "print()"
    )
    return ClientRecipe(
        key="langchain",
        title="LangChain",
        pastes=(Paste(text=text, into="call.py"),),
        install="pip install langchain-openai",
    )


def langchain_embeddings(offer: AvailableModel, base_url: str, key: str) -> ClientRecipe:
    key_argument = f"    api_key={quote(key)},\n" if key else ""
    question = quote(_("Where do I hand in travel expenses?"))
    text = (
        "from langchain_openai import OpenAIEmbeddings\n\n"
        "model = OpenAIEmbeddings(\n"
        f"    model={quote(offer.name)},\n"
        f"    base_url={quote(base_url)},\n"
        f"{key_argument}"
        # Else it sends the numbers of GPT's tokens, which are other words to this model.
        "    check_embedding_ctx_length=False,\n)\n"
        f"print(len(model.embed_query({question})))"
    )
    return ClientRecipe(
        key="langchain",
        title="LangChain",
        pastes=(Paste(text=text, into="call.py"),),
        install="pip install langchain-openai",
    )


def continue_dev(offer: AvailableModel, base_url: str, key: str) -> ClientRecipe:
    """Return the configuration of Continue, for VS Code, JetBrains and terminals. Strings of JSON are YAML as well."""
    shown = key or _("your API key")
    lines = [
        "name: Madoguchi",
        "version: 1.0.0",
        "schema: v1",
        "models:",
        f"  - name: {quote(offer.name)}",
        "    provider: openai",
        f"    model: {quote(offer.name)}",
        f"    apiBase: {quote(base_url)}",
        f"    apiKey: {quote(shown)}",
    ]
    if offer.task == "embedding":
        lines += ["    roles: [embed]"]
    else:
        able = [name for name, has in (("tool_use", offer.tools), ("image_input", offer.vision)) if has]
        lines += ["    roles: [chat, edit, apply]", f"    capabilities: [{', '.join(able)}]"]
        if offer.context:
            answer = min(CONTINUE_ANSWER, max(1, offer.context // 2))
            lines += [
                "    defaultCompletionOptions:",
                f"      contextLength: {offer.context}",
                f"      maxTokens: {answer}",
            ]
    return ClientRecipe(
        key="continue", title="Continue", pastes=(Paste(text="\n".join(lines), into="~/.continue/config.yaml"),)
    )


def cline(offer: AvailableModel, base_url: str, key: str) -> ClientRecipe:
    fields: Fields = [
        ("API Provider", "OpenAI Compatible"),
        ("Base URL", base_url),
        ("OpenAI Compatible API Key", key or _("your API key")),
        ("Model ID", offer.name),
        ("Supports Images", "On" if offer.vision else "Off"),
    ]
    if offer.context:
        fields += [
            ("Context Window Size", str(offer.context)),
            ("Max Output Tokens", str(min(CONTINUE_ANSWER, max(1, offer.context // 2)))),
        ]
    return ClientRecipe(
        key="cline",
        title="Cline",
        place="Cline → Settings → API Configuration",
        fields=tuple(fields),
        least_context=CODEX_CONTEXT,
        tried=False,
    )


def claude_code(offer: AvailableModel, base_url: str, key: str) -> ClientRecipe:
    """Return its settings. It calls /v1/messages, and small questions go to the same model."""
    variables = {
        "ANTHROPIC_BASE_URL": base_url.removesuffix("/v1"),
        "ANTHROPIC_AUTH_TOKEN": key or _("your API key"),
        "ANTHROPIC_MODEL": offer.name,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": offer.name,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    if offer.context and offer.context // 2 < CLAUDE_CODE_ANSWER:
        variables["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] = str(max(1, offer.context // 4))
    text = json.dumps({"env": variables}, ensure_ascii=False, indent=2)
    return ClientRecipe(
        key="claude-code",
        title="Claude Code",
        pastes=(Paste(text=text, into="~/.claude/settings.json"), Paste(text="claude", into="")),
        install="npm install -g @anthropic-ai/claude-code",
        needs_tools=True,
        least_context=CLAUDE_CODE_CONTEXT,
    )


def codex(offer: AvailableModel, base_url: str, key: str) -> ClientRecipe:
    """Return its settings. It calls /v1/responses; the key is never in its file."""
    window = f"model_context_window = {offer.context}\n" if offer.context else ""
    settings = (
        f"model = {quote(offer.name)}\n"
        'model_provider = "madoguchi"\n'
        f"{window}\n"
        "[model_providers.madoguchi]\n"
        'name = "Madoguchi"\n'
        f"base_url = {quote(base_url)}\n"
        f'env_key = "{CODEX_VARIABLE}"\n'
        'wire_api = "responses"'
    )
    shown = key or _("your API key")
    start = f"export {CODEX_VARIABLE}={shlex.quote(shown)}\ncodex"
    return ClientRecipe(
        key="codex",
        title="Codex",
        pastes=(Paste(text=settings, into="~/.codex/config.toml"), Paste(text=start, into="")),
        install="npm install -g @openai/codex",
        needs_tools=True,
        least_context=CODEX_CONTEXT,
    )


def n8n(offer: AvailableModel, base_url: str, key: str) -> ClientRecipe:
    node = "Embeddings OpenAI" if offer.task == "embedding" else "OpenAI Chat Model"
    more: Fields = [] if offer.task == "embedding" else [("Use Responses API", "Off")]
    return ClientRecipe(
        key="n8n",
        title="n8n",
        place=f"Credentials → OpenAI; {node}",
        fields=(
            ("Credential: API Key", key or _("your API key")),
            ("Credential: Base URL", base_url),
            ("Model: By ID", offer.name),
            *more,
        ),
        tried=False,
    )


def quote(value: object) -> str:
    """Return a value as source of JavaScript, Python, TOML or YAML: all write texts and lists of them as JSON does."""
    return json.dumps(value, ensure_ascii=False)
