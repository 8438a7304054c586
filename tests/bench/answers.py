"""A hundred answers of the demo model, as its engine streams them: asked once, then kept in the user's cache."""

import asyncio
import hashlib
import json
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx2

from modelregistry.install.demo_models import SMOLLM2
from tests import engines
from tests.bench.texts import cache
from tests.locked import say

QUESTIONS = (
    # English: stories, explanations, mail
    "Write a long story about a lighthouse keeper who finds a letter in a bottle.",
    "Explain in detail how a refrigerator works.",
    "What are the advantages and disadvantages of working from home? Discuss at length.",
    "Write a letter to a customer whose delivery is three weeks late.",
    "Describe a day in the life of a nurse in a large hospital.",
    "Why is the sky blue? Explain it to a child, then to a physicist.",
    "Summarise the history of the bicycle.",
    "Write a poem of twenty verses about the sea.",
    "Compare tea and coffee.",
    "Give me a detailed plan for a week in Rome.",
    # English: lists and tables
    "List 100 animals, one on each line.",
    "List fifty ideas for improving a small office.",
    "Give me the names of all the months with their number of days as a table in Markdown.",
    "Write a shopping list for a party of forty people.",
    "Write 30 questions for a quiz about geography, with their answers.",
    "List the steps for changing a tyre, with all details.",
    "Make a table of ten countries with capital, population and language.",
    "Write the numbers from 1 to 200 as words.",
    # Code and data
    "Write a Python function that computes prime numbers, and explain each line.",
    "Write an HTML page with a form that has twenty fields.",
    "Write SQL statements that insert fifty customers into a table.",
    "Write a JSON document with twenty products: name, price, colour.",
    "Write unit tests in Python for a function that reverses a string.",
    "Write a bash script that makes a backup of a directory every night.",
    "Write a C program that sorts a list of numbers, with comments.",
    # Japanese
    "自己紹介をしてください。",
    "日本の四季について詳しく説明してください。",
    "桃太郎の物語を長く書いてください。",
    "東京の観光地を五十か所、一行に一つずつ挙げてください。",
    "納期が遅れたお客様へのお詫びのメールを書いてください。",
    "会議の議事録のひな形を作ってください。",
    "在宅勤務の長所と短所を教えてください。",
    "カレーライスの作り方を手順ごとに詳しく書いてください。",
    "新入社員に向けた挨拶文を書いてください。",
    "人工知能とは何ですか。わかりやすく説明してください。",
    "俳句を二十句作ってください。",
    "Python で素数を求めるプログラムを書き、日本語で説明してください。",
    "社内の問い合わせ窓口の使い方をまとめてください。",
    "都道府県の名前をすべて挙げてください。",
    "健康診断の案内文を書いてください。",
    "次の単語を英語に訳してください：机、椅子、窓、電話、書類。",
    "情報セキュリティの注意点を十個挙げてください。",
    "旅行の持ち物の一覧を表にしてください。",
    "営業の週報を書いてください。",
    "海についての詩を書いてください。",
    # Between the two, and what small models stumble over
    "Translate into Japanese: The meeting begins at ten. Please bring your documents.",
    "Translate into English: 来週の月曜日に新しいシステムの説明会を行います。",
    "Count down from 300.",
    "Say hello in as many languages as you can.",
    "Continue: once upon a time, there was a king who had a castle, and in the castle",
)
TEMPERATURES = (0.0, 0.7)
TOKENS = 768  # at most, of an answer
ENGINES, SLOTS, CONTEXT = 2, 8, 1024


@dataclass(frozen=True, slots=True)
class Call:
    file: str
    question: str
    temperature: float


@dataclass(frozen=True, slots=True)
class Answer:
    question: str
    temperature: float
    events: tuple[bytes, ...]


def collect() -> list[Answer]:
    """Return the answers, after asking the model for those that are missing: a core makes 70 tokens a second."""
    settings = [QUESTIONS, TEMPERATURES, TOKENS, SMOLLM2.pin]
    there = cache() / f"answers-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]}"
    there.mkdir(parents=True, exist_ok=True)
    if missing := [call for call in calls() if not (there / call.file).exists()]:
        say(f"asking {SMOLLM2.name} {len(missing)} questions")
        ask_all(missing, there)
    return [Answer(call.question, call.temperature, split(there.joinpath(call.file).read_bytes())) for call in calls()]


def calls() -> list[Call]:
    return [
        Call(f"{number:02}-{temperature:g}.sse", question, temperature)
        for number, question in enumerate(QUESTIONS)
        for temperature in TEMPERATURES
    ]


def ask_all(missing: list[Call], to: Path) -> None:
    """Ask engines of one thread each: threads of one spin for each other, where a core has other work besides."""
    options = ["--alias=m", f"--parallel={SLOTS}", f"--ctx-size={SLOTS * CONTEXT}"]
    with tempfile.TemporaryDirectory() as logs, ExitStack() as stack:
        urls = []
        for number in range(ENGINES):
            directory = Path(logs, str(number))
            directory.mkdir()
            engine, url = engines.launch(directory, engines.chat_model(), *options)
            stack.enter_context(engine)  # waits for its end
            stack.callback(engine.terminate)
            urls.append(url)
        asyncio.run(_ask_together(urls, missing, to))


async def _ask_together(urls: list[str], missing: list[Call], to: Path) -> None:
    waiting = iter(missing)

    async def ask_on(client: httpx2.AsyncClient, url: str) -> None:
        for call in waiting:
            await _ask(client, url, call, to / call.file)

    limits = httpx2.Limits(max_connections=ENGINES * SLOTS, max_keepalive_connections=0)
    async with httpx2.AsyncClient(timeout=3600, limits=limits, trust_env=False) as client, asyncio.TaskGroup() as group:
        for url in urls * SLOTS:
            group.create_task(ask_on(client, url))


async def _ask(client: httpx2.AsyncClient, url: str, call: Call, to: Path) -> None:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": call.question}],
        "temperature": call.temperature,
        "seed": 14,
        "max_tokens": TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"authorization": "Bearer k"}
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body, headers=headers) as got:
        got.raise_for_status()
        whole = await got.aread()
    part = to.with_suffix(".part")
    part.write_bytes(whole)
    part.rename(to)


def split(stream: bytes) -> tuple[bytes, ...]:
    """Return the events, each with its end."""
    return tuple(event + b"\n\n" for event in stream.split(b"\n\n") if event)
