// What is tried besides conversations: how near texts are in meaning (embeddings), which texts answer a question best
// (rerank), and what was said in a recording (transcription).

import { Refused, post } from "./call.js";
import { copyButton, element, megabytes, number, say, timesLink } from "./words.js";

const MOST_TEXTS = 20;
const lines = (field) => field.value.split("\n").map((line) => line.trim()).filter(Boolean);

const scalar = (a, b) => a.reduce((sum, value, at) => sum + value * b[at], 0);
// The cosine of the angle between two vectors: 1 for the same direction.
const similarity = (a, b) => scalar(a, b) / Math.sqrt(scalar(a, a) * scalar(b, b) || 1);

function tableOf(heads, rows) {
  const frame = element("div", "scroll answer-table"), table = element("table"), head = element("thead");
  frame.tabIndex = 0;
  frame.setAttribute("role", "region");
  frame.setAttribute("aria-label", say("table"));
  const line = element("tr");
  for (const text of heads) { const cell = element("th", "", text); cell.scope = "col"; line.append(cell); }
  head.append(line);
  const body = element("tbody");
  for (const cells of rows) {
    const row = element("tr");
    cells.forEach((text, at) => {
      const cell = element(at ? "td" : "th", at ? "num" : "long", text);
      if (!at) cell.scope = "row";
      row.append(cell);
    });
    body.append(row);
  }
  table.append(head, body);
  frame.append(table);
  return frame;
}

function showEmbedding(texts, { data }) {
  const vectors = data.map((one) => one.embedding);
  let best = null;
  const rows = texts.map((text, a) => [text, ...texts.map((_, b) => {
    const value = similarity(vectors[a], vectors[b]);
    if (a < b && (!best || value > best.value)) best = { a, b, value };
    return number(value, 2);
  })]);
  const nearest = element("p", "", say("nearest", { a: texts[best.a], b: texts[best.b], value: number(best.value, 2) }));
  nearest.dataset.nearest = `${best.a} ${best.b}`;
  const size = element("p", "hint", say("dimensions", { size: number(vectors[0].length) }));
  return [nearest, tableOf([say("text"), ...texts.map((_, at) => number(at + 1))], rows), size];
}

function showRanking(texts, { results }) {
  const sorted = [...results].sort((a, b) => b.relevance_score - a.relevance_score);
  const rows = sorted.map(({ index, relevance_score: score }) => [texts[index], number(score, 3)]);
  return [tableOf([say("best-first"), say("score")], rows)];
}

function showTranscript({ text }) {
  const words = element("div", "quoted transcript", text);
  words.dataset.transcript = "";
  return [words, copyButton(words)];
}

// By the panel: the path of its call, what is sent, and what is shown of the answer.
const TASKS = {
  embedding: {
    path: "/v1/embeddings",
    read: (part) => ({ body: { input: lines(part("texts")) }, texts: lines(part("texts")), least: 2 }),
    show: ({ texts }, answer) => showEmbedding(texts, answer),
  },
  rerank: {
    path: "/v1/rerank",
    read: (part) => {
      const texts = lines(part("texts"));
      return { body: { query: part("query").value.trim(), documents: texts }, texts, least: 2 };
    },
    show: ({ texts }, answer) => showRanking(texts, answer),
  },
  transcription: {
    path: "/v1/audio/transcriptions",
    read: (part) => ({ file: part("recording").files[0], language: part("spoken").value }),
    show: (_, answer) => showTranscript(answer),
  },
};

const jsonOf = (model, { body }) => ({ model, ...body });

function formOf(model, { file, language }) {
  const form = new FormData();
  form.append("model", model);
  if (language) form.append("language", language);
  form.append("file", file); // last: the gateway reads what is before it first
  return form;
}

function checkAsked(asked, most) {
  if (asked.texts && (asked.texts.length < asked.least || asked.texts.length > MOST_TEXTS)) {
    throw new Refused("some-texts", { least: asked.least, most: MOST_TEXTS });
  }
  if (asked.file && asked.file.size > most) {
    throw new Refused("file-large", { name: asked.file.name, most: megabytes(most) });
  }
}

function after(answer, ms, requestId) {
  const place = element("div", "after-answer"), tokens = answer.usage?.total_tokens;
  const facts = [say("took", { seconds: number(ms / 1000, 2) })];
  if (tokens) facts.push(say("cost", { sum: number(tokens) }));
  place.append(element("p", "hint figures", facts.join(" · ")));
  if (requestId) place.append(timesLink(requestId));
  return place;
}

// Makes a panel work. `address`: gives where its key is asked for.
export function startTask(form, { address, mostUpload }) {
  const task = TASKS[form.dataset.panel];
  const part = (name) => form.querySelector(`[data-${name}]`);
  const [result, trouble, run, stop] = ["result", "task-trouble", "run", "task-stop"].map(part);
  let running = null;

  function wait(name, facts) {
    const line = element("p", "hint", name ? say(name, facts) : "");
    line.dataset.waiting = name ?? "";
    result.replaceChildren(...(name ? [line] : []));
  }

  async function ask() {
    const asked = task.read(part), model = part("task-model").value;
    checkAsked(asked, mostUpload);
    wait("preparing");
    const call = asked.file ? formOf(model, asked) : jsonOf(model, asked);
    const { answer, sent, requestId } = await post(task.path, call, { address: address(), signal: running.signal, wait });
    const said = await answer.json();
    result.replaceChildren(...task.show(asked, said), after(said, performance.now() - sent, requestId));
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running) return;
    running = new AbortController();
    trouble.hidden = true;
    run.hidden = true;
    stop.hidden = false;
    try {
      await ask();
    } catch (error) {
      wait(null);
      const refused = error instanceof Refused ? error : new Refused("network");
      if (!running.signal.aborted) {
        trouble.dataset.taskTrouble = refused.name;
        trouble.replaceChildren(element("p", "", refused.sentence));
        trouble.hidden = false;
      }
    }
    running = null;
    run.hidden = false;
    stop.hidden = true;
  });
  stop.addEventListener("click", () => running?.abort());
}
