// A conversation with a model, straight with the gateway. What is said is in this page's memory and nowhere else: not in
// the browser's storage, not in an address, not on a server of ours. So is the key that the page asks for.

const form = document.querySelector("[data-playground]");
const part = (name) => form.querySelector(`[data-${name}]`);
const [tenant, model, system, tokens, temperature, prompt] =
  ["tenant", "model", "system", "tokens", "temperature", "prompt"].map(part);
const [turns, ideas, waiting, trouble, status, code] =
  ["turns", "ideas", "waiting", "trouble", "status", "code"].map(part);
const [sendButton, stopButton, newButton] = ["send", "stop", "new"].map(part);

const words = document.querySelector("template[data-words]").content;
const language = document.documentElement.lang;

const KEY_KNOWN = 2000; // ms until every gateway knows a new key: an unknown one makes it look for changes at once
const KEY_RETRY = 200; // ms
const WAKING = 15 * 60_000; // ms that a sleeping model may take
const DEFAULT_ANSWER = Number(tokens.value);

const word = (name) => words.querySelector(`[data-word="${name}"]`);
const say = (name, facts = {}) => word(name).textContent.replace(/\{(\w+)\}/g, (_, fact) => facts[fact]);
const number = (value, digits = 0) =>
  new Intl.NumberFormat(language, { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);

function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

// --- What is asked

let history = []; // {role, content} of what was said so far
let asked = null; // the body of the last call
let running = null; // the AbortController of the call in flight

function body(text) {
  const messages = [...history, { role: "user", content: text }];
  if (system.value.trim()) messages.unshift({ role: "system", content: system.value.trim() });
  return {
    model: model.value,
    messages,
    max_tokens: Number(tokens.value),
    ...(temperature.value === "" ? {} : { temperature: Number(temperature.value) }),
    stream: true,
    stream_options: { include_usage: true },
  };
}

// --- The key: for each tenant one, asked for when somebody begins to write

const keys = new Map(); // address to ask at -> promise of {text, since}

class Refused extends Error {
  constructor(name, facts = {}) {
    super(name);
    this.name = name;
    this.facts = facts;
  }
}

async function askForKey(address) {
  const token = form.querySelector("[name=csrfmiddlewaretoken]").value;
  const answer = await fetch(address, { method: "POST", headers: { "X-CSRFToken": token } });
  if (answer.status === 404) throw new Refused("key");
  if (!answer.ok || answer.redirected) throw new Refused("session");
  return { text: (await answer.json()).key, since: performance.now() };
}

function keyOf(address) {
  if (!keys.has(address)) {
    const key = askForKey(address);
    key.catch(() => keys.delete(address)); // whoever waits for it is told; the next call asks again
    keys.set(address, key);
  }
  return keys.get(address);
}

// --- The call

const pause = (ms, signal) => new Promise((done, failed) => {
  signal.addEventListener("abort", () => failed(signal.reason), { once: true });
  setTimeout(done, ms);
});

// The answer of the gateway once it streams. A new key may not be known everywhere yet, an old one has expired; a model
// that is asleep wakes up because it was asked for. Throws Refused, or what fetch throws.
async function answerTo(call, signal) {
  const begun = performance.now(), address = tenant.value;
  let renewed = false;
  for (;;) {
    const key = await keyOf(address);
    signal.throwIfAborted();
    const sent = performance.now();
    const answer = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: { authorization: `Bearer ${key.text}`, "content-type": "application/json" },
      body: JSON.stringify(call),
      cache: "no-store",
      signal,
    });
    if (answer.ok) return { answer, sent };
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
      throw refusal(answer, error);
    }
  }
}

const BY_CODE = {
  insufficient_quota: "quota",
  rate_limit_exceeded: "rate",
  invalid_api_key: "key",
  model_unavailable: "down",
  model_not_found: "gone",
  context_length_exceeded: "context",
  engine_error: "engine",
  engine_timeout: "engine",
  internal_error: "engine",
};
// What the gateway says of these holds amounts and times, so it is shown where it speaks the language of the page.
const EXACT = ["quota", "rate"];

function refusal(answer, error) {
  const name = BY_CODE[error.code] ?? (answer.status >= 500 ? "engine" : "refused");
  const exact = EXACT.includes(name) && form.dataset.gatewayLanguage === language;
  return new Refused(name, {
    detail: error.message ?? answer.status,
    seconds: answer.headers.get("retry-after") ?? 60,
    exact: exact ? error.message : null,
  });
}

// The data of each event of an event stream, "[DONE]" excepted.
async function* events(stream) {
  let rest = "";
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:") && line.slice(5).trim() !== "[DONE]") yield JSON.parse(line.slice(5));
    }
  }
}

// --- What is seen

function turn(who, name) {
  const made = element("article", `turn ${who}`);
  const text = element("div", "words");
  made.append(element("h3", "", name), text);
  turns.append(made);
  return { article: made, text };
}

let ticking;

