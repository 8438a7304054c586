"""The catalogue of models: what it shows of each, how it is searched, comparison, and a page for each model."""

from datetime import timedelta
from urllib.parse import quote, urlencode

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import dateformat, timezone, translation

from modelregistry.models import Alias, FileReport, Host, Replica, ServedModel
from portal.catalogue.entries import LONG_CONTEXT
from portal.catalogue.sizes import describe_quantisation, describe_size
from portal.keys import canary_key
from portal.keys.models import ModelAccess
from portal.status.availability import DAYS
from portal.status.models import StatusInterval, StatusWatch
from portal.usage.chart import choose_shades
from tests.html import all_of, has, one_of, parse, texts
from tests.pages import external, key_of, serve, service_key_of, use
from tests.portal.browsing import read

pytestmark = pytest.mark.django_db


def shown(client, query: str = "") -> list[str]:
    """Return the names of the cards of the catalogue, in their order."""
    return [card["data-model"] for card in all_of(read(client, f"/models/{query}"), "li.model")]


def badges(page: str, name: str) -> set[str]:
    return {badge["data-badge"] for badge in all_of(page, f"[data-model={name}] [data-badge]")}


def change(name: str, **fields) -> None:
    ServedModel.objects.filter(name=name).update(**fields)


class TestCards:
    def test_each_has_its_state_its_purpose_and_its_context(self, as_alice):
        serve("qwen", context=32768)
        serve("e5", task="embedding", state="asleep")
        page = parse(read(as_alice, "/models/"))
        chat, embedding = page.all("li.model")
        assert (chat["data-state"], embedding["data-state"]) == ("up", "asleep")
        assert "32,768" in chat.text
        assert chat.one(".good-for").text != embedding.one(".good-for").text != ""

    def test_what_answers_now_comes_first(self, as_alice):
        serve("a", state="failed")
        serve("b", state="asleep")
        serve("c")
        assert shown(as_alice) == ["c", "b", "a"]

    def test_one_that_sleeps_says_in_how_long_it_wakes(self, as_alice):
        serve("slow", state="asleep")
        Replica.objects.update(load_seconds=131.2)
        assert one_of(read(as_alice, "/models/"), "[data-wakes]")["data-wakes"] == "150"
        Replica.objects.update(load_seconds=None)
        assert not has(read(as_alice, "/models/"), "[data-wakes]")

    def test_a_model_of_a_silent_host_is_not_said_to_answer(self, as_alice):
        serve()
        Host.objects.update(seen_at=timezone.now() - timedelta(seconds=61))
        assert one_of(read(as_alice, "/models/"), "li.model")["data-state"] == "unsure"
        assert not has(read(as_alice, "/models/"), ".state.fine")

    def test_a_replica_of_each_state_is_shown_as_what_a_caller_meets(self, as_alice):
        for state in Replica.State:
            serve(f"m-{state}", state=state)
        cards = all_of(read(as_alice, "/models/"), "li.model")
        assert {card["data-model"].removeprefix("m-"): card["data-state"] for card in cards} == {
            **{"ready": "up", "asleep": "asleep", "starting": "starting"},
            **dict.fromkeys(["joined", "unhealthy", "draining", "stopped", "backoff", "failed"], "down"),
        }

    def test_badges_are_from_arguments_files_names_and_operators(self, as_alice):
        serve("plain", context=4096)
        serve("able", context=LONG_CONTEXT)
        change("able", args=["--jinja", "--mmproj=/p.gguf", "--reasoning-format=deepseek"])
        serve("e5", task="embedding")
        serve("ear", task="transcription")
        serve("order", task="rerank")
        external("elsewhere", declared_capabilities=["vision", "tools"])
        serve("by-its-files")
        FileReport.objects.create(
            model=ServedModel.objects.get(name="by-its-files"), facts={"languages": ["ja"]}, at=timezone.now()
        )
        serve("elyza-8b")
        page = read(as_alice, "/models/")
        assert badges(page, "plain") == set()
        assert badges(page, "able") == {"vision", "tools", "reasoning", "long-context"}
        assert [badges(page, name) for name in ("e5", "ear", "order")] == [{"embedding"}, {"speech"}, {"rerank"}]
        assert badges(page, "elsewhere") == {"vision", "tools"}
        assert badges(page, "by-its-files") == badges(page, "elyza-8b") == {"japanese"}

    def test_a_description_is_in_the_page_s_language_or_else_the_other(self, as_alice):
        serve("qwen")
        change("qwen", description_ja="要約に向いています。", description_en="Good at summaries.")
        assert "要約に向いています。" in read(as_alice, "/models/", accept_language="ja")
        assert "Good at summaries." in read(as_alice, "/models/", accept_language="en")
        change("qwen", description_en="")
        assert "要約に向いています。" in read(as_alice, "/models/", accept_language="en")

    def test_the_licence_is_the_operators_or_else_the_files(self, as_alice):
        model = serve("qwen")
        FileReport.objects.create(model=model, facts={"licence": "apache-2.0"}, at=timezone.now())
        assert texts(read(as_alice, "/models/qwen/"), "[data-licence]") == ["apache-2.0"]
        change("qwen", licence="Company contract")
        assert texts(read(as_alice, "/models/qwen/"), "[data-licence]") == ["Company contract"]

    def test_today_s_speed_is_of_the_calls_of_all_but_the_canary(self, as_alice, bob, research):
        serve("qwen")
        assert as_alice.get("/models/").context["entries"][0].speed is None
        # Of 40 tokens within two seconds after the first one.
        use(key_of(bob, research), tokens=(10, 40), first_token_ms=180, duration_ms=2180)
        use(service_key_of(canary_key.own_tenant(), "canary"), tokens=(10, 4), first_token_ms=9000, duration_ms=9999)
        speed = as_alice.get("/models/").context["entries"][0].speed
        assert (speed.rate, 0.15 < speed.first_token <= 0.2) == (20, True)

    def test_yesterday_s_calls_are_not_today_s(self, as_alice, alice, research, time_machine):
        time_machine.move_to("2026-11-20T03:00:00Z")  # noon in Tokyo
        serve("qwen")
        use(key_of(alice, research), at=timezone.now() - timedelta(hours=13), first_token_ms=180, duration_ms=2180)
        as_alice.force_login(alice)
        assert as_alice.get("/models/").context["entries"][0].speed is None

    def test_a_model_of_other_tenants_is_for_them_and_for_operators(self, client, alice, charlie, olivia, sales):
        ModelAccess.objects.create(model=serve("sales-only"), tenant=sales)
        for who, sees in [(alice, False), (charlie, True), (olivia, True)]:
            client.force_login(who)
            assert ("sales-only" in read(client, "/models/")) is sees
        assert has(read(client, "/models/"), "[data-limited]")

    def test_a_model_is_offered_until_the_day_before_it_retires_and_while_it_is_enabled(self, as_alice):
        model = serve("old")
        for days, enabled, offered in [(1, True, ["old"]), (0, True, []), (1, False, [])]:
            model.retires_on, model.enabled = timezone.localdate() + timedelta(days=days), enabled
            model.save()
            assert shown(as_alice) == offered

    def test_without_any_model_people_are_shown_operators_and_operators_the_way(self, as_alice, as_olivia):
        assert has(read(as_alice, "/models/"), ".empty a[href='mailto:olivia@example.com']")
        assert has(read(as_olivia, "/models/"), ".empty a[href='/operations/models/new/']")

    def test_many_models_cost_no_more_queries_than_one(self, as_alice, django_assert_max_num_queries):
        serve("m-0")
        with CaptureQueriesContext(connection) as one:
            as_alice.get("/models/")
        for n in range(1, 20):
            serve(f"m-{n}")
        with django_assert_max_num_queries(len(one)):
            as_alice.get("/models/")


