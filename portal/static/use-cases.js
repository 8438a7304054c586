// A use case's page: fills what is typed into the samples, and opens the playground with it.
//
// Values stay in this page and in the fragment of the playground's address, which browsers send to no server.

const form = document.querySelector("[data-use-case]");
// As the playground takes them, see try/prefill.js.
const MOST = 60_000; // characters of the address
const MOST_TEXT = 20_000; // characters of one text
const PLACE = /\{\{\s*([a-z][a-z0-9_]{0,29})\s*\}\}/g;
const text = (id) => document.getElementById(id)?.textContent ?? "";

function values() {
  const filled = {};
  for (const field of form.querySelectorAll("[name^='v-']")) filled[field.name.slice(2)] = field.value;
  return filled;
}

function fill(template, filled, escape = (value) => value) {
  return template.replace(PLACE, (place, name) => (name in filled ? escape(filled[name]) : place));
}

// Samples contain the prompts as JSON writes strings; in curl's, an apostrophe would end the shell's quotes.
const escapes = {
  curl: (value) => JSON.stringify(value).slice(1, -1).replaceAll("'", "\\u0027"),
  python: (value) => JSON.stringify(value).slice(1, -1),
};

function showSamples() {
  const filled = values();
  for (const part of document.querySelectorAll("[data-sample]")) {
    part.querySelector("code").textContent = fill(part.dataset.template, filled, escapes[part.dataset.sample]);
  }
}

function encode(value) {
  const bytes = new TextEncoder().encode(JSON.stringify(value));
  let binary = "";
  for (const byte of bytes) binary += String.fromCharCode(byte);
  return btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

form.addEventListener("input", showSamples);
form.addEventListener("submit", (event) => {
  const filled = values();
  const prefill = {
    model: form.dataset.model,
    system: fill(text("template-system"), filled),
    prompt: fill(text("template-prompt"), filled),
    use_case: Number(form.dataset.useCase),
    version: Number(form.dataset.version),
  };
  const address = `${form.dataset.try}#prefill=${encode(prefill)}`;
  // More than the playground takes: the page that follows shows the prompt filled in, to be copied.
  if (address.length > MOST || prefill.prompt.length > MOST_TEXT || prefill.system.length > MOST_TEXT) return;
  event.preventDefault();
  location.assign(address); // the playground counts the try when the message is sent
});
