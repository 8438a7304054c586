"""The fixed prompts, made up for this purpose. A changed one gets another name, and VERSION is raised.

Half of them are Japanese. Short ones have an answer of a word or a sentence, so a model that does not come to an end
shows; the others ask for a text. No prompt needs a system prompt, a tool or knowledge of today.
"""

from dataclasses import dataclass
from typing import Literal

VERSION = 1
MAX_TOKENS = 200  # of an answer; word loops show within 128

Language = Literal["ja", "en"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """`short`: the answer is a word or a sentence."""

    name: str
    language: Language
    short: bool
    text: str

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.text}]

    @property
    def max_tokens(self) -> int:
        return MAX_TOKENS


PROMPTS = (
    Prompt("ja-capital", "ja", True, "日本の首都はどこですか。一文で答えてください。"),
    Prompt("ja-days", "ja", True, "一週間は何日ですか。一文で答えてください。"),
    Prompt("ja-reading", "ja", True, "「窓口」の読みをひらがなで答えてください。"),
    Prompt("ja-opposite", "ja", True, "「暑い」の反対の意味の言葉を一つ答えてください。"),
    Prompt("ja-thanks", "ja", True, "会議室を予約してくれた同僚へのお礼を、一文で書いてください。"),
    Prompt("ja-polite", "ja", True, "次の文を丁寧な言い方に直してください。「資料を明日までに送って。」"),
    Prompt("ja-tea", "ja", False, "急須でおいしい緑茶をいれる手順を、順番に説明してください。"),
    Prompt("ja-summary", "ja", False, "なぜ会社の文書には日付と作成者を書くのですか。理由を三つ説明してください。"),
    Prompt("ja-season", "ja", False, "秋の山を歩いた一日について、短い日記を書いてください。"),
    Prompt("ja-compare", "ja", False, "電車通勤と自転車通勤の良い点と悪い点を比べてください。"),
    Prompt("en-capital", "en", True, "What is the capital of France? Answer in one sentence."),
    Prompt("en-days", "en", True, "How many days are in a week? Answer in one sentence."),
    Prompt("en-opposite", "en", True, "Give one word that means the opposite of “cold”."),
    Prompt("en-colour", "en", True, "What colour do blue and yellow paint make together? Answer in one sentence."),
    Prompt("en-thanks", "en", True, "Write one sentence that thanks a colleague for lending you a charger."),
    Prompt("en-plural", "en", True, "What is the plural of “mouse”, the animal? Answer with one word."),
    Prompt("en-bread", "en", False, "Explain step by step how to bake a simple loaf of bread."),
    Prompt("en-backup", "en", False, "Why should a company keep backups of its files? Give three reasons."),
    Prompt("en-story", "en", False, "Write a short story about a lighthouse keeper who finds a letter in a bottle."),
    Prompt("en-compare", "en", False, "Compare paper books with electronic ones: what is better about each?"),
)
BY_NAME = {prompt.name: prompt for prompt in PROMPTS}