class TestAvailability:
    @pytest.fixture(autouse=True)
    def _outage(self, alice, as_alice, time_machine):
        """Let the model be watched for ten days, one of which it was down."""
        time_machine.move_to("2026-11-20T03:00:00Z", tick=False)
        as_alice.force_login(alice)
        model, now = serve("qwen"), timezone.now()
        StatusWatch.objects.create(since=now - timedelta(days=10), last_at=now)
        StatusInterval.objects.all().delete()
        StatusInterval.objects.create(
            model=model, kind="down", began_at=now - timedelta(days=3), ended_at=now - timedelta(days=2)
        )

    def test_it_is_the_same_on_every_page(self, as_alice):
        figures = {
            address: one_of(read(as_alice, address), selector).text
            for address, selector in [
                ("/status/", "[data-model=qwen] [data-share]"),
                ("/models/", "[data-model=qwen] [data-share] .num"),
                ("/compare/?model=qwen", "[data-share] .num"),
                ("/models/qwen/", "[data-share] h2 [data-figure]"),
            ]
        }
        assert {figure.strip() for figure in figures.values()} == {"90.00%"}, figures

    def test_the_page_of_a_model_names_the_variable_that_its_calls_read(self, as_alice):
        page = read(as_alice, "/models/qwen/")
        assert "$OPENAI_API_KEY" in one_of(page, "#curl").text
        assert "OPENAI_API_KEY" in texts(page, "section[aria-labelledby=call] .hint code")

    def test_the_page_of_a_model_has_every_day_of_it(self, as_alice):
        page = read(as_alice, "/models/qwen/")
        assert len(all_of(page, "[data-share] svg[role=img] rect")) == DAYS
        assert has(page, "[data-share] a[href='/status/']")

    def test_of_one_that_was_not_watched_nothing_is_said(self, as_alice):
        StatusWatch.objects.all().delete()
        assert "%" not in one_of(read(as_alice, "/models/"), "[data-model=qwen] [data-share]").text
        assert not has(read(as_alice, "/models/qwen/"), "[data-share] h2 [data-figure]")


