"""The API for operators: who may, what it does, and that it is as it describes itself."""

import json
from dataclasses import asdict
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import call_command
from django.test import Client
from django.utils import timezone, translation

from modelregistry import fit
from modelregistry.failure_advice import ADVICE, UNKNOWN
from modelregistry.models import Alias, FileReport, Host, HostReport, LogSubscription, LogTail, Replica, ServedModel
from portal.audit.models import AuditEvent
from portal.keys.models import ModelAccess
from portal.web.rest import problems
from tests.html import one_of
from tests.modelregistry import paper_models
from tests.pages import FAR, serve
from tests.portal.calling import Caller
from tests.portal.recorded import audited
from tests.translations import japanese  # noqa: F401 - a fixture

pytestmark = pytest.mark.django_db

GB = 10**9
DEVICE = {
    **{"index": 0, "uuid": "GPU-1", "name": "NVIDIA L40S", "kind": "gpu", "fault": ""},
    **{"total": 48 * GB, "used": 20 * GB, "free": 28 * GB, "processes": []},
}


@pytest.fixture
def operator(olivia, described) -> Caller:
    return Caller(olivia, described)


# --- who

ADDRESSES = [
    ("GET", "overview/"),
    ("GET", "hosts/"),
    ("GET", "hosts/1/"),
    ("PATCH", "hosts/1/"),
    ("DELETE", "hosts/1/"),
    ("GET", "models/"),
    ("POST", "models/"),
    ("GET", "models/1/"),
    ("PATCH", "models/1/"),
    ("DELETE", "models/1/"),
    ("POST", "models/1/start/"),
    ("POST", "models/1/stop/"),
    ("POST", "models/1/restart/"),
    ("PUT", "models/1/aliases/"),
    ("PUT", "models/1/visibility/"),
    ("GET", "models/1/facts/"),
    ("GET", "models/1/loops/"),
    ("GET", "models/1/evictions/"),
    ("GET", "hosts/1/evictions/"),
    ("GET", "hosts/1/moves/"),
    ("GET", "hosts/1/history/"),
    ("GET", "models/1/history/"),
    ("GET", "models/1/canary/"),
    ("POST", "models/1/canary/"),
    ("POST", "models/predict/"),
    ("GET", "presets/"),
    ("GET", "replicas/"),
    ("GET", "replicas/1/"),
    ("GET", "replicas/1/log/"),
]


@pytest.mark.parametrize(("method", "path"), ADDRESSES)
def test_only_operators_may_and_others_do_not_learn_what_is_there(method, path, alice, bob, charlie, olivia, described):
    model = serve()
    there = path.replace("1", str(model.pk))
    for user, status in ((alice, 403), (bob, 403), (charlie, 403), (None, 401)):
        for asked in (there, path.replace("1", "4711")):
            answer = Caller(user, described)(method, asked, {})
            assert (answer.status_code, answer["content-type"]) == (status, "application/problem+json")
    assert Caller(olivia, described)(method, path.replace("1", "4711"), {}).status_code in (200, 400, 404)
    assert ServedModel.objects.get().enabled


def test_every_address_that_is_described_is_among_those(described):
    described_ = {(method.upper(), path) for path, methods in described["paths"].items() for method in methods}
    told = {(method, "/api/v1/" + path.replace("1", "{id}")) for method, path in ADDRESSES}
    subjects = {path.split("/")[3] for _, path in told}
    assert {(method, path) for method, path in described_ if path.split("/")[3] in subjects} == told


def test_a_form_of_another_site_cannot_act(olivia):
    model = serve()
    client = Client(enforce_csrf_checks=True)
    client.force_login(olivia)
    path = f"/api/v1/models/{model.pk}/stop/"
    assert client.post(path, content_type="application/json").status_code == 403
    client.get("/api/docs/")
    token = client.cookies["csrftoken"].value
    assert client.post(path, content_type="application/json", headers={"x-csrftoken": token}).status_code == 200


# --- looking


