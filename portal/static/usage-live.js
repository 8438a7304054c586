// Keeps the live view of usage up to date. The socket sends everything that is shown every two seconds.

import { charts } from "./charts.js";
import { renew as renewPart } from "./renew.js";
import { connect } from "./sockets.js";

const area = document.querySelector("[data-live-usage]");
const note = document.querySelector("[data-live-note]"), state = note.querySelector("[data-live-state]");
const words = JSON.parse(document.getElementById("statuses").textContent);
const lang = document.documentElement.lang;

const clock = (at) => new Date(at).toLocaleTimeString(lang, {
  hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23", timeZone: note.dataset.zone,
});
const number = (value, digits = 0) => new Intl.NumberFormat(lang, { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);

function show(level, text) {
  if (state.textContent === text) return;
  state.className = `state ${level}`;
  state.textContent = text;
}

// A row is a copy of the page's template, so that rows are written in one place.
function fill(name, rows, write) {
  const body = area.querySelector(`[data-rows="${name}"]`), blank = area.querySelector(`template[data-row="${name}"]`);
  const fresh = body.cloneNode(false);
  fresh.append(...rows.map((row) => {
    const line = blank.content.firstElementChild.cloneNode(true);
    line.dataset.key = row.request ?? row.model;
    for (const [field, text] of Object.entries(write(row))) {
      const place = line.querySelector(`[data-field="${field}"]`);
      if (place) place.textContent = text;
      if (place?.dataset.link) place.href = place.dataset.link.replace("ID", encodeURIComponent(row.request));
    }
    return line;
  }));
  renewPart(body, fresh);
  area.querySelector(`[data-none="${name}"]`).hidden = rows.length > 0;
}

function renew(message) {
  const marks = message.slots.map(clock);
  for (const [id, values] of [["chart-live-tokens", message.tokens], ["chart-live-requests", message.requests]]) {
    const one = charts.get(id);
    if (!one) continue;
    one.renew({ marks, titles: marks, slots: message.slots, series: [{ ...one.data.series[0], values }] });
    const texts = values.map((value) => number(value, one.data.digits)).reverse();
    const rows = document.querySelectorAll(`[data-chart="${id}"] tbody tr`);
    [...marks].reverse().forEach((mark, n) => {
      rows[n].cells[0].textContent = mark;
      rows[n].cells[1].textContent = texts[n];
    });
  }
  area.querySelector("[data-now=speed]").textContent = number(message.tokens.at(-1), 1);
  area.querySelector("[data-now=requests]").textContent = number(message.requests.reduce((sum, value) => sum + value, 0));
  fill("models", message.models, (row) => ({
    model: row.model, running: row.running === null ? "" : number(row.running), requests: number(row.requests),
    unanswered: number(row.unanswered), per_second: number(row.per_second, 1),
  }));
  fill("last", message.last, (row) => ({
    at: clock(row.at), model: row.model, key: row.key, status: words[row.status] ?? row.status,
    tokens_in: number(row.tokens_in), tokens_out: number(row.tokens_out),
    first: row.first === null ? "–" : number(row.first, 2), took: number(row.took, 1), speed: row.speed === null ? "–" : number(row.speed),
  }));
}

let since = clock(Date.now());
const away = () => show("watch", note.dataset.away.replace("{time}", since));
connect(`/ws/usage/${location.search}`, {
  opened: () => {}, // the first message has everything
  message: (message) => {
    if (message.type === "stale") { away(); return; }
    since = clock(Date.now());
    show("fine", note.dataset.liveWords);
    if (message.type === "usage" && !document.hidden) renew(message);
  },
  closed: away,
});
