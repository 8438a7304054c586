"""E8: what an engine takes is asked of its own parser, once for each version."""

import json
import sys
from pathlib import Path

import pytest
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction

from modelregistry.engines import arguments, option_listings, parsers, vllm
from modelregistry.engines.arguments import read_arguments
from modelregistry.engines.base import Spec
from modelregistry.models import ServedModel
from tests.engines import vllm_python
from tests.modelregistry import paper_models

# As common_arg::to_string writes them: 40 columns, below it the words of a long one.
HELP = """\
----- common params -----

-h,    --help, --usage                  print usage and exit
--version                               show version and build info
-c,    --ctx-size N                     size of the prompt context (default: 0, 0 = loaded from model)
                                        (env: LLAMA_ARG_CTX_SIZE)
-fa,   --flash-attn [on|off|auto]       set Flash Attention use ('on', 'off', or 'auto', default: 'auto')
--rope-scaling {none,linear,yarn}       RoPE frequency scaling method, defaults to linear
--rope-scale N                          RoPE context scaling factor, expands context by a factor of N
-kvo,  --kv-offload, -nkvo, --no-kv-offload
                                        whether to enable KV cache offloading (default: enabled)
--repack, -nr, --no-repack              whether to enable weight repacking (default: enabled)
--no-host                               bypass host buffer allowing extra buffers to be used
-ot,   --override-tensor <tensor name pattern>=<buffer type>,...
                                        override tensor buffer type
-ncmoe, --n-cpu-moe N                   keep the Mixture of Experts (MoE) weights of the first N layers
-ngl,  --gpu-layers, --n-gpu-layers N   max. number of layers to store in VRAM, either an exact number,
                                        'auto', or 'all' (default: auto)
--control-vector-layer-range START END
                                        layer range to apply the control vector(s) to
--fim-qwen-1.5b-default                 use default Qwen 2.5 Coder 1.5B
- none: no special loading mode
"""


@pytest.fixture(scope="module")
def llama():
    return arguments.Options.of(option_listings.help_options(HELP), exact=True)


def test_e8_llama_servers_help_is_read(llama):
    assert len(llama.all) == 14
    assert llama.by_name["--kv-offload"].off == ("-nkvo", "--no-kv-offload")
    assert llama.by_name["--repack"].off == ("-nr", "--no-repack")
    assert llama.by_name["--no-host"].off == ()
    assert llama.by_name["-fa"].choices == ()
    assert llama.by_name["--rope-scaling"].choices == ("none", "linear", "yarn")
    assert llama.by_name["--control-vector-layer-range"].values == "2"
    assert {name: llama.by_name[name].kind for name in ("-c", "-ncmoe", "-ngl", "--rope-scale", "-ot")} == {
        **{"-c": "int", "-ncmoe": "int", "-ngl": "text", "--rope-scale": "text", "-ot": "text"}
    }


@pytest.mark.parametrize(
    ("args", "codes"),
    [
        (["-c", "4096", "-nkvo", "-fa", "1", "-ngl", "all", "--no_host", "-ot", "a=CPU"], []),
        (["--control-vector-layer-range", "3", "9"], []),
        (["--rope-scaling", "yearn"], ["not-one-of"]),
        (["--ctx-sise", "4096"], ["unknown"]),
        (["-c", "8k"], ["half-read"]),
        (["-c"], ["no-value"]),
    ],
)
def test_e8_what_the_server_would_refuse_is_known_before(llama, args, codes):
    assert [fault.code for fault in read_arguments("llama-server", args, llama).faults] == codes


def program(directory: Path, text: str) -> tuple[str, ...]:
    path = directory / "bin" / "llama-server"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
    return (str(path),)


def test_e8_a_program_is_asked_once_and_again_when_it_changes(tmp_path):
    asked = tmp_path / "asked"
    script = f"open({str(asked)!r}, 'a').write('x')\nprint({HELP!r})\n"
    cache = tmp_path / "cache"
    server = program(tmp_path, script)
    assert parsers.options_of("llama-server", server, cache) is None
    assert parsers.load_options("llama-server", server, cache).by_name["-c"]
    assert parsers.load_options("llama-server", server, cache) is parsers.options_of("llama-server", server, cache)
    assert asked.read_text() == "x"
    program(tmp_path, script.replace("--ctx-size N", "--ctx-long N"))
    assert parsers.options_of("llama-server", server, cache) is None
    assert "--ctx-long" in parsers.load_options("llama-server", server, cache).by_name


