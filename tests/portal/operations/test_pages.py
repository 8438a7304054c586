"""Operators' pages: who may see them, what they show, and what is done from them."""

import re
from dataclasses import asdict
from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone, translation
from django.utils.html import escape

from modelregistry import sampling
from modelregistry.engines.registry import engine_named
from modelregistry.failure_advice import ADVICE, UNKNOWN
from modelregistry.fit import estimate
from modelregistry.hostside.own_address import AddressFault
from modelregistry.models import (
    ControllerClaim,
    Host,
    HostReport,
    LogSubscription,
    LogTail,
    Replica,
    ReplicaMove,
    ReplicaPlacement,
    ServedModel,
)
from modelregistry.sampling import check_sampling
from portal.audit.models import AuditEvent
from portal.operations import model_history
from portal.operations.callers import Callers, count_callers
from portal.operations.forms import permitted_tenants
from portal.operations.templatetags import machines
from tests.fleet import fleet, gpu, host, model, replica
from tests.html import all_of, has, one_of, parse, texts
from tests.modelregistry import paper_models
from tests.pages import key_of, serve, use
from tests.portal.browsing import read
from tests.translations import japanese  # noqa: F401

pytestmark = pytest.mark.django_db


def shown_parameters(page: str) -> list[str]:
    return [one["data-parameter"] for one in all_of(page, "[data-parameter]") if "hidden" not in one.attributes]


ADDRESSES = [
    "/operations/",
    "/operations/models/new/",
    "/operations/models/qwen/",
    "/operations/edit/qwen/",
    "/operations/start/qwen/",
    "/operations/stop/qwen/",
    "/operations/restart/qwen/",
    "/operations/unregister/qwen/",
    "/operations/models/of-nobody/",
]


class TestWhoMaySeeThem:
    @pytest.mark.parametrize("path", ADDRESSES)
    def test_who_is_signed_out_is_sent_to_sign_in(self, client, path):
        serve()
        for response in (client.get(path), client.post(path)):
            assert response.headers["location"] == f"/sign-in/?next={path}"

    @pytest.mark.parametrize("path", ADDRESSES)
    def test_others_are_refused_alike_whether_there_is_something_or_not(self, client, alice, bob, charlie, path):
        serve()
        for who in (alice, bob, charlie):
            client.force_login(who)
            for response in (client.get(path), client.post(path)):
                assert response.status_code == 403
                assert has(response, ".empty a[href='/']")
        model = ServedModel.objects.get()
        assert (model.enabled, model.generation) == (True, 0)

    def test_only_operators_are_shown_the_way(self, client, alice, olivia):
        client.force_login(alice)
        assert 'href="/operations/"' not in read(client, "/")
        client.force_login(olivia)
        assert 'href="/operations/"' in read(client, "/")


class TestOverview:
    def test_its_cost_does_not_grow_with_models_and_hosts(self, as_olivia, django_assert_num_queries):
        serve("qwen-0")
        # session, user, the bar on top, news; usage; models, replicas, aliases; hosts; controller; unrecorded; loops
        with django_assert_num_queries(13):
            as_olivia.get("/operations/")
        fleet()
        for number in range(1, 20):
            serve(f"qwen-{number}")
        with django_assert_num_queries(13):
            as_olivia.get("/operations/")

    def test_hosts_are_shown_with_who_holds_their_memory(self, as_olivia):
        fleet()
        page = read(as_olivia, "/operations/")
        card = one_of(page, "#host-gpu-01").all("figcaption")[0].text
        for fact in ("NVIDIA RTX 6000 Ada", "41.3 GB", "51.5 GB"):
            assert fact in card
        strangers = one_of(page, "#host-gpu-02 .strangers").text
        assert "python train_lora.py" in strangers
        assert "48213" in strangers

    def test_several_hosts_have_a_row_each_with_how_busy_and_hot_they_are(self, as_olivia):
        cards = [
            {**gpu(n, "NVIDIA H100", 85.0, 10.0), "utilisation": busy, "temperature": 40 + n}
            for n, busy in enumerate([90, 30])
        ]
        host("gpu-01", *cards)
        page = read(as_olivia, "/operations/")
        assert has(page, "#host-gpu-01 details.more[open] figcaption")  # alone, it is shown whole
        assert texts(page, "#host-gpu-01 [data-busy]") == ["60%"]
        assert "41" in texts(page, "#host-gpu-01 [data-hottest]")[0]
        host("gpu-02", gpu(0, "NVIDIA H100", 85.0, 10.0))  # its supervisor is of version 1.0
        page = read(as_olivia, "/operations/")
        assert not has(page, "article.host > details[open]")
        assert not has(page, "#host-gpu-02 [data-busy]")

    def test_a_silent_host_is_not_believed(self, as_olivia):
        fleet()
        page = read(as_olivia, "/operations/")
        assert has(page, "#host-edge-03 summary .state.watch")
        row = one_of(page, "#model-bge-reranker-v2")
        assert row.all(".state.watch")
        assert not row.all(".state.fine")

    def test_a_model_that_lives_on_asleep_is_shown_with_its_level_and_the_memory_that_it_holds(self, as_olivia):
        serve()
        facts = {
            "state": "asleep",
            "slept": "level1",
            "pid": 7,
            "devices": [0],
            "memory_by_device": {"0": 1_100_000_000},
        }
        Replica.objects.update(memory_bytes=1_100_000_000, memory_fixed=65_000_000_000, **facts)
        for path in ("/operations/", "/operations/models/qwen/"):
            shown = one_of(read(as_olivia, path), "[data-slept=level1]").text
            assert {"1.1 GB", "65.0 GB"} <= set(re.findall(r"[0-9.]+ GB", shown))
        Replica.objects.update(slept="", pid=None)  # it was stopped: nothing is left
        assert not has(read(as_olivia, "/operations/models/qwen/"), "[data-slept]")

    def test_without_a_host_it_says_what_to_do_first(self, as_olivia):
        assert "manage.py supervise" in read(as_olivia, "/operations/")


