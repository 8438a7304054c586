"""Registering and looking at models on the command line, and in the admin."""

import json
import re
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.urls import reverse
from django.utils import timezone

from apiproxy.models import CatalogueRevision
from modelregistry import routes
from modelregistry.management.commands.supervise import ports
from modelregistry.models import Host, Replica, ServedModel
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


def refused(*args):
    """The one sentence of a refusal, which changed nothing."""
    before = list(ServedModel.objects.values())
    with pytest.raises(CommandError) as refusal:
        call_command("registermodel", *args)
    assert list(ServedModel.objects.values()) == before
    return str(refusal.value)


def test_it_registers_and_prints_the_name(capsys, gguf):
    arguments = ["acme/chat", "--engine=llama.cpp", f"--path={gguf}", "--launcher=xllamacpp", "--replicas=2"]
    arguments += ["--context=4096", "--slots=8", "--idle-after=600", "--arg=--flash-attn=on", "--arg=--no-warmup"]
    assert register(capsys, *arguments) == "acme/chat\n"
    model = ServedModel.objects.get()
    assert (model.name, model.engine, model.launcher, model.path) == ("acme/chat", "llama.cpp", "xllamacpp", gguf)
    assert (model.task, model.replicas, model.context, model.slots, model.idle_after) == ("chat", 2, 4096, 8, 600)
    assert model.args == ["--flash-attn=on", "--no-warmup"]
    assert model.host is None


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


def test_it_tells_gateways(capsys, gguf):
    register(capsys, "m", "--engine=llama.cpp", f"--path={gguf}")
    assert CatalogueRevision.objects.get().number == 1


def test_a_path_must_exist():
    assert refused("m", "--engine=llama.cpp", "--path=/no/such.gguf") == "--path: /no/such.gguf does not exist."
    assert refused("m", "--engine=vllm", "--path=/no/such") == "--path: /no/such does not exist."


def test_a_path_must_be_absolute():
    assert refused("m", "--engine=llama.cpp", "--path=model.gguf") == "--path: model.gguf is not an absolute path."


def test_a_path_must_be_given():
    assert refused("m", "--engine=vllm") == "--path: This engine needs the path of a model."


def test_llama_cpp_needs_a_gguf_file(tmp_path, directory):
    other = tmp_path / "notes.txt"
    other.write_text("hello")
    assert refused("m", "--engine=llama.cpp", f"--path={other}") == f"--path: {other} is not a GGUF file."
    assert "is a directory" in refused("m", "--engine=llama.cpp", f"--path={directory}")


def test_vllm_needs_a_model_directory(tmp_path, gguf):
    assert "is not a directory" in refused("m", "--engine=vllm", f"--path={gguf}")
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refused("m", "--engine=vllm", f"--path={tmp_path / 'empty'}")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("10.0.0.5:8000", "is not a URL like"),
        ("ftp://10.0.0.5", "is not a URL like"),
        ("http://", "is not a URL like"),
        ("http://h:99999", "is not a URL like"),
        ("http://[::1", "is not a URL like"),
        ("http://h:8000/v1", "Leave /v1 off"),
        ("http://h:8000/v1/", "Leave /v1 off"),
        ("http://me:pw@h:8000", "must not hold a user name"),
        ("http://h:8000/?key=1", "must not hold a user name, a query"),
    ],
)
def test_a_url_must_be_well_formed(url, words):
    assert words in refused("m", "--engine=external", f"--url={url}")


def test_an_external_engine_has_a_url_and_no_path(gguf):
    assert refused("m", "--engine=external").startswith("--url: An external engine needs a URL")
    both = refused("m", "--engine=external", "--url=http://h:1", f"--path={gguf}")
    assert both == "--path: An external engine has a URL, not a path."
    assert refused("m", "--engine=llama.cpp", "--url=http://h:1", f"--path={gguf}").startswith(
        "--url: Only an external"
    )


def test_a_name_is_given_once(capsys, gguf):
    register(capsys, "m", "--engine=llama.cpp", f"--path={gguf}")
    assert refused("m", "--engine=llama.cpp", f"--path={gguf}") == "There is a model m already; --update changes it."


