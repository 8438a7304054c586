// One answer of one model on the page, from the wait before it to the figures after it.

import { button, copyButton, element, number, say, timesLink } from "./words.js";

const FIGURES = 200; // ms between two states of the figures: people read no faster

const IN_QUEUE = ["queued", "placed", "slower"]; // one wait, whatever is said of it

// What a stream's `finish_reason` means; the rest are its own words: "length", "stop" and so on.
const ENDINGS = {
  stop: "finished", eos: "finished", length: "cut", tool_calls: "tool", function_call: "tool",
  content_filter: "filter", repetition: "repetition", abort: "broken",
};

export const blankColumn = (model, useCase = null) => ({
  model, useCase, text: "", thoughts: "", toolCalls: [], first: null, speed: null, usage: null, ending: null, requestId: null,
});

let MarkdownView; // loaded when a person begins to write
export const loadMarkdown = () => import("./markdown.js").then((module) => { ({ MarkdownView } = module); });

// The text that people read; the attributes say the same to whatever reads the page.
function figures({ first, speed, usage, ending }) {
  const parts = [];
  if (first !== null) parts.push(say("first", { seconds: number(first / 1000, 2) }));
  if (speed !== null) parts.push(say("speed", { speed: number(speed, 1) }));
  if (usage) {
    const { prompt_tokens: read, completion_tokens: written } = usage;
    parts.push(say("tokens", { in: number(read), out: number(written) }), say("cost", { sum: number(read + written) }));
  }
  if (ending) parts.push(say(ending));
  return parts.join(" · ");
}

export class AnswerView {
  #wait = element("div", "waiting"); #ticking; #thoughts = null; #markdown; #line = element("p", "hint figures");
  #source = element("span"); #shown = -FIGURES;