class TestVerbs:
    def test_a_start_asks_nothing(self, as_olivia):
        model = serve()
        model.enabled = False
        model.save()
        assert as_olivia.get("/operations/start/qwen/").url == "/operations/"
        response = as_olivia.post("/operations/start/qwen/", follow=True)
        assert has(response, ".notice.success")
        assert ServedModel.objects.get().enabled

    @pytest.mark.parametrize("verb", ["stop", "restart", "unregister"])
    def test_what_hurts_asks_first(self, as_olivia, verb):
        model = serve()
        Replica.objects.update(live={"running": 3, "waiting": 1})
        page = read(as_olivia, f"/operations/{verb}/qwen/")
        assert "qwen" in one_of(page, "h1").text
        assert has(page, "dd[data-waiting='1']")
        model.refresh_from_db()
        assert (model.enabled, model.generation) == (True, 0)
        as_olivia.post(f"/operations/{verb}/qwen/", {"generation": "0"})
        done = ServedModel.objects.first()
        assert {"stop": done and not done.enabled, "restart": done and done.generation == 1, "unregister": not done}[
            verb
        ]


REGISTRATION = {"name": "new-one", "engine": "external", "task": "chat", "url": "http://10.0.0.5:8000", "replicas": "1"}


def register(client, **values):
    form = {"tensor_parallel": "1", **REGISTRATION, **values}
    return client.post("/operations/models/new/", {name: value for name, value in form.items() if value is not None})


@pytest.fixture
def files(tmp_path):
    """Return the files of a real model of 18.5 GB, as far as headers go."""
    return str(paper_models.ezo_9b(tmp_path / "ezo"))


def form_for(files: str) -> dict[str, str]:
    return {
        **{"name": "ezo", "engine": "vllm", "task": "chat", "path": files, "context": "4096", "slots": "2"},
        **{"replicas": "1", "tensor_parallel": "1", "nodes": "1"},
    }


