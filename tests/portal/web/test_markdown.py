"""Markdown that people write: what becomes HTML, and that nothing in it runs in a reader's browser."""

from html.parser import HTMLParser
from time import process_time

import pytest

from portal.web.markdown import MAX_LENGTH, SCHEMES, TAGS, count_cells, render_markdown


class Elements(HTMLParser):
    """Collects the tags of a text, and the attributes with their values, as a browser would read them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<style>body{display:none}</style>",
    '<a href="#" onclick="alert(1)">x</a>',
    "<form action=https://evil.example><input name=password></form>",
    "<details open ontoggle=alert(1)>",
    "<math><mtext><table><mglyph><style><!--</style><img src onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](  javascript:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](javascript&colon;alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    "[x](vbscript:msgbox(1))",
    "[x](file:///etc/passwd)",
    "<javascript:alert(1)>",
    "[x]: javascript:alert(1)\n\n[x]",
    "![x](https://evil.example/pixel.png)",
    '[x](https://a.example "\\" onmouseover=\\"alert(1)")',
    '[x](https://a.example"onmouseover="alert(1))',
    "```html\n</code></pre><script>alert(1)</script>\n```",
    '```" onmouseover="alert(1)\nx\n```',
    "`</code><script>alert(1)</script>`",
    "# <script>alert(1)</script>",
    "|<script>alert(1)</script>|\n|-|\n|<img src=x onerror=alert(1)>|",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<!-- --><script>alert(1)</script>",
    "<![CDATA[<script>alert(1)</script>]]>",
    "\x00<scr\x00ipt>alert(1)</scr\x00ipt>",
]


@pytest.mark.parametrize("text", ATTACKS)
def test_nothing_that_a_browser_would_run_or_fetch_comes_out(text):
    found = Elements(render_markdown(text))
    assert found.tags <= TAGS
    assert {name for name, _ in found.attributes} <= {"href", "title", "rel", "start"}
    schemes = {value.partition(":")[0] for name, value in found.attributes if name == "href" and ":" in value}
    assert schemes <= SCHEMES


def test_html_is_shown_as_it_was_typed():
    assert "&lt;b&gt;" in render_markdown("<b>x</b>")


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("# 見出し", {"h3"}),
        ("###### x", {"h6"}),
        ("- a\n- b", {"ul", "li"}),
        ("1. a", {"ol", "li"}),
        ("**a** *b* ~~c~~ `d`", {"p", "strong", "em", "s", "code"}),
        ("```\nx\n```", {"pre", "code"}),
        ("> a", {"blockquote", "p"}),
        ("|a|\n|-|\n|b|", {"table", "thead", "tbody", "tr", "th", "td"}),
        ("一行目\n二行目", {"p", "br"}),
        ("", set()),
    ],
)
def test_a_text_becomes_the_elements_it_means(text, tags):
    assert Elements(render_markdown(text)).tags == tags


@pytest.mark.parametrize("address", ["https://intra.example/規程", "mailto:it@example.co.jp", "/keys/", "#top"])
def test_a_link_leads_where_it_says_and_names_no_page_it_came_from(address):
    attributes = dict(Elements(render_markdown(f"[x]({address})")).attributes)
    assert attributes["href"].startswith(address[:15])
    assert "noreferrer" in attributes["rel"]


@pytest.mark.parametrize(
    "text", ["これは**「重要」**です", "**重要。**次の文", "全**角**文字", "**注意:**です", "（**必須**）"]
)
def test_words_in_japanese_become_bold_without_spaces_around_them(text):
    assert "strong" in Elements(render_markdown(text)).tags


@pytest.mark.parametrize("text", ["2 * 3 * 4", "3 *個 * 4", "a_b_c"])
def test_a_star_between_spaces_is_a_star(text):
    assert Elements(render_markdown(text)).tags == {"p"}


def test_a_text_beyond_the_bound_is_cut():
    assert "end" not in render_markdown("x" * MAX_LENGTH + "end")


@pytest.mark.parametrize("prefix", ["", "> ", "- ", "  "])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_few_signs_are_no_table_of_thousands_of_cells(prefix, end):
    lines = ["|" * 151, "|-" * 150 + "|", *["|"] * 600]
    html = render_markdown(end.join(prefix + line for line in lines)[:1000])
    assert "<td" not in html
    assert len(html) < 5000


@pytest.mark.parametrize("text", ["|" * 9999 + "x", "- " * 5000 + "x", ("|" + " " * 99) * 99 + "x"])
def test_the_bound_itself_takes_no_time(text):
    begun = process_time()
    count_cells(text)
    assert process_time() - begun < 0.1


def test_a_table_whose_cells_were_written_is_one():
    row = "|" + "x|" * 60
    html = render_markdown("\n".join(["Of each day:", "", row, "|" + "-|" * 60, *[row] * 60]))
    assert html.count("<td") == 60 * 60
