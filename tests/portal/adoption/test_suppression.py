"""What is hidden cannot be computed from what is shown: by linear algebra on random tables of counts."""

import random
from fractions import Fraction

import pytest

from portal.adoption.suppression import LEAST, TOTAL, Cell, find_bridges, hide_small


def random_table(chance: random.Random) -> dict[Cell, int]:
    """Return a table with its totals: often zeros, and small numbers."""
    rows, columns = range(chance.randint(1, 6)), [f"c{n}" for n in range(chance.randint(1, 8))]
    found: dict[Cell, int] = {
        (row, column): chance.choice([0, 0, chance.randint(1, 6), chance.randint(1, 40)])
        for row in rows
        for column in columns
    }
    for row in rows:
        found[row, TOTAL] = sum(found[row, column] for column in columns)
    for column in [*columns, TOTAL]:
        found[TOTAL, column] = sum(found[row, column] for row in rows)
    return found


def computable(values: dict[Cell, int], hidden: set[Cell]) -> set[Cell]:
    """Return the hidden cells that the equations of rows and columns determine: those in which no solution differs."""
    unknown = sorted(hidden, key=str)
    matrix = []
    for index in (0, 1):
        for name in {cell[index] for cell in values}:
            line = [cell for cell in values if cell[index] == name]
            matrix.append([Fraction((-1 if one[1 - index] == TOTAL else 1) if one in line else 0) for one in unknown])
    reduced = reduce_rows(matrix)
    return {
        unknown[row.index(1)] for row in reduced if sum(value != 0 for value in row) == 1
    }  # the reduced form is unique: a row of one unknown is the only way to know one


def reduce_rows(matrix: list[list[Fraction]]) -> list[list[Fraction]]:
    """Return the reduced row echelon form, without rows of zeros."""
    done = 0
    for column in range(len(matrix[0]) if matrix else 0):
        pivot = next((n for n in range(done, len(matrix)) if matrix[n][column]), None)
        if pivot is None:
            continue
        matrix[done], matrix[pivot] = matrix[pivot], matrix[done]
        head = matrix[done][column]
        matrix[done] = [value / head for value in matrix[done]]
        for n, row in enumerate(matrix):
            if n != done and row[column]:
                matrix[n] = [a - row[column] * b for a, b in zip(row, matrix[done], strict=True)]
        done += 1
    return matrix[:done]


@pytest.mark.parametrize("seed", range(60))
def test_no_hidden_count_can_be_computed(seed):
    chance = random.Random(seed)
    values = random_table(chance)
    # Some of the zeros are of people who could have been counted.
    able = {cell for cell, number in values.items() if number or (TOTAL not in cell and chance.random() < 0.3)}
    able |= {(row, TOTAL) for row, _ in able} | {(TOTAL, column) for _, column in able}
    able |= {(TOTAL, TOTAL)} if able else set()
    empty = values.keys() - able
    hidden = hide_small(values, empty)
    small = {cell for cell, number in values.items() if number < LEAST and cell not in empty}
    assert small <= hidden
    assert not hidden & empty
    assert computable(values, hidden) == set()


@pytest.mark.parametrize("seed", range(60))
def test_bridges_are_what_linear_algebra_can_compute(seed):
    chance = random.Random(seed)
    values = random_table(chance)
    hidden = {cell for cell in values if chance.random() < 0.35}
    assert set(find_bridges(hidden)) == computable(values, hidden)


def test_hidden_counts_with_a_shown_total_add_up_to_five_or_more():
    values = {("a", "x"): 30, ("a", "y"): 20, ("a", "z"): 1, ("a", "w"): 1, ("a", TOTAL): 52}
    values |= {(TOTAL, column): number for (_, column), number in values.items()}
    hidden = hide_small(values)
    assert ("a", "z") in hidden
    assert sum(values[cell] for cell in hidden if cell[0] == "a" and cell[1] != TOTAL) >= LEAST


def test_nothing_is_hidden_where_all_counts_are_large_or_no_one_could_be_counted():
    values = {("a", "x"): 30, ("a", "y"): 0, ("a", TOTAL): 30}
    values |= {(TOTAL, column): number for (_, column), number in values.items()}
    assert hide_small(values, empty=[("a", "y"), (TOTAL, "y")]) == set()


def test_a_total_that_no_page_has_protects_its_row():
    values: dict[Cell, int | None] = {("a", "x"): 30, ("a", "y"): 2, ("a", TOTAL): None}
    values |= {("b", "x"): 30, ("b", "y"): 20, ("b", TOTAL): None}
    values |= {(TOTAL, "x"): 60, (TOTAL, "y"): 22, (TOTAL, TOTAL): None}
    assert {cell for cell in hide_small(values) if values[cell] is not None} == {("a", "y"), ("b", "y")}