class TestForms:
    def test_e6_the_page_names_what_the_plan_does_not_count(self, as_olivia):
        ServedModel.objects.create(name="seer", engine="llama.cpp", path="/m.gguf", args=["-mm", "/p.gguf"])
        ServedModel.objects.create(name="plain", engine="llama.cpp", path="/m.gguf", args=["--jinja"])
        shown = as_olivia.get("/operations/models/seer/").content.decode()
        assert "--mmproj" in shown.partition("data-unplanned")[2].partition("</span>")[0]
        assert "data-unplanned" not in as_olivia.get("/operations/models/plain/").content.decode()

    def test_e8_the_page_says_where_arguments_could_not_be_checked(self, as_olivia):
        elsewhere = Host.objects.create(name="elsewhere")
        values = {"engine": "llama.cpp", "launcher": "xllamacpp", "path": "/m.gguf", "args": ["--jinja"]}
        far = ServedModel.objects.create(name="far", host=elsewhere, **values)
        near = ServedModel.objects.create(name="near", **values)
        assert (far.args_checked, near.args_checked) == (False, True)
        assert "data-unchecked" in as_olivia.get("/operations/models/far/").content.decode()
        assert "data-unchecked" not in as_olivia.get("/operations/models/near/").content.decode()
        assert ServedModel(engine="external", args=["--x"]).args_checked is None

    def test_what_was_typed_becomes_a_model(self, as_olivia, research):
        response = register(
            as_olivia,
            aliases="default, gpt-4o",
            tenants=[research.pk],
            upstream_key="sk-secret",
            description_ja="要約に。",
            retires_on="2999-03-31",
            args="--dtype=half\n--seed 7",
        )
        assert response.headers["location"] == "/operations/models/new-one/"
        model = ServedModel.objects.get()
        assert [alias.name for alias in model.aliases.all()] == ["default", "gpt-4o"]
        assert permitted_tenants(model) == [research]
        assert (model.upstream_key, model.args) == ("sk-secret", ["--dtype=half", "--seed 7"])
        assert str(model.retires_on) == "2999-03-31"
        assert AuditEvent.objects.filter(action="model.add", actor__username="olivia").exists()

    def test_word_loops_and_sampling_are_set_in_fields_of_their_own(self, as_olivia):
        register(as_olivia, loops="stop", loop_sensitivity="high", temperature_default="0", temperature_most="0.9")
        model = ServedModel.objects.get()
        assert (model.loops, model.loop_sensitivity) == ("stop", "high")
        assert model.sampling == {"temperature": {"default": 0, "most": 0.9}}
        page = read(as_olivia, "/operations/edit/new-one/")
        assert has(page, "details[open] input[name=temperature_most][value='0.9']")
        assert has(page, "input[name=temperature_default][value='0.0']")
        assert has(page, "[name=loops][value=stop][checked]")
        assert shown_parameters(page) == ["temperature", "top_p", "presence_penalty", "frequency_penalty"]
        assert has(read(as_olivia, "/operations/models/new-one/"), "#sampling [data-parameter=temperature]")

    def test_a_new_models_form_shows_what_the_engine_takes_and_all_while_none_is_chosen(self, as_olivia):
        page = read(as_olivia, "/operations/models/new/")
        assert shown_parameters(page) == list(sampling.PARAMETERS)
        page = register(as_olivia, engine="vllm", name="").content.decode()
        assert shown_parameters(page) == [one for one in sampling.PARAMETERS if one != "dry_multiplier"]
        page = register(as_olivia, engine="llama.cpp", name="").content.decode()
        assert shown_parameters(page) == list(sampling.PARAMETERS)

    def test_what_the_engine_does_not_take_is_refused_by_name_and_shown(self, as_olivia):
        page = register(as_olivia, engine="vllm", path="/m", url="", dry_multiplier_default="0.8").content.decode()
        assert "dry_multiplier" in shown_parameters(page)
        (error,) = all_of(page, "[data-parameter=dry_multiplier] .error")
        assert "dry_multiplier" in error.text
        assert "repetition_penalty" in error.text  # what it takes
        assert not ServedModel.objects.exists()

    @pytest.mark.parametrize(
        ("name", "more"),
        [
            ("temperature", {"temperature_default": "0.9", "temperature_most": "0.5"}),
            ("top_p", {"top_p_least": "nan"}),
            ("dry_multiplier", {"dry_multiplier_default": "0.8"}),
        ],
    )
    def test_a_parameter_that_cannot_be_is_refused_in_its_row(self, as_olivia, name, more):
        response = register(as_olivia, **more)
        assert has(response.content.decode(), f"details[open] [data-parameter={name}].wrong .error")
        assert not ServedModel.objects.exists()

    @pytest.mark.parametrize("name", ["loops", "loop_sensitivity"])
    def test_an_unknown_choice_about_loops_is_refused_at_its_field(self, as_olivia, name):
        page = register(as_olivia, **{name: "end"}).content.decode()
        assert has(page, f"details[open] #id_{name}_error")
        assert len(all_of(page, f"details[open] input[name={name}]")) == 3  # beside those that there are
        assert not ServedModel.objects.exists()

    def test_a_form_that_says_nothing_of_loops_leaves_them_as_they_are(self, as_olivia):
        register(as_olivia, loops="stop", loop_sensitivity="low")
        as_olivia.post("/operations/edit/new-one/", {"tensor_parallel": "1", **REGISTRATION, "description_en": "Fine"})
        model = ServedModel.objects.get(description_en="Fine")
        assert (model.loops, model.loop_sensitivity) == ("stop", "low")

    def test_how_a_model_sleeps_is_chosen_and_refused_where_its_engine_has_no_choice(self, as_olivia):
        page = register(as_olivia, sleep_mode="level1").content.decode()
        assert has(page, "details[open] #id_sleep_mode_error")
        assert not ServedModel.objects.exists()
        register(as_olivia)
        assert ServedModel.objects.get().sleep_mode == "stop"  # a form without it
        ServedModel.objects.update(engine="vllm", sleep_mode="level2")
        assert has(read(as_olivia, "/operations/models/new-one/"), "#sleep-mode [data-sleep=level2]")

    def test_an_error_stands_at_its_field_and_what_was_typed_is_kept(self, as_olivia):
        response = register(as_olivia, url="ftp://nowhere", description_en="For summaries")
        page = response.content.decode()
        assert has(page, "#id_url_error")
        assert has(page, "[name=description_en][value='For summaries']")
        assert ServedModel.objects.count() == 0

    def test_an_alias_that_is_a_model_s_name_is_refused_at_its_field(self, as_olivia):
        serve("qwen")
        page = register(as_olivia, aliases="qwen").content.decode()
        assert has(page, "#id_aliases_error")
        assert not ServedModel.objects.filter(name="new-one").exists()

    def test_a_key_is_never_shown_again_and_stays_when_left_empty(self, as_olivia):
        register(as_olivia, upstream_key="sk-secret")
        for path in ("/operations/edit/new-one/", "/operations/models/new-one/"):
            assert "sk-secret" not in read(as_olivia, path)
        form = {**REGISTRATION, "tensor_parallel": "1", "description_en": "changed"}
        as_olivia.post("/operations/edit/new-one/", form)
        model = ServedModel.objects.get()
        assert (model.description_en, model.upstream_key) == ("changed", "sk-secret")

    def test_a_preset_fills_the_form(self, as_olivia):
        form = as_olivia.get("/operations/models/new/?preset=multilingual-e5-large-instruct").context["form"]
        assert form["args"].value() == "--pooling\nmean\n-b\n512\n-ub\n512"
        assert (form["engine"].value(), form["task"].value()) == ("llama.cpp", "embedding")

        assert form["name"].value() == "multilingual-e5-large-instruct"

    @pytest.mark.parametrize(("query", "open_", "closed"), [("", "path", "url"), ("?engine=external", "url", "path")])
    def test_what_the_engine_needs_is_open_right_below_its_choice(self, as_olivia, query, open_, closed):
        page = parse(read(as_olivia, f"/operations/models/new/{query}"))
        names = [field.attributes.get("name", "") for field in page.all("form.narrow [name]")]
        order = list(dict.fromkeys(name for name in names if name in ("engine", "url", "path", "name")))
        assert order == ["engine", "url", "path", "name"]
        groups = [group for group in page.all("details[data-engines]") if group.all(f"[name={open_}]")]
        assert ["open" in group.attributes for group in groups] == [True]
        assert not page.all(f"details[data-engines][open] [name={closed}]")
        for name in ("path", "url"):
            [label] = page.all(f"label[for=id_{name}]")
            assert not label.all("small")  # which says that a field is optional
        assert page.all("label[for=id_upstream_model] small")

    def test_what_it_will_take_is_told_without_registering(self, as_olivia, files):
        host("gpu-01", gpu(0, "NVIDIA RTX 6000 Ada", 51.5, 2), engines={"vllm": "0.32.0"})
        page = as_olivia.post("/operations/models/new/?preview", form_for(files)).content.decode()
        assert "data-unplanned" not in page
        more = form_for(files) | {"args": "--enable-lora"}
        assert "data-unplanned" in as_olivia.post("/operations/models/new/?preview", more).content.decode()
        assert has(page, "#estimate[role=status] .state.fine")
        assert has(page, "#estimate .sum")
        assert ServedModel.objects.count() == 0

    def test_what_does_not_fit_is_refused_with_the_sum_unless_forced(self, as_olivia, files):
        host("gpu-01", gpu(0, "NVIDIA RTX 4090", 25.8, 20.0))
        page = as_olivia.post("/operations/models/new/", form_for(files)).content.decode()
        refused = one_of(page, "#estimate[role=alert]")
        assert refused.all(".state.broken")
        for amount in ("25.8", "20.0"):
            assert amount in refused.text
        assert f'value="{files}"' in page
        assert "<details" in page.split('name="overcommit"')[0]
        assert " open" in page.split('name="overcommit"')[0].rsplit("<details", 1)[1].split(">")[0]
        assert ServedModel.objects.count() == 0
        as_olivia.post("/operations/models/new/", {**form_for(files), "overcommit": "on"})
        assert ServedModel.objects.get().overcommit

    def test_a_model_may_have_the_memory_that_it_holds_itself(self, files):
        card = host("gpu-01", gpu(0, "NVIDIA RTX 6000 Ada", 51.5, 50.0))
        ezo = ServedModel.objects.create(name="ezo", engine="vllm", path=files, context=4096, slots=2)
        replica(ezo, card, devices=[0], memory_bytes=49 * 10**9, memory_by_device={"0": 49 * 10**9})
        (fit,) = estimate(ezo).hosts
        assert not fit.fits
        assert fit.room
        (fit,) = estimate(ServedModel(name="other", engine="vllm", path=files, context=4096, slots=2)).hosts
        assert "ezo #0 49.0" in fit.why_not
        assert (fit.room, fit.to_go) == (False, ("ezo #0",))

    def test_words_may_be_changed_while_it_does_not_fit(self, as_olivia, files):
        host("gpu-01", gpu(0, "NVIDIA RTX 4090", 25.8, 25.0))
        model = ServedModel.objects.create(name="ezo", engine="vllm", path=files, context=4096, slots=2)
        form = form_for(files)
        as_olivia.post("/operations/edit/ezo/", {**form, "description_en": "For summaries"})
        as_olivia.post("/operations/edit/ezo/", {**form, "description_en": "Changed", "slots": "4"})
        model.refresh_from_db()
        assert (model.description_en, model.slots) == ("For summaries", 2)


