"""What a model writes is shown as Markdown, and can do nothing to the page or beyond it."""

import pytest
from playwright.sync_api import Page, expect

from tests.browser.pages import looks
from tests.browser.playground.steps import answer_of, answered, play, say
from tests.waiting import until

pytestmark = pytest.mark.django_db(transaction=True)

ANSWER = """# 要約

**「強調」**です。*Next* to ~~gone~~ and `code`, a [link](https://example.com/a?b=c).
Second line

| item | price |
|------|------:|
| tea  | 120   |

- [x] done
- first

  3. nested

```python
def add(a, b):
    return a + b  # <b>no tag</b>
```

> quoted

The area is \\(\\pi r^2\\) and $$E = mc^2$$, for $5 or $10 each.
"""


def words(tab: Page):
    return tab.locator(".turn.model .words").last


def answer(tab: Page, text: str, pieces: int = 1) -> None:
    play(tab, answer_of(text, pieces))
    say(tab, "Go")
    answered(tab)


@pytest.mark.parametrize("pieces", [1, 150])
def test_markdown_is_rendered_however_it_arrives(page, serve, pieces):
    serve()
    tab = page()
    answer(tab, ANSWER, pieces)
    place = words(tab)
    expect(place.locator("h4.was-1")).to_have_text("要約")
    expect(place.locator("strong")).to_have_text("「強調」")
    expect(place.locator("table td[align=right]")).to_have_text("120")
    expect(place.locator("li ol > li")).to_have_text("nested")
    expect(place.locator("li ol")).to_have_attribute("start", "3")
    expect(place.locator("blockquote")).to_have_text("quoted")
    expect(place.locator("br")).to_have_count(1)
    expect(place.locator("code.formula")).to_have_text(["\\pi r^2", "E = mc^2"])
    expect(place.locator("p").last).to_contain_text("for $5 or $10 each")
    link = place.locator("a")
    expect(link).to_have_attribute("href", "https://example.com/a?b=c")
    expect(link).to_have_attribute("rel", "noopener noreferrer nofollow")
    code = place.locator("pre code")
    expect(code.locator(".hljs-keyword").first).to_have_text("def")
    assert code.text_content() == "def add(a, b):\n    return a + b  # <b>no tag</b>"
    # The block by itself, and the whole answer with its signs.
    place.locator(".code button").click()
    assert tab.evaluate("navigator.clipboard.readText()") == code.text_content()
    tab.locator(".after-answer > .copy").click()
    assert tab.evaluate("navigator.clipboard.readText()") == ANSWER


ATTACKS = [
    "<script>window.pwned = 1</script>",
    "<img src=x onerror=window.pwned=1>",
    "<svg onload=window.pwned=1><animate onbegin=window.pwned=1 attributeName=x dur=1s>",
    "<svg><a xlink:href='javascript:window.pwned=1'><text>x</text></a></svg>",
    '<math><mtext><table><mglyph><style><img src=x onerror="window.pwned=1"></style></mglyph></table></mtext></math>',
    '<form><math><mtext></form><form><mglyph><style></math><img src=x onerror="window.pwned=1">',
    '<noscript><p title="</noscript><img src=x onerror=window.pwned=1>">',
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "<object data='data:text/html,<script>parent.pwned=1</script>'></object>",
    "<details open ontoggle=window.pwned=1>",
    "<style>@import 'https://evil.example/a.css';</style><link rel=stylesheet href=https://evil.example/b.css>",
    "<base href='https://evil.example/'><meta http-equiv=refresh content='0;url=https://evil.example/'>",
    "[click](javascript:window.pwned=1)",
    "[click](JaVaScRiPt:window.pwned=1)",
    "[click](&#106;avascript:window.pwned=1)",
    "[click](java\tscript:window.pwned=1)",
    "[click](data:text/html;base64,PHNjcmlwdD5wYXJlbnQucHduZWQ9MTwvc2NyaXB0Pg==)",
    "[click](vbscript:window.pwned=1)",
    "[click](//evil.example/x)",
    "<javascript:window.pwned=1>",
    "[ref]\n\n[ref]: javascript:window.pwned=1",
    '[title](https://evil.example "x\\" onmouseover=\\"window.pwned=1")',
    "![picture](https://evil.example/track.png)",
    '![x"onerror="window.pwned=1](x)',
    "![](data:image/svg+xml,<svg onload=alert(1)>)",
    "```html\n<img src=x onerror=window.pwned=1>\n```",
    '```"><img/src=x/onerror=window.pwned=1>\nx\n```',
    "| <img src=x onerror=window.pwned=1> |\n|---|\n| <script>window.pwned=1</script> |",
    "$$<img src=x onerror=window.pwned=1>$$ and \\(<script>window.pwned=1</script>\\)",
    "# <img src=x onerror=window.pwned=1>\n\n- <b onclick=window.pwned=1>x</b>",
]
ALLOWED = "p,h4,h5,h6,ul,ol,li,table,thead,tbody,tr,th,td,strong,em,del,code,pre,blockquote,hr,br,a,div,span,button"
FOUND = """(allowed) => {
    const all = [...document.querySelectorAll('.turn.model .words *')];
    const strange = all.filter((e) => !e.matches(allowed)).map((e) => e.outerHTML);
    const names = ["class", "href", "title", "start", "align", "target", "rel", "id", "type", "tabindex", "role",
        "aria-label", "data-copy"];
    const attributes = all.flatMap((e) => [...e.attributes]).map((a) => a.name).filter((n) => !names.includes(n));
    const bad = all.filter((e) => e.href && !/^(https?|mailto):/.test(e.getAttribute("href")));
    const links = bad.map((e) => e.outerHTML);
    return [strange, attributes, links, window.pwned ?? null];
}"""