def furnish() -> ServedModel:
    """Return a ready model on a host with a GPU."""
    model = serve("qwen")
    host = Host.objects.get()
    HostReport.objects.create(
        host=host,
        devices=[DEVICE],
        engines={"vllm": "0.32.0"},
        strangers=[{"pid": 4, "name": "Xorg", "device": 0, "bytes": GB}],
        problems=[{"code": "disk", "detail": "/models is full"}],
        at=timezone.now(),
    )
    Replica.objects.update(
        devices=[0],
        memory_bytes=18 * GB,
        memory_by_device={"0": 18 * GB},
        predicted={"weights": 10 * GB, "cache": 5 * GB, "overhead": 2 * GB, "total": 17 * GB, "devices": 1},
        live={
            "at": timezone.now().isoformat(),
            "running": 2,
            "waiting": 0,
            "tokens_per_second": 48.5,
            "cache_used": 0.25,
        },
    )
    return model


def test_the_overview_is_what_sockets_tell(operator):
    furnish()
    seen = operator.get("overview/")
    (bar,) = seen["hosts"][0]["devices"]
    assert {name: bar[name] // GB for name in ("weights", "cache", "overhead", "others", "free", "predicted")} == {
        "weights": 10, "cache": 5, "overhead": 3, "others": 2, "free": 28, "predicted": 17
    }  # fmt: skip
    (model,) = seen["models"]
    assert (model["state"], model["running"], model["tokens_per_second"]) == ("ready", 2, 48.5)


def test_hosts(operator):
    furnish()
    Host.objects.create(name="gpu-02", seen_at=timezone.now() - timedelta(minutes=5))
    assert [host["name"] for host in operator.get("hosts/")["results"]] == ["gpu-01", "gpu-02"]
    assert [host["name"] for host in operator.get("hosts/?supervised=false")["results"]] == ["gpu-02"]
    host = operator.get(f"hosts/{Host.objects.get(name='gpu-01').pk}/")
    assert (host["engines"], host["problems"][0]["code"]) == ({"vllm": "0.32.0"}, "disk")


def test_models_can_be_narrowed_down(operator):
    furnish()
    embed = serve("e5", task="embedding", state="failed")
    Alias.objects.create(name="default", model=embed)

    def names(query: str) -> list[str]:
        return [model["name"] for model in operator.get(f"models/?{query}")["results"]]

    assert names("") == ["e5", "qwen"]
    assert names("state=failed") == names("task=embedding") == names("name=default") == names("name=e5") == ["e5"]
    assert names("host=gpu-01") == ["e5", "qwen"]
    assert names("host=elsewhere") == []
    answer = operator("GET", "models/?state=splendid")
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, "#/state")


def test_lists_come_in_pages_at_a_constant_number_of_queries(operator, django_assert_max_num_queries):
    for number in range(30):
        serve(f"model-{number:02}")
    with django_assert_max_num_queries(12):
        page = operator.get("models/?page_size=10&page=2")
    assert (page["count"], page["results"][0]["name"]) == (30, "model-10")
    assert "page=3" in page["next"]


def test_a_model_in_full(operator, research):
    model = furnish()
    ModelAccess.objects.create(model=model, tenant=research)
    seen = operator.get(f"models/{model.pk}/")
    assert (seen["name"], seen["tenants"], seen["path"], seen["now"]["ready"]) == (
        "qwen",
        ["research"],
        "/qwen.gguf",
        1,
    )


def test_a_secret_is_never_shown(operator):
    made = operator("POST", "models/", {"name": "far", **FAR, "upstream_key": "sk-secret"})
    assert made.status_code == 201
    assert "sk-secret" not in made.content.decode() + json.dumps(operator.get("models/"))
    assert ServedModel.objects.get().upstream_key == "sk-secret"


def test_the_facts_of_a_model(operator):
    model = serve()
    assert operator.get(f"models/{model.pk}/facts/") == {"facts": None, "fault": "", "at": None}
    FileReport.objects.create(model=model, facts={"architecture": "qwen3"}, at=timezone.now())
    assert operator.get(f"models/{model.pk}/facts/")["facts"] == {"architecture": "qwen3"}