class TestFilters:
    @pytest.fixture(autouse=True)
    def _models(self, alice, research):
        serve("small", context=2048)
        serve("seer", context=8192)
        change("seer", declared_capabilities=["vision", "tools"], description_en="Reads pictures")
        serve("e5", task="embedding", state="asleep")
        serve("broken", state="failed", context=None)
        use(key_of(alice, research), model="seer", tokens=(1, 40), first_token_ms=900, duration_ms=2900)
        use(key_of(alice, research), model="small", tokens=(1, 20), first_token_ms=90, duration_ms=2090)

    @pytest.mark.parametrize(
        ("query", "names"),
        [
            ("?q=PICTURES", {"seer"}),
            ("?q=nothing", set()),
            ("?task=embedding", {"e5"}),
            ("?now=up", {"small", "seer"}),
            ("?now=asleep", {"e5"}),
            ("?now=down", {"broken"}),
            ("?can=vision&can=tools", {"seer"}),
            ("?can=vision&can=reasoning", set()),
            ("?task=nonsense&now=zz&can=x&sort=y&q=", {"small", "seer", "e5", "broken"}),
        ],
    )
    def test_they_leave_what_fits(self, as_alice, query, names):
        assert set(shown(as_alice, query)) == names

    @pytest.mark.parametrize(
        ("sort", "names"),
        [
            ("name", ["broken", "e5", "seer", "small"]),
            ("first-token", ["small", "seer", "broken", "e5"]),
            ("rate", ["seer", "small", "broken", "e5"]),
            ("context", ["seer", "e5", "small", "broken"]),
        ],
    )
    def test_they_are_ordered(self, as_alice, sort, names):
        assert shown(as_alice, f"?sort={sort}") == names

    def test_where_nothing_fits_there_is_a_way_back(self, as_alice):
        assert has(read(as_alice, "/models/?q=nothing"), "[data-none-fits] a[href='/models/']")


