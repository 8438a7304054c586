"""Runs llama.cpp's own HTTP server out of the `xllamacpp` wheel, in llama-server's words.

Executed by the Python of that engine's environment (3.10 or newer), so it imports nothing of ours. The API key comes
in LLAMA_API_KEY. On SIGTERM it waits until no request is running or `--grace` seconds are over, and is gone: the
server's destructor would wait for running requests with the interpreter lock held.
"""

import argparse
import os
import signal
import sys
import threading
import time

import xllamacpp

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
POLL = 0.1  # seconds between two looks at what is still running, after SIGTERM


def main(argv: list[str]) -> None:
    options = arguments().parse_args(argv)
    # Until the server stands, SIGTERM ends us at once by its default; the constructor would hold it back.
    try:
        server = xllamacpp.Server(parameters(options))
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    print(f"listening on {server.listening_address}", flush=True)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    while not stop.wait(1.0):
        pass
    deadline = time.monotonic() + options.grace
    while running(server) and time.monotonic() < deadline:
        time.sleep(POLL)
    os._exit(0)


def running(server: "xllamacpp.Server") -> int:
    """Requests that are worked on or wait for a slot."""
    names = ("llamacpp:requests_processing", "llamacpp:requests_deferred")
    lines = (line.split() for line in str(server.handle_metrics()).splitlines())
    return int(sum(float(parts[1]) for parts in lines if len(parts) == 2 and parts[0] in names))


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-a", "--alias", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--grace", type=float, default=10.0, help="seconds for running requests after SIGTERM")
    parser.add_argument("-c", "--ctx-size", type=int, default=0)
    parser.add_argument("-np", "--parallel", type=int, default=4)
    parser.add_argument("-kvu", "--kv-unified", action="store_true")
    parser.add_argument("-b", "--batch-size", type=int)
    parser.add_argument("-ub", "--ubatch-size", type=int)
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("-tb", "--threads-batch", type=int)
    parser.add_argument("--threads-http", type=int)
    parser.add_argument("-ngl", "--n-gpu-layers", "--gpu-layers", type=int)
    parser.add_argument("-ctk", "--cache-type-k", choices=CACHE_TYPES)
    parser.add_argument("-ctv", "--cache-type-v", choices=CACHE_TYPES)
    parser.add_argument("-cram", "--cache-ram", type=int)
    parser.add_argument("--no-cache-prompt", action="store_true")
    parser.add_argument("-fa", "--flash-attn", choices=["on", "off", "auto"])
    parser.add_argument("--embeddings", "--embedding", action="store_true")
    parser.add_argument("--reranking", "--rerank", action="store_true")
    parser.add_argument("--pooling", choices=["none", "mean", "cls", "last", "rank"])
    parser.add_argument("--chat-template")
    parser.add_argument("--metrics", action="store_true")
    parser.add_argument("--no-warmup", action="store_true")
    return parser


def parameters(options: argparse.Namespace) -> "xllamacpp.CommonParams":
    """llama.cpp's own parameters."""
    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.model_alias = {options.alias}
    params.hostnames = [options.host]
    params.port = options.port
    key = os.environ.get("LLAMA_API_KEY", "")
    params.api_keys = [key] if key else []
    params.endpoint_metrics = options.metrics
    params.ui = False
    params.n_ctx = options.ctx_size
    params.n_parallel = options.parallel
    params.kv_unified = options.kv_unified
    params.warmup = not options.no_warmup
    params.cache_prompt = not options.no_cache_prompt
    set_if_given(params, options)
    return params


def set_if_given(params: "xllamacpp.CommonParams", options: argparse.Namespace) -> None:
    """Leaves llama.cpp's own default wherever nothing was said."""
    given = {
        "n_batch": options.batch_size,
        "n_ubatch": options.ubatch_size,
        "n_gpu_layers": options.n_gpu_layers,
        "n_threads_http": options.threads_http,
        "cache_ram_mib": options.cache_ram,
        "chat_template": options.chat_template,
        "cache_type_k": member(xllamacpp.ggml_type, "GGML_TYPE", options.cache_type_k),
        "cache_type_v": member(xllamacpp.ggml_type, "GGML_TYPE", options.cache_type_v),
        "flash_attn_type": flash_attention(options.flash_attn),
        "pooling_type": member(xllamacpp.llama_pooling_type, "LLAMA_POOLING_TYPE", options.pooling),
    }
    for name, value in given.items():
        if value is not None:
            setattr(params, name, value)
    if options.threads:
        params.cpuparams.n_threads = options.threads
    if options.threads_batch or options.threads:
        params.cpuparams_batch.n_threads = options.threads_batch or options.threads
    if options.embeddings or options.reranking:
        params.embedding = True
    if options.reranking:
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK


def member(enumeration: type, prefix: str, word: "str | None") -> object:
    return None if word is None else getattr(enumeration, f"{prefix}_{word.upper()}")


def flash_attention(word: "str | None") -> object:
    words = {"on": "ENABLED", "off": "DISABLED", "auto": "AUTO"}
    return member(xllamacpp.llama_flash_attn_type, "LLAMA_FLASH_ATTN_TYPE", words.get(word or ""))


if __name__ == "__main__":
    main(sys.argv[1:])
