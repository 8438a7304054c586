"""Texts for measuring the guard against word loops: real ones of Debian's documentation, built ones, and loops."""

import gzip
import html
import json
import os
import random
import re
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tests.bench.processes import ROOT

# In Japanese: three of them, and half of the two that are in many languages.
PACKAGES = (
    *("debian-reference-ja", "debian-reference-en", "debian-handbook", "manpages-ja"),
    *("developers-reference-ja", "installation-guide-amd64"),
)
LENGTH = 6000  # characters of a text: an answer of 1,500 tokens, of 4,000 in Japanese
JAPANESE = re.compile("[\u3041-\u30ff]")
TOKEN = re.compile(" ?[A-Za-z]{1,8}|[0-9]{1,3}|[\u3041-\u30ff\u4e00-\u9fff]{1,2}| ?(.)\\1{0,7}", re.DOTALL)
TAG = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>", re.DOTALL)
ROFF = re.compile(r"^[.']\w* ?|\\f[A-Z]|\\[-&]", re.MULTILINE)  # macros; what they are about stays


def cache() -> Path:
    """Return where measurements keep what is slow to get."""
    return Path(os.environ.get("MADOGUCHI_CACHE") or Path.home() / ".cache" / "madoguchi") / "bench"


def fetch() -> Path:
    """Return the directory with the packages' files; fetch them by apt into the user's cache where it has none."""
    there = cache() / "texts"
    if not there.exists():
        made = there.with_suffix(".part")
        made.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "--quiet", *PACKAGES], cwd=made, check=True, capture_output=True)
        for archive in made.glob("*.deb"):
            subprocess.run(["dpkg-deb", "--extract", archive, made], check=True)
        made.rename(there)
    return there


def real_texts(files: Path) -> Iterator[str]:
    """Yield the texts of documents and of Python's library, cut into answers."""
    for path in sorted(files.rglob("*")):
        if path.suffix == ".html":
            yield from cut(html.unescape(TAG.sub("", path.read_text(errors="replace"))))
        elif "/man/ja/" in str(path) and path.suffix == ".gz" and path.is_file():
            yield from cut(ROFF.sub("", gzip.decompress(path.read_bytes()).decode(errors="replace")))
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        yield from cut(path.read_text(errors="replace"))
    for path in sorted(ROOT.glob("**/*.md")):
        if ".venv" not in path.parts:
            yield from cut(path.read_text())


def cut(text: str) -> Iterator[str]:
    text = re.sub(r"\n\s*\n\s*", "\n\n", text)
    for start in range(0, len(text), LENGTH):
        if len(text) - start >= LENGTH // 4:
            yield text[start : start + LENGTH]


