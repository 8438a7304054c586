"""Registering and looking at models on the command line, and in the admin."""

import json
import re
from datetime import timedelta

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.urls import reverse
from django.utils import timezone

from apiproxy.bridge.models import CatalogueRevision
from modelregistry import fit, routes
from modelregistry.engines.presets import PRESETS
from modelregistry.engines.registry import ENGINES
from modelregistry.failure_advice import ADVICE
from modelregistry.management.commands.models import UNSUPERVISED
from modelregistry.management.commands.supervise import parse_ports
from modelregistry.models import Alias, EvictionRecord, Host, HostReport, Replica, ServedModel
from tests.modelregistry import paper_models

pytestmark = pytest.mark.django_db


@pytest.fixture
def gguf(tmp_path):
    return str(paper_models.gguf(tmp_path / "model.gguf"))


@pytest.fixture
def directory(tmp_path):
    return str(paper_models.small_llama(tmp_path / "llama"))


def register(capsys, *args):
    call_command("registermodel", *args)
    return capsys.readouterr().out


def error_of(*args):
    """Return the refusal, which changed nothing."""
    before = list(ServedModel.objects.values())
    with pytest.raises(CommandError) as refusal:
        call_command("registermodel", *args)
    assert list(ServedModel.objects.values()) == before
    return refusal.value


def problems_of(*args):
    """Return what is refused: a code by the option at which it is shown."""
    error = error_of(*args)
    shown = [line.partition(": ")[0] for line in str(error).splitlines()]
    codes = [problem.code for problems in error.__cause__.error_dict.values() for problem in problems]
    return dict(zip(shown, codes, strict=True))


def test_it_registers_and_prints_the_name(capsys, gguf):
    arguments = ["acme/chat", "--engine=llama.cpp", f"--path={gguf}", "--launcher=xllamacpp", "--replicas=2"]
    arguments += [
        "--context=4096",
        "--slots=8",
        "--idle-after=600",
        "--hours=月-金 8:00-20:00",
        "--arg=--flash-attn=on",
        "--arg=--no-warmup",
    ]
    arguments += ["--hours=月-金 8:00-20:00"]
    assert register(capsys, *arguments) == "acme/chat\n"
    model = ServedModel.objects.get()
    assert (model.name, model.engine, model.launcher, model.path) == ("acme/chat", "llama.cpp", "xllamacpp", gguf)
    assert (model.task, model.replicas, model.context, model.slots, model.idle_after) == ("chat", 2, 4096, 8, 600)
    assert model.hours == "Mon-Fri 08:00-20:00"
    assert not model.pinned
    assert model.args == ["--flash-attn=on", "--no-warmup"]
    assert model.host is None


def test_a_dry_run_says_where_it_fits_and_registers_nothing(capsys, gguf):
    arguments = ["m", "--engine=llama.cpp", f"--path={gguf}", "--dry-run"]
    card = {"index": 0, "uuid": "", "name": "A", "kind": "gpu", "total": 24 * 10**9, "used": 0, "free": 24 * 10**9}
    ram = card | {"index": -1, "name": "RAM", "kind": "ram"}
    full = card | {"used": 24 * 10**9, "free": 0}
    for name, devices in (("empty", [card, ram]), ("full", [full, ram])):
        HostReport.objects.create(
            host=Host.objects.create(name=name, seen_at=timezone.now()),
            devices=[{"fault": ""} | device for device in devices],
            engines={"llama-server": "b1"},
            at=timezone.now(),
        )
    hosts = {line.partition(": ")[0]: line for line in register(capsys, *arguments).splitlines() if line[0] != " "}
    assert list(hosts) == ["empty", "full"]
    assert "GPU 0," in hosts["empty"]
    assert "2.7 GB" in hosts["empty"]  # of RAM
    assert "GPU 0," not in hosts["full"]
    assert not ServedModel.objects.exists()


def test_a_dry_run_names_the_arguments_that_it_does_not_count(capsys, gguf):
    arguments = ["m", "--engine=llama.cpp", f"--path={gguf}", "--dry-run"]
    assert "--mmproj" not in register(capsys, *arguments)
    assert "--mmproj" in register(capsys, *arguments, "--arg=--mmproj", f"--arg={gguf}")


def test_a_dry_run_without_hosts_says_what_the_formulas_do(capsys, gguf):
    said = register(capsys, "m", "--engine=llama.cpp", f"--path={gguf}", "--dry-run")
    need = fit.estimate(ServedModel(name="m", engine="llama.cpp", path=gguf)).prediction
    sizes = [f"{size / 1e9:.1f}" for size in (need.weights, need.cache, need.overhead, need.total)]
    assert re.findall(r"[0-9]+\.[0-9]", said) == sizes


