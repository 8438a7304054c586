"""What a model can do beyond its task, as far as its arguments say so. Pure.

An engine is not asked: it may not be running, and llama.cpp ignores tools silently that a template does not know. What
an operator did not turn on is taken for absent, so that nobody relies on what may not work.
"""

from collections.abc import Sequence

from modelregistry.engines.arguments import read_arguments


def calls_tools(engine: str, launcher: str, args: Sequence[str]) -> bool:
    """Do it answer with calls of the client's functions (`tools` of the chat API)?

    vLLM wants both options and refuses tools without; of llama.cpp `--jinja` uses the template's own form of calls.
    llama-cpp-python calls a function only if its name is demanded.
    """
    if engine == "vllm":
        said = read_arguments("vllm", args)
        return said.flag("--enable-auto-tool-choice") is True and bool(said.text("--tool-call-parser"))
    return (
        engine == "llama.cpp"
        and launcher != "llama-cpp-python"
        and read_arguments(launcher, args).flag("--jinja") is True
    )


def sees_images(engine: str, args: Sequence[str]) -> bool:
    """Do it take images? llama.cpp does with the projector of the model, vLLM where an operator allows some."""
    if engine == "vllm":
        limits = read_arguments("vllm", args).data("--limit-mm-per-prompt")
        return isinstance(limits, dict) and limits.get("image") != 0
    return engine == "llama.cpp" and bool(read_arguments("", args).text("--mmproj"))
