"""Which counts of people must not be shown, so that fewer than five of them cannot be distinguished. Pure.

A table has rows (tenants, last of all their total) and columns (weeks or channels, last of all their total). A count of
one to four is hidden. It could still be computed where it is the only hidden one of its row or column, so others are
hidden with it. All equations of such a table are "the total of a row, or of a column, is the sum of the others". In the
graph whose nodes are rows and columns and whose edges are the hidden counts, a count can be computed if and only if its
edge is a bridge: if no cycle passes through it. So cycles are closed, each by the three counts that hide the fewest
people, until there is no bridge. Where the hidden counts of a row or column add up to less than five while its total is
shown, one more is hidden, for then the sum would say almost as much.

This holds within one table. The totals of two Mondays differ by the people of the week that is new in them and of the
week that has left; against that what is shown is rounded. No sum or difference of multiples of five is one to four.

A cell of None is not shown anywhere, such as a total that the page does not have. One in which no person is counted at
all, as no person arrived, is a zero that says nothing of anyone.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

LEAST = 5  # people whose number is shown
TOTAL = "total"  # the name of the last row and of the last column
Cell = tuple[Hashable, Hashable]
Line = TypeVar("Line", bound=Hashable)


def hide_small(values: Mapping[Cell, int | None], empty: Iterable[Cell] = (), also: Iterable[Cell] = ()) -> set[Cell]:
    """Return the cells that must be hidden, with those of `also`.

    `values` by (row, column), of each row and column with TOTAL. `empty`: cells that are zero because no one could be
    counted there.
    """
    return _Table(values, set(empty), set(also)).hide()


class _Table:
    def __init__(self, values: Mapping[Cell, int | None], empty: set[Cell], also: set[Cell]) -> None:
        self.values = values
        self.rows: Sequence[Hashable] = list(dict.fromkeys(row for row, _ in values))
        self.columns: Sequence[Hashable] = list(dict.fromkeys(column for _, column in values))
        self.fixed = {cell for cell in empty if values.get(cell) == 0}
        self.hidden = {
            cell
            for cell, value in values.items()
            if cell not in self.fixed and (value is None or value < LEAST or cell in also)
        }

    def hide(self) -> set[Cell]:
        changed = True
        while changed:
            changed = False
            for cell in find_bridges(self.hidden):
                # What no page has may be computed from what is shown.
                changed |= self.values[cell] is not None and self._close_cycle(cell)
            for cell in self._weak_lines():
                if cell not in self.hidden:
                    self.hidden.add(cell)
                    changed = True
        return self.hidden

    def _close_cycle(self, cell: Cell) -> bool:
        """Hide what forms a rectangle with this cell; return whether there was anything to hide."""
        row, column = cell
        best: tuple[int, tuple[Cell, ...]] | None = None
        for other_row in self.rows:
            for other_column in self.columns:
                if other_row == row or other_column == column:
                    continue
                corners = ((row, other_column), (other_row, column), (other_row, other_column))
                if any(corner in self.fixed or corner not in self.values for corner in corners):
                    continue
                new = tuple(corner for corner in corners if corner not in self.hidden)
                cost = sum(self.values[corner] or 0 for corner in new)
                if best is None or (cost, len(new)) < (best[0], len(best[1])):
                    best = cost, new
        if best is None:  # in a table this small: its row and column are hidden
            new = tuple(
                one
                for one in self.values
                if (one[0] == row or one[1] == column) and one not in self.hidden | self.fixed
            )
            self.hidden.update(new)
            return bool(new)
        self.hidden.update(best[1])
        return bool(best[1])

    def _weak_lines(self) -> list[Cell]:
        """Return one more cell to hide for each line whose hidden cells add up to too little."""
        found = []
        for index, names in ((0, self.rows), (1, self.columns)):
            lines: dict[Hashable, list[Cell]] = {name: [] for name in names}
            for cell in self.values:
                lines[cell[index]].append(cell)
            for line in lines.values():
                parts = [cell for cell in line if cell[1 - index] != TOTAL]
                total = [cell for cell in line if cell[1 - index] == TOTAL and cell not in self.hidden]
                hidden = [cell for cell in parts if cell in self.hidden]
                if not total or not hidden or sum(self.values[cell] or 0 for cell in hidden) >= LEAST:
                    continue
                rest = [cell for cell in parts if cell not in self.hidden and cell not in self.fixed]
                found.append(min(rest or total, key=lambda cell: self.values[cell] or 0))
        return found


def round_people(number: int) -> int:
    """Return the nearest multiple of LEAST."""
    return (number + LEAST // 2) // LEAST * LEAST


def find_bridges(cells: Iterable[Cell]) -> list[Cell]:
    """Return the cells through which no cycle of the graph of rows and columns passes. Time is linear."""
    links: dict[tuple[int, Hashable], list[tuple[tuple[int, Hashable], Cell]]] = {}
    for cell in cells:
        row, column = (0, cell[0]), (1, cell[1])
        links.setdefault(row, []).append((column, cell))
        links.setdefault(column, []).append((row, cell))
    search = _BridgeSearch(links)
    for node in links:
        if node not in search.seen:
            search.visit(node)
    return search.bridges


class _BridgeSearch(Generic[Line]):
    """Tarjan's search. Without recursion: a company may have a thousand tenants."""

    def __init__(self, links: Mapping[Line, Sequence[tuple[Line, Cell]]]) -> None:
        self.links = links
        self.seen: dict[Line, int] = {}  # when each was reached
        self.low: dict[Line, int] = {}  # the earliest that is reached from it by another way
        self.bridges: list[Cell] = []

    def visit(self, start: Line) -> None:
        self.seen[start] = self.low[start] = len(self.seen)
        stack: list[tuple[Line, Cell | None, list[tuple[Line, Cell]]]] = [(start, None, list(self.links[start]))]
        while stack:
            node, came_by, left = stack[-1]
            if not left:
                stack.pop()
                if stack:
                    self._return_to(stack[-1][0], node, came_by)
                continue
            other, cell = left.pop()
            if cell == came_by:
                continue
            if other in self.seen:
                self.low[node] = min(self.low[node], self.seen[other])
            else:
                self.seen[other] = self.low[other] = len(self.seen)
                stack.append((other, cell, list(self.links[other])))

    def _return_to(self, parent: Line, node: Line, came_by: Cell | None) -> None:
        self.low[parent] = min(self.low[parent], self.low[node])
        if came_by is not None and self.low[node] > self.seen[parent]:
            self.bridges.append(came_by)