@pytest.mark.parametrize("context", ["9000000000000000000", "134217729"])
def test_a_context_longer_than_any_model_reads_is_refused(tmp_path, context):
    silent = paper_models.gguf(tmp_path / "silent.gguf", values={"context_length": 0})  # it has none
    problems = problems_of("m", "--engine=llama.cpp", f"--path={silent}", "--dry-run", f"--context={context}")
    assert problems == {"--context": "longer-than-any-model"}


def test_it_registers_for_a_host_whose_files_it_cannot_see(capsys):
    Host.objects.create(name="gpu1")
    register(capsys, "m", "--engine=vllm", "--path=/only/there", "--host=gpu1", "--task=embedding")
    assert ServedModel.objects.get().host.name == "gpu1"


def test_it_registers_a_model_directory_for_vllm(capsys, directory):
    assert register(capsys, "m", "--engine=vllm", f"--path={directory}") == "m\n"


def test_it_registers_an_external_engine(capsys):
    url = "--url=https://10.0.0.5:8000/base"
    register(capsys, "m", "--engine=external", url, "--upstream-model=other", "--upstream-key=k")
    model = ServedModel.objects.get()
    assert (model.url, model.upstream_model, model.upstream_key) == ("https://10.0.0.5:8000/base", "other", "k")


def test_it_notifies_gateways(capsys, gguf):
    register(capsys, "m", "--engine=llama.cpp", f"--path={gguf}")
    assert CatalogueRevision.objects.get().number == 1


def test_a_path_must_exist():
    assert problems_of("m", "--engine=llama.cpp", "--path=/no/such.gguf") == {"--path": "missing"}
    assert problems_of("m", "--engine=vllm", "--path=/no/such") == {"--path": "missing"}


def test_a_path_must_be_absolute():
    assert problems_of("m", "--engine=llama.cpp", "--path=model.gguf") == {"--path": "relative-path"}


def test_a_path_must_be_given():
    assert problems_of("m", "--engine=vllm") == {"--path": "no-path"}


def test_llama_cpp_needs_a_gguf_file(tmp_path, directory):
    other = tmp_path / "notes.txt"
    other.write_text("hello")
    assert problems_of("m", "--engine=llama.cpp", f"--path={other}") == {"--path": "not-gguf"}
    assert problems_of("m", "--engine=llama.cpp", f"--path={directory}") == {"--path": "checkpoint"}


def test_vllm_needs_a_model_directory(tmp_path, gguf):
    assert problems_of("m", "--engine=vllm", f"--path={gguf}") == {"--path": "gguf-file"}
    (tmp_path / "empty").mkdir()
    assert problems_of("m", "--engine=vllm", f"--path={tmp_path / 'empty'}") == {"--path": "no-config"}


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("10.0.0.5:8000", "not-a-url"),
        ("ftp://10.0.0.5", "not-a-url"),
        ("http://", "not-a-url"),
        ("http://h:99999", "not-a-url"),
        ("http://[::1", "not-a-url"),
        ("http://h:8000/v1", "with-v1"),
        ("http://h:8000/v1/", "with-v1"),
        ("http://me:pw@h:8000", "more-than-an-address"),
        ("http://h:8000/?key=1", "more-than-an-address"),
    ],
)
def test_a_url_must_be_well_formed(url, code):
    assert problems_of("m", "--engine=external", f"--url={url}") == {"--url": code}


def test_an_external_engine_has_a_url_and_no_path(gguf):
    assert problems_of("m", "--engine=external") == {"--url": "no-url"}
    both = ("--url=http://h:1", f"--path={gguf}")
    assert problems_of("m", "--engine=external", *both) == {"--path": "needless-path"}
    assert problems_of("m", "--engine=llama.cpp", *both) == {"--url": "needless-url"}


def test_a_name_is_given_once(capsys, gguf):
    register(capsys, "m", "--engine=llama.cpp", f"--path={gguf}")
    assert "--update" in str(error_of("m", "--engine=llama.cpp", f"--path={gguf}"))


def test_update_changes_what_is_said_and_no_more(capsys, gguf):
    register(capsys, "m", "--engine=llama.cpp", f"--path={gguf}", "--slots=8")
    assert register(capsys, "m", "--update", "--context=512") == "m\n"
    model = ServedModel.objects.get()
    assert (model.context, model.slots, model.path) == (512, 8, gguf)


def test_update_needs_a_model():
    assert "missing" in str(error_of("missing", "--update", "--context=512"))


@pytest.mark.parametrize("name", ["", "-m", "a b", 'a"b', "日本", "x" * 101])
def test_a_name_can_be_written_by_clients(name, gguf):
    assert problems_of("--engine=llama.cpp", f"--path={gguf}", "--", name).keys() == {"name"}


@pytest.mark.parametrize("option", ["--replicas=0", "--replicas=-1", "--context=3", "--slots=0", "--idle-after=0"])
def test_numbers_must_make_sense(option, gguf):
    problems = problems_of("m", "--engine=llama.cpp", f"--path={gguf}", option)
    assert problems == {option.partition("=")[0]: "min_value"}