def made_texts(dice: random.Random, count: int) -> Iterator[str]:
    """Yield data as models write it, which repeats its form but not its values."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

    def record(number: int) -> dict[str, object]:
        return {"id": number, "name": f"user{dice.randrange(10**6)}", "active": dice.random() < 0.5, "tags": []}

    makers = (
        lambda: json.dumps([record(number) for number in range(80)], indent=2),
        lambda: "\n".join(f"{number},{dice.gauss(0, 1):.3f},{dice.randrange(100)}" for number in range(400)),
        lambda: "\n".join("".join(dice.choices(letters, k=64)) for _ in range(90)),
        lambda: "\n".join(f"| {number} | 項目{dice.randrange(999)} | {dice.randrange(9)} |" for number in range(250)),
        lambda: "\n".join(f"{number}. 手順{dice.randrange(9999)}を確認します。" for number in range(250)),
        lambda: "\n".join(f"    x[{number}] = {dice.randrange(999)}" for number in range(300)),
        lambda: "\n".join(
            f"12:{number // 60:02}:{number % 60:02} INFO GET /{dice.randrange(99)} 200" for number in range(200)
        ),
    )
    for number in range(count):
        yield makers[number % len(makers)]()[:LENGTH]


def hard_texts() -> dict[str, str]:
    """Return a hundred answers that repeat themselves and are right to, by what they are."""
    found: dict[str, str] = {}
    for count in (5, 10, 20, 30, 40):
        found |= {
            f"empty table of {count} rows": "| 氏名 | 部署 | 印 |\n|---|---|---|\n" + "|  |  |  |\n" * count,
            f"checklist of {count} empty items": "- [ ] \n" * count,
            f"zero matrix of {count} rows": "[0, 0, 0, 0],\n" * count,
            f"empty HTML cells, {count} rows": "<tr><td></td><td></td></tr>\n" * count,
            f"{count} blank form lines": "氏名：＿＿＿＿＿＿\n" * count,
            f"{count} NULL inserts": "INSERT INTO t VALUES (NULL, NULL);\n" * count,
            f"{count} times はは": "はは" * count + "と笑った。",
            f"{count} times ha": "ha " * count,
            f"{count} times very": "It is " + "very " * count + "good.",
            f"{count} dot leaders": ("Chapter " + "." * 40 + "\n") * count,
        }
    for count in (20, 40, 80, 160, 300):
        found |= {
            f"separator of {count} dashes": "-" * count,
            f"separator of {count} equals signs": "=" * count,
            f"{count} stars with blanks": "* " * count,
            f"{count} zeros": "0" * count,
            f"{count} blanks": "x" + " " * count + "y",
            f"{count} line feeds": "\n" * count,
            f"{count} wave dashes": "〜" * count,
            f"{count} zeros with commas": "0," * count,
        }
    refrain = "We all live in a small green house, a small green house, a small green house.\n"
    verse = "春の小川はさらさら行くよ、岸のすみれやれんげの花に。\n"
    found |= {f"{count} refrains in a row": refrain * count for count in (2, 3, 4, 5, 6)}
    found |= {f"{count} verses in a row": verse * count for count in (2, 3, 4, 5, 6)}
    return found


def row_texts() -> dict[str, str]:
    """Return everyday answers that consist of equal rows, by what they are: things to be filled in."""

    def lines(row: str, count: int, head: str = "Here it is:\n\n") -> str:
        return head + f"{row}\n" * count + "\nThat is all of it."

    cell = '<td><input maxlength="1"></td>'
    item = '<tr><td><input type="text" name="item[]"></td><td><input type="number" name="qty[]"></td></tr>'
    block = '  - name: CHANGE_ME\n    image: CHANGE_ME:latest\n    ports:\n      - "8080:8080"\n    restart: always'
    verse = (
        "And so we sing the song of the river that our mothers sang, and walk along the water till the evening comes, "
    )
    verse += "and nobody is left behind, and nobody is left alone in the dark."
    return {
        "tile map of 20 × 10": lines(f"    [{', '.join(['1', *'0' * 18, '1'])}],", 10),
        "256 zero bytes in C": lines(f"    {', '.join(['0x00'] * 16)},", 16),
        "calendar of 6 empty weeks": lines(f"  <tr>{'<td></td>' * 7}</tr>", 6),
        "calendar of cells on lines": lines("  <tr>\n" + "    <td></td>\n" * 7 + "  </tr>", 6),
        "empty Sudoku in HTML": lines(f"<tr>{cell * 9}</tr>", 9),
        "matrix of 10 × 10 None": lines(f"    [{', '.join(['None'] * 10)}],", 10),
        "matrix of 8 × 8 False": lines(f"    [{', '.join(['False'] * 8)}],", 8),
        "matrix of 12 × 12 0.00": lines(f"    [{', '.join(['0.00'] * 12)}],", 12),
        "vector of 64 0.0": f"The result is [{', '.join(['0.0'] * 64)}].",
        "vector of 100 zeros": f"The result is [{', '.join(['0'] * 100)}].",
        "10 rows of placeholders": lines(f"  ({', '.join('?' * 24)}),", 10),
        "roll of 12 names": lines("氏名：＿＿＿＿＿＿＿＿　出席・欠席　備考：＿＿＿＿＿＿＿＿＿＿", 12),
        "10 shifts": lines("| ____年__月__日 | ____________ | __:__～__:__ | （未記入） |", 10),
        "Go board": lines(". " * 19, 19),
        "40 nops": lines("    nop", 40),
        "10 rows of CSV": lines("YYYY-MM-DD,N/A,0.00,JPY,N/A,N/A", 10),
        "form of 5 rows": lines(item, 5),
        "form of 8 rows": lines(item, 8),
        "4 blocks of YAML": lines(block, 4),
        "4 equal verses": lines(verse, 4),
    }


def loops(dice: random.Random, count: int, before: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (what comes before, the period of the loop): 1 to 300 characters of Japanese, English or code."""
    for number in range(count):
        text = before[dice.randrange(len(before))]
        length = round(300 ** dice.random())
        source = before[dice.randrange(len(before))]
        start = dice.randrange(max(1, len(source) - length))
        period = source[start : start + length].strip() or "。"
        yield text[: dice.randrange(200, 2000)], period + (" " if number % 2 else "")


def tokens(text: str) -> list[str]:
    """Cut a text about as tokenizers do: words of up to eight letters, 1.5 Japanese characters, runs of one sign."""
    return [found[0] for found in TOKEN.finditer(text)]
