// What pages cannot do without a script: copy, switch colours, send a form once. Everything else works without.

const said = document.querySelector("[data-said]");
let silence;

function say(text) {
  said.textContent = text;
  clearTimeout(silence);
  silence = setTimeout(() => { said.textContent = ""; }, 4000);
}

// The clipboard API is there on https and localhost only; in a company's network a plain http address is common.
function copyWithoutClipboard(text) {
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "unseen";
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}

async function copy(text) {
  if (!navigator.clipboard) return copyWithoutClipboard(text);
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyWithoutClipboard(text);
  }
}

for (const button of document.querySelectorAll("[data-copy]")) button.hidden = false;
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const done = await copy(document.getElementById(button.dataset.copy).textContent);
  button.focus();
  button.classList.toggle("done", done);
  say(done ? said.dataset.copied : said.dataset.failed);
});

const THEMES = ["system", "light", "dark"];
const root = document.documentElement;
const themeSwitch = document.querySelector("[data-theme-switch]");

function showTheme() {
  const theme = root.dataset.theme ?? "system";
  themeSwitch.title = themeSwitch.dataset[theme];
  themeSwitch.setAttribute("aria-label", themeSwitch.dataset[theme]);
}

if (themeSwitch) {
  themeSwitch.hidden = false;
  showTheme();
  themeSwitch.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(root.dataset.theme ?? "system") + 1) % THEMES.length];
    if (next === "system") delete root.dataset.theme;
    else root.dataset.theme = next;
    // The server renders the next page with it, so that no page flashes in the other colours.
    document.cookie = `theme=${next}; path=/; max-age=31536000; samesite=lax`;
    showTheme();
    say(themeSwitch.dataset[next]);
  });
}

// A form that changes something is sent once. Its buttons are disabled after the event only: the browser collects what
// it sends when the event is over, and leaves out the value of a button that is disabled by then.
const once = [...document.querySelectorAll("form[data-once]")];
const sent = new WeakSet();

function disableButtons(form, disabled) {
  for (const button of form.querySelectorAll("button")) button.disabled = disabled;
}

for (const form of once) {
  form.addEventListener("submit", (event) => {
    if (sent.has(form)) { event.preventDefault(); return; }
    sent.add(form);
    setTimeout(() => disableButtons(form, sent.has(form)));
  });
}
// A page that the browser kept (Back) has its buttons again.
window.addEventListener("pageshow", () => {
  for (const form of once) { sent.delete(form); disableButtons(form, false); }
});

// What was typed into a form when the session was gone is there again after signing in. This tab alone keeps it, for
// the same person, until the next page that they see; never passwords, hidden fields or a form that holds a secret.
const TYPED = "typed";
const person = document.body.dataset.person;

function typedFields(form) {
  return [...form.elements].filter((field) => field.name
    && field.matches("textarea, select, input:not([type=password], [type=hidden], [type=file])"));
}

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (!person || event.defaultPrevented || form.method !== "post" || "forget" in form.dataset) return;
  const values = typedFields(form).map(({ name, type, value, checked }) => ({ name, type, value, checked }));
  sessionStorage.setItem(TYPED, JSON.stringify({ person, action: form.action, values }));
});

function typeAgain({ action, values }) {
  const form = [...document.forms].find((one) => one.method === "post" && one.action === action);
  if (!form) return;
  for (const [at, field] of typedFields(form).entries()) {
    const was = values[at];
    if (was?.name !== field.name || was.type !== field.type) continue;
    if (field.matches("[type=checkbox], [type=radio]")) field.checked = was.checked;
    else field.value = was.value;
  }
}

if (person) {
  const typed = JSON.parse(sessionStorage.getItem(TYPED));
  sessionStorage.removeItem(TYPED);
  const signedIn = document.referrer && new URL(document.referrer).pathname === document.body.dataset.signIn;
  if (typed?.person === person && signedIn) typeAgain(typed);
}

// What not every engine takes is shown while one of those that do is chosen, and while it has a value.
function showForEngine(engine) {
  for (const part of document.querySelectorAll("[data-engines]")) {
    const filled = [...part.querySelectorAll("input")].some((field) => field.value);
    const needed = part.dataset.engines.split(" ").includes(engine);
    part.hidden = !filled && !needed;
    if (needed && part.tagName === "DETAILS") part.open = true;
  }
}
for (const choice of document.querySelectorAll("input[name=engine]")) {
  choice.addEventListener("change", () => showForEngine(choice.value));
  if (choice.checked) showForEngine(choice.value);
}

// The first wrong field has the focus.
document.querySelector(".wrong :is(input, select, textarea)")?.focus();

// On a narrow window the places scroll: the one where we are is in sight.
const places = document.querySelector("[data-places]");
const here = places?.querySelector("[aria-current], .here");
if (here) places.scrollLeft = here.offsetLeft - places.offsetLeft - (places.clientWidth - here.offsetWidth) / 2;

// Menus close as people expect.
for (const menu of document.querySelectorAll("details.menu")) {
  document.addEventListener("click", (event) => { if (!menu.contains(event.target)) menu.open = false; });
  menu.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { menu.open = false; menu.querySelector("summary").focus(); }
  });
  menu.addEventListener("toggle", () => { if (menu.open) menu.querySelector("input[type=search]")?.focus(); });
}
