// What can be seen to be wrong with a page. Each gives a list of complaints.

// What is inside the bar's places or a wide table's frame may be: they scroll.
function tooWide() {
  const edge = document.documentElement.clientWidth + 0.5;
  return [...document.querySelectorAll("body *")]
    .filter((e) => e.getBoundingClientRect().right > edge && !e.closest(".unseen, .skip, .top nav > *, .scroll > *"))
    .map((e) => e.outerHTML.slice(0, 120));
}

// Links within running text are as high as their line; a link in a table's cell is as large as the cell. What is in a
// closed menu has another size when it is open.
function tooSmall() {
  return [...document.querySelectorAll("a, button, summary, select, input:not([type=hidden]), label:has(input)")]
    .filter((e) => e.checkVisibility())
    .filter((e) => !e.closest("p:not(.back), td, li:not(nav li)"))
    .filter((e) => !e.matches(".skip, .unseen, .options input, .row-link"))
    .map((e) => [e, e.getBoundingClientRect()])
    .filter(([, r]) => r.width && (r.height < 39.9 || r.width < 39.9))
    .map(([e, r]) => `${r.width} x ${r.height} ${e.outerHTML.slice(0, 120)}`);
}

// What cannot be pressed, as something unrelated lies over its middle: a link whose area has grown over the page, say.
function covered() {
  return [...document.querySelectorAll("main :is(a, button, summary, select, textarea, input:not([type=hidden]))")]
    .filter((e) => e.checkVisibility() && !e.matches(".unseen, .options input"))
    .filter((e) => {
      e.scrollIntoView({ block: "center", behavior: "instant" });
      const r = e.getBoundingClientRect();
      const top = document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2);
      return top && !e.contains(top) && !top.contains(e) && ![...(e.labels ?? [])].some((label) => label.contains(top));
    })
    .map((e) => e.outerHTML.slice(0, 120));
}

// WCAG 2 level AA: text stands out from what is behind it by 4.5 to 1.
function faint() {
  const numbers = (colour) => colour.match(/[\d.]+/g).map(Number);
  const luminance = (colour) => numbers(colour).slice(0, 3)
    .map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    const colour = getComputedStyle(e).backgroundColor;
    return (numbers(colour)[3] ?? 1) === 1 ? colour : behind(e.parentElement);
  };
  const complaints = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode.data.trim(), e = texts.currentNode.parentElement;
    if (!text || !e.checkVisibility({ opacityProperty: true }) || e.closest("svg")) continue;
    const [dark, light] = [luminance(getComputedStyle(e).color), luminance(behind(e))].sort((a, b) => a - b);
    const ratio = (light + 0.05) / (dark + 0.05);
    if (ratio < 4.5) complaints.push(`${ratio.toFixed(2)} ${text.slice(0, 40)}`);
  }
  return complaints;
}

function focused() {
  const e = document.activeElement;
  const shown = e.matches(".unseen") ? e.labels[0] : e;
  return [e.textContent.trim() || e.getAttribute("aria-label") || e.id, getComputedStyle(shown).outlineStyle];
}

// Sentences and dates in English where the page is in Japanese: texts that never got into the catalogue. What machines
// read, and names that are the same in every language, stand in code, or are marked as English.
function foreign() {
  const english = /[A-Za-z’']{2,}(?:,? [A-Za-z’']{2,}){2,}|\b\d{1,2} (?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)/;
  const japanese = /[\u3040-\u30ff\u4e00-\u9fff]/;
  const machines = "code, pre, output, script, style, textarea, noscript, [lang=en]";
  const names = /NVIDIA [\w ]+/;
  const wrong = (text) => english.test(text.replace(names, "")) && !japanese.test(text);
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    if (e.closest(machines)) continue;
    const own = [...e.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE).map((node) => node.data.trim());
    const told = ["aria-label", "title", "placeholder", "alt"].map((name) => e.getAttribute(name) ?? "");
    found.push(...[...own, ...told].filter(wrong));
  }
  return found;
}