@pytest.mark.parametrize("arg", ["--host=0.0.0.0", "--port", "--api-key=x", "--alias=other", "-m"])
def test_arguments_must_not_move_or_open_the_engine(arg, gguf):
    assert problems_of("m", "--engine=llama.cpp", f"--path={gguf}", f"--arg={arg}") == {"--arg": "reserved"}


def test_launchers_are_for_llama_cpp(directory, gguf):
    of_vllm = problems_of("m", "--engine=vllm", f"--path={directory}", "--launcher=xllamacpp")
    assert of_vllm == {"--launcher": "no-such-launcher"}
    reranker = ["m", "--engine=llama.cpp", f"--path={gguf}", "--task=rerank", "--launcher=llama-cpp-python"]
    assert problems_of(*reranker) == {"--launcher": "cannot-rerank"}


def test_a_host_must_be_known(gguf):
    Host.objects.create(name="gpu1")
    error = str(error_of("m", "--engine=llama.cpp", f"--path={gguf}", "--host=gpu9"))
    assert "gpu9" in error
    assert "gpu1" in error  # the one that is known


def test_an_engine_must_be_said():
    error = str(error_of("m"))
    assert all(name in error for name in ("--engine", "--preset", *ENGINES))


def test_unregister_deletes_and_prints_the_name(capsys, gguf):
    register(capsys, "m", "--engine=llama.cpp", f"--path={gguf}")
    call_command("unregistermodel", "m")
    assert capsys.readouterr().out == "m\n"
    assert not ServedModel.objects.exists()
    with pytest.raises(CommandError, match=r"\bm\b"):
        call_command("unregistermodel", "m")


def test_it_registers_what_pages_register_too(capsys, directory):
    more = ["--gpus=0,1", "--tensor-parallel=2", "--overcommit", "--retires-on=2999-03-31"]
    register(capsys, "m", "--engine=vllm", f"--path={directory}", *more, "--description-ja=例", "--allow=remote-code")
    model = ServedModel.objects.get()
    assert (model.gpus, model.tensor_parallel, model.overcommit) == ([0, 1], 2, True)
    assert (str(model.retires_on), model.description_ja, model.allowed_risks) == ("2999-03-31", "例", ["remote-code"])
    cleared = ["--gpus=none", "--tensor-parallel=1", "--no-overcommit", "--retires-on=none", "--allow=none"]
    register(capsys, "m", "--update", *cleared)
    model = ServedModel.objects.get()
    assert (model.gpus, model.overcommit, model.retires_on, model.allowed_risks) == ([], False, None, [])


def test_numbers_that_were_set_can_be_taken_away_again(capsys, gguf):
    register(capsys, "m", "--engine=llama.cpp", f"--path={gguf}", "--idle-after=60", "--slots=2", "--context=512")
    register(capsys, "m", "--update", "--idle-after=none", "--slots=none", "--context=none")
    model = ServedModel.objects.get()
    assert (model.idle_after, model.slots, model.context) == (None, None, None)


@pytest.mark.parametrize(
    "option",
    ["--idle-after=soon", "--slots=1.5", "--retires-on=tomorrow", "--retires-on=2027-02-30", "--gpus=a", "--gpus=0,"],
)
def test_dates_and_gpus_must_be_readable(option, gguf):
    assert option.partition("=")[0] in str(error_of("m", "--engine=llama.cpp", f"--path={gguf}", option))


def test_a_model_that_would_never_be_served_is_not_registered(gguf, capsys):
    given = ("m", "--engine=llama.cpp", f"--path={gguf}")
    today = timezone.localdate()
    for day in (today, today - timedelta(days=9)):
        assert "--retires-on" in str(error_of(*given, f"--retires-on={day}"))
    register(capsys, *given, f"--retires-on={today + timedelta(days=1)}")
    register(capsys, "m", "--update", f"--retires-on={today}")  # one that was served retires at once
    assert ServedModel.objects.get().retires_on == today


def test_a_cut_off_file_is_refused_by_its_name(gguf):
    with open(gguf, "r+b") as file:
        file.truncate(100)
    given = ("m", "--engine=llama.cpp", f"--path={gguf}")
    assert problems_of(*given) == {"--path": "cut-off-header"}
    assert gguf in str(error_of(*given))


def test_a_risk_is_allowed_by_its_name(capsys, tmp_path):
    path = paper_models.small_llama(tmp_path, model_type="homemade", auto_map={"AutoModel": "x.Y"})
    given = ["m", "--engine=vllm", f"--path={path}"]
    assert problems_of(*given) == {"--allow": "remote-code"}
    assert all(name in str(error_of(*given)) for name in (str(path), "config.json", "remote-code"))
    assert problems_of(*given, "--allow=pickle") == {"--allow": "remote-code"}
    assert register(capsys, *given, "--allow=remote-code") == "m\n"


def test_a_context_beyond_the_models_own_is_refused(gguf):
    given = ("m", "--engine=llama.cpp", f"--path={gguf}", "--context=8193")
    assert problems_of(*given) == {"--context": "longer-than-the-model"}
    assert "8192" in str(error_of(*given))


