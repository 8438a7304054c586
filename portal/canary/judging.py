"""Judges a model's answers to the fixed prompts: pure, texts and figures in, findings out.

Small models answer poorly: in the wrong language, without an end, in loops. So a run is compared with the model's own
reference, prompt by prompt, and what was so then is a known trait and no finding. What no answer may be (empty, one
sign without end, the model's control tokens, an error) is a finding on its own.

Answers at temperature 0 are not exact: engines compute a batch of several requests, or a prompt of which they know the
beginning, in another order, and one bit decides between two words that are as likely. So changed answers are a finding
only if nearly all have changed and engine and files have not, and no single answer ever is one. Measured with SmolLM2
(135M) on llama.cpp, two CPU cores: of 20 answers 2 differ between the first run and later ones and none between these,
alone or beside three streams; 8 loop and 1 repeats one sign. The upper quartile of the speeds was 61 to 66 tokens/s in
four runs alone, and 8 to 17 beside three streams, so that a busy engine's speed says nothing.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from portal.canary.prompts import MAX_TOKENS, PROMPTS, Prompt

# Whether a text of so many tokens ends in a word loop: what the gateway finds them with is not ours to import.
IsLoop = Callable[[str, int], bool]

# --- Codes of traits and findings
REPEATED_SIGN = "repeated-sign"  # "!!!!!!"
EMPTY = "empty"
ENDLESS = "endless"  # an answer of a word or a sentence that did not end
LOOP = "loop"
LANGUAGE = "language"
TEMPLATE = "template"  # the model's control tokens in its answer
ERROR = "error"
DRIFT = "drift"
SLOW = "slow"

# How many answers must have a trait that the reference has not (`new`), or without a reference at all (`first`), to be
# a finding: for what no answer may be, two, so that one odd answer at the edge of what the model can do is none.
NEW = {REPEATED_SIGN: 2, EMPTY: 2, TEMPLATE: 2, ERROR: 2, LOOP: 4, ENDLESS: 4, LANGUAGE: 4}
FIRST = {REPEATED_SIGN: 2, EMPTY: 2, TEMPLATE: 2, ERROR: 2, LOOP: 15}  # as small models loop in one of the languages
DRIFTED = 0.8  # share of the answers that changed
HALF = 0.6  # of the usual speed, and below: half of it, with room for noise
LEAST_SPEEDS = 3  # healthy runs before, for a usual speed
LEAST_TOKENS = 16  # of an answer whose speed counts

# --- What counts as what
SIGNS = 24  # of one kind in a row
LETTERS = 8  # fewer say nothing about the language
KANA = re.compile(r"[\u3041-\u309f\u30a0-\u30ff\uff66-\uff9f]")
CONTROL = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|<｜[^｜<>]{1,40}｜>"  # ChatML, Llama 3, DeepSeek
    r"|\[/?INST\]|<</?SYS>>|</?s>|<(?:unk|pad|bos|eos)>"  # Llama 2, Mistral
    r"|<(?:start|end)_of_turn>"  # Gemma
    r"|<0x[0-9A-F]{2}>|[\u2581\u0120]|\ufffd{3}"  # tokens that were not made text
    r"|^### ?(?:Instruction|Response|Input|指示|応答|入力)\b"
    r"|^(?:user|assistant|system|USER|ASSISTANT|SYSTEM)(?::|$)",  # turns of which the tokens were taken away
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came for one prompt. `tokens` as the engine counted them; `error`: what came instead, "" for none."""

    text: str
    finish: str = "stop"
    tokens: int = 0
    first_token_ms: int | None = None
    duration_ms: int = 0
    error: str = ""

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def tokens_per_second(self) -> float | None:
        """The speed after the first token; None: too short to be measured."""
        if self.first_token_ms is None or self.tokens < LEAST_TOKENS:
            return None
        rest = self.duration_ms - self.first_token_ms
        return 1000 * (self.tokens - 1) / rest if rest > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """An answer of an earlier run."""

    digest: str
    traits: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryFinding:
    """What is wrong, and the names of the prompts whose answers show it."""

    code: str
    prompts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """`changed`: the prompts whose answers differ from the reference."""

    findings: tuple[CanaryFinding, ...]
    traits: Mapping[str, frozenset[str]]
    changed: tuple[str, ...]
    tokens_per_second: float | None
    usual_tokens_per_second: float | None

    @property
    def codes(self) -> list[str]:
        return [finding.code for finding in self.findings]


