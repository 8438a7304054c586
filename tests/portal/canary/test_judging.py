from collections.abc import Mapping

import pytest

from portal.canary import judging
from portal.canary.judging import Answer, Judgement, Remembered, judge
from portal.canary.prompts import BY_NAME, MAX_TOKENS, PROMPTS, Prompt

JA, EN = BY_NAME["ja-tea"], BY_NAME["en-bread"]
SHORT = BY_NAME["ja-capital"]


def never(_: str, __: int) -> bool:
    return False


def traits(text: str, prompt: Prompt = EN, **more) -> frozenset[str]:
    return judging.find_traits(prompt, Answer(text=text, **more), never)


def good(prompt: Prompt, more: str = "") -> Answer:
    text = "東京は日本の首都です。" if prompt.language == "ja" else "Bread needs flour, water and time."
    return Answer(text=f"{text} {prompt.name} {more}", tokens=20, first_token_ms=100, duration_ms=290)


def answers(**other: Answer) -> dict[str, Answer]:
    return {prompt.name: other.get(prompt.name.replace("-", "_"), good(prompt)) for prompt in PROMPTS}


def remembered(given: Mapping[str, Answer]) -> dict[str, Remembered]:
    found = {name: judging.find_traits(BY_NAME[name], answer, never) for name, answer in given.items()}
    return {name: Remembered(digest=answer.digest, traits=found[name]) for name, answer in given.items()}


def judged(given: Mapping[str, Answer], before: Mapping[str, Answer] | None = None, **more) -> Judgement:
    known = remembered(before) if before else {}
    facts = {"reference": known, "before": known, "speeds": [], "busy": False, "is_loop": never, **more}
    return judge(given, **facts)


@pytest.mark.parametrize("text", ["!!!!!!!!", "Sure! " + "!" * 30, "0" * 200, "。 。 。 。 。 。", "あああああああ"])
def test_one_sign_without_end_is_named(text):
    assert traits(text) == {judging.REPEATED_SIGN}


@pytest.mark.parametrize("text", ["Yes!!", "......", "| a | b |\n|---|---|", "Title\n" + "=" * 12])
def test_rows_of_signs_that_writers_use_are_none_of_it_or_are_short(text):
    assert judging.REPEATED_SIGN not in traits(f"{text} and then some more words.")


@pytest.mark.parametrize("text", ["", "  \n "])
def test_an_empty_answer_is_named(text):
    assert traits(text) == {judging.EMPTY}


@pytest.mark.parametrize(
    "text",
    [
        "Bread.<|im_end|>\n<|im_start|>user",
        "Bread.<|eot_id|>",
        "[INST] Bread [/INST]",
        "Bread</s>",
        "Bread.<end_of_turn>",
        "Bread.<｜end▁of▁sentence｜>",
        "Bread\u0120is\u0120good",
        "<0xE6><0x9D><0xB1>",
        "Bread.\nuser\nAnd cake?\nassistant\nCake.",
        "### Response: Bread.",
        "I think so.</think> Bread.",
        "<think>Bread is food. Bread.",
    ],
)
def test_control_tokens_in_an_answer_are_named(text):
    assert judging.TEMPLATE in traits(text)


@pytest.mark.parametrize(
    "text",
    [
        "### Step 1\nMix the flour.",
        "a < b and c > d | e",
        "The user gets bread. The assistant: bakes.",
        "<think>Bread is food.</think> Bread.",
        "if a <b> bold </b> then",
        "1. **Flour**: 500 g\n2. **Water**",
    ],
)
def test_what_only_looks_like_control_tokens_is_not(text):
    assert judging.TEMPLATE not in traits(text)


def test_a_thought_that_is_cut_off_is_no_leak():
    assert judging.TEMPLATE not in traits("<think>Bread is food. Bread", finish="length")


@pytest.mark.parametrize(
    "text", ["The capital of Japan is Tokyo.", "日本的首都是东京，人口很多，经济发达。", "일본의 수도는 도쿄입니다."]
)
def test_other_languages_than_japanese_are_named(text):
    assert judging.LANGUAGE in traits(text, JA)


@pytest.mark.parametrize(
    "text", ["東京", "東京です。", "まず、Pythonを起動して print() を実行します。", "JR東日本で行きましょう。"]
)
def test_japanese_is_japanese(text):
    assert judging.LANGUAGE not in traits(text, JA)


@pytest.mark.parametrize(
    ("text", "wrong"), [("パンには小麦粉と水が要ります。", True), ("Bread (パン) needs flour.", False)]
)
def test_english_is_judged_by_its_script(text, wrong):
    assert (judging.LANGUAGE in traits(text)) == wrong


def test_a_short_question_without_an_end_is_named_and_a_long_one_is_not():
    cut = {"finish": "length", "tokens": MAX_TOKENS}
    assert traits("東京です。それは、", SHORT, **cut) == {judging.ENDLESS}
    assert traits("まず、お湯を沸かします。", JA, **cut) == frozenset()


def test_what_a_poor_model_did_at_first_is_known_and_no_finding():
    poor = answers(**{prompt.name.replace("-", "_"): good(EN, prompt.name) for prompt in PROMPTS})

    assert judged(poor).findings == ()
    assert judged(poor, before=poor).findings == ()
    assert judging.LANGUAGE in judged(poor).traits["ja-tea"]


@pytest.mark.parametrize("count", [1, 2])
def test_two_empty_answers_are_a_finding_and_one_is_not(count):
    names = [prompt.name.replace("-", "_") for prompt in PROMPTS[:count]]

    found = judged(answers(**dict.fromkeys(names, Answer(text=""))), before=answers())

    assert found.codes == [judging.EMPTY] * (count - 1)


@pytest.mark.parametrize(("count", "codes"), [(15, []), (16, [judging.DRIFT])])
def test_changed_answers_are_a_finding_if_nearly_all_have_changed(count, codes):
    now = answers(**{prompt.name.replace("-", "_"): good(prompt, "!") for prompt in PROMPTS[:count]})

    found = judged(now, before=answers())

    assert (found.codes, len(found.changed)) == (codes, count)


def test_changed_answers_of_another_engine_are_no_finding():
    now = {prompt.name: good(prompt, "7") for prompt in PROMPTS}

    facts = {"before": {}, "speeds": [], "busy": False, "is_loop": never}

    found = judge(now, reference=remembered(answers()), **facts)

    assert (found.codes, len(found.changed)) == ([], len(PROMPTS))


@pytest.mark.parametrize(
    ("speeds", "busy", "codes"),
    [
        ([200.0, 210.0, 190.0], False, [judging.SLOW]),
        ([160.0, 150.0, 170.0], False, []),
        ([200.0, 210.0], False, []),  # too few to know
        ([200.0, 210.0, 190.0], True, []),  # it had other work
    ],
)
def test_half_the_usual_speed_is_a_finding(speeds, busy, codes):
    # 19 tokens in 190 ms
    assert judged(answers(), speeds=speeds, busy=busy).codes == codes