# --- Presets


def test_presets_are_shown_and_register_nothing(capsys):
    shown = register(capsys, "--presets")
    assert "AXCXEPT/EZO-Common-9B-gemma-2-it" in shown
    assert "--quantization=fp8_per_tensor" in shown
    assert not ServedModel.objects.exists()


def test_a_preset_is_what_is_registered_and_options_come_after_it(capsys, tmp_path):
    path = paper_models.ezo_9b(tmp_path)
    call_command("registermodel", "ezo", "--preset=ezo-9b-fp8", f"--path={path}", "--slots=4", "--arg=--seed=1")
    told = capsys.readouterr()
    assert told.out == "ezo\n"
    assert "10.2 GB" in told.err
    model = ServedModel.objects.get()
    assert (model.engine, model.task, model.context, model.slots) == ("vllm", "chat", 8192, 4)
    assert model.args == ["--quantization=fp8_per_tensor", "--seed=1"]
    assert model.description_ja == PRESETS["ezo-9b-fp8"].description_ja


def test_a_preset_for_other_files_is_refused(directory):
    error = str(error_of("ezo", "--preset=ezo-9b-fp8", f"--path={directory}", "--context=2048"))
    assert error.startswith("--preset: ")
    assert all(name in error for name in ("ezo-9b-fp8", "Gemma2ForCausalLM", directory, "LlamaForCausalLM"))


def test_a_preset_for_another_host_is_taken_on_trust(capsys):
    Host.objects.create(name="gpu1")
    register(capsys, "ezo", "--preset=ezo-9b-fp8", "--path=/models/ezo", "--host=gpu1")
    assert ServedModel.objects.get().args == ["--quantization=fp8_per_tensor"]


# --- Aliases


@pytest.fixture
def two(capsys, gguf):
    for name in ("old", "new"):
        register(capsys, name, "--engine=llama.cpp", f"--path={gguf}")
    register(capsys, "old", "--update", "--alias=default", "--alias=chat")


def aliases():
    return dict(Alias.objects.values_list("name", "model__name"))


def alias(capsys, *args):
    call_command("alias", *args)
    return capsys.readouterr().out


def test_a_model_is_registered_with_its_aliases(two, capsys):
    assert aliases() == {"default": "old", "chat": "old"}
    register(capsys, "old", "--update", "--alias=chat", "--alias=fast")
    assert aliases() == {"default": "old", "chat": "old", "fast": "old"}


def test_an_alias_of_another_model_is_not_taken_silently(two, gguf):
    error = str(error_of("third", "--engine=llama.cpp", f"--path={gguf}", "--alias=default"))
    assert error.startswith("--alias: ")
    assert "`manage.py alias default third`" in error  # which moves it
    assert aliases()["default"] == "old"


def test_a_name_is_a_models_or_an_alias(two, gguf):
    new = ["--engine=llama.cpp", f"--path={gguf}"]
    assert problems_of("default", *new) == {"name": "name-of-an-alias"}
    assert problems_of("third", *new, "--alias=new") == {"--alias": "name-of-a-model"}
    assert problems_of("third", *new, "--alias=third") == {"--alias": "name-of-a-model"}
    assert problems_of("third", *new, "--alias=no spaces") == {"--alias": "invalid"}
    with pytest.raises(CommandError) as refused:
        call_command("alias", "new", "old")
    assert [problem.code for problem in refused.value.__cause__.error_dict["name"]] == ["name-of-a-model"]


def test_an_alias_is_moved_in_one_change_that_gateways_hear_of(two, capsys):
    before = CatalogueRevision.objects.get().number
    assert alias(capsys, "default") == "old\n"
    assert alias(capsys, "default", "new") == "default\n"
    assert aliases()["default"] == "new"
    assert CatalogueRevision.objects.get().number == before + 1
    assert alias(capsys, "fresh", "new") == "fresh\n"


def test_an_alias_is_removed(two, capsys):
    assert alias(capsys, "chat", "--remove") == "chat\n"
    assert aliases() == {"default": "old"}


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("none",), "none"),
        (("none", "--remove"), "none"),
        (("default", "missing"), "missing"),
        (("default", "new", "--remove"), "--remove"),
    ],
)
def test_an_invalid_alias_is_refused(two, args, named):
    with pytest.raises(CommandError, match=named):
        call_command("alias", *args)
    assert aliases() == {"default": "old", "chat": "old"}


def test_a_model_does_not_go_with_its_aliases_unnoticed(two, capsys):
    with pytest.raises(CommandError, match=r"chat, default\b.*--with-aliases"):
        call_command("unregistermodel", "old")
    call_command("unregistermodel", "old", "--with-aliases")
    assert list(ServedModel.objects.values_list("name", flat=True)) == ["new"]
    assert aliases() == {}


# --- Looking


