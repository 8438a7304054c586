// Calls of the gateway with the key of the page. The key is in this page's memory and nowhere else.

import { language, say } from "./words.js";

const KEY_KNOWN = 2000; // ms until every gateway knows a new key: an unknown one makes it look for changes at once
const KEY_RETRY = 200; // ms
const WAKING = 15 * 60_000; // ms that a sleeping model may take

const root = document.querySelector("[data-playground]");

export class Refused extends Error {
  constructor(name, facts = {}) {
    super(name);
    this.name = name;
    this.facts = facts;
  }

  get sentence() { return this.facts.exact ?? say(this.name, this.facts); }
}

// --- The key: for each tenant one, asked for when a person begins to write

const keys = new Map(); // address to ask at -> promise of {text, since}

async function askForKey(address) {
  const token = root.querySelector("[name=csrfmiddlewaretoken]").value;
  const answer = await fetch(address, { method: "POST", headers: { "X-CSRFToken": token } });
  if (answer.status === 404) throw new Refused("key");
  if (!answer.ok || answer.redirected) throw new Refused("session");
  return { text: (await answer.json()).key, since: performance.now() };
}

export function keyOf(address) {
  if (!keys.has(address)) {
    const key = askForKey(address);
    key.catch(() => keys.delete(address)); // the call that waits for it says why; the next call asks again
    keys.set(address, key);
  }
  return keys.get(address);
}

// --- Refusals

const BY_CODE = {
  insufficient_quota: "quota",
  rate_limit_exceeded: "rate",
  invalid_api_key: "key",
  model_unavailable: "down",
  model_without_room: "crowded",
  too_many_loading: "crowded",
  model_busy: "crowded",
  engine_busy: "crowded",
  server_busy: "crowded",
  model_loading: "loading",
  model_not_found: "gone",
  context_length_exceeded: "context",
  request_too_large: "large",
  engine_error: "engine",
  engine_timeout: "engine",
  internal_error: "engine",
};
// What the gateway says of these holds amounts and times, so it is shown where it speaks the language of the page.
const EXACT = ["quota", "rate"];

// An error that comes in a stream has neither a status nor a time to come back.
function refusal(error, status = 500, seconds = null) {
  const name = BY_CODE[error.code] ?? (status >= 500 ? "engine" : "refused");
  const exact = EXACT.includes(name) && root.dataset.gatewayLanguage === language;
  return new Refused(name, {
    detail: error.message ?? status,
    seconds: seconds ?? 60,
    exact: exact ? error.message : null,
  });
}

// --- One call

const pause = (ms, signal) => new Promise((done, failed) => {
  signal.addEventListener("abort", () => failed(signal.reason), { once: true });
  setTimeout(done, ms);
});

// The answer of the gateway once it is there. A new key may not be known everywhere yet, an old one has expired; a model
// that is asleep wakes up because it was asked for. `body`: an object, or a form with an upload. Throws Refused, or what
// fetch throws.
export async function post(path, body, { address, signal, wait }) {
  const begun = performance.now();
  const isForm = body instanceof FormData;
  let renewed = false;
  for (;;) {
    const key = await keyOf(address);
    signal.throwIfAborted();
    const sent = performance.now();
    const answer = await fetch(path, {
      method: "POST",
      headers: { authorization: `Bearer ${key.text}`, ...(isForm ? {} : { "content-type": "application/json" }) },
      body: isForm ? body : JSON.stringify(body),
      cache: "no-store",
      signal,
    });
    if (answer.ok) return { answer, sent, requestId: answer.headers.get("x-request-id") };
    const error = (await answer.json().catch(() => ({}))).error ?? {};
    if (answer.status === 401 && sent - key.since < KEY_KNOWN) {
      await pause(KEY_RETRY, signal);
    } else if (answer.status === 401 && !renewed) {
      renewed = true;
      keys.delete(address);
    } else if (error.code === "model_loading") {
      if (sent - begun > WAKING) throw new Refused("slept", { minutes: WAKING / 60_000 });
      wait("loading");
      await pause(1000 * Number(answer.headers.get("retry-after") ?? 10), signal);
    } else {
      throw refusal(error, answer.status, answer.headers.get("retry-after"));
    }
  }
}

// While a call waits in the gateway's queue, comments of its stream say its place and perhaps the seconds until it goes.
// While its model is being loaded they say for how long.
const LOADING = /^: loading /;
const PLACE = /^: queue position=(\d+)(?: eta=(\d+)s)?$/;

// The data of each event of an event stream, "[DONE]" as { done }, and { place, seconds } or { loading } for such comments.
async function* events(stream) {
  let rest = "";
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (LOADING.test(line)) yield { loading: true };
      const place = PLACE.exec(line);
      if (place) yield { place: Number(place[1]), seconds: place[2] && Number(place[2]) };
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      yield data === "[DONE]" ? { done: true } : JSON.parse(data);
    }
  }
}

// The events of one streamed answer, those of the queue left out, which go to `wait(name, facts)`; `wait(null)` when the
// first of the others is there. `begin({sent, requestId})` is called at each attempt: a call waits for a sleeping model
// but not for ever, then it is made again.
export async function* stream(path, body, { address, signal, wait, begin }) {
  const begun = performance.now();
  for (;;) {
    const { answer, sent, requestId } = await post(path, body, { address, signal, wait });
    begin({ sent, requestId });
    wait("asked");
    let again = false, queued = null, queue = null;
    for await (const event of events(answer.body)) {
      if (event.error) {
        const refused = refusal(event.error);
        if (refused.name !== "loading") throw refused;
        if (performance.now() - begun > WAKING) throw new Refused("slept", { minutes: WAKING / 60_000 });
        again = true;
        break;
      }
      if (event.place) {
        queued = "placed";
        queue ??= new (await import("./queue.js")).QueueWait();
        wait(queue.describe(event, (performance.now() - sent) / 1000), event);
        continue;
      }
      if (event.loading) {
        if (queued !== "loading") wait("loading");
        queued = "loading";
        continue;
      }
      if (queued) wait("asked");
      queued = null;
      yield event;
    }
    if (!again) return;
    wait("loading");
  }
}