  // `grown` is called when it has become longer, `said` with what a screen reader should say.
  constructor(column, { grown = () => {}, announce = () => {} } = {}) {
    this.column = column;
    this.announce = announce;
    this.grown = grown;
    this.place = element("section", "answer");
    this.place.dataset.answer = "";
    this.place.dataset.model = column.model;
    this.words = element("div", "words");
    const title = element("h3", "", column.model);
    this.place.append(title, this.words, this.#wait, this.#line);
    this.#wait.hidden = true;
    this.#source.hidden = true;
    this.#markdown = MarkdownView ? new MarkdownView(this.words, grown) : null;
  }

  wait(name, facts) {
    clearInterval(this.#ticking);
    const stays = IN_QUEUE.includes(name) && IN_QUEUE.includes(this.#wait.dataset.waiting);
    if (!stays) this.begun = performance.now();
    this.#wait.dataset.waiting = name ?? "";
    this.#wait.hidden = !name;
    if (!name) return;
    const text = say(name, facts), { begun } = this;
    const line = element("p"), bar = document.createElement("progress");
    line.dataset.waitingText = "";
    bar.setAttribute("aria-label", text);
    this.#wait.replaceChildren(bar, line);
    const tick = () => {
      const seconds = Math.floor((performance.now() - begun) / 1000);
      const time = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
      line.textContent = seconds < 3 ? text : `${text} ${say("since", { time })}`;
    };
    this.announce(text);
    tick();
    this.#ticking = setInterval(tick, 1000);
    this.grown();
  }

  // Takes in one event of the stream. `sent`: when the call went, in ms of this page.
  take(event, sent) {
    const { column } = this;
    column.usage = event.usage ?? column.usage;
    const [choice] = event.choices ?? [];
    const delta = choice?.delta ?? {};
    const thought = delta.reasoning_content ?? delta.reasoning;
    if (thought || delta.content || delta.tool_calls?.length) this.#count(sent);
    if (thought) this.#think(thought);
    if (delta.content) this.#say(delta.content);
    for (const call of delta.tool_calls ?? []) this.#callTool(call);
    if (choice?.finish_reason) column.ending = ENDINGS[choice.finish_reason] ?? "finished";
    if (event.madoguchi?.stopped === "repetition") column.ending = "repetition"; // its finish_reason is "length", too
    const made = column.usage?.completion_tokens ?? this.parts; // a part is a token or nearly so, until usage is there
    if (made > 1 && this.last > sent + column.first) {
      column.speed = (1000 * (made - 1)) / (this.last - sent - column.first);
    }
    if (performance.now() - this.#shown > FIGURES) this.#showFigures();
  }

  #count(sent) {
    this.last = performance.now();
    this.parts = (this.parts ?? 0) + 1;
    if (this.column.first !== null) return;
    this.column.first = this.last - sent;
    this.wait(null);
    this.announce(say("answering"));
  }

  #say(text) {
    this.column.text += text;
    if (this.#markdown) this.#markdown.append(text);
    else { this.words.append(text); this.grown(); }
  }

  #think(text) {
    this.column.thoughts += text;
    if (!this.#thoughts) {
      const folded = element("details", "more");
      this.#thoughts = element("div", "thoughts");
      folded.append(element("summary", "", say("thoughts")), this.#thoughts);
      this.words.before(folded);
    }
    this.#thoughts.append(text);
    this.grown();
  }

  // Pieces of a call come one after another, by its index.
  #callTool({ index = 0, id, function: called = {} }) {
    const calls = this.column.toolCalls;
    calls[index] ??= { id: id ?? `call_${index}`, type: "function", function: { name: "", arguments: "" } };
    calls[index].function.name += called.name ?? "";
    calls[index].function.arguments += called.arguments ?? "";
  }

  #showFigures() {
    this.#shown = performance.now();
    const { first, speed, usage, ending, requestId } = this.column;
    const known = { first, speed, tokensIn: usage?.prompt_tokens, tokensOut: usage?.completion_tokens, ending };
    for (const [name, value] of Object.entries(known)) if (value != null) this.#line.dataset[name] = value;
    if (requestId) this.place.dataset.requestId = requestId;
    this.#line.textContent = figures(this.column);
  }

  get isEmpty() { return !this.column.text && !this.column.toolCalls.length && this.column.first === null; }

  get summary() { return this.#line.textContent; }

  // Ends it: everything is shown, with what to do next. `refused`: why it broke off, said here. `tools`: whether their
  // results may be entered; then `results(list)` is called with them.
  finish({ refused = null, results = null } = {}) {
    const { column } = this;
    clearInterval(this.#ticking);
    this.#wait.remove();
    this.#markdown?.finish();
    if (!this.words.childNodes.length) this.words.hidden = true;
    this.#showFigures();
    if (column.toolCalls.length) this.#line.before(this.#toolCalls(results));
    if (column.ending === "repetition") this.#notice("repeated", "warning").dataset.ended = "repetition";
    if (refused) {
      const notice = element("p", "notice error", refused.sentence);
      notice.dataset.broke = refused.name;
      this.#line.before(notice);
    }
    if (!this.isEmpty) this.place.append(this.#after());
    this.grown();
  }

  #notice(name, kind) {
    const notice = element("p", `notice ${kind}`, say(name));
    this.#line.before(notice);
    return notice;
  }

  // Shows what was kept, as if it had come just now.
  show(results = null) {
    const { text, thoughts } = this.column;
    this.column.text = this.column.thoughts = "";
    if (thoughts) this.#think(thoughts);
    if (text) this.#say(text);
    this.finish({ results });
  }

  #toolCalls(results) {
    const place = element("div", "tool-calls"), fields = [];
    for (const call of this.column.toolCalls.filter(Boolean)) {
      const box = element("div", "code"), pre = element("pre"), code = element("code", "", call.function.arguments);
      pre.tabIndex = 0;
      pre.setAttribute("aria-label", call.function.name);
      pre.append(code);
      box.append(pre);
      place.append(element("h4", "", say("tool-call", { name: call.function.name })), box);
      if (!results) continue;
      const label = element("label", "field", say("tool-result")), field = element("textarea");
      field.rows = 2;
      field.dataset.toolResult = call.id;
      label.append(field);
      place.append(label);
      fields.push(field);
    }
    if (results) {
      place.append(button("sendResults", say("send-results"), () => {
        results(fields.map((field) => ({ id: field.dataset.toolResult, content: field.value })));
      }, ""));
    }
    return place;
  }

  #after() {
    const { text, requestId, model, useCase } = this.column;
    const after = element("div", "after-answer");
    if (text) {
      this.#source.textContent = text; // as the model wrote it, with the signs of Markdown
      after.append(this.#source, copyButton(this.#source));
    }
    if (requestId) {
      const verdict = element("span", "verdict");
      Object.assign(verdict.dataset, { feedback: "", requestId, model });
      if (useCase) Object.assign(verdict.dataset, { useCase: useCase.id, version: useCase.version });
      verdict.hidden = true;
      after.append(timesLink(requestId), verdict);
    }
    return after;
  }
}

// Asks what people think of an answer that has just come. What else is shown beside answers hears of it as well.
export function tellOfAnswer(view) {
  const detail = { requestId: view.column.requestId, model: view.column.model };
  view.place.dispatchEvent(new CustomEvent("madoguchi:answered", { bubbles: true, detail }));
  const place = view.place.querySelector("[data-feedback]");
  if (!place) return;
  import("./feedback.js").then(({ askForVerdict }) => { askForVerdict(place); view.grown(); }, () => {});
}