@pytest.fixture
def served(gguf):
    host = Host.objects.create(name="gpu1", seen_at=timezone.now())
    model = ServedModel.objects.create(name="chat", engine="llama.cpp", path=gguf, host=host)
    Replica.objects.create(
        model=model,
        host=host,
        state="failed",
        launcher="xllamacpp",
        slots=4,
        restarts=5,
        detail="ended with code 1: no magic\nmore words",
    )
    ready = Replica.objects.create(
        model=model, host=host, index=1, state="ready", url="http://h:1", api_key="engine-key", pid=77
    )
    Replica.objects.filter(pk=ready.pk).update(
        memory_bytes=2_460_000_000,
        predicted={"weights": 2 * 10**9, "cache": 10**9, "overhead": 0, "total": 3 * 10**9, "devices": 1},
        live={"running": 3, "waiting": 1, "tokens_per_second": 61.53},
    )
    ServedModel.objects.create(name="waiting", engine="llama.cpp", path=gguf)
    return ready


def test_models_shows_each_replica_on_a_line(served, capsys):
    call_command("models")
    lines = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()]
    since = timezone.localtime(served.changed_at).strftime("%m-%d %H:%M:%S")
    assert lines[0][4:] == ["STATE", "MEMORY", "PLANNED", "TOKENS/S", "RUNNING", "WAITING", "SINCE", "DETAIL"]
    assert lines[1][:6] == ["chat", "llama.cpp", "chat", "gpu1", "failed", "-"]
    assert lines[1][11] == "ended with code 1: no magic"
    assert lines[2] == ["chat", "llama.cpp", "chat", "gpu1", "ready", "2.5 GB", "3.0 GB", "61.5", "3", "1", since]
    assert lines[3][:4] == ["waiting", "llama.cpp", "chat", "-"]


def test_models_says_at_which_level_a_replica_sleeps_and_what_it_holds(served, capsys):
    Replica.objects.filter(pk=served.pk).update(state="asleep", slept="level1", devices=[0], memory_fixed=9_000_000_000)
    call_command("models", "chat")
    lines = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()]
    assert lines[2][4:6] == ["asleep (level1)", "2.5 GB + 9.0 GB RAM"]
    assert "waiting" not in [line[0] for line in lines]
    call_command("models", "--json", "chat")
    [model] = json.loads(capsys.readouterr().out)
    assert (model["replicas"][1]["slept"], model["replicas"][1]["ram_bytes"]) == ("level1", 9_000_000_000)


def test_evictions_are_narrowed_down_to_models(served, capsys):
    chat, waiting = ServedModel.objects.order_by("name")
    other = ServedModel.objects.create(name="other", engine="external", url="http://h:1")
    for gone, come in ((chat, waiting), (other, chat), (other, waiting)):
        EvictionRecord.objects.create(
            host=served.host, model=gone, successor=come, at=timezone.now(), waited_seconds=1, calls=1
        )

    def pairs(*names: str) -> list[tuple[str, str]]:
        call_command("models", *names, "--evictions", "--json")
        return sorted((one["model"], one["successor"]) for one in json.loads(capsys.readouterr().out))

    assert pairs("chat") == [("chat", "waiting"), ("other", "chat")]
    assert len(pairs("chat", "other")) == len(pairs()) == 3
    with pytest.raises(CommandError):
        pairs("nonsense")


def test_models_does_not_vouch_for_a_host_without_supervisor(served, capsys):
    Host.objects.update(seen_at=timezone.now() - timedelta(seconds=61))
    call_command("models")
    assert capsys.readouterr().out.count(UNSUPERVISED) == 2


def test_models_as_json_shows_no_key(served, capsys):
    call_command("models", "--json")
    text = capsys.readouterr().out
    chat, waiting = json.loads(text)
    assert (chat["name"], chat["host"], waiting["replicas"]) == ("chat", "gpu1", [])
    assert [replica["state"] for replica in chat["replicas"]] == ["failed", "ready"]
    assert chat["replicas"][1] | {"since": ""} == {
        "number": 1,
        "rank": 0,
        "ranks": 1,
        "host": "gpu1",
        "moved_to": "",
        "supervised": True,
        "state": "ready",
        "launcher": "",
        "version": "",
        "devices": [],
        "slots": None,
        "pid": 77,
        "memory_bytes": 2_460_000_000,
        "predicted_bytes": 3 * 10**9,
        "ram_bytes": None,
        "slept": "",
        "tokens_per_second": 61.53,
        "running": 3,
        "waiting": 1,
        "restarts": 0,
        "since": "",
        "cause": "",
        "detail": "",
    }
    assert (chat["state"], chat["running"], chat["predicted_bytes"]) == ("ready", 3, 3 * 10**9)
    assert (waiting["state"], waiting["running"]) == ("unplaced", None)
    assert "engine-key" not in text