def test_e10_a_failure_of_unknown_cause_says_so(operator):
    host = Host.objects.create(name="gpu-01")
    model = ServedModel.objects.create(name="odd", engine="vllm", path="/m", host=host)
    row = Replica.objects.create(model=model, host=host, state="failed", detail="ended with code 3\nthe moon")
    told = operator.get(f"replicas/{row.pk}/")
    assert (told["advice"], told["detail"]) == (str(UNKNOWN), row.detail)
    shown = StringIO()
    call_command("models", stdout=shown)
    assert f"odd #0: {UNKNOWN}\n    ended with code 3\n    the moon" in shown.getvalue()
    Replica.objects.update(state="ready", detail="")
    assert operator.get(f"replicas/{row.pk}/")["advice"] == ""


def test_replicas_with_advice_in_the_reader_s_language(operator):
    serve("qwen")
    failed = serve("gemma", state="failed").replica_set.get()
    Replica.objects.filter(pk=failed.pk).update(cause="port-in-use", detail="Address already in use")
    assert [row["model"] for row in operator.get("replicas/?state=failed")["results"]] == ["gemma"]
    for language in ("en", "ja"):
        answer = operator("GET", f"replicas/{failed.pk}/", **{"accept-language": language})
        with translation.override(language):
            assert answer.json()["advice"] == str(ADVICE["port-in-use"])


def test_asking_for_a_log_makes_its_host_write_it(operator):
    replica = serve().replica_set.get()
    assert operator.get(f"replicas/{replica.pk}/log/") == {"text": "", "at": None}
    assert LogSubscription.objects.get(replica=replica).until > timezone.now()
    LogTail.objects.create(replica=replica, text="loaded\n", at=timezone.now())
    assert operator.get(f"replicas/{replica.pk}/log/")["text"] == "loaded\n"


# --- looking ahead


@pytest.fixture
def llama(tmp_path) -> str:
    return str(paper_models.small_llama(tmp_path / "llama"))


def hosts_report() -> None:
    """Make three hosts: one with a GPU and vLLM, one whose GPU is full, one without an engine for it."""
    full = {**DEVICE, "used": 48 * GB, "free": 0}
    for name, engines, device in (
        ("gpu-01", {"vllm": "0.32.0"}, DEVICE),
        ("gpu-02", {"vllm": "0.32.0"}, full),
        ("gpu-03", {"llama-server": "b11549"}, DEVICE),
    ):
        host = Host.objects.create(name=name, seen_at=timezone.now())
        HostReport.objects.create(host=host, devices=[device], engines=engines, at=timezone.now())


def test_what_a_model_would_take_and_where_it_would_fit(operator, llama):
    hosts_report()
    answer = operator("POST", "models/predict/", {"engine": "vllm", "path": llama, "context": 2048, "slots": 4})
    assert answer.status_code == 200, answer.content
    seen = answer.json()
    assert seen["facts"]["architecture"] == "LlamaForCausalLM"
    assert seen["prediction"]["total"] > seen["prediction"]["weights"] > 0
    fits, none, full = seen["hosts"]
    assert (fits["host"], fits["fits"], fits["devices"], fits["why_not"]) == ("gpu-01", True, [0], "")
    assert (full["host"], full["fits"], full["launcher"], "48.0" in full["why_not"]) == ("gpu-02", False, "vllm", True)
    assert (none["fits"], none["launcher"], "gpu-03" in none["why_not"]) == (False, "", True)
    assert not ServedModel.objects.exists()