def judge(
    answers: Mapping[str, Answer],
    *,
    reference: Mapping[str, Remembered],
    before: Mapping[str, Remembered],
    speeds: Sequence[float],
    busy: bool,
    is_loop: IsLoop,
) -> Judgement:
    """Judge the answers of one run, by the prompts' names.

    `reference`: the accepted answers; none: it is the first run. `before`: the answers of an earlier run of the same
    engine version, files and prompts, from which they should hardly differ; none: there is none. `speeds`: tokens per
    second of the healthy runs before, newest first. `busy`: the engine had other work, so its speed says nothing.
    """
    traits = {
        prompt.name: find_traits(prompt, answers[prompt.name], is_loop) for prompt in PROMPTS if prompt.name in answers
    }
    findings = [
        *_find_new_traits(traits, reference),
        *_find_drift(answers, before),
    ]
    speed, usual = typical_speed(answers.values()), usual_speed(speeds)
    if speed is not None and usual is not None and not busy and speed < HALF * usual:
        findings.append(CanaryFinding(code=SLOW, prompts=()))
    return Judgement(
        findings=tuple(findings),
        traits=traits,
        changed=_changed(answers, reference),
        tokens_per_second=speed,
        usual_tokens_per_second=usual,
    )


def _find_new_traits(traits: Mapping[str, frozenset[str]], reference: Mapping[str, Remembered]) -> list[CanaryFinding]:
    known = {name: one.traits for name, one in reference.items()}
    least = NEW if reference else FIRST
    found = []
    for code, count in least.items():
        prompts = tuple(name for name, mine in traits.items() if code in mine and code not in known.get(name, ()))
        if len(prompts) >= count:
            found.append(CanaryFinding(code=code, prompts=prompts))
    return found


def _find_drift(answers: Mapping[str, Answer], before: Mapping[str, Remembered]) -> list[CanaryFinding]:
    compared = [name for name in answers if name in before]
    changed = _changed(answers, before)
    drifted = len(compared) >= len(PROMPTS) // 2 and len(changed) >= DRIFTED * len(compared)
    return [CanaryFinding(code=DRIFT, prompts=changed)] if drifted else []


def _changed(answers: Mapping[str, Answer], before: Mapping[str, Remembered]) -> tuple[str, ...]:
    return tuple(name for name, answer in answers.items() if name in before and before[name].digest != answer.digest)


def typical_speed(answers: Collection[Answer]) -> float | None:
    """Return the speed of a run: the upper quartile of its answers, as other work only makes some slower."""
    speeds = sorted(speed for answer in answers if (speed := answer.tokens_per_second) is not None)
    return speeds[len(speeds) * 3 // 4] if speeds else None


def usual_speed(speeds: Sequence[float]) -> float | None:
    return median(speeds) if len(speeds) >= LEAST_SPEEDS else None


def find_traits(prompt: Prompt, answer: Answer, is_loop: IsLoop) -> frozenset[str]:
    """Return what is remarkable about one answer. What explains the rest is named alone."""
    if answer.error:
        return frozenset({ERROR})
    text = answer.text.strip()
    if not text:
        return frozenset({EMPTY})
    if is_repeated_sign(text):
        return frozenset({REPEATED_SIGN})
    found = set()
    if leaks_template(text, is_cut=answer.finish == "length"):
        found.add(TEMPLATE)
    if is_loop(text, answer.tokens):
        found.add(LOOP)
    elif prompt.short and (answer.finish == "length" or answer.tokens >= MAX_TOKENS):
        found.add(ENDLESS)
    if not is_in_language(CONTROL.sub("", text), prompt.language):
        found.add(LANGUAGE)
    return frozenset(found)


def is_repeated_sign(text: str) -> bool:
    """Return whether the text ends with a row of one sign, or is hardly anything else."""
    signs = re.sub(r"\s", "", text)
    last = signs[-1:]
    row = len(signs) - len(signs.rstrip(last)) if last else 0
    return row >= SIGNS or (row >= 4 and row == len(signs))


def leaks_template(text: str, *, is_cut: bool) -> bool:
    """Return whether the text has control tokens, or half a thought. One that `is_cut` has no end for that reason."""
    opened, closed = text.count("<think>"), text.count("</think>")
    return CONTROL.search(text) is not None or closed > opened or (opened > closed and not is_cut)


def is_in_language(text: str, language: str) -> bool:
    """Return whether the text could be in this language, by its scripts. Short texts, and names, may be in any.

    Japanese of any length has kana; Chinese has none. Quoted words of another language are no fault.
    """
    letters = [letter for letter in text if letter.isalpha()]
    if len(letters) < LETTERS:
        return True
    latin = sum(unicodedata.name(letter, "").startswith("LATIN") for letter in letters)
    if language == "en":
        return latin * 2 >= len(letters)
    return latin * 2 < len(letters) and len(KANA.findall(text)) * 10 >= len(letters) - latin