def test_models_draws_how_full_each_host_is(served, capsys):
    device = {"index": -1, "uuid": "", "name": "RAM", "kind": "ram", "total": 10**10, "used": 6 * 10**9}
    HostReport.objects.create(
        host=served.host,
        devices=[{**device, "free": 4 * 10**9, "fault": ""}],
        engines={"xllamacpp": "b11549"},
        strangers=[{"pid": 4, "name": "Xorg", "device": -1, "bytes": 10**9}],
        problems=[{"code": "disk", "detail": "/models is full"}],
        at=timezone.now(),
    )
    Replica.objects.filter(pk=served.pk).update(cause="port-in-use")
    call_command("models")
    said = capsys.readouterr().out
    assert f"chat #1: {ADVICE['port-in-use']}" in said
    assert "gpu1 xllamacpp b11549" in said
    bar, _, figures = next(line for line in said.splitlines() if line.startswith("  [")).partition("] ")
    assert bar == f"  [{'#' * 8}{'=' * 2}{'~' * 14}{'.' * 16}"
    assert re.findall("[0-9.]+", figures)[:4] == ["6.0", "10.0", "2.5", "3.0"]  # used, in all, ours, planned
    stranger, problem = (line for line in said.splitlines() if line.startswith("  ! "))
    assert all(fact in stranger for fact in ("Xorg", "4", "1.0 GB"))
    assert all(fact in problem for fact in ("disk", "/models is full"))


def test_models_asks_the_database_the_same_few_questions_however_many_there_are(
    served, gguf, django_assert_num_queries
):
    for number in range(5):
        ServedModel.objects.create(name=f"more{number}", engine="llama.cpp", path=gguf)
    # Models, their aliases and replicas; hosts; the controller; copies of files.
    with django_assert_num_queries(6):
        call_command("models")


def test_only_ready_replicas_of_enabled_models_are_routes(served, django_assert_num_queries):
    with django_assert_num_queries(1):
        [route] = routes.ready_replicas()
    assert (route.replica_id, route.url, route.api_key) == (served.pk, "http://h:1", "engine-key")
    ServedModel.objects.update(enabled=False)
    assert routes.ready_replicas() == []
    assert routes.served_models() == []


@pytest.mark.parametrize(
    ("state", "comes"),
    {
        "starting": True,
        "asleep": True,
        "draining": True,  # to fall asleep, for example: a caller is asked to come back soon
        "stopped": True,
        "ready": False,
        "unhealthy": True,
        "backoff": True,
        "failed": False,
    }.items(),
)
def test_a_replica_that_comes_by_itself_or_when_called_is_worth_waiting_for(served, state, comes):
    def hosts() -> frozenset[int]:
        return {found.model_id: found.loading_on for found in routes.served_models()}[served.model_id]

    Replica.objects.update(state=state)
    assert hosts() == ({served.host_id} if comes else frozenset())
    Host.objects.update(maintenance=True)
    assert hosts() == frozenset()


@pytest.mark.parametrize("text", ["", "18100", "a-b", "0-5", "5-4", "1-65536", "18100-18200-18300"])
def test_unreadable_ports_name_their_variable(text):
    with pytest.raises(ImproperlyConfigured, match="ENGINE_PORTS"):
        parse_ports(text)


def test_ports_include_both_ends():
    assert list(parse_ports("18100-18102")) == [18100, 18101, 18102]


# --- The admin


@pytest.fixture
def admin(client, olivia):
    client.force_login(olivia)
    return client


def test_the_admin_checks_what_the_command_checks(admin):
    form = {"name": "m", "engine": "llama.cpp", "task": "chat", "path": "/no/such.gguf", "replicas": 1, "args": "[]"}
    inline = {f"replica_set-{name}": 0 for name in ("TOTAL_FORMS", "INITIAL_FORMS")}
    answer = admin.post(reverse("admin:modelregistry_servedmodel_add"), form | inline)
    errors = answer.context["adminform"].form.errors.get_json_data()
    assert [problem["code"] for problem in errors["path"]] == ["missing"]
    assert not ServedModel.objects.exists()


def test_the_admin_registers(admin, gguf):
    form = {"name": "m", "engine": "llama.cpp", "task": "chat", "path": gguf, "replicas": 1, "args": "[]"}
    form |= {"gpus": "[]", "allowed_risks": "[]", "tensor_parallel": 1, "nodes": 1}
    form |= {
        "sleep_mode": "stop",
        "loops": "stop",
        "loop_sensitivity": "low",
        "sampling": '{"temperature": {"default": 0.6}}',
    }
    inline = {f"replica_set-{name}": 0 for name in ("TOTAL_FORMS", "INITIAL_FORMS")}
    admin.post(reverse("admin:modelregistry_servedmodel_add"), form | inline)
    model = ServedModel.objects.get()
    assert (model.name, model.loops, model.loop_sensitivity) == ("m", "stop", "low")
    assert model.sampling == {"temperature": {"default": 0.6}}