class TestOneModel:
    def test_its_failure_is_told_with_advice_and_its_last_words(self, as_olivia):
        fleet()
        page = read(as_olivia, "/operations/models/gemma-3-27b-it/")
        assert "gpu-02" in one_of(page, ".attention h2").text
        assert str(ADVICE["gpu-memory"]) in page
        assert "torch.OutOfMemoryError" in page
        with translation.override("ja"):
            advice = str(ADVICE["gpu-memory"])
        assert advice in read(as_olivia, "/operations/models/gemma-3-27b-it/", accept_language="ja")

    def test_its_memory_is_written_out_as_a_sum(self, as_olivia):
        fleet()
        page = read(as_olivia, "/operations/models/llama-3.1-70b-japanese/")
        table = page.split('<table class="sum">')[1].split("</table>")[0]
        for part in ("18.5 GB", "5.0 GB", "2.4 GB", "25.9 GB", "27.8 GB", "52.4 GB"):
            assert part in table

    def test_what_operators_did_to_it_is_there(self, as_olivia):
        serve()
        as_olivia.post("/operations/stop/qwen/")
        as_olivia.post("/operations/start/qwen/")
        deeds = as_olivia.get("/operations/models/qwen/").context["history"]
        started, stopped = (str(model_history.WORDS[action]) for action in ("model.start", "model.stop"))
        assert [(deed.what, deed.who) for deed in deeds[:2]] == [(started, "olivia"), (stopped, "olivia")]

    def test_whoever_looks_at_a_log_makes_its_supervisor_report_it(self, as_olivia):
        serve()
        row = Replica.objects.get()
        LogTail.objects.create(replica=row, text="<b>INFO</b> ready", at=timezone.now())
        assert "INFO" not in read(as_olivia, "/operations/models/qwen/")
        assert not LogSubscription.objects.exists()
        assert "&lt;b&gt;INFO&lt;/b&gt; ready" in read(as_olivia, f"/operations/models/qwen/?log={row.pk}")
        assert LogSubscription.objects.get().until > timezone.now()

    @pytest.mark.parametrize(
        ("engine", "calm"),
        [
            ("external", {"temperature"}),
            ("vllm", {"temperature", "repetition_penalty"}),
            ("llama.cpp", {"temperature", "repetition_penalty", "dry_multiplier"}),
        ],
    )
    def test_one_button_makes_it_sample_more_calmly(self, as_olivia, engine, calm):
        model = serve()
        where = {"path": "", "url": "http://10.0.0.5:8000"} if engine == "external" else {}
        ServedModel.objects.update(engine=engine, sampling={"temperature": {"most": 0.5}}, **where)
        button = "form[action='/operations/calm/qwen/']"
        assert has(read(as_olivia, "/operations/models/qwen/"), button)
        assert has(as_olivia.post("/operations/calm/qwen/", follow=True), ".notice.success")
        model.refresh_from_db()
        assert set(model.sampling) == calm
        assert model.sampling["temperature"] == {"default": 0.5, "least": 0.3, "most": 0.5}
        check_sampling(model.sampling, engine_named(engine).sampling_members)
        assert not has(read(as_olivia, "/operations/models/qwen/"), button)
        as_olivia.post("/operations/calm/qwen/")
        (told,) = AuditEvent.objects.filter(action="model.change", actor__username="olivia")
        assert list(told.after) == ["sampling"]

    @pytest.mark.parametrize("number", ["", "x", "-1", "999999", "9" * 30, "²"])
    def test_a_log_of_nobody_is_no_fault(self, as_olivia, number):
        serve()
        read(as_olivia, f"/operations/models/qwen/?log={number}")

    def test_a_name_with_slashes_has_a_page_and_verbs(self, as_olivia):
        serve("acme/llama-3.1:70b")
        assert has(read(as_olivia, "/operations/models/acme/llama-3.1:70b/"), "[data-verb=restart]")
        as_olivia.post("/operations/stop/acme/llama-3.1:70b/")
        assert not ServedModel.objects.get().enabled

    def test_a_model_that_is_gone_is_not_found(self, as_olivia):
        for path in ADDRESSES[2:]:
            response = as_olivia.post(path) if "/start/" in path else as_olivia.get(path)
            assert response.status_code == 404


