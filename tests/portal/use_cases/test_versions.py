"""What the history of a use case shows of its changes."""

from portal.use_cases.versions import LINES_OF_CHANGE, MAX_LINE, MORE, MOST_LINES, compare_lines, find_changes
from tests.use_cases import case_content, text_content


def lines(*numbers: int) -> str:
    return "\n".join(f"line {number}" for number in numbers)


def test_lines_far_from_a_change_are_left_out():
    assert list(compare_lines(lines(*range(9)), lines(*range(4), 99, *range(5, 9)))) == [
        *((" ", "line 3"), ("-", "line 4"), ("+", "line 99"), (" ", "line 5")),
    ]


def test_long_texts_are_compared_in_their_beginnings():
    before, after = lines(*range(9000)), lines(*range(9000, 0, -1))
    found = list(compare_lines(before, after))
    assert (len(found), found[-1]) == (LINES_OF_CHANGE + 1, MORE)
    assert list(compare_lines(before, before + "\nend")) == [MORE]
    assert MORE not in compare_lines(lines(*range(MOST_LINES)), lines(1, *range(MOST_LINES - 1)))


def test_long_lines_are_cut():
    [(sign, line)] = compare_lines("", "x" * 9000)
    assert (sign, len(line)) == ("+", MAX_LINE + 1)


def test_a_page_shows_so_many_lines_in_all():
    many = lines(*range(500))
    before = case_content(text_content(example_answer="", expected_input=""))
    after = case_content(text_content(example_answer=many, expected_input=many))
    first, second = find_changes(before, after, most=100)
    assert len(first.lines) > 100
    assert second.lines == (MORE,)