def test_page_api_and_command_tell_the_same(operator, llama):
    """The host where it fits comes first, whatever its name, and what it takes there is reported of the model."""
    hosts_report()
    Host.objects.filter(name="gpu-01").update(name="gpu-09")
    body = {"engine": "vllm", "path": llama, "context": 2048, "slots": 4, "args": ["--enable-lora"]}
    seen = operator("POST", "models/predict/", body).json()
    page = fit.estimate(ServedModel(name="x", tensor_parallel=1, **body))
    assert page
    assert [host["host"] for host in seen["hosts"]] == [host.host for host in page.hosts]
    assert seen["hosts"][0]["host"] == "gpu-09"
    assert seen["prediction"] == seen["hosts"][0]["prediction"] == asdict(page.prediction)
    assert seen["unplanned"] == list(page.unplanned) == ["--enable-lora"]
    said = StringIO()
    call_command(
        *("registermodel", "x", "--engine=vllm", f"--path={llama}", "--context=2048", "--slots=4"),
        *("--arg=--enable-lora", "--dry-run"),
        stdout=said,
    )
    first = said.getvalue().splitlines()[0]
    assert first.startswith("gpu-09:")
    assert "GPU 0," in first
    assert f"= {seen['prediction']['total'] / 1e9:.1f} GB" in first


def test_what_the_files_cannot_give_is_refused_before_it_is_planned(operator, llama):
    answer = operator("POST", "models/predict/", {"engine": "vllm", "path": llama, "context": 10**6})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, "#/context")


def test_e6_what_the_plan_does_not_count_is_named_and_bad_arguments_are_refused(operator, llama):
    body = {"engine": "vllm", "path": llama, "context": 2048, "args": ["--enable_lora", "--spec-model=acme/draft"]}
    assert operator("POST", "models/predict/", body).json()["unplanned"] == ["--enable-lora", "--spec-model"]
    answer = operator("POST", "models/predict/", body | {"args": ["-tp", "two"]})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, "#/args")
    model = ServedModel.objects.create(name="seer", engine="llama.cpp", path="/m.gguf", args=["-mm", "/p.gguf"])
    assert operator("GET", f"models/{model.pk}/").json()["unplanned"] == ["--mmproj"]


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"context": 8192}, "context"),
        ({"args": ["--max-model-len=8k"]}, "args"),
        ({"args": ["--chat-template=/nowhere.jinja"]}, "args"),
        ({"args": ["--gpu-memory-utilization=NaN"]}, "args"),
        ({"contxt": 1024}, "contxt"),
    ],
)
def test_what_could_not_be_registered_is_no_question_either(operator, llama, asked, field):
    answer = operator("POST", "models/predict/", {"engine": "vllm", "path": llama} | asked)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, f"#/{field}")


def test_what_is_promised_to_others_is_not_free(operator, llama):
    hosts_report()
    taken = {"weights": 27 * GB, "cache": 0, "overhead": 0, "total": 27 * GB, "devices": 1}
    other = ServedModel.objects.create(name="other", engine="vllm", path="/other")
    host = Host.objects.get(name="gpu-01")
    Replica.objects.create(model=other, host=host, state="starting", devices=[0], predicted=taken)
    body = {"engine": "vllm", "path": llama, "context": 2048, "slots": 4, "host": "gpu-01"}
    (seen,) = operator("POST", "models/predict/", body).json()["hosts"]
    assert (seen["host"], seen["fits"]) == ("gpu-01", False)
    assert "other #0 27.0" in seen["why_not"]
    assert seen["to_go"] == ["other #0"]


def test_files_that_cannot_be_used_are_told_as_such(operator, tmp_path):
    (tmp_path / "cut.gguf").write_bytes(b"GGUF")
    answer = operator("POST", "models/predict/", {"engine": "llama.cpp", "path": str(tmp_path / "cut.gguf")})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, "#/path")
    assert "cut.gguf" in answer.json()["detail"]
    answer = operator("POST", "models/predict/", {"engine": "external", "path": "/x"})
    assert answer.json()["errors"][0]["pointer"] == "#/engine"


def test_a_preset_can_be_registered_as_it_comes(operator):
    presets = operator.get("presets/")
    assert {preset["engine"] for preset in presets} == {"vllm", "llama.cpp"}
    Host.objects.create(name="elsewhere")  # whose files this machine does not see
    notes = ("key", "source", "place", "memory", "usage")
    for preset in presets:
        body = {name: value for name, value in preset.items() if name not in notes}
        body |= {"name": preset["key"], "path": "/models/x", "host": "elsewhere", "launcher": ""}
        assert operator("POST", "models/", body).status_code == 201
    told_in_japanese = operator("GET", "presets/", **{"accept-language": "ja"}).json()
    assert presets[0]["memory"] != told_in_japanese[0]["memory"]