class TestButtons:
    @pytest.mark.parametrize(
        ("state", "verbs"),
        [
            ("ready", ["restart", "stop"]),
            ("starting", ["restart", "stop"]),
            ("unhealthy", ["restart", "stop"]),
            ("failed", ["retry", "stop"]),
            ("backoff", ["retry", "stop"]),
        ],
    )
    def test_they_are_what_helps_in_this_state(self, as_olivia, state, verbs):
        serve(state=state)
        assert offered(read(as_olivia, "/operations/")) == verbs

    def test_another_try_that_would_cut_a_replica_that_answers_asks_first(self, as_olivia):
        model = serve()
        ServedModel.objects.update(replicas=2)
        Replica.objects.create(model=model, host=Host.objects.get(), index=1, state="failed")
        assert offered(read(as_olivia, "/operations/")) == ["restart", "stop"]

    def test_what_is_stopped_can_be_started(self, as_olivia):
        serve(state="stopped")
        ServedModel.objects.update(enabled=False)
        assert offered(read(as_olivia, "/operations/")) == ["start"]


def offered(page: str) -> list[str]:
    """Return the verbs of the only model's buttons."""
    return [button["data-verb"] for button in all_of(page, "[data-live=buttons-qwen] [data-verb]")]


class TestRefusals:
    def test_why_nothing_was_done_is_told(self, as_olivia):
        model = serve()
        model.enabled = False
        model.save()
        page = as_olivia.post("/operations/restart/qwen/", follow=True).content.decode()
        assert has(page, ".notice.error")
        assert ServedModel.objects.get().generation == 0

    def test_two_operators_restart_it_once(self, as_olivia):
        serve()
        for _ in range(2):
            as_olivia.post("/operations/restart/qwen/", {"generation": "0"})
        assert ServedModel.objects.get().generation == 1

    def test_nothing_happens_without_the_token_of_the_form(self, olivia):
        serve()
        client = Client(enforce_csrf_checks=True)
        client.force_login(olivia)
        assert client.post("/operations/stop/qwen/").status_code == 403
        assert ServedModel.objects.get().enabled


