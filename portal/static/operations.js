// Keeps operators' pages up to date. The socket only reports that something has changed: the server always renders what is
// in the page, so that there is one way to write a state, a number or a time.

import { renew as renewPart } from "./renew.js";
import { connect } from "./sockets.js";

const PAUSE = 2000; // ms between two renewals: numbers that change faster cannot be read, and each renders a page

const content = document.querySelector("#content");
const area = document.querySelector("[data-live-area]");
const note = document.querySelector("[data-live-note]");
const noteState = note?.querySelector("[data-live-state]");
const announcer = document.querySelector("[data-announce]");

// In the zone of the page, as all its times are.
const clock = () => new Date().toLocaleTimeString(document.documentElement.lang, {
  hour: "2-digit", minute: "2-digit", hourCycle: "h23", timeZone: note.dataset.zone,
});

function show(level, text) {
  if (noteState.textContent === text) return;
  noteState.className = `state ${level}`;
  noteState.textContent = text;
}

const parts = (root) => new Map([...root.querySelectorAll("[data-live]")].map((e) => [e.dataset.live, e]));

// Only the state of something with a name is read out, and only when it has changed.
function changes(old, fresh) {
  const word = (e) => e.querySelector(".state")?.textContent.trim();
  return old.dataset.say && word(old) !== word(fresh) ? `${old.dataset.say}: ${word(fresh)}` : null;
}

// `fresh`: the content of the page as it is now. Parts may be outside the area (the heading's state).
function renewAll(fresh) {
  const freshArea = fresh.querySelector("[data-live-area]");
  const now = parts(area), next = parts(freshArea);
  const same = now.size === next.size && [...now.keys()].every((key) => next.has(key));
  // The text of a log is newer than what was fetched.
  if (!same) renewPart(area, freshArea.cloneNode(true), area.querySelector("[data-log]"));
  const said = [], all = parts(fresh);
  for (const [key, old] of parts(content)) {
    if (!all.has(key)) continue;
    const change = changes(old, all.get(key));
    if (change) said.push(change);
    renewPart(old, all.get(key));
  }
  if (said.length) announcer.textContent = said.join(". ");
}

let running = false, again = false;

async function renew() {
  if (running || document.hidden) { again = true; return; } // not visible: renewed when it is
  running = true;
  again = false;
  try {
    const answer = await fetch(location.href, { headers: { accept: "text/html" } });
    // Signed out, or the model is gone: the old page shows more than an empty one.
    if (answer.ok && !answer.redirected) {
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("#content");
      if (fresh?.querySelector("[data-live-area]")) renewAll(fresh);
    }
  } catch {
    // The network is down; the socket notices as well and shows it.
  }
  setTimeout(() => { running = false; if (again) renew(); }, PAUSE);
}

document.addEventListener("visibilitychange", () => { if (again && !document.hidden) renew(); });

if (area) {
  let since = clock();
  const away = () => show("watch", note.dataset.away.replace("{time}", since));
  connect(area.dataset.liveArea || "/ws/operations/", {
    opened: () => {}, // the first message has everything
    message: (message) => {
      if (message.type === "stale") { away(); return; }
      since = clock();
      show("fine", note.dataset.liveWords);
      if (message.type !== "heartbeat") renew();
    },
    closed: away,
  });
}

// --- The end of a replica's log ---------------------------------------------------------------------------------------
const LINES = 2000; // kept in the page
const SILENT_AFTER = 10_000; // ms; a supervisor that runs sends the end of the log within two seconds

function followLog(view) {
  const text = view.querySelector("[data-log-text]"), state = view.querySelector("[data-log-state]");
  const say = (level, words) => { state.className = `state ${level}`; state.textContent = words; };
  let since = clock(), gone = false, unread = "";
  view.querySelector("[data-log-reload]").hidden = true;
  text.classList.toggle("skeleton", !text.textContent);
  setTimeout(() => {
    unread = text.dataset.silent;
    if (!text.textContent) write({ append: false, text: "", at: null });
  }, SILENT_AFTER);

  function write(message) {
    // Only at the end: a person who has scrolled up is reading.
    const atEnd = text.scrollHeight - text.scrollTop - text.clientHeight < 40;
    const whole = message.append ? text.textContent + message.text : message.text;
    text.textContent = whole.split("\n").slice(-LINES).join("\n") || (message.at ? text.dataset.none : unread);
    text.classList.toggle("skeleton", !text.textContent);
    if (atEnd) text.scrollTop = text.scrollHeight;
  }

  connect(`/ws/operations/replicas/${view.dataset.log}/log/`, {
    opened: () => say("fine", state.dataset.on),
    message: (message) => {
      since = clock();
      if (message.type === "log") { write(message); say("fine", state.dataset.on); }
      if (message.type === "stale") say("watch", state.dataset.away.replace("{time}", since));
      if (message.type === "gone") { gone = true; say("off", state.dataset.gone); }
    },
    closed: () => { if (!gone) say("watch", state.dataset.away.replace("{time}", since)); return gone; },
  });
}

const log = document.querySelector("[data-log]");
if (log) followLog(log);
