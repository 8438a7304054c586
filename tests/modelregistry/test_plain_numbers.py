"""Numbers that people type are read at one door."""

import ast
from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from modelregistry import plain_numbers

ROOT = Path(__file__).parents[2]
STRANGE = ["1_0", "１０", "٣", " 1", "1 ", "", "-", "+-1", "1,000", "nan", "inf", "1e3", "0x10", "9" * 40]


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("-7", -7), ("+7", 7), ("007", 7), ("9" * 15, 10**15 - 1)])
def test_whole_numbers(text, value):
    assert plain_numbers.whole_number(text) == plain_numbers.read_decimal(text) == value


@pytest.mark.parametrize(("text", "value"), [("0.5", 0.5), (".5", 0.5), ("2.", 2.0), ("-1.25", -1.25)])
def test_numbers_with_a_point(text, value):
    assert plain_numbers.decimal_number(text) == value
    with pytest.raises(ArgumentTypeError):
        plain_numbers.whole_number(text)


@pytest.mark.parametrize("text", STRANGE)
def test_what_only_python_reads_as_a_number_is_refused(text):
    for read in (plain_numbers.whole_number, plain_numbers.decimal_number):
        with pytest.raises(ArgumentTypeError):
            read(text)


def test_a_number_that_is_too_long_is_not_called_none():
    with pytest.raises(ValueError, match="large") as refused:
        plain_numbers.read_whole("9" * 20)
    assert "whole number" not in str(refused.value)


def test_no_option_of_a_command_reads_numbers_as_python_does():
    """`type=int` would take 1_0 and full-width digits."""
    commands = [
        one for top in ("apiproxy", "modelregistry", "portal") for one in (ROOT / top).rglob("management/commands/*.py")
    ]
    assert len(commands) > 30
    for path in commands:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "type" and isinstance(node.value, ast.Name):
                assert node.value.id not in ("int", "float"), path