class TestCallers:
    def test_whom_a_stop_hits_are_those_of_a_day(self, alice, bob, research):
        serve()
        mine, his = key_of(alice, research), key_of(bob, research)
        for key in (mine, mine, his):
            use(key)
        use(his, at=timezone.now() - timedelta(hours=25))
        use(mine, model="other")
        found = count_callers("qwen", timezone.now())
        assert (found.requests, found.keys, found.people, found.tenants) == (3, 2, 2, 1)
        assert count_callers("nobody-s", timezone.now()).requests == 0


class TestFigures:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (None, ""),
            (0, "0.0 GB"),
            (90_000_000, "90 MB"),
            (14_599_999_999, "14.6 GB"),
            (1_234_500_000_000, "1,234.5 GB"),
        ],
    )
    def test_bytes(self, value, text):
        assert machines.gigabytes(value) == text

    def test_a_problem_that_has_no_sentence_is_told_as_it_came(self):
        assert machines.problem({"code": "strange", "detail": "The sky fell."}) == "The sky fell."
        assert "/var: 12 MB" in machines.problem({"code": "disk-full", "detail": "/var: 12 MB"})


class TestHosts:
    def test_o11_a_host_is_put_into_maintenance_and_moved(self, as_olivia):
        card = host("gpu-01", gpu(0, "NVIDIA RTX 4090", 25.8, 20.0))
        assert f'href="/operations/hosts/{card.pk}/"' in read(as_olivia, "/operations/")
        as_olivia.post(f"/operations/hosts/{card.pk}/", {"address": "10.0.0.9", "maintenance": "on"})
        row = Host.objects.get()
        assert (row.address, row.maintenance) == ("10.0.0.9", True)
        assert "data-maintenance" in read(as_olivia, "/operations/")
        as_olivia.post(f"/operations/hosts/{card.pk}/", {"address": "10.0.0.9"})
        assert not Host.objects.get().maintenance

    @pytest.mark.parametrize("change", [{"address": "10.0.0.5", "maintenance": "on"}, {"address": "10.0.0.9"}])
    def test_what_ends_engines_is_asked_with_whom_it_hits(self, as_olivia, alice, research, change):
        card = host("gpu-01", gpu(0, "NVIDIA RTX 4090", 25.8, 20.0))
        qwen = model("qwen", host=card)
        replica(qwen, card)
        use(key_of(alice, research), model="qwen")
        before = as_olivia.post(f"/operations/hosts/{card.pk}/", change)
        page = before.content.decode()
        assert 'data-hit="qwen"' in page
        assert [(one.name, called) for one, called in before.context["hit"]] == [
            ("qwen", Callers(requests=1, keys=1, people=1, tenants=1))
        ]
        unchanged = Host.objects.get()
        assert (unchanged.address, unchanged.maintenance) == (card.address, False)
        sent = dict(re.findall(r'<input type="hidden" name="(address|maintenance|confirmed)" value="([^"]*)"', page))
        as_olivia.post(f"/operations/hosts/{card.pk}/", sent)
        row = Host.objects.get()
        assert (row.address, row.maintenance) == (change["address"], "maintenance" in change)

    def test_models_that_maintenance_keeps_from_answering_are_told(self, as_olivia):
        card = host("gpu-01", gpu(0, "NVIDIA RTX 4090", 25.8, 20.0))
        replica(model("qwen", host=card), card, "stopped")
        assert "data-maintained" not in read(as_olivia, "/operations/")
        Host.objects.update(maintenance=True)
        page = read(as_olivia, "/operations/")
        assert 'data-maintained="gpu-01"' in page
        assert 'href="#attention"' in page

    def test_a_model_over_several_hosts_needs_attention_for_the_one_in_maintenance(self, as_olivia):
        cards = [host(name, gpu(0, "NVIDIA RTX 4090", 25.8, 20.0)) for name in ("gpu-01", "gpu-02")]
        wide = model("wide", nodes=2)
        for index, card in enumerate(cards):
            replica(wide, card, "stopped", index=index)
        Host.objects.filter(name="gpu-02").update(maintenance=True)
        page = read(as_olivia, "/operations/")
        assert 'data-maintained="gpu-02"' in page
        assert 'data-maintained="gpu-01"' not in page

    @pytest.mark.parametrize("code", ["address-unknown", "address-missing", "address-slow"])
    @pytest.mark.parametrize("language", ["ja", "en"])
    def test_an_address_that_the_machine_does_not_have_is_told_in_the_readers_language(self, as_olivia, code, language):
        fault = AddressFault(code=code, address="192.0.2.7", reason="why")
        card = host("gpu-01", problems=[{**asdict(fault), "detail": str(fault)}])
        for page in ("/operations/", f"/operations/hosts/{card.pk}/"):
            text = as_olivia.get(page, headers={"accept-language": language}).content.decode()
            assert "192.0.2.7" in text
            with translation.override(language):
                assert escape(machines.problem({**asdict(fault), "detail": str(fault)})) in text
            assert (str(fault) in text) == (language == "en")

    def test_an_address_that_no_gateway_reaches_is_told_at_its_field(self, as_olivia):
        card = host("gpu-01")
        page = as_olivia.post(f"/operations/hosts/{card.pk}/", {"address": "0.0.0.0"})
        assert 'id="id_address_error"' in page.content.decode()
        assert Host.objects.get().address == card.address

    def test_a_host_with_models_says_why_it_stays(self, as_olivia):
        card = host("gpu-01")
        served = serve("qwen")
        ServedModel.objects.update(host=card)
        assert "data-needed" in read(as_olivia, f"/operations/hosts/{card.pk}/")
        as_olivia.post(f"/operations/hosts/{card.pk}/remove/")
        assert Host.objects.exists()
        served.delete()
        assert "data-needed" not in read(as_olivia, f"/operations/hosts/{card.pk}/")
        read(as_olivia, f"/operations/hosts/{card.pk}/remove/")
        as_olivia.post(f"/operations/hosts/{card.pk}/remove/")
        assert not Host.objects.exists()

    def test_a_host_in_maintenance_that_is_switched_off_needs_nobody(self, as_olivia):
        card = host("gpu-01", silent=timedelta(minutes=9))
        Host.objects.filter(pk=card.pk).update(watched_at=timezone.now(), silent_since=card.seen_at)
        assert 'href="/operations/#host-gpu-01"' in read(as_olivia, "/operations/")
        Host.objects.filter(pk=card.pk).update(maintenance=True)
        assert 'href="/operations/#host-gpu-01"' not in read(as_olivia, "/operations/")