def test_update_changes_what_is_said_and_no_more(capsys, gguf):
    register(capsys, "m", "--engine=llama.cpp", f"--path={gguf}", "--slots=8")
    assert register(capsys, "m", "--update", "--context=512") == "m\n"
    model = ServedModel.objects.get()
    assert (model.context, model.slots, model.path) == (512, 8, gguf)


def test_update_needs_a_model():
    assert refused("m", "--update", "--context=512") == "There is no model m to update."


@pytest.mark.parametrize("name", ["", "-m", "a b", 'a"b', "日本", "x" * 101])
def test_a_name_can_be_written_by_clients(name, gguf):
    assert refused("--engine=llama.cpp", f"--path={gguf}", "--", name).startswith("name: ")


@pytest.mark.parametrize("option", ["--replicas=0", "--replicas=-1", "--context=3", "--slots=0", "--idle-after=0"])
def test_numbers_must_make_sense(option, gguf):
    assert refused("m", "--engine=llama.cpp", f"--path={gguf}", option).startswith(option.partition("=")[0] + ": ")


@pytest.mark.parametrize("arg", ["--host=0.0.0.0", "--port", "--api-key=x", "--alias=other", "-m"])
def test_arguments_must_not_move_or_open_the_engine(arg, gguf):
    message = refused("m", "--engine=llama.cpp", f"--path={gguf}", f"--arg={arg}")
    assert message.startswith(f"--arg: {arg} is set for each replica")


def test_launchers_are_for_llama_cpp(directory, gguf):
    assert "--launcher: " in refused("m", "--engine=vllm", f"--path={directory}", "--launcher=xllamacpp")
    reranker = ["m", "--engine=llama.cpp", f"--path={gguf}", "--task=rerank", "--launcher=llama-cpp-python"]
    assert "cannot rerank" in refused(*reranker)


def test_a_host_must_be_known(gguf):
    assert "There is no host gpu9 (known: none yet)" in refused(
        "m", "--engine=llama.cpp", f"--path={gguf}", "--host=gpu9"
    )


def test_an_engine_must_be_said():
    assert refused("m").startswith("Say --engine")


def test_unregister_deletes_and_prints_the_name(capsys, gguf):
    register(capsys, "m", "--engine=llama.cpp", f"--path={gguf}")
    call_command("unregistermodel", "m")
    assert capsys.readouterr().out == "m\n"
    assert not ServedModel.objects.exists()
    with pytest.raises(CommandError, match="There is no model m"):
        call_command("unregistermodel", "m")


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
    Replica.objects.filter(pk=ready.pk).update(memory_bytes=2_460_000_000)
    ServedModel.objects.create(name="waiting", engine="llama.cpp", path=gguf)
    return ready


def test_models_shows_each_replica_on_a_line(served, capsys):
    call_command("models")
    lines = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()]
    since = timezone.localtime(served.changed_at).strftime("%m-%d %H:%M:%S")
    assert lines[0] == ["MODEL", "ENGINE", "TASK", "HOST", "STATE", "MEMORY", "SINCE", "DETAIL"]
    assert lines[1][:6] == ["chat", "llama.cpp", "chat", "gpu1", "failed", "-"]
    assert lines[1][7] == "ended with code 1: no magic"
    assert lines[2] == ["chat", "llama.cpp", "chat", "gpu1", "ready", "2.5 GB", since]
    assert lines[3][:5] == ["waiting", "llama.cpp", "chat", "-", "waits for a host that has it"]


def test_models_does_not_vouch_for_a_host_without_supervisor(served, capsys):
    Host.objects.update(seen_at=timezone.now() - timedelta(seconds=61))
    call_command("models")
    assert capsys.readouterr().out.count("(no supervisor: may be otherwise by now)") == 2