function wait(name) {
  const begun = performance.now(), line = part("waiting-text");
  clearInterval(ticking);
  waiting.dataset.waiting = name ?? "";
  waiting.hidden = !name;
  if (!name) return;
  const tell = () => {
    const seconds = Math.floor((performance.now() - begun) / 1000);
    const time = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
    line.textContent = seconds < 3 ? say(name) : `${say(name)} ${say("since", { time })}`;
  };
  if (status.textContent !== say(name)) status.textContent = say(name);
  tell();
  ticking = setInterval(tell, 1000);
}

// The view stays at the end of the answer until the reader looks elsewhere.
let following = false;
for (const event of ["wheel", "touchmove", "keydown"]) {
  addEventListener(event, () => { following = false; }, { passive: true });
}
function follow() {
  const below = form.querySelector(".send").getBoundingClientRect().bottom + 16 - innerHeight;
  if (following && below > 0) scrollBy(0, below);
}

function busy(yes) {
  turns.setAttribute("aria-busy", yes);
  const moved = document.activeElement === (yes ? sendButton : stopButton);
  sendButton.hidden = yes;
  stopButton.hidden = !yes;
  if (moved) (yes ? stopButton : prompt).focus();
  newButton.hidden = yes || history.length === 0;
  ideas.hidden = yes || history.length > 0;
}

function tellTrouble(refused) {
  trouble.dataset.trouble = refused.name;
  trouble.replaceChildren(element("p", "", refused.facts.exact ?? say(refused.name, refused.facts)));
  if (refused.name === "quota") {
    const way = element("p", "");
    way.append(word("more").cloneNode(true));
    trouble.append(way);
  }
  trouble.hidden = false;
}

function figures(facts) {
  const told = [];
  if (facts.first !== null) told.push(say("first", { seconds: number(facts.first / 1000, 2) }));
  if (facts.speed !== null) told.push(say("speed", { speed: number(facts.speed, 1) }));
  if (facts.usage) {
    told.push(say("tokens", { in: number(facts.usage.prompt_tokens), out: number(facts.usage.completion_tokens) }));
  }
  if (facts.ending) told.push(say(facts.ending));
  return told.join(" · ");
}

// The text is for people; the attributes say the same to whatever reads the page.
function showFigures(facts) {
  const { first, speed, usage, ending } = facts;
  const known = { first, speed, tokensIn: usage?.prompt_tokens, tokensOut: usage?.completion_tokens, ending };
  for (const [name, value] of Object.entries(known)) if (value != null) facts.line.dataset[name] = value;
  facts.line.textContent = figures(facts);
}

// Reads an answer into the page. The facts hold what came so far, also when it breaks off.
async function read(answer, sent, facts, place) {
  let last = sent, parts = 0, thoughts;
  for await (const event of events(answer.body)) {
    if (event.error) throw new Refused("engine");
    facts.usage = event.usage ?? facts.usage;
    const [choice] = event.choices ?? [];
    const thought = choice?.delta?.reasoning_content ?? choice?.delta?.reasoning;
    const said = choice?.delta?.content;
    if (thought || said) {
      last = performance.now();
      parts += 1;
      if (facts.first === null) {
        facts.first = last - sent;
        wait(null);
        status.textContent = say("answering");
      }
    }
    if (thought) {
      thoughts ??= thoughtsOf(place);
      thoughts.append(thought);
    }
    if (said) {
      facts.text += said;
      place.text.append(said);
    }
    if (choice?.finish_reason === "length") facts.ending = "cut";
    if (event.madoguchi?.stopped === "repetition") facts.ending = "repetition"; // its finish_reason is "length", too
    const made = facts.usage?.completion_tokens ?? parts; // a part is a token or nearly so, until the usage is told
    if (made > 1 && last > sent + facts.first) facts.speed = (1000 * (made - 1)) / (last - sent - facts.first);
    showFigures(facts);
    follow();
  }
}

function thoughtsOf(place) {
  const folded = element("details", "more");
  const text = element("div", "words thoughts");
  folded.append(element("summary", "", say("thoughts")), text);
  place.text.before(folded);
  return text;
}

// Why the answer ended before its model ended it, and what to do.
function tellRepetition(place) {
  const notice = element("p", "notice warning", say("repeated"));
  notice.dataset.ended = "repetition";
  place.text.after(notice);
}

let answers = 0;

function copyButton(place) {
  answers += 1;
  place.text.id = `answer-${answers}`;
  const button = element("button", "copy quiet", say("copy"));
  button.type = "button";
  button.dataset.copy = place.text.id;
  place.article.append(button);
}

