"""What a page holds, found by selectors instead of by its words: `all_of(response, ".state.watch")`.

Selectors are a small part of CSS: names, #id, .class, [attribute], [attribute=value], [attribute^=value],
[attribute$=value], [attribute*=value], descendants by spaces.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

VOID = frozenset(["area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"])
PART = re.compile(r"""([\w*-]+)|#([\w-]+)|\.([\w-]+)|\[([\w-]+)(?:([\^$*]?=)['"]?([^'"\]]*)['"]?)?\]""")


@dataclass
class Element:
    name: str
    attributes: dict[str, str]
    parent: "Element | None" = field(default=None, repr=False)
    children: list["Element | str"] = field(default_factory=list, repr=False)

    @property
    def text(self) -> str:
        """The words in it, with single spaces."""
        return " ".join(" ".join(self.words()).split())

    def __getitem__(self, attribute: str) -> str:
        return self.attributes[attribute]

    def all(self, selector: str) -> list["Element"]:
        steps = re.findall(r"(?:\[[^\]]*\]|\S)+", selector)
        return [element for element in self.descendants() if element.fits(steps)]

    def one(self, selector: str) -> "Element":
        (found,) = self.all(selector)
        return found

    def words(self) -> Iterator[str]:
        for child in self.children:
            if isinstance(child, str):
                yield child
            else:
                yield from child.words()

    def descendants(self) -> Iterator["Element"]:
        for child in self.children:
            if isinstance(child, Element):
                yield child
                yield from child.descendants()

    def fits(self, steps: list[str]) -> bool:
        if not self.matches(steps[-1]):
            return False
        above, rest = self.parent, steps[:-1]
        while rest and above:
            if above.matches(rest[-1]):
                rest = rest[:-1]
            above = above.parent
        return not rest

    def matches(self, step: str) -> bool:
        assert PART.sub("", step) == "", f"not a selector: {step}"
        for name, number, kind, attribute, how, value in PART.findall(step):
            if name and name != self.name:
                return False
            if number and number != self.attributes.get("id"):
                return False
            if kind and kind not in self.attributes.get("class", "").split():
                return False
            if attribute and not self.has_attribute(attribute, how, value):
                return False
        return True

    def has_attribute(self, attribute: str, how: str, value: str) -> bool:
        there = self.attributes.get(attribute)
        if there is None:
            return False
        matches = {"": True, "=": there == value, "^=": there.startswith(value), "$=": there.endswith(value)}
        return matches.get(how, value in there)


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = self.here = Element("", {})

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs}, self.here)
        self.here.children.append(element)
        if tag not in VOID:
            self.here = element

    def handle_endtag(self, tag: str) -> None:
        above: Element | None = self.here
        while above and above.name != tag:
            above = above.parent
        if above and above.parent:  # an end tag without a beginning is ignored
            self.here = above.parent

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_data(self, data: str) -> None:
        self.here.children.append(data)


def parse(page: Any) -> Element:
    """Return the root of a page: of its text, or of the response that holds it."""
    reader = Reader()
    reader.feed(page if isinstance(page, str) else page.content.decode())
    reader.close()
    return reader.root


def all_of(page: Any, selector: str) -> list[Element]:
    return parse(page).all(selector)


def one_of(page: Any, selector: str) -> Element:
    return parse(page).one(selector)


def has(page: Any, selector: str) -> bool:
    return bool(all_of(page, selector))


def texts(page: Any, selector: str) -> list[str]:
    return [element.text for element in all_of(page, selector)]


def filled_form(page: Any, selector: str) -> dict[str, list[str]]:
    """Return what a browser would post of the form in the page if nothing in it was changed, but its buttons."""
    sent: dict[str, list[str]] = {}
    for control in one_of(page, selector).descendants():
        name = control.attributes.get("name")
        if not name or "disabled" in control.attributes or control.name == "button":
            continue
        if control.name == "select":
            chosen = [one["value"] for one in control.all("option") if "selected" in one.attributes]
            sent.setdefault(name, []).extend(chosen)
        elif control.name == "textarea":
            sent[name] = ["".join(child for child in control.children if isinstance(child, str)).removeprefix("\n")]
        elif control.attributes.get("type") not in ("checkbox", "radio") or "checked" in control.attributes:
            sent.setdefault(name, []).append(control.attributes.get("value", ""))
    return sent
