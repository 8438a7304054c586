"""Tables hold what others wrote; a terminal is shown it as text."""

import pytest

from modelregistry.terminal import MAX_CELL, clean, clean_lines, format_table


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("two\nlines\r", r"two\nlines\r"),
        ("\x9b2K", r"\x9b2K"),  # the same as ESC [ in one character
        ("\u202egpj", r"\u202egpj"),
        ("\udcff", r"\udcff"),
        ("\u2028", r"\u2028"),
        ("資料\u3000見 é", "資料\u3000見 é"),
    ],
)
def test_what_would_move_a_terminal_is_written_out(text, shown):
    assert clean(text) == shown
    shown.encode()


def test_lines_stay_lines_where_they_are_wanted():
    assert clean_lines("one\ntwo\x1b") == "one\ntwo\\x1b"


def test_a_long_text_is_cut():
    assert clean("x" * 100, 10) == "x" * 9 + "…"
    assert clean("x" * 10, 10) == "x" * 10
    assert len(clean("\x1b" * 10, 10)) == 10


def test_a_long_cell_widens_no_other_row():
    table = list(format_table(["NAME", "WHAT", "SIZE"], [["a", "x" * 1000, "1"], ["b", "short", "2"]]))
    assert table[0] == "NAME  WHAT   SIZE"
    assert table[2] == "b     short  2"
    assert len(table[1]) < MAX_CELL + 20


def test_the_first_cell_is_whole_so_that_it_can_be_copied():
    path = "/models/" + "x" * 1000
    assert list(format_table(["PATH", "SIZE"], [[path, "1"]]))[1] == f"{path}  1"


def test_japanese_is_aligned_in_columns():
    table = list(format_table(["NAME", "SIZE"], [["資料", "1"], ["abcd", "2"]]))
    assert table == ["NAME  SIZE", "資料  1", "abcd  2"]