# --- doing


def test_registering(operator, research):
    Host.objects.create(name="gpu-02")
    body = {
        **{"name": "far", **FAR, "aliases": ["default"], "tenants": ["research"], "host": "gpu-02"},
        **{"args": ["--x"], "gpus": [0, 1], "retires_on": "2999-03-31", "description_ja": "日本語に強い"},
    }
    made = operator("POST", "models/", body)
    assert made.status_code == 201
    assert {name: made.json()[name] for name in body} == body
    model = ServedModel.objects.get()
    assert (model.host.name, model.args, list(model.aliases.values_list("name", flat=True))) == (
        "gpu-02", ["--x"], ["default"]
    )  # fmt: skip
    assert audited(via="api") == ["model.add", "alias.add", "access.add"]


def test_hours_are_kept_in_one_language_and_shown_in_the_page_s(operator, as_olivia):
    model = serve()
    changed = operator("PATCH", f"models/{model.pk}/", {"hours": "月－金　８：００－２０：００"})
    assert (changed.status_code, changed.json()["hours"]) == (200, "Mon-Fri 08:00-20:00")
    model.refresh_from_db()
    assert one_of(as_olivia.get("/operations/models/qwen/"), "#hours").text.endswith("Mon-Fri 08:00-20:00")
    with translation.override("ja"):
        assert model.shown_hours == "月-金 08:00-20:00"


@pytest.mark.parametrize("value", [10**400, -(10**400), 1e308])
def test_a_number_that_no_float_holds_is_refused_at_its_field(operator, value):
    model = serve()
    refused = operator("PATCH", f"models/{model.pk}/", {"sampling": {"temperature": {"default": value}}})
    assert refused.status_code == 400
    assert refused.json()["errors"][0]["pointer"].startswith("#/sampling")


def test_what_is_wrong_is_told_with_its_place(operator):
    serve("taken")
    answer = operator("POST", "models/", {"name": "taken", "engine": "magic", "tenants": ["nobody"], "args": [[]]})
    problem = answer.json()
    assert (answer.status_code, problem["status"], problem["type"]) == (400, 400, "about:blank")
    pointers = {one["pointer"] for one in problem["errors"]}
    assert {"#/name", "#/engine", "#/tenants", "#/args/0"} <= pointers
    answer = operator("POST", "models/", {"name": "far", "engine": "external", "url": "ftp://x"})
    assert [one["pointer"] for one in answer.json()["errors"]] == ["#/url"]
    assert ServedModel.objects.count() == 1


def test_what_is_no_json_is_told_too(operator):
    answer = operator.client.post("/api/v1/models/", b"{", content_type="application/json")
    assert (answer.status_code, answer["content-type"]) == (400, "application/problem+json")
    answer = operator.client.post("/api/v1/models/", b"a=b", content_type="text/plain")
    assert (answer.status_code, answer.json()["status"]) == (415, 415)


def test_errors_speak_the_person_s_language(operator):
    answer = operator("GET", "models/4711/", **{"accept-language": "ja"})
    titles = {}
    for language in ("en", "ja"):
        with translation.override(language):
            titles[language] = problems.title(404)
    assert (answer.status_code, answer.json()["title"]) == (404, titles["ja"])
    assert titles["ja"] != titles["en"]


def test_an_unknown_address_or_method_is_an_error_of_the_api(operator):
    for method, path, status in (("GET", "nothing/here/", 404), ("PUT", "models/", 405), ("GET", "models", 404)):
        answer = operator(method, path)
        assert (answer.status_code, answer["content-type"]) == (status, "application/problem+json")