def test_an_answer_can_run_nothing_and_load_nothing(page, serve):
    serve()
    tab = page()
    asked = []
    answer(tab, "```html\n<b>warm</b>\n```\n")  # the libraries are loaded
    expect(words(tab).locator("code span").first).to_be_visible()
    tab.on("request", lambda request: asked.append(request.url))
    text = "\n\n".join(ATTACKS)
    for pieces in (1, 97):  # also as it is written, with tags in halves
        tab.locator("[data-new]").click()
        answer(tab, text, pieces)
        assert tab.evaluate(FOUND, ALLOWED) == [[], [], [], None]
        expect(words(tab)).to_contain_text("<svg onload=window.pwned=1>")  # foreign HTML is shown as it is
    for link in words(tab).locator("a").all():
        link.hover()
    assert {url.rpartition("/")[2] for url in asked} == {"completions"}


def test_a_long_answer_leaves_the_page_at_ease(page, serve):
    """8,000 tokens in three seconds take one of them here; making all of it again each time would take minutes."""
    serve()
    tab = page()
    answer(tab, "```python\npass\n```\n")  # the libraries are loaded
    steps = answer_of((ANSWER + "\n\n" + "長い段落です。" * 30 + "\n\n") * 40, 8000)
    watch = tab.context.new_cdp_session(tab)
    watch.send("Performance.enable", {"timeDomain": "threadTicks"})  # the page's own time, however busy the machine is

    def spent() -> float:
        metrics = {one["name"]: one["value"] for one in watch.send("Performance.getMetrics")["metrics"]}
        return metrics["TaskDuration"]

    before = spent()
    play(tab, [step | {"wait": 0.01} if at % 30 == 1 else step for at, step in enumerate(steps)])
    say(tab, "Go")
    answered(tab, 2)
    expect(words(tab).locator("table")).to_have_count(40)
    assert spent() - before < 6


BEHIND = """() => document.querySelector('[data-end]').getBoundingClientRect().top
    - document.querySelector('[data-composer]').getBoundingClientRect().top"""


def test_the_view_follows_a_reader_who_is_at_the_end_and_no_other(page, serve):
    serve()
    tab = page()
    answer(tab, "line\n\n" * 60)
    assert tab.evaluate(BEHIND) <= 2
    expect(tab.locator("[data-send]")).to_be_in_viewport(ratio=1)
    first, rest = answer_of("more\n\n" * 60, 60)[:20], answer_of("more\n\n" * 60, 60)[20:]
    play(tab, [*first, {"wait": 1.5}, *rest])
    tab.locator("[data-prompt]").fill("Go on")
    tab.keyboard.press("Control+Enter")
    expect(words(tab)).to_contain_text("more")
    tab.wait_for_timeout(100)
    assert tab.evaluate(BEHIND) <= 2
    tab.mouse.move(400, 200)
    tab.mouse.wheel(0, -500)
    until(lambda: tab.evaluate(BEHIND) > 100)
    at = tab.evaluate("scrollY")
    answered(tab, 2)
    assert tab.evaluate("scrollY") == at
    expect(tab.locator("[data-send]")).to_be_in_viewport(ratio=1)
    assert looks(tab, "tooWide") == []