async function send() {
  const text = prompt.value.trim();
  if (running || !text) { prompt.focus(); return; }
  running = new AbortController();
  const { signal } = running;
  const call = body(text);
  asked = call;
  trouble.hidden = true;
  following = true;
  const mine = turn("me", say("me"));
  mine.text.textContent = text;
  prompt.value = "";
  const place = turn("model", call.model);
  const facts = { first: null, speed: null, usage: null, ending: null, text: "", line: element("p", "hint figures") };
  place.article.append(facts.line);
  busy(true);
  wait("preparing");
  try {
    const { answer, sent } = await answerTo(call, signal);
    wait("asked");
    await read(answer, sent, facts, place);
  } catch (error) {
    if (signal.aborted) facts.ending = "stopped";
    else if (error instanceof Refused) tellTrouble(error);
    else tellTrouble(new Refused(facts.first === null ? "network" : "cut-off"));
  }
  if (facts.text || (facts.first !== null && !facts.ending)) {
    history.push({ role: "user", content: text }, { role: "assistant", content: facts.text });
    showFigures(facts);
    if (facts.ending === "repetition") tellRepetition(place);
    copyButton(place);
    status.textContent = `${say(facts.ending === "repetition" ? "repeated" : "done")} ${facts.line.textContent}`;
  } else {
    // Nothing was said: the message is there again, to be changed or sent once more.
    mine.article.remove();
    place.article.remove();
    if (!prompt.value) prompt.value = text;
    status.textContent = facts.ending ? say(facts.ending) : "";
  }
  running = null;
  wait(null);
  busy(false);
  showCode();
}

// --- The same call as code

// Exactly what is sent: what stands in the box now, else the last call, else an example.
function callToShow() {
  const text = prompt.value.trim();
  if (text || !asked) return body(text || form.querySelector(".idea").textContent);
  return asked;
}

function curl(call) {
  // An apostrophe would end the shell's quotes around the body.
  const json = JSON.stringify(call, null, 2).replaceAll("'", "\\u0027");
  return `curl -N ${form.dataset.baseUrl}/chat/completions \\
  -H "Authorization: Bearer $OPENAI_API_KEY" \\
  -H "Content-Type: application/json" \\
  -d '${json}'`;
}

// JSON with texts, numbers, lists and objects alone is the same in Python.
function python({ messages, stream, stream_options: options, ...rest }) {
  const given = Object.entries(rest).map(([name, value]) => `    ${name}=${JSON.stringify(value)},\n`).join("");
  const said = messages.map((message) => `        ${JSON.stringify(message)},\n`).join("");
  return `from openai import OpenAI

client = OpenAI(base_url="${form.dataset.baseUrl}")
stream = client.chat.completions.create(
${given}    messages=[
${said}    ],
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()`;
}

function showCode() {
  if (!code.open) return;
  const call = callToShow();
  for (const [id, text] of [["curl", curl(call)], ["python", python(call)]]) {
    document.getElementById(id).querySelector("code").textContent = text;
  }
}

// --- What people do

function chooseModel() {
  const chosen = model.selectedOptions[0];
  for (const about of form.querySelectorAll("[data-about]")) about.hidden = about.dataset.about !== model.value;
  const context = Number(chosen?.dataset.context ?? 0);
  if (context) tokens.max = context;
  else tokens.removeAttribute("max");
  // An answer as long as the context leaves no room for the question.
  if (!tokens.dataset.touched) tokens.value = context ? Math.min(DEFAULT_ANSWER, Math.ceil(context / 2)) : DEFAULT_ANSWER;
}

function chooseTenant() {
  const slug = tenant.selectedOptions?.[0].dataset.slug ?? tenant.dataset.slug;
  for (const option of model.options) {
    option.hidden = option.disabled = !option.dataset.tenants.split(" ").includes(slug);
  }
  if (!model.selectedOptions[0] || model.selectedOptions[0].disabled) {
    model.selectedIndex = [...model.options].findIndex((option) => !option.disabled);
  }
  chooseModel();
}

form.addEventListener("submit", (event) => { event.preventDefault(); send(); });
form.addEventListener("input", showCode);
code.addEventListener("toggle", showCode);
tenant.addEventListener("change", () => { chooseTenant(); showCode(); });
model.addEventListener("change", () => { chooseModel(); showCode(); });
tokens.addEventListener("input", () => { tokens.dataset.touched = "yes"; });
// What is folded away cannot be pointed at.
form.addEventListener("invalid", (event) => event.target.closest("details")?.setAttribute("open", ""), true);
stopButton.addEventListener("click", () => running?.abort());
newButton.addEventListener("click", () => {
  history = [];
  asked = null;
  turns.replaceChildren();
  trouble.hidden = true;
  busy(false);
  showCode();
  prompt.focus();
});
for (const idea of form.querySelectorAll(".idea")) {
  idea.addEventListener("click", () => {
    prompt.value = idea.textContent;
    prompt.dispatchEvent(new Event("input", { bubbles: true }));
    prompt.focus();
  });
}
// The key is there by the time that the message is written. If there is none, sending tells why.
prompt.addEventListener("input", () => keyOf(tenant.value).catch(() => {}));
prompt.addEventListener("keydown", (event) => {
  // Enter alone ends a conversion from kana and begins a new line.
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.isComposing) {
    event.preventDefault();
    if (!running) form.requestSubmit();
  }
});

chooseTenant();
// On a telephone the keyboard would cover what there is to choose.
if (matchMedia("(pointer: fine)").matches) prompt.focus({ preventScroll: true });