def test_changing_only_what_is_sent(operator, research):
    model = serve("qwen")
    ServedModel.objects.update(engine="external", url="http://10.0.0.5:8000", path="", upstream_key="sk-1")
    Alias.objects.create(name="default", model=model)
    answer = operator("PATCH", f"models/{model.pk}/", {"context": 8192, "tenants": ["research"]})
    assert answer.status_code == 200, answer.content
    seen = answer.json()
    assert (seen["context"], seen["tenants"], seen["aliases"]) == (8192, ["research"], ["default"])
    assert ServedModel.objects.get().upstream_key == "sk-1"
    assert audited(via="api") == ["model.change", "access.add"]


def test_how_a_model_sleeps_is_read_and_written_and_refused_where_it_cannot(operator):
    made = operator("POST", "models/", {"name": "far", **FAR}).json()
    assert made["sleep_mode"] == "stop"
    refused = operator("PATCH", f"models/{made['id']}/", {"sleep_mode": "level1"})
    (error,) = refused.json()["errors"]
    assert (refused.status_code, error["pointer"]) == (400, "#/sleep_mode")
    ServedModel.objects.update(engine="vllm", sleep_mode="level2")
    assert operator("GET", f"models/{made['id']}/").json()["sleep_mode"] == "level2"


def test_word_loops_and_sampling_are_read_and_written(operator):
    body = {"loops": "stop", "loop_sensitivity": "high", "sampling": {"temperature": {"default": 0.6, "most": 1.0}}}
    made = operator("POST", "models/", {"name": "far", **FAR, **body}).json()
    assert {name: made[name] for name in body} == body
    changed = operator("PATCH", f"models/{made['id']}/", {"sampling": {}, "loops": "off"}).json()
    assert (changed["sampling"], changed["loops"], changed["loop_sensitivity"]) == ({}, "off", "high")
    fresh = operator("POST", "models/", {"name": "other", **FAR}).json()
    assert (fresh["loops"], fresh["loop_sensitivity"], fresh["sampling"]) == ("count", "normal", {})


@pytest.mark.parametrize(
    ("pointer", "body"),
    [
        ("#/loops", {"loops": "end"}),
        ("#/loop_sensitivity", {"loop_sensitivity": 7}),
        ("#/sampling", {"sampling": {"warmth": {"default": 1}}}),
        ("#/sampling", {"sampling": {"dry_multiplier": {"default": 1}}}),
        ("#/sampling", {"sampling": {"temperature": {"default": "0.6"}}}),
        ("#/sampling", {"sampling": {"temperature": {"default": True}}}),
        ("#/sampling", {"sampling": {"temperature": {"usual": 1}}}),
        ("#/sampling", {"sampling": {"temperature": {"least": 1, "most": 0.5}}}),
        ("#/sampling/temperature", {"sampling": {"temperature": 1}}),
    ],
)
def test_what_a_model_cannot_do_about_loops_is_refused_at_its_place(operator, pointer, body):
    answer = operator("POST", "models/", {"name": "far", **FAR, **body})
    assert (answer.status_code, [one["pointer"] for one in answer.json()["errors"]]) == (400, [pointer])
    assert not ServedModel.objects.exists()


@pytest.mark.parametrize(
    ("name", "choices"),
    [("loops", ServedModel.Loops), ("loop_sensitivity", ServedModel.LoopSensitivity), ("engine", ["vllm", "external"])],
)
def test_an_unknown_choice_is_refused_with_those_that_there_are(operator, name, choices):
    (error,) = operator("POST", "models/", {"name": "far", **FAR, name: "x" * 500}).json()["errors"]
    assert error["pointer"] == f"#/{name}"
    assert all(choice in error["detail"] for choice in choices)
    assert len(error["detail"]) < 200


def test_a_change_that_is_half_wrong_changes_nothing(operator):
    model = ServedModel.objects.create(name="far", **FAR)
    serve("taken")
    answer = operator("PATCH", f"models/{model.pk}/", {"context": 8192, "aliases": ["taken"]})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, "#/aliases")
    model.refresh_from_db()
    assert model.context is None