def test_models_as_json_tells_no_key(served, capsys):
    call_command("models", "--json")
    text = capsys.readouterr().out
    chat, waiting = json.loads(text)
    assert (chat["name"], chat["host"], waiting["replicas"]) == ("chat", "gpu1", [])
    assert [replica["state"] for replica in chat["replicas"]] == ["failed", "ready"]
    assert chat["replicas"][1] | {"since": ""} == {
        "number": 1,
        "host": "gpu1",
        "supervised": True,
        "state": "ready",
        "launcher": "",
        "slots": None,
        "pid": 77,
        "memory_bytes": 2_460_000_000,
        "restarts": 0,
        "since": "",
        "detail": "",
    }
    assert "engine-key" not in text


def test_models_asks_the_database_the_same_few_questions_however_many_there_are(
    served, gguf, django_assert_num_queries
):
    for number in range(5):
        ServedModel.objects.create(name=f"more{number}", engine="llama.cpp", path=gguf)
    with django_assert_num_queries(3):
        call_command("models")


def test_only_ready_replicas_of_enabled_models_are_routes(served, django_assert_num_queries):
    with django_assert_num_queries(1):
        [route] = routes.ready()
    assert (route.replica_id, route.url, route.api_key) == (served.pk, "http://h:1", "engine-key")
    ServedModel.objects.update(enabled=False)
    assert routes.ready() == []
    assert routes.served() == []


@pytest.mark.parametrize("text", ["", "18100", "a-b", "0-5", "5-4", "1-65536", "18100-18200-18300"])
def test_unreadable_ports_name_their_variable(text):
    with pytest.raises(Exception, match="ENGINE_PORTS"):
        ports(text)


def test_ports_include_both_ends():
    assert list(ports("18100-18102")) == [18100, 18101, 18102]


# --- The admin


@pytest.fixture
def admin(client, olivia):
    client.force_login(olivia)
    return client


def test_the_admin_checks_what_the_command_checks(admin):
    form = {"name": "m", "engine": "llama.cpp", "task": "chat", "path": "/no/such.gguf", "replicas": 1, "args": "[]"}
    inline = {f"replica_set-{name}": 0 for name in ("TOTAL_FORMS", "INITIAL_FORMS")}
    answer = admin.post(
        reverse("admin:modelregistry_servedmodel_add"), form | inline, headers={"accept-language": "en"}
    )
    assert "/no/such.gguf does not exist." in answer.content.decode()
    assert not ServedModel.objects.exists()


def test_the_admin_registers(admin, gguf):
    form = {"name": "m", "engine": "llama.cpp", "task": "chat", "path": gguf, "replicas": 1, "args": "[]"}
    form |= {"gpus": "[]", "allowed_risks": "[]", "tensor_parallel": 1}
    inline = {f"replica_set-{name}": 0 for name in ("TOTAL_FORMS", "INITIAL_FORMS")}
    admin.post(reverse("admin:modelregistry_servedmodel_add"), form | inline)
    assert ServedModel.objects.get().name == "m"


@pytest.mark.parametrize("name", ["host", "servedmodel", "replica"])
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
    (served,) = routes.served()
    assert (served.connect_timeout, served.first_byte_timeout) == (2, 60)
    assert (served.idle_timeout, served.total_timeout) == (0.5, 900)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "86401"])
def test_a_time_out_that_is_none_is_refused(value):
    words = refused("m", "--engine=external", "--url=http://10.0.0.5:8000", f"--idle-timeout={value}")
    assert words == "--idle-timeout: Give a time between 0.1 and 86400 seconds."


def test_a_total_that_would_always_come_first_is_refused():
    given = ("--first-byte-timeout=60", "--total-timeout=30")
    words = refused("m", "--engine=external", "--url=http://10.0.0.5:8000", *given)
    assert words == "--total-timeout: The time in all cannot be shorter than one of its parts, 60 seconds."


def test_a_model_that_transcribes_is_registered_with_an_engine_that_can(capsys, directory, gguf):
    register(capsys, "ears", "--engine=vllm", f"--path={directory}", "--task=transcription")
    assert routes.served()[0].task == "transcription"
    words = refused("m", "--engine=llama.cpp", f"--path={gguf}", "--task=transcription")
    assert words.startswith("--task: llama.cpp transcribes with chat models")
