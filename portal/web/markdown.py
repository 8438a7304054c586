"""Markdown that people write, as HTML for pages: the one door for all of it.

HTML in the text is shown as text, and what the renderer writes passes a sanitiser that knows no scripts, styles, images
or frames: an image would be fetched from elsewhere, and would show its server who reads the page.
"""

import re

import nh3
from django.utils.safestring import SafeString
from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline, emphasis
from markdown_it.token import Token

# Characters of one text: ten printed pages. The slowest that was found, a table of empty cells, takes 0.3 s.
MAX_LENGTH = 10_000
# A page has its title in h1 and its sections in h2, so the headings of a text are smaller.
HEADING_SHIFT = 2
SMALLEST_HEADING = 6
LISTS = {"ul", "ol", "li"}
TABLES = {"table", "thead", "tbody", "tr", "th", "td"}
HEADINGS = {f"h{level}" for level in range(1 + HEADING_SHIFT, SMALLEST_HEADING + 1)}
TAGS = {"p", "br", "hr", "blockquote", "strong", "em", "s", "code", "pre", "a"} | LISTS | TABLES | HEADINGS
ATTRIBUTES = {"a": {"href", "title"}, "ol": {"start"}}
SCHEMES = {"https", "http", "mailto"}
# A cell of a real table takes two characters and more. Of one that is made up of empty ones 1,000 characters would
# become 42,000 cells and 2 s: a text with so many is shown without its tables.
SMALL_TABLES, SHORTEST_CELL = 200, 2
EMPTY_LINE = re.compile(r"\n[ \t\r]*\n")
HYPHENS = ("|", ":", "-")  # with one of which such a line ends, within quotes and lists too
# Kana, kanji, and the punctuation and full-width forms between them.
JAPANESE = re.compile(r"[\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef]")


def render_markdown(text: str, *, most: int = MAX_LENGTH) -> SafeString:
    """Return the HTML of a text in CommonMark with tables and ~~deleted~~ words; a line break is one on the page too.

    Any text is taken. What is beyond `most` characters is left out; forms refuse such a text.
    """
    text = text[:most]
    renderer = _RENDERER if count_cells(text) <= SMALL_TABLES + len(text) // SHORTEST_CELL else _WITHOUT_TABLES
    html = renderer.render(text)
    # nh3 parses as browsers do and writes only what is in TAGS, so the result may go into a page as it is.
    return SafeString(
        nh3.clean(html, tags=TAGS, attributes=ATTRIBUTES, url_schemes=SCHEMES, link_rel="noopener noreferrer nofollow")
    )


def count_cells(text: str) -> int:
    """Return a bound of how many cells the tables of a text have.

    A row has as many as the line of hyphens below the head, however few are written, and a table ends at an empty line.
    """
    return sum(
        max((line.count("|") + 1 for line in lines if line.rstrip()[-1:] in HYPHENS), default=0) * len(lines)
        for lines in (part.splitlines() for part in EMPTY_LINE.split(text))
    )


def _make_renderer() -> MarkdownIt:
    renderer = MarkdownIt("commonmark", {"html": False, "breaks": True, "linkify": False, "typographer": False})
    renderer.enable(["table", "strikethrough"]).disable(["image", "html_block", "html_inline"])
    renderer.inline.ruler.at("emphasis", _emphasise)
    renderer.core.ruler.push("shift_headings", lambda state: _shift_headings(state.tokens))
    return renderer


def _emphasise(state: StateInline, silent: bool) -> bool:
    """Let ** and * begin and end beside Japanese, which has no spaces between words.

    By CommonMark alone neither これは**「重要」**です nor **重要。**次の is bold.
    """
    start, known = state.pos, len(state.delimiters)
    if not emphasis.tokenize(state, silent):
        return False
    before = state.src[start - 1] if start else " "
    after = state.src[state.pos] if state.pos < state.posMax else " "
    if state.src[start] == "*" and (JAPANESE.match(before) or JAPANESE.match(after)):
        for delimiter in state.delimiters[known:]:
            delimiter.open, delimiter.close = not after.isspace(), not before.isspace()
    return True


def _shift_headings(tokens: list[Token]) -> None:
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + HEADING_SHIFT, SMALLEST_HEADING)}"


_RENDERER = _make_renderer()
_WITHOUT_TABLES = _make_renderer().disable("table")