def test_the_admin_moves_an_alias(admin, two):
    moved = Alias.objects.get(name="default")
    form = {"name": "default", "model": ServedModel.objects.get(name="new").pk}
    admin.post(reverse("admin:modelregistry_alias_change", args=[moved.pk]), form)
    assert aliases()["default"] == "new"


@pytest.mark.parametrize("name", ["host", "servedmodel", "replica", "alias"])
def test_the_admin_lists(admin, served, name):
    assert admin.get(reverse(f"admin:modelregistry_{name}_changelist")).status_code == 200


def test_the_admin_shows_a_replica_with_its_log_and_changes_nothing(admin, served, settings, tmp_path):
    settings.HOST_NAME, settings.RUN = "gpu1", tmp_path
    (tmp_path / "engines" / "r1").mkdir(parents=True)
    (tmp_path / "engines" / "r1" / "engine.log").write_text("<b>loading</b>\n")
    Replica.objects.filter(pk=served.pk).update(run_id="r1")
    page = admin.get(reverse("admin:modelregistry_replica_change", args=[served.pk])).content.decode()
    assert "&lt;b&gt;loading&lt;/b&gt;" in page
    assert "engine-key" not in page
    assert 'name="_save"' not in page
    assert admin.get(reverse("admin:modelregistry_replica_add")).status_code == 403


def test_time_outs_are_registered_and_become_a_routes(capsys):
    given = ("--connect-timeout=2", "--first-byte-timeout=60", "--idle-timeout=0.5", "--total-timeout=900")
    register(capsys, "m", "--engine=external", "--url=http://10.0.0.5:8000", *given)
    (served,) = routes.served_models()
    assert (served.connect_timeout, served.first_byte_timeout) == (2, 60)
    assert (served.idle_timeout, served.total_timeout) == (0.5, 900)


@pytest.mark.parametrize("value", ["0", "-1", "86401"])
def test_a_time_out_that_is_none_is_refused(value):
    problems = problems_of("m", "--engine=external", "--url=http://10.0.0.5:8000", f"--idle-timeout={value}")
    assert problems == {"--idle-timeout": "no-time-limit"}


def test_a_total_that_would_always_come_first_is_refused():
    given = ("--first-byte-timeout=60", "--total-timeout=30")
    problems = problems_of("m", "--engine=external", "--url=http://10.0.0.5:8000", *given)
    assert problems == {"--total-timeout": "shorter-than-a-part"}


FAR = ("m", "--engine=external", "--url=http://10.0.0.5:8000")


def test_word_loops_and_sampling_are_registered_listed_and_become_a_routes(capsys):
    given = ("--loops=stop", "--loop-sensitivity=low", "--sampling=temperature=0.6:0.3..1", "--sampling=top_p=..0.9")
    register(capsys, *FAR, *given)
    stored = {"temperature": {"default": 0.6, "least": 0.3, "most": 1.0}, "top_p": {"most": 0.9}}
    (served,) = routes.served_models()
    assert (served.loops, served.loop_sensitivity) == ("stop", "low")
    assert served.presets == (("temperature", 0.6, 0.3, 1.0), ("top_p", None, None, 0.9))
    call_command("models", "--json")
    (shown,) = json.loads(capsys.readouterr().out)
    assert (shown["loops"], shown["loop_sensitivity"], shown["sampling"]) == ("stop", "low", stored)


def test_sampling_is_changed_by_parameter(capsys):
    register(capsys, *FAR, "--sampling=temperature=0.6:0.3..1", "--sampling=top_p=0.9")
    for given, stored in (
        (["--sampling=temperature=..0.8"], {"temperature": {"most": 0.8}, "top_p": {"default": 0.9}}),
        (["--sampling=top_p=none"], {"temperature": {"most": 0.8}}),
        (["--loops=off"], {"temperature": {"most": 0.8}}),
        (["--sampling=none", "--sampling=top_p=0.5:0.1.."], {"top_p": {"default": 0.5, "least": 0.1}}),
        (["--sampling=none"], {}),
    ):
        register(capsys, "m", "--update", *given)
        assert ServedModel.objects.get().sampling == stored


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--loops=end", "--loops"),
        ("--loop-sensitivity=1", "--loop-sensitivity"),
        ("--sampling=warmth=1", "'warmth=1'"),
        ("--sampling=temperature", "'temperature'"),
        ("--sampling=temperature=", "temperature: ''"),
        ("--sampling=temperature=hot", "'hot'"),
        ("--sampling=temperature=0.6:1", "'0.6:1'"),
        ("--sampling=temperature=..", "'..'"),
    ],
)
def test_what_is_no_setting_of_loops_or_sampling_is_refused_by_its_name(option, said):
    assert said in str(error_of(*FAR, option))


@pytest.mark.parametrize(
    ("option", "choices"), [("--loops", ServedModel.Loops), ("--loop-sensitivity", ServedModel.LoopSensitivity)]
)
@pytest.mark.parametrize("given", ["end", "", "Stop"])
def test_an_unknown_choice_about_loops_is_refused_with_those_that_there_are(option, choices, given):
    refusal = str(error_of(*FAR, f"{option}={given}"))
    assert all(choice in refusal for choice in (option, *choices))