class TestComparison:
    def test_models_are_side_by_side_in_the_order_of_the_address(self, as_alice):
        for name in ("a", "b/c", "d", "e"):
            serve(name)
        page = read(as_alice, "/compare/?model=b%2Fc&model=a&model=b%2Fc")
        assert [cell["data-model"] for cell in all_of(page, "thead th[data-model]")] == ["b/c", "a"]
        assert texts(page, "#more option") == ["d", "e"]

    def test_without_models_it_offers_to_choose_some(self, as_alice):
        for name in ("a", "b/c", "d"):
            serve(name)
        offered = [box["value"] for box in all_of(read(as_alice, "/compare/"), "[data-choose] input[name=model]")]
        assert offered == ["a", "b/c", "d"]
        page = read(as_alice, f"/compare/?{urlencode([('model', name) for name in offered[1:]])}")
        assert [cell["data-model"] for cell in all_of(page, "thead th[data-model]")] == ["b/c", "d"]
        assert not has(page, "[data-choose]")

    def test_three_are_the_most(self, as_alice):
        for name in "abcd":
            serve(name)
        page = read(as_alice, "/compare/?" + "&".join(f"model={name}" for name in "dcba"))
        assert len(all_of(page, "thead th[data-model]")) == 3
        assert has(page, "[data-left-out]")

    def test_what_a_person_may_not_use_is_not_in_it(self, as_alice, sales):
        ModelAccess.objects.create(model=serve("sales-only"), tenant=sales)
        page = read(as_alice, "/compare/?model=sales-only&model=nothing")
        assert "sales-only" not in one_of(page, "main").text
        assert not has(page, "thead")


class TestModelPage:
    # As `model_name` lets operators name them.
    @pytest.mark.parametrize("name", ["qwen", "org/model:Q4_K_M", "compare", "a/../b", "a//b", "a/", "9.-_"])
    def test_it_is_found_by_each_name_that_a_model_may_have(self, as_alice, name):
        model = serve(name)
        model.full_clean(exclude=["path"])
        [link] = all_of(read(as_alice, "/models/"), "li.model h2 a")
        assert link["href"].count("/") == 3
        page = read(as_alice, link["href"])
        assert one_of(page, "section.model")["data-model"] == name
        assert f"?model={quote(name, safe='')}" in page

    def test_an_address_with_the_slashes_of_the_name_leads_there_as_well(self, as_alice):
        serve("org/model")
        assert one_of(read(as_alice, "/models/org/model/"), "section.model")["data-model"] == "org/model"

    def test_another_name_leads_to_it(self, as_alice):
        Alias.objects.create(name="org/default", model=serve("qwen"))
        assert as_alice.get("/models/org/default/").headers["location"] == "/models/qwen/"

    def test_who_may_not_call_it_learns_only_who_to_ask(self, as_alice, as_olivia, sales):
        model = serve("sales-only")
        Alias.objects.create(name="alias-of-it", model=model)
        ModelAccess.objects.create(model=model, tenant=sales)
        answers = []
        for name in ("sales-only", "alias-of-it", "no-such-one"):
            response = as_alice.get(f"/models/{name}/")
            assert response.status_code == 404
            assert has(response, ".empty a[href='mailto:olivia@example.com']")
            answers.append(response.content.decode().replace(name, ""))
        assert not any("<pre" in answer or "/v1" in answer for answer in answers)
        assert has(read(as_olivia, "/models/sales-only/"), "#call")

    def test_it_has_a_recipe_for_each_program_with_the_model_s_name(self, as_alice, settings):
        settings.PUBLIC_URL = "https://llm.example.com"
        serve("qwen")
        page = parse(read(as_alice, "/models/qwen/"))
        recipes = {recipe["data-recipe"]: recipe.text for recipe in page.all("[data-recipe]")}
        programs = {"javascript", "langchain", "continue", "cline", "claude-code", "codex", "n8n"}
        assert recipes.keys() == programs
        assert all("qwen" in text and "https://llm.example.com" in text for text in recipes.values())

    @pytest.mark.parametrize(
        ("task", "programs"),
        [
            ("embedding", {"javascript", "langchain", "continue", "n8n"}),
            ("rerank", {"javascript"}),
            ("transcription", {"javascript"}),
        ],
    )
    def test_other_tasks_have_the_recipes_that_fit_them(self, as_alice, task, programs):
        serve("m", task=task)
        assert {recipe["data-recipe"] for recipe in all_of(read(as_alice, "/models/m/"), "[data-recipe]")} == programs

    def test_agents_warn_of_a_model_that_they_cannot_work_with(self, as_alice):
        serve("m", context=8192)
        recipe = "[data-recipe=claude-code]"
        assert has(read(as_alice, "/models/m/"), f"{recipe} [data-lacks=tools]")
        change("m", args=["--jinja"])
        assert has(read(as_alice, "/models/m/"), f"{recipe} [data-lacks=context]")
        change("m", context=131_072)
        assert not has(read(as_alice, "/models/m/"), f"{recipe} [data-lacks]")

    def test_other_names_and_the_last_day_are_shown(self, as_alice):
        model = serve("qwen")
        Alias.objects.create(name="default", model=model)
        model.retires_on = timezone.localdate() + timedelta(days=9)
        model.save()
        page = read(as_alice, "/models/qwen/")
        assert "default" in texts(page, "dd code")
        assert has(page, "[data-retires]")
        assert dateformat.format(model.retires_on, "j M Y") in page  # as all other days, not Django's Dec. 23, 2026

    @pytest.mark.parametrize("loops", ["off", "count", "stop"])
    def test_what_is_set_for_callers_and_done_about_loops_is_shown(self, as_alice, loops):
        serve("qwen")
        change("qwen", loops=loops, sampling={"repetition_penalty": {"default": 1.05}})
        page = read(as_alice, "/models/qwen/")
        assert len(all_of(page, "[data-parameter=repeat_penalty]")) == 1  # as llama.cpp calls it
        assert len(all_of(page, f"[data-loops={loops}]")) == (loops != "off")
        assert ("x-madoguchi-loops" in page) == (loops != "off")

    def test_today_s_speed_is_drawn_by_the_hours_of_the_reader(self, as_alice, alice, research, time_machine):
        time_machine.move_to("2026-11-20T03:10:00Z")  # 12:10 in Tokyo
        serve("qwen")
        as_alice.force_login(alice)
        assert as_alice.get("/models/qwen/").context["charts"].rate is None
        use(
            key_of(alice, research),
            at=timezone.now() - timedelta(hours=2),
            tokens=(1, 40),
            first_token_ms=180,
            duration_ms=2180,
        )
        chart = as_alice.get("/models/qwen/").context["charts"].rate
        assert [slot.hour for slot in chart.slots] == list(range(13))
        assert [value for value in chart.series[0].values if value] == [chart.series[0].values[10]] == [20]
        assert chart.series[0].shade == choose_shades(["qwen"])["qwen"] != 1  # as on pages of usage
        assert has(read(as_alice, "/models/qwen/"), "[data-chart=chart-rate]")


