"""Texts that repeat themselves, and texts that only seem to."""

import random
from pathlib import Path

import pytest

from apiproxy.dataplane.loops import NORMAL, SENSITIVITIES, TAIL, LoopDetector

WORDS = Path(random.__file__).read_text()[:6000]  # a real text that loops nowhere


def feed(detector: LoopDetector, text: str, piece: int = 4, events: int = 1) -> int | None:
    """Feed a text in pieces; return how many bytes had been fed when a loop was found."""
    data = text.encode()
    for end in range(piece, len(data) + piece, piece):
        if detector.feed(data[end - piece : end], events):
            return min(end, len(data))
    return None


@pytest.mark.parametrize(
    "period",
    [
        *("no, ", "は", "これは繰り返しの文章です。", "x" * 60 + "\n", "word " * 80),
        *("for x in y:\n    pass\n", "        x = sqrt(argc + 7.5);\n\t"),  # lines of code, which are no rows of a form
        *("1-29-", "…", "0"),
    ],
)
def test_a_loop_is_found_soon_after_it_began(period):
    detector = LoopDetector(NORMAL)
    assert feed(detector, WORDS) is None
    loop = (period * 2000)[:12_000]
    found = feed(detector, loop)
    assert found is not None
    # A token has 8 bytes at most; of rows of one sign ten signs are taken for one.
    assert found <= max((10 * len(period.encode()) if len(period) == 1 else 8) * NORMAL, 4 * len(period.encode())) + 64
    assert detector.looped > 0


def test_it_loops_until_the_text_finds_its_way_out():
    detector = LoopDetector(NORMAL)
    for _ in range(500):
        detector.feed(b"no, ", 1)
    looped = detector.looped
    assert detector.loops
    assert looped == pytest.approx(2000, abs=8)  # all but the first copy
    detector.feed(b"and then it went on.", 4)
    assert not detector.loops
    assert detector.looped == looped


@pytest.mark.parametrize(
    "text",
    [
        WORDS,
        "は" * 100,
        "no, " * 30,
        "-" * 500,
        *("| | | |\n" * 40, "[0, 0, 0, 0],\n" * 40, "<tr><td></td><td></td></tr>\n" * 40),
        *("0," * 160, "* " * 160, "0.0, " * 64),
        ("    [" + "None, " * 10 + "],\n") * 10,
        ("    " + "0x00, " * 16 + "\n") * 16,
        ("<tr>" + "<td></td>" * 7 + "</tr>\n") * 6,
        "氏名：＿＿＿＿＿＿＿＿　出席・欠席　備考：＿＿＿＿＿＿＿＿\n" * 12,
        ("".join(f"{n} " for n in range(360)) + "\n") * 2,  # two copies are none
        "\n".join(f"{n}. item" for n in range(2000)),  # counts, so no two lines are alike
    ],
)
def test_what_is_no_loop_is_left_alone(text):
    assert feed(LoopDetector(NORMAL), text) is None


@pytest.mark.parametrize("sign", ["-", "〜", "…"])
def test_a_row_of_one_sign_is_a_line_that_a_writer_wants(sign):
    bytes_of_eight = len(sign.encode()) * 8
    assert feed(LoopDetector(NORMAL), sign * 300, piece=bytes_of_eight) is None
    assert feed(LoopDetector(NORMAL), sign * 2000, piece=bytes_of_eight) is not None


def test_a_period_may_contain_the_words_that_it_ends_with():
    period = "no no no no no no no no no, said the " + "old parrot again. no no no no no no no no no"
    assert feed(LoopDetector(NORMAL), WORDS + period * 20) is not None


def test_a_short_text_is_a_loop_when_it_took_as_many_tokens():
    assert feed(LoopDetector(NORMAL), "あ。" * 200, piece=3) is not None
    assert feed(LoopDetector(NORMAL), "（" * 200, piece=3) is not None
    detector = LoopDetector(NORMAL)
    assert feed(detector, "ab" * 150, piece=2) is not None  # 150 tokens of two bytes
    assert feed(LoopDetector(NORMAL), "ab" * 150, piece=8) is None  # 38 tokens


def test_sensitivity_moves_the_bound():
    text = "the same words again and " * 40
    found = {name: feed(LoopDetector(least), text * 3) for name, least in SENSITIVITIES.items()}
    assert found["high"] < found["normal"] < found["low"]


def test_an_answer_in_one_piece_counts_all_of_its_loop():
    detector = LoopDetector(NORMAL)
    detector.feed_whole((WORDS + "no, " * 10_000).encode())
    assert detector.looped == pytest.approx(40_000, abs=8)
    detector = LoopDetector(NORMAL)
    detector.feed_whole(WORDS.encode())
    assert detector.looped == 0


def test_any_bytes_are_taken_and_no_more_than_the_tail_is_kept():
    dice = random.Random(1)
    detector = LoopDetector(NORMAL)
    for _ in range(200):
        detector.feed(dice.randbytes(dice.randrange(9000)), dice.randrange(1, 60))
    assert detector.looped == 0
    detector.feed(b"", 1)
    detector.feed(b"\0" * 3 * TAIL, 1)
    assert detector.loops