@pytest.mark.parametrize(
    ("setting", "code"),
    [
        ("temperature=3", "out-of-range"),
        ("temperature=0.9:..0.5", "out-of-order"),
        ("dry_multiplier=0.8", "unknown-parameter"),
    ],
)
def test_sampling_that_the_engine_cannot_do_is_refused_at_its_option(setting, code):
    assert problems_of(*FAR, f"--sampling={setting}") == {"--sampling": code}


def test_what_is_no_hours_is_refused_at_its_option():
    assert problems_of(*FAR, "--hours=whenever") == {"--hours": "not-hours"}
    outside = ("m", "--engine=external", "--url=http://127.0.0.1:9", "--hours=8:00-20:00")
    assert problems_of(*outside) == {"--hours": "hours-of-an-external-engine"}


@pytest.mark.parametrize(("option", "value"), [("--idle-after", "600"), ("--replicas", "2")])
def test_what_has_no_effect_on_an_external_engine_is_refused(capsys, option, value):
    assert problems_of(*FAR, option, value) == {option: f"{option[2:].split('-')[0]}-of-an-external-engine"}
    register(capsys, *FAR, "--idle-after", "none", "--replicas", "1")


def test_an_external_engine_is_sent_no_more_calls_at_a_time_than_it_has_slots(capsys):
    register(capsys, *FAR, "--slots=6")
    Replica.objects.create(
        model=ServedModel.objects.get(),
        host=Host.objects.create(name="here"),
        state="ready",
        url="http://10.0.0.5:8000",
    )
    assert [route.slots for route in routes.ready_replicas()] == [6]


def test_evictions_are_listed_newest_first(capsys, gguf):
    for name in ("old", "new"):
        register(capsys, name, "--engine=llama.cpp", f"--path={gguf}")
    old, new = ServedModel.objects.order_by("pk")
    begin = timezone.now()
    for number, (model, successor) in enumerate([(old, new), (new, old)]):
        EvictionRecord.objects.create(
            host=Host.objects.get_or_create(name="here")[0],
            model=model,
            successor=successor,
            at=begin + timedelta(seconds=number),
            waited_seconds=5.0,
            drain_seconds=3.0 if number else None,
        )
    call_command("models", "--evictions", "--json")
    found = json.loads(capsys.readouterr().out)
    assert [(one["model"], one["successor"], one["drain_seconds"]) for one in found] == [
        ("new", "old", 3.0),
        ("old", "new", None),
    ]
    call_command("models", "--evictions")
    assert [line.split()[3:6] for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["new", "#0", "old"],
        ["old", "#0", "new"],
    ]


def test_a_model_is_pinned_and_not_pinned(capsys, gguf):
    register(capsys, "mine", "--engine=llama.cpp", f"--path={gguf}", "--pin")
    assert ServedModel.objects.get().pinned
    register(capsys, "mine", "--update", "--no-pin")
    assert not ServedModel.objects.get().pinned
    outside = ("m", "--engine=external", "--url=http://127.0.0.1:9", "--pin")
    assert problems_of(*outside) == {"--pin": "pin-of-an-external-engine"}


def test_a_vllm_can_live_on_while_it_sleeps(capsys, directory):
    register(capsys, "mine", "--engine=vllm", f"--path={directory}", "--sleep=level1")
    assert ServedModel.objects.get().sleep_mode == "level1"
    register(capsys, "mine", "--update", "--sleep=stop")
    assert ServedModel.objects.get().sleep_mode == "stop"


def test_a_model_that_could_not_live_on_or_prove_itself_after_it_is_refused(directory, gguf):
    assert problems_of("m", "--engine=llama.cpp", f"--path={gguf}", "--sleep=level1") == {"--sleep": "sleep-unknown"}
    outside = ("m", "--engine=external", "--url=http://127.0.0.1:9", "--sleep=level2")
    assert problems_of(*outside) == {"--sleep": "sleep-unknown"}
    mine = ("m", "--engine=vllm", f"--path={directory}", "--sleep=level2")
    assert problems_of(*mine, "--task=transcription") == {"--sleep": "sleep-no-sample"}
    # Versions that this machine may lack besides.
    assert problems_of(*mine, "--engine-version=0.32.0+cpu")["--sleep"] == "sleep-cpu"
    assert problems_of(*mine, "--engine-version=0.10.2")["--sleep"] == "sleep-version"


def test_a_model_that_transcribes_is_registered_with_an_engine_that_can(capsys, directory, gguf):
    register(capsys, "ears", "--engine=vllm", f"--path={directory}", "--task=transcription")
    assert routes.served_models()[0].task == "transcription"
    problems = problems_of("m", "--engine=llama.cpp", f"--path={gguf}", "--task=transcription")
    assert problems == {"--task": "transcribes-by-chat"}
