// A link that opens the playground filled in:
//
//   /try/#prefill= + base64url(UTF-8 JSON {model, system, prompt, messages, settings, use_case, version})
//
// Every member is optional. `model`: a name or an alias; one that is not offered leaves the choice as it is. `system`: the
// instructions. `prompt`: what is put in the box. `messages`: [{role: "user" | "assistant", content: text}, …], shown as
// the conversation so far; if the last one is of the user, it is put in the box instead of `prompt`. `settings`: numbers
// by the names of the API, such as {temperature: 0.2, max_tokens: 400}. `use_case`, `version`: numbers of the use case
// that it comes from, to which thumbs for the answers to the first question then count.
// Nothing is sent before a person presses the button. A fragment never reaches a server or its logs, and it is removed
// from the address at once, so that it is in no history or bookmark. Python: portal/keys/playground_links.py.

const NAME = "prefill=";
const MOST = 64 * 1024; // characters of the fragment
const MOST_TEXT = 20_000; // characters of one text
const MOST_MESSAGES = 40;
const SETTINGS = ["temperature", "top_p", "max_tokens", "seed", "frequency_penalty", "presence_penalty"];

const whole = (value) => (Number.isSafeInteger(value) && value > 0 ? value : null);
const text = (value) => (typeof value === "string" ? value.slice(0, MOST_TEXT) : "");

function decode(encoded) {
  const bytes = Uint8Array.from(atob(encoded.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
  return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
}

function clean(given) {
  const messages = (Array.isArray(given.messages) ? given.messages : [])
    .slice(0, MOST_MESSAGES)
    .filter((message) => ["user", "assistant"].includes(message?.role) && text(message.content).trim())
    .map(({ role, content }) => ({ role, content: text(content) }));
  const last = messages.at(-1)?.role === "user" ? messages.pop().content : null;
  const settings = SETTINGS.filter((name) => Number.isFinite(given.settings?.[name]))
    .map((name) => [name, given.settings[name]]);
  return {
    model: text(given.model),
    system: text(given.system),
    prompt: last ?? text(given.prompt),
    messages,
    settings: Object.fromEntries(settings),
    useCase: whole(given.use_case),
    version: whole(given.version),
  };
}

// What the address asks for, once; null: nothing, or nothing that can be read.
export function takePrefill() {
  const fragment = location.hash.slice(1);
  if (!fragment.startsWith(NAME)) return null;
  history.replaceState(history.state, "", location.pathname + location.search);
  if (fragment.length > MOST) return null;
  try {
    const given = decode(fragment.slice(NAME.length));
    return given && typeof given === "object" ? clean(given) : null;
  } catch {
    return null;
  }
}