@pytest.mark.parametrize(
    "text", ["print('usage: some options')", "raise SystemExit(3)", "import time; time.sleep(600)"]
)
def test_e8_what_cannot_be_asked_is_not_asked_again(tmp_path, text):
    server = program(tmp_path, f"open({str(tmp_path / 'asked')!r}, 'a').write('x')\n{text}\n")
    assert parsers.load_options("llama-server", server, tmp_path / "cache", within=1.0) is None
    assert parsers.load_options("llama-server", server, tmp_path / "cache", within=1.0) is None
    assert (tmp_path / "asked").read_text() == "x"


def test_e8_a_damaged_note_is_as_good_as_none(tmp_path):
    server = program(tmp_path, f"print({HELP!r})")
    parsers.load_options("llama-server", server, tmp_path)
    (kept,) = (tmp_path / "options").iterdir()
    for text in ("{", "[{}]", "[1]", '{"a": 1}'):
        kept.write_text(text)
        assert parsers.options_of("llama-server", server, tmp_path) is None


def test_e8_the_launcher_is_the_one_that_this_host_would_take(tmp_path):
    spec = Spec(engine="llama.cpp", name="", path="/m")
    assert parsers.options_of_host(spec, {}, tmp_path, "", asking=True) == ("", None)
    commands = {"xllamacpp": "/no/python"}
    launcher, options = parsers.options_of_host(spec, commands, tmp_path, "", asking=False)
    assert (launcher, options) == ("xllamacpp", arguments.shipped_options("xllamacpp"))
    assert (
        parsers.options_of_host(Spec(engine="vllm", name="", path="/m"), commands, tmp_path, "", asking=True)[1] is None
    )


def test_e8_an_upgrade_within_an_environment_is_another_version(tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    for version in ("0.31.0", "0.32.0"):
        (packages / f"vllm-{version}.dist-info").mkdir(parents=True)
        assert parsers.options_of("vllm", (str(python), *vllm.VLLM_MODULE), tmp_path) is None
        parsers.load_options("vllm", (str(python), *vllm.VLLM_MODULE), tmp_path, within=20)
        (packages / f"vllm-{version}.dist-info").rmdir()
    assert len(list((tmp_path / "options").iterdir())) == 2
    assert all(json.loads(path.read_text()) == [] for path in (tmp_path / "options").iterdir())


@pytest.mark.timeout(300)  # its imports, the first time
def test_e8_the_table_that_comes_with_us_is_that_of_the_pinned_vllm():
    program = (str(vllm_python()), *vllm.VLLM_MODULE)
    found = parsers.load_options("vllm", program, settings.CACHE)
    known = arguments.shipped_options("vllm")
    as_shipped = {option.name: (option.names, option.off, option.values, option.kind) for option in known.all}
    assert {option.name: (option.names, option.off, option.values, option.kind) for option in found.all} == as_shipped
    assert [fault.code for fault in read_arguments("vllm", ["--dtype=halb", "--no-such=1"], found).faults] == [
        "unknown",
        "not-one-of",
    ]


@pytest.mark.django_db(transaction=True)
def test_e8_no_parser_is_asked_within_a_transaction(tmp_path, settings):
    """It may take a minute, in which no other process could write."""
    server = program(tmp_path, f"print({HELP!r})")
    settings.ENGINE_COMMANDS = {"llama-server": server[0]}
    settings.CACHE = tmp_path / "cache"
    path = paper_models.gguf(tmp_path / "m.gguf")
    values = {"engine": "llama.cpp", "launcher": "llama-server", "path": str(path)}
    with transaction.atomic():
        ServedModel(name="m", args=["--no-such"], **values).full_clean()
    assert not settings.CACHE.exists()
    with pytest.raises(ValidationError, match="--no-such"):
        ServedModel(name="m", args=["--no-such"], **values).full_clean()
    with transaction.atomic(), pytest.raises(ValidationError, match="--no-such"):
        ServedModel(name="m", args=["--no-such"], **values).full_clean()  # now it is known