class TestCluster:
    """A cluster of two hosts, one of them silent for three minutes, whose replica was moved to the other one."""

    @pytest.fixture
    def silent(self) -> Host:
        silent, other = host("gpu-01", silent=timedelta(minutes=3)), host("gpu-02")
        now = timezone.now()
        agent = {"version": "1.4.2", "python": "3.11.2", "boot": "6f1d5a20-4cc7", "fenced": True}
        Host.objects.update(clustered=True, watched_at=now, agent=agent)
        Host.objects.filter(pk=silent.pk).update(silent_since=now - timedelta(minutes=3))
        ControllerClaim.objects.create(number="n", term=7, holder="site-1, process 9, /var", seen_at=now, since=now)
        model = ServedModel.objects.create(name="qwen", engine="vllm", path="/qwen")
        Replica.objects.create(model=model, host=silent, state="unhealthy")
        Replica.objects.create(model=model, host=other, state="ready")
        ReplicaPlacement.objects.create(model=model, number=0, host=other, at=now)
        ReplicaMove.objects.create(
            model=model, number=0, source="gpu-01", target="gpu-02", cause="silent", at=now - timedelta(minutes=2)
        )
        return silent

    def test_a_silent_host_says_so_and_its_moved_replica_is_no_trouble_of_its_model(self, as_olivia, silent):
        page = read(as_olivia, "/operations/")
        assert one_of(page, "#host-gpu-01 [data-reach]")["data-reach"] == "silent"
        assert one_of(page, "#host-gpu-02 [data-reach]")["data-reach"] == "online"
        assert [one["data-silent"] for one in all_of(page, "#attention [data-silent]")] == ["gpu-01"]
        assert not all_of(page, "#attention .state.broken")
        assert one_of(page, "[data-live='state-qwen'] .state")["class"] == "state fine"
        assert one_of(page, "[data-term]")["data-term"] == "7"
        facts = one_of(page, "#host-gpu-01 .host-facts").text
        assert all(fact in facts for fact in ("1.4.2", "3.11.2", "6f1d5a20"))

    def test_what_is_booked_in_ray_is_shown_and_what_could_not_be_is_a_problem(self, as_olivia, silent):
        late = {"code": "booking-held", "replica": "qwen #0", "detail": "qwen #0, GPU 0: 60.0 GB"}
        found = {"offered": {"0": 80 * 10**9, "-1": 10**9}, "booked": {"0": 10**9}, "others": {"0": 10**10}}
        Host.objects.filter(name="gpu-02").update(bookings={**found, "late": [late]})
        page = read(as_olivia, "/operations/")
        assert [one["data-booked"] for one in all_of(page, "#host-gpu-02 [data-booked]")] == ["0", "-1"]
        assert len(all_of(page, "#host-gpu-02 [data-others]")) == 1
        assert "qwen #0, GPU 0" in one_of(page, "#host-gpu-02 .notice.warning").text
        assert not all_of(page, "#host-gpu-01 [data-booked]")

    def test_the_page_of_a_host_shows_its_state_agent_cards_bookings_and_replicas(self, as_olivia, silent):
        online = Host.objects.get(name="gpu-02")
        HostReport.objects.filter(host=online).update(devices=[gpu(0, "NVIDIA H100", 85.0, 10.0)])
        bookings = {"offered": {"0": 80 * 10**9}, "booked": {"0": 10**9}, "others": {}, "late": []}
        Host.objects.filter(pk=online.pk).update(bookings=bookings)
        page = read(as_olivia, f"/operations/hosts/{online.pk}/")
        assert one_of(page, "[data-host-now] [data-reach]")["data-reach"] == "online"
        assert [one["data-placed"] for one in all_of(page, "[data-host-now] [data-placed]")] == ["qwen"]
        assert [one["data-booked"] for one in all_of(page, "[data-host-now] [data-booked]")] == ["0"]
        assert "NVIDIA H100" in one_of(page, "[data-host-now]").text
        assert "6f1d5a20" in one_of(page, "[data-host-now] .host-facts").text
        page = read(as_olivia, f"/operations/hosts/{silent.pk}/")
        assert one_of(page, "[data-host-now] [data-reach]")["data-reach"] == "silent"

    def test_a_host_of_the_cluster_is_asked_for_no_address_and_keeps_its_own(self, as_olivia, silent):
        online = Host.objects.get(name="gpu-02")
        assert not all_of(read(as_olivia, f"/operations/hosts/{online.pk}/"), "#id_address")
        change = {"address": "10.9.9.9", "maintenance": "on", "confirmed": "yes"}
        as_olivia.post(f"/operations/hosts/{online.pk}/", change)
        row = Host.objects.get(pk=online.pk)
        assert (row.address, row.maintenance) == (online.address, True)

    @pytest.mark.parametrize(("cause", "said"), [("host-silent", 0), ("no-answer", 1), ("bad-answer", 1), ("", 1)])
    def test_what_the_check_of_an_engine_got_is_not_called_its_log(self, as_olivia, silent, cause, said):
        ReplicaPlacement.objects.all().delete()
        detail = "All connection attempts failed"
        Replica.objects.filter(host=silent).update(cause=cause, detail=detail)
        page = read(as_olivia, "/operations/models/qwen/")
        assert not all_of(page, "[data-live=failure] [data-last-lines]")
        checks = all_of(page, "[data-live=failure] [data-check]")
        assert [detail in one.text for one in checks] == [True] * said
        text = one_of(page, "[data-live=failure]").text
        assert (str(UNKNOWN) in text, str(ADVICE.get(cause, "?")) in text) == (False, bool(cause))

    def test_the_model_shows_where_its_replicas_are_and_what_was_moved(self, as_olivia, silent):
        page = read(as_olivia, "/operations/models/qwen/")
        assert len(all_of(page, "[data-moved]")) == 1
        assert {one["data-bound"] for one in all_of(page, "[data-bound]")} == {"no"}
        assert not all_of(page, "[data-live='failure'] .notice")
        assert one_of(page, "[data-move]")["data-cause"] == "silent"
        ServedModel.objects.update(host=Host.objects.get(name="gpu-02"))
        page = read(as_olivia, "/operations/models/qwen/")
        assert {one["data-bound"] for one in all_of(page, "[data-bound]")} == {"yes"}

    def test_without_a_controller_the_page_says_that_and_blames_no_host(self, as_olivia, silent):
        long_ago = timezone.now() - timedelta(minutes=5)
        ControllerClaim.objects.update(seen_at=long_ago)
        Host.objects.update(seen_at=long_ago, watched_at=long_ago)
        page = read(as_olivia, "/operations/")
        assert {one["data-reach"] for one in all_of(page, "[data-reach]")} == {"unwatched"}
        assert len(all_of(page, "#attention [data-leaderless]")) == 1
        assert not all_of(page, "#attention [data-silent]")
        assert not all_of(page, "#attention [data-unwatched-host]")

    def test_a_host_that_the_controller_does_not_look_at_is_named(self, as_olivia, silent):
        host("old", silent=timedelta(days=2))
        page = read(as_olivia, "/operations/")
        assert [one["data-unwatched-host"] for one in all_of(page, "#attention [data-unwatched-host]")] == ["old"]

    def test_it_is_removed_only_while_it_is_silent(self, as_olivia, silent):
        online = Host.objects.get(name="gpu-02")
        assert "data-needed" in read(as_olivia, f"/operations/hosts/{online.pk}/")
        as_olivia.post(f"/operations/hosts/{online.pk}/remove/")
        as_olivia.post(f"/operations/hosts/{silent.pk}/remove/")
        assert [one.name for one in Host.objects.all()] == ["gpu-02"]