@pytest.mark.parametrize("field", ["id", "generation", "created_at", "now"])
def test_what_operators_do_not_decide_stays(operator, field):
    model = ServedModel.objects.create(name="far", **FAR)
    assert operator("PATCH", f"models/{model.pk}/", {field: 99}).status_code == 200
    assert ServedModel.objects.get().generation == 0


def test_stopping_starting_and_restarting(operator):
    model = serve()
    assert operator("POST", f"models/{model.pk}/stop/").json()["now"]["state"] == "draining"
    refused = operator("POST", f"models/{model.pk}/restart/")
    assert (refused.status_code, "qwen" in refused.json()["detail"]) == (409, True)
    assert ServedModel.objects.get().generation == 0
    assert operator("POST", f"models/{model.pk}/start/").json()["enabled"]
    for _ in range(2):
        assert operator("POST", f"models/{model.pk}/restart/", {"seen": 0}).json()["generation"] == 1
    assert audited(via="api") == ["model.stop", "model.start", "model.restart"]


def test_moving_an_alias(operator):
    old, new = serve("old"), serve("new")
    Alias.objects.create(name="default", model=old)
    assert operator("PUT", f"models/{new.pk}/aliases/", {"aliases": ["default"]}).json()["aliases"] == ["default"]
    assert operator.get(f"models/{old.pk}/")["aliases"] == []
    assert operator("PUT", f"models/{new.pk}/aliases/", {}).status_code == 400


def test_visibility(operator, research):
    model = serve()
    path = f"models/{model.pk}/visibility/"
    assert operator("PUT", path, {"tenants": ["research"]}).json()["tenants"] == ["research"]
    assert operator("PUT", path, {"tenants": []}).json()["tenants"] == []
    assert operator("PUT", path, {"tenants": ["nobody"]}).json()["errors"][0]["pointer"] == "#/tenants"


def test_unregistering(operator):
    model = serve()
    assert operator("DELETE", f"models/{model.pk}/").status_code == 204
    assert operator("GET", f"models/{model.pk}/").status_code == 404
    assert audited(via="api") == ["model.remove"]


def test_what_is_done_is_told_with_person_and_address(operator, olivia):
    operator("POST", f"models/{serve().pk}/stop/")
    event = AuditEvent.objects.latest("pk")
    assert (event.actor, event.via, event.address) == (olivia, "api", "127.0.0.1")


# --- hosts


def test_o11_a_host_is_changed(operator):
    serve("qwen")
    path = f"hosts/{Host.objects.get().pk}/"
    changed = operator("PATCH", path, {"address": "10.0.0.9", "maintenance": True}).json()
    assert (changed["address"], changed["maintenance"]) == ("10.0.0.9", True)
    assert operator("PATCH", path, {"maintenance": False}).json()["address"] == "10.0.0.9"
    operator("PATCH", path, {"maintenance": False})  # as it is: nothing to record
    assert audited(via="api") == ["host.change", "host.change"]


def test_a_field_that_there_is_not_is_no_change(operator):
    model = serve("qwen")
    for path in (f"hosts/{Host.objects.get().pk}/", f"models/{model.pk}/"):
        answer = operator("PATCH", path, {"nmae": "x"})
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, "#/nmae")


def test_an_address_that_no_gateway_reaches_is_refused_at_its_field(operator):
    serve("qwen")
    refusal = operator("PATCH", f"hosts/{Host.objects.get().pk}/", {"address": "http://10.0.0.9"})
    assert (refusal.status_code, refusal.json()["errors"][0]["pointer"]) == (400, "#/address")
    assert audited(via="api") == []


def test_a_host_is_removed_unless_it_is_needed(operator):
    model = serve("qwen")
    host = Host.objects.get()
    ServedModel.objects.update(host=host)
    assert operator("DELETE", f"hosts/{host.pk}/").status_code == 409
    ServedModel.objects.update(host=None)
    assert operator("DELETE", f"hosts/{host.pk}/").status_code == 204
    assert audited(via="api") == ["host.remove"]
    assert not Replica.objects.filter(model=model).exists()