class TestWords:
    @pytest.mark.parametrize(
        ("parameters", "english", "japanese"),
        [
            (70_553_706_496, "71 billion", "706億"),
            (7_000_000_000, "7 billion", "70億"),
            (1_700_000_000, "1.7 billion", "17億"),
            (135_000_000, "135 million", "1.4億"),
            (22_700_000, "23 million", "2,270万"),
        ],
    )
    def test_sizes_are_as_people_say_them(self, parameters, english, japanese):
        assert english in describe_size(parameters)
        with translation.override("ja"):
            assert japanese in describe_size(parameters)

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("Q4_K_M", "INT4 (Q4_K_M)"),
            ("IQ3_XXS", "INT3 (IQ3_XXS)"),
            ("AWQ-INT4", "INT4 (AWQ)"),
            ("int4 gptq", "INT4 (gptq)"),
            ("compressed-tensors W4A16", "INT4 (compressed-tensors W4A16)"),
            ("FP8", "FP8"),
            ("FP8_DYNAMIC", "FP8 (DYNAMIC)"),
            ("F8_E4M3", "FP8 (F8_E4M3)"),
            ("BF16", "BF16"),
            ("F16", "FP16 (F16)"),
            ("MXFP4", "MXFP4"),
            ("", ""),
            ("unheard-of", "unheard-of"),
        ],
    )
    def test_quantisations_begin_with_the_kind_of_numbers(self, name, words):
        assert describe_quantisation(name) == words
