// Answers as Markdown, while they are being written. What a model writes is foreign text: HTML in it is shown as text,
// what the parser makes is sanitised to few elements, and nothing in it loads anything (pictures become links).

import { Marked } from "../vendor/marked.esm.js";
import cjkFriendly from "../vendor/marked-cjk-friendly.js";
import "../vendor/purify.min.js"; // sets DOMPurify
import { copyButton, element, say } from "./words.js";

const TAGS = [
  ..."p h4 h5 h6 ul ol li table thead tbody tr th td strong em del code pre blockquote hr br a".split(" "),
];
const SAFE = {
  ALLOWED_TAGS: TAGS,
  ALLOWED_ATTR: ["href", "title", "class", "start", "align"],
  ALLOWED_URI_REGEXP: /^(?:https?:\/\/|mailto:)/i, // of all values but those of:
  ADD_URI_SAFE_ATTR: ["align", "start"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};
const COLOURED = { ALLOWED_TAGS: ["span"], ALLOWED_ATTR: ["class"], ALLOW_DATA_ATTR: false, RETURN_DOM_FRAGMENT: true };
const LONGEST_COLOURED = 60_000; // characters of a code block
// As portal/frontend/__init__.py serves them, and how else models call them.
const LANGUAGES = new Set(
  ("bash c cpp csharp css delphi diff dockerfile dos go ini java javascript json kotlin markdown nginx php powershell "
    + "python r ruby rust sql swift typescript vbnet vbscript xml yaml").split(" "),
);
const ALIASES = {
  bat: "dos", cmd: "dos", console: "bash", cs: "csharp", "c#": "csharp", "c++": "cpp", docker: "dockerfile",
  golang: "go", html: "xml", js: "javascript", jsonc: "json", jsx: "javascript", kt: "kotlin", md: "markdown",
  mysql: "sql", pascal: "delphi", patch: "diff", plsql: "sql", postgresql: "sql", ps1: "powershell", py: "python",
  rb: "ruby", rs: "rust", sh: "bash", shell: "bash", svg: "xml", toml: "ini", ts: "typescript", tsx: "typescript",
  vb: "vbnet", vba: "vbnet", yml: "yaml", zsh: "bash",
};

const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const escape = (text) => text.replace(/[&<>"']/g, (sign) => ESCAPES[sign]);

// Formulas are shown as their text: without this, Markdown would take their signs for its own.
const formula = (text) => `<code class="formula">${escape(text.trim())}</code>`;
const FORMULA_BLOCK = /^(?:\$\$([\s\S]+?)\$\$|\\\[([\s\S]+?)\\\])[ \t]*(?:\n+|$)/;
// A sum of money is none: the second $ follows no space and precedes no digit, and the text between has a sign of TeX.
const FORMULA = /^(?:\$\$([^\n]+?)\$\$|\\\[([\s\S]+?)\\\]|\\\(([\s\S]+?)\\\)|\$((?=[^$\n]*[\\^_={])[^$\s](?:[^$\n]*[^$\s])?)\$(?!\d))/;

const parser = new Marked(cjkFriendly(), {
  gfm: true,
  breaks: true, // models write letters and addresses line by line
  renderer: {
    html: ({ text }) => escape(text),
    heading({ tokens, depth }) {
      const level = Math.min(6, depth + 3); // below the page's own headings
      return `<h${level} class="was-${depth}">${this.parser.parseInline(tokens)}</h${level}>\n`;
    },
    image: ({ href, text }) => `<a href="${escape(href)}">${escape(text || href)}</a>`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    code({ text, lang }) {
      const name = (lang ?? "").trim().split(/\s/)[0].toLowerCase().replace(/[^a-z0-9+#-]/g, "");
      return `<pre><code${name ? ` class="language-${name}"` : ""}>${escape(text)}</code></pre>\n`;
    },
  },
  extensions: [
    {
      name: "formulaBlock",
      level: "block",
      start: (source) => source.search(/(?:^|\n)(?:\$\$|\\\[)/) + 1 || undefined,
      tokenizer(source) {
        const found = FORMULA_BLOCK.exec(source);
        return found ? { type: "formulaBlock", raw: found[0], text: found[1] ?? found[2] } : undefined;
      },
      renderer: ({ text }) => `<p>${formula(text)}</p>\n`,
    },
    {
      name: "formula",
      level: "inline",
      start: (source) => source.match(/\$|\\[[(]/)?.index,
      tokenizer(source) {
        const found = FORMULA.exec(source);
        if (!found) return undefined;
        return { type: "formula", raw: found[0], text: found[1] ?? found[2] ?? found[3] ?? found[4] };
      },
      renderer: ({ text }) => formula(text),
    },
  ],
});

// --- Colours of code, loaded when there is any

let core;
const grammars = new Map(); // name -> promise of whether it is registered

function grammar(name) {
  core ??= import("../vendor/highlight/core.min.js").then((module) => module.default);
  if (!grammars.has(name)) {
    const loaded = Promise.all([core, import(`../vendor/highlight/${name}.min.js`)])
      .then(([hljs, module]) => { hljs.registerLanguage(name, module.default); return hljs; });
    grammars.set(name, loaded);
  }
  return grammars.get(name);
}

async function colour(code, name) {
  const known = ALIASES[name] ?? name;
  if (!LANGUAGES.has(known) || code.textContent.length > LONGEST_COLOURED) return;
  const hljs = await grammar(known).catch(() => null); // without colours it is as readable
  if (!hljs) return;
  const html = hljs.highlight(code.textContent, { language: known, ignoreIllegals: true }).value;
  code.replaceChildren(globalThis.DOMPurify.sanitize(html, COLOURED));
}

// --- Blocks

const nameOf = (code) => /(?:^| )language-(\S+)/.exec(code.className)?.[1] ?? "";

function frameCode(code, { settled }) {
  const pre = code.parentElement, name = nameOf(code), frame = element("div", "code");
  pre.tabIndex = 0;
  pre.setAttribute("aria-label", name ? say("code-in", { language: name }) : say("code"));
  pre.replaceWith(frame);
  frame.append(pre);
  if (name) frame.prepend(element("span", "code-language", name));
  if (!settled) return;
  frame.append(copyButton(code, say("copy"), "copy"));
  if (name) colour(code, name);
}

function frameTable(table) {
  const frame = element("div", "scroll answer-table");
  frame.tabIndex = 0;
  frame.setAttribute("role", "region");
  frame.setAttribute("aria-label", say("table"));
  table.replaceWith(frame);
  frame.append(table);
}

function nodesOf(tokens, { settled }) {
  const made = globalThis.DOMPurify.sanitize(parser.parser(tokens), SAFE);
  for (const link of made.querySelectorAll("a[href]")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  for (const code of made.querySelectorAll("pre > code")) frameCode(code, { settled });
  for (const table of made.querySelectorAll("table")) frameTable(table);
  return [...made.childNodes].filter((node) => node.nodeType === Node.ELEMENT_NODE || node.textContent.trim());
}

const isBlank = (token) => token.type === "space" || token.type === "def";

// Shows a text that grows. Blocks that are complete are made once; only the last one is made again, at most once a frame
// and for at most a fifth of the time, so that long blocks do not make the page slow. `grown` is called after each change.
export class MarkdownView {
  #place; #grown; #source = ""; #settled = 0; #tail = []; #openCode = null; #due = 0; #planned = null; #links = false;

  constructor(place, grown = () => {}) {
    this.#place = place;
    this.#grown = grown;
    place.classList.add("markdown");
  }

  append(text) {
    this.#source += text.replaceAll("\r", "");
    if (this.#planned !== null) return;
    // A page in the background has no frames: what came meanwhile is shown when it is looked at, or finished.
    this.#planned = setTimeout(() => requestAnimationFrame(() => {
      if (this.#planned !== null) this.#render(false);
    }), Math.max(0, this.#due - performance.now()));
  }

  finish() {
    // A definition of a link may follow its use.
    if (this.#links) { this.#settled = 0; this.#tail = []; this.#place.replaceChildren(); }
    this.#openCode = null;
    this.#render(true);
  }

  #render(last) {
    const begun = performance.now();
    clearTimeout(this.#planned);
    this.#planned = null;
    const tokens = parser.lexer(this.#source.slice(this.#settled));
    this.#links ||= tokens.some((token) => token.type === "def");
    const open = last ? tokens.length : tokens.findLastIndex((token) => !isBlank(token));
    const complete = tokens.slice(0, Math.max(0, open));
    if (complete.length) {
      this.#show(complete, { settled: true });
      this.#settled += complete.reduce((length, token) => length + token.raw.length, 0);
      this.#tail = [];
    }
    if (!last && open >= 0) this.#showOpen(tokens[open]);
    const now = performance.now();
    this.#due = now + 4 * (now - begun);
    this.#grown();
  }

  #show(tokens, { settled }) {
    for (const node of this.#tail) node.remove();
    this.#openCode = null;
    this.#tail = nodesOf(tokens, { settled });
    this.#place.append(...this.#tail);
  }

  #showOpen(token) {
    const isCode = token.type === "code" && token.codeBlockStyle !== "indented";
    if (isCode && this.#openCode) {
      this.#openCode.textContent = token.text;
      return;
    }
    this.#show([token], { settled: false });
    this.#openCode = isCode ? this.#tail[0]?.querySelector("pre > code") ?? null : null;
  }
}
