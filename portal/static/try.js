// The playground: conversations with one model or several, straight with the gateway. What is said is in this page's
// memory and nowhere else unless a person asks for it (try/store.js): not in the browser's storage, not in an address,
// not on a server of ours; what is being written outlives a change of the language, once and in its tab. Links can fill the
// page in: /try/#prefill=…, see try/prefill.js; they never send anything.
//
// After an answer its section has data-request-id and data-model and dispatches `madoguchi:answered`.
// Parts that not every visitor needs are loaded when they are used.

import { AnswerView, blankColumn, loadMarkdown, tellOfAnswer } from "./try/answer.js";
import { Refused, keyOf, stream } from "./try/call.js";
import { Conversation, messagesTo, useCaseOf } from "./try/conversation.js";
import { button, copyButton, download, element, moment, number, say, word } from "./try/words.js";

const root = document.querySelector("[data-playground]");
const form = root.querySelector("[data-panel=chat]");
const part = (name) => form?.querySelector(`[data-${name}]`);
const tenant = root.querySelector("[data-tenant]");

// --- Panels

function showPanel(name) {
  for (const panel of root.querySelectorAll("[data-panel]")) panel.hidden = panel.dataset.panel !== name;
  for (const tab of root.querySelectorAll("[role=tab]")) {
    const chosen = tab.dataset.shows === name;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
  }
}

const started = new Set();

async function startPanel(name) {
  if (name === "chat" || started.has(name)) return;
  started.add(name);
  const { startTask } = await import("./try/tasks.js");
  startTask(root.querySelector(`[data-panel=${name}]`), {
    address: () => tenant.value,
    mostUpload: Number(root.dataset.mostUpload),
  });
}

const tabs = [...root.querySelectorAll("[role=tab]")];
for (const tab of tabs) {
  tab.addEventListener("click", () => { showPanel(tab.dataset.shows); startPanel(tab.dataset.shows); });
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
    next.click();
    next.focus();
  });
}

// --- Which model of which tenant

const DRAFT = "playground-draft"; // in sessionStorage
const MOST_MODELS = 3; // side by side
// What the dialogue for files offers; what can be read is seen when it is read (try/attachments.js).
const IMAGES = "image/png,image/jpeg,image/webp,image/gif";
const TEXTS = "text/*,.md,.csv,.tsv,.json,.jsonl,.xml,.yaml,.yml,.toml,.ini,.log,.sql,.py,.js,.ts,.java,.c,.cpp,.cs,.go,"
  + ".rb,.rs,.php,.sh,.ps1,.vb,.bas,.html,.css,.tex";
const slugOf = () => tenant.selectedOptions?.[0].dataset.slug ?? tenant.dataset.slug;

function offerTo(select) {
  const slug = slugOf();
  for (const option of select.options) {
    option.hidden = option.disabled = !option.dataset.tenants.split(" ").includes(slug);
  }
  if (!select.selectedOptions[0] || select.selectedOptions[0].disabled) {
    select.selectedIndex = [...select.options].findIndex((option) => !option.disabled);
  }
}

function startChat() {
  const [model, system, tokens, prompt, turns, ideas, trouble, status, code, end, composer, others] =
    ["model", "system", "tokens", "prompt", "turns", "ideas", "trouble", "status", "code", "end", "composer", "others"]
      .map(part);
  const [sendButton, stopButton, newButton, addButton, attachButton] =
    ["send", "stop", "new", "add-model", "attach"].map(part);
  const [tools, schema, chips, fileInput, keepBox] = ["tool-list", "answer-schema", "chips", "files", "keep"].map(part);
  const DEFAULT_ANSWER = Number(tokens.value);

  let conversation = new Conversation();
  let running = null; // the AbortController of the calls in flight
  let asked = null; // the body of the last call
  let files = []; // what goes with the next message
  const views = new Map(); // node -> its place on the page

  // --- What is asked

  const selects = () => [model, ...others.querySelectorAll("select")];
  const models = () => [...new Set(selects().map((select) => select.value).filter(Boolean))];
  const options = () => selects().map((select) => select.selectedOptions[0]).filter(Boolean);
  const everyOne = (ability) => options().every((option) => option.dataset[ability] === "yes");

  function settings() {
    const given = {};
    for (const field of form.querySelectorAll("[data-setting]")) {
      if (field.value.trim() !== "") given[field.dataset.setting] = Number(field.value);
    }
    const stops = part("stops").value.split("\n").filter(Boolean).slice(0, 4);
    if (stops.length) given.stop = stops;
    if (tools.value.trim() && everyOne("tools")) given.tools = JSON.parse(tools.value);
    if (schema.value.trim()) {
      given.response_format = { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(schema.value) } };
    }
    return given;
  }

  function bodyFor(name, messages) {
    return { model: name, messages, ...settings(), stream: true, stream_options: { include_usage: true } };
  }

  function checkJson(field) {
    let wrong = "";
    try {
      const value = field.value.trim() ? JSON.parse(field.value) : null;
      if (value !== null && (field === tools) !== Array.isArray(value)) wrong = say(field === tools ? "no-list" : "no-object");
    } catch (error) {
      wrong = say("no-json", { detail: error.message });
    }
    field.setCustomValidity(wrong);
  }

  // --- What is seen

  // The view stays at the end of the answer while the reader is there.
  let following = true;
  const behind = () => end.getBoundingClientRect().top - composer.getBoundingClientRect().top;
  addEventListener("scroll", () => { following = behind() <= 48; }, { passive: true });
  function follow() {
    const far = behind();
    if (following && far > 1) scrollBy({ top: far, behavior: "instant" });
  }

  function busy(yes) {
    turns.setAttribute("aria-busy", yes);
    const moved = document.activeElement === (yes ? sendButton : stopButton);
    sendButton.hidden = yes;
    stopButton.hidden = !yes;
    if (moved) (yes ? stopButton : prompt).focus({ preventScroll: true });
    newButton.hidden = yes || conversation.isEmpty;
    part("exports").hidden = yes || conversation.isEmpty;
    ideas.hidden = yes || !conversation.isEmpty;
  }

  const announce = (text) => { if (status.textContent !== text) status.textContent = text; };

  function showTrouble(refused) {
    trouble.dataset.trouble = refused.name;
    trouble.replaceChildren(element("p", "", refused.sentence));
    if (refused.name === "quota") {
      const way = element("p", "");
      way.append(word("more").cloneNode(true));
      trouble.append(way);
    }
    trouble.hidden = false;
    follow();
  }

  function pager(node) {
    const place = element("span", "pager");
    const turnTo = (step, name) => {
      if (running) return;
      const shown = conversation.page(node, step);
      draw();
      views.get(shown).querySelector(`[data-${name}]`)?.focus();
    };
    place.append(
      button("earlier", "‹", () => turnTo(-1, "earlier"), "quiet icon"),
      element("span", "num"),
      button("later", "›", () => turnTo(1, "later"), "quiet icon"),
    );
    place.firstChild.setAttribute("aria-label", say("earlier"));
    place.lastChild.setAttribute("aria-label", say("later"));
    return place;
  }

  function showPage(node) {
    const place = views.get(node).querySelector(".pager"), { children, chosen } = node.parent;
    place.hidden = children.length < 2;
    place.children[1].textContent = `${number(chosen + 1)}/${number(children.length)}`;
    place.dataset.page = `${chosen + 1}/${children.length}`;
    place.firstChild.disabled = chosen === 0;
    place.lastChild.disabled = chosen === children.length - 1;
  }

  function makeMessage(node) {
    const made = element("article", "turn me"), words = element("div", "words", node.text ?? "");
    const actions = element("div", "turn-actions");
    made.append(element("h3", "", node.role === "tool" ? say("tool-result") : say("me")));
    if (node.files?.length) made.append(element("p", "hint", node.files.map((file) => file.name).join(" · ")));
    if (node.role === "tool") words.textContent = node.results.map(({ content }) => content).join("\n");
    words.tabIndex = 0; // a long one scrolls
    made.append(words, actions);
    if (node.role === "user") {
      actions.append(copyButton(words), button("edit", say("edit"), () => edit(node, made, words)));
    }
    actions.append(pager(node));
    return made;
  }

  function makeAnswers(node) {
    const made = element("article", "turn model"), answers = element("div", "answers");
    answers.dataset.count = node.columns.length;
    made.append(answers, element("div", "turn-actions"));
    made.lastChild.append(button("again", say("again"), () => regenerate(node)), pager(node));
    node.views = node.columns.map((column) => new AnswerView(column, { grown: follow, announce }));
    answers.append(...node.views.map((view) => view.place));
    return made;
  }

  const viewOf = (node) => {
    if (!views.has(node)) views.set(node, node.role === "assistant" ? makeAnswers(node) : makeMessage(node));
    return views.get(node);
  };

  // Shows the branch that is chosen; what is on the page already is left as it is.
  function draw() {
    const { path } = conversation, wanted = path.map(viewOf);
    const same = wanted.findIndex((one, at) => turns.children[at] !== one);
    const from = same < 0 ? wanted.length : same;
    while (turns.children.length > from) turns.lastChild.remove();
    turns.append(...wanted.slice(from));
    path.forEach(showPage);
  }

  // --- Sending

  async function askModel(view, body, { signal }) {
    let sent = performance.now();
    view.wait("preparing");
    const begin = (call) => { sent = call.sent; view.column.requestId = call.requestId; };
    const context = { address: tenant.value, signal, wait: (name, facts) => view.wait(name, facts), begin };
    let ended = false;
    for await (const event of stream("/v1/chat/completions", body, context)) {
      if (event.done) ended = true;
      else view.take(event, sent);
    }
    view.column.ending ??= ended ? "finished" : "broken";
  }

  const resultsOf = (node) => (node.columns.length === 1
    ? (results) => {
      if (running) return;
      const message = conversation.add(node, { role: "tool", results });
      goOn(message, () => conversation.remove(message));
    }
    : null);

  // Counts that a use case is tried, once in a conversation. The request names the case and nothing of what is said.
  function countTry(useCase) {
    if (!useCase || useCase.isTried) return;
    useCase.isTried = true;
    fetch(`${root.dataset.useCases}${useCase.id}/try/`, {
      method: "POST", keepalive: true,
      headers: { "X-CSRFToken": root.querySelector("[name=csrfmiddlewaretoken]").value, "X-Requested-With": "fetch" },
    }).catch(() => {});
  }

  // Asks all models that are chosen for an answer to `message`, a node that is on the page. `restore` is called if none
  // of them said anything.
  async function goOn(message, restore) {
    running = new AbortController();
    const { signal } = running;
    trouble.hidden = true;
    await loadMarkdown().catch(() => {}); // without it, answers are plain text
    const names = models(), bodies = names.map((name) => bodyFor(name, messagesTo(message, name, system.value.trim())));
    [asked] = bodies;
    const useCase = useCaseOf(message, conversation.root);
    countTry(useCase);
    const columns = names.map((name) => blankColumn(name, useCase));
    const node = conversation.add(message, { role: "assistant", columns });
    draw();
    following = true;
    busy(true);
    follow();
    const done = await Promise.allSettled(node.views.map((view, at) => askModel(view, bodies[at], { signal })));
    const refusals = done.map(({ reason }, at) => reasonOf(reason, node.views[at], signal));
    if (node.views.every((view) => view.isEmpty)) {
      conversation.remove(node);
      views.delete(node);
      restore();
      announce(signal.aborted ? say("stopped") : "");
      for (const view of node.views) view.finish();
    } else {
      settle(node, refusals);
    }
    const [refused] = refusals.filter(Boolean);
    if (refused && (node.views.length === 1 || node.views.every((view) => view.isEmpty))) showTrouble(refused);
    running = null;
    draw();
    busy(false);
    follow();
    showCode();
    keepIt();
  }

  // Why a call broke off, in words; null if it did not or was stopped here.
  function reasonOf(error, view, signal) {
    if (!error) return null;
    if (signal.aborted) { view.column.ending = "stopped"; return null; }
    view.column.ending = view.isEmpty ? null : "broken";
    if (error instanceof Refused) return error;
    return new Refused(view.column.first === null ? "network" : "cut-off");
  }

  function settle(node, refusals) {
    const many = node.views.length > 1;
    node.views.forEach((view, at) => {
      view.finish({ refused: many ? refusals[at] : null, results: resultsOf(node) });
      if (!view.isEmpty) tellOfAnswer(view);
    });
    const repeats = node.columns.some((column) => column.ending === "repetition");
    const facts = node.views.map((view) => (many ? `${view.column.model}: ` : "") + view.summary).join(" · ");
    announce(`${say(repeats ? "repeated" : "done")} ${facts}`);
  }

  function send() {
    const text = prompt.value.trim();
    if (running || (!text && !files.length)) { prompt.focus(); return; }
    const sent = files;
    const message = conversation.add(conversation.end, { role: "user", text, files: sent });
    prompt.value = "";
    files = [];
    showChips();
    goOn(message, () => {
      // Nothing was said: the message is there again, to be changed or sent once more.
      conversation.remove(message);
      if (!prompt.value) prompt.value = text;
      if (!files.length) files = sent;
      showChips();
    });
  }

  function regenerate(node) {
    if (running || !settingsAreValid()) return;
    goOn(node.parent, () => {});
  }

  function edit(node, made, words) {
    if (running || made.querySelector(".editing")) return;
    const field = element("textarea"), place = element("div", "field editing"), actions = element("div", "actions");
    field.value = node.text;
    field.rows = Math.min(12, node.text.split("\n").length + 1);
    field.dataset.edited = "";
    field.setAttribute("aria-label", say("edit"));
    const close = () => { place.remove(); words.hidden = false; made.querySelector("[data-edit]").focus(); };
    const again = () => {
      const text = field.value.trim();
      if (!text || running || !settingsAreValid()) return;
      close();
      const message = conversation.add(node.parent, { role: "user", text, files: node.files });
      goOn(message, () => conversation.remove(message));
      prompt.focus({ preventScroll: true });
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") close();
      if (isSend(event)) { event.preventDefault(); event.stopPropagation(); again(); }
    });
    actions.append(button("resend", say("resend"), again, "primary"), button("cancelEdit", say("cancel"), close));
    place.append(field, actions);
    words.hidden = true;
    words.after(place);
    field.focus();
  }

  // The settings alone are checked: the box for a new message may be empty.
  const settingsAreValid = () => [...form.elements].every((field) => field === prompt || field.reportValidity());

  // --- Files

  function showChips() {
    chips.replaceChildren(...files.map((file, at) => {
      const chip = element("li", "chip", file.name);
      const remove = button("detach", "×", () => { files.splice(at, 1); showChips(); prompt.focus(); }, "quiet icon");
      remove.setAttribute("aria-label", say("detach", { name: file.name }));
      chip.append(remove);
      return chip;
    }));
    chips.hidden = !files.length;
    prompt.required = !files.length;
  }

  async function attach(given) {
    const { MOST_FILES, readFile } = await import("./try/attachments.js");
    trouble.hidden = true;
    try {
      for (const file of given) {
        if (files.length >= MOST_FILES) throw new Refused("many-files", { most: MOST_FILES });
        files.push(await readFile(file, { seesImages: everyOne("vision") }));
      }
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      showTrouble(error);
    }
    showChips();
    prompt.focus({ preventScroll: true });
  }

  // --- The same call as code

  // Exactly what is sent: what is in the box now, else the last call, else an example.
  function callToShow() {
    const text = prompt.value.trim();
    if (!text && !files.length && asked) return asked;
    const message = { role: "user", text: text || form.querySelector(".idea").textContent, files, parent: conversation.end };
    return bodyFor(model.value, messagesTo(message, model.value, system.value.trim()));
  }

  async function showCode() {
    if (!code.open) return;
    const { curl, javascript, python } = await import("./try/code.js");
    const { baseUrl } = root.dataset, call = callToShow();
    const texts = { curl: curl(baseUrl, "/chat/completions", call), python: python(baseUrl, call), javascript: javascript(baseUrl, call) };
    for (const [id, text] of Object.entries(texts)) document.getElementById(id).querySelector("code").textContent = text;
    showDify();
  }

  function showDify() {
    const fields = JSON.parse(document.getElementById("try-dify").textContent)[model.value] ?? [];
    part("dify").replaceChildren(...fields.map(([label, value]) => {
      const row = element("div"), name = element("dt", "", label), shown = element("dd", "", value), copy = element("dd");
      name.lang = "en";
      copy.append(copyButton(shown, say("copy"), "copy"));
      copy.firstChild.setAttribute("aria-label", `${say("copy")}: ${label}`);
      row.append(name, shown, copy);
      return row;
    }));
  }

  const showCodeIfPossible = () => showCode().catch(() => {}); // JSON that is being written is not complete

  // --- What is kept

  let store = null; // loaded when there is anything to keep

  async function keepIt() {
    if (!keepBox.checked) return;
    store ??= await import("./try/store.js");
    store.keep(conversation, system.value.trim());
    showKept();
  }

  function showKept() {
    const place = part("kept"), kept = store?.isOn() ? store.list() : [];
    place.replaceChildren(...kept.map(({ id, at, title }) => {
      const line = element("li"), open = button("open", title || "…", () => openKept(id));
      const forget = button("forget", say("delete"), () => { store.forget(id); showKept(); });
      forget.setAttribute("aria-label", `${say("delete")}: ${title}`);
      line.append(open, element("span", "hint", moment(at)), forget);
      return line;
    }));
    part("forget-all").hidden = !kept.length;
  }

  function show(other, instructions = "") {
    conversation = other;
    views.clear();
    turns.replaceChildren();
    system.value = instructions;
    asked = null;
    trouble.hidden = true;
    draw();
    const shown = [];
    const walk = (node) => {
      viewOf(node);
      if (node.role === "assistant") { shown.push(...node.views); node.views.forEach((view) => view.show(resultsOf(node))); }
    };
    conversation.path.forEach(walk);
    busy(false);
    showCodeIfPossible();
  }

  async function openKept(id) {
    if (running) return;
    await loadMarkdown().catch(() => {});
    const { conversation: kept, system: instructions } = store.open(id);
    show(kept, instructions);
    prompt.focus({ preventScroll: true });
  }

  keepBox.addEventListener("change", async () => {
    store ??= await import("./try/store.js");
    if (keepBox.checked) store.switchOn();
    else store.switchOff();
    await keepIt();
    showKept();
  });
  part("forget-all").addEventListener("click", () => { store.forgetAll(); showKept(); });
  if (localStorage.getItem(`playground-${document.body.dataset.person}`) !== null) {
    keepBox.checked = true;
    import("./try/store.js").then((module) => { store = module; showKept(); });
  }

  async function exportAs(kind) {
    const { toJson, toMarkdown } = await import("./try/export.js");
    const name = `madoguchi-${new Date().toISOString().slice(0, 16).replaceAll(":", "")}`;
    const instructions = system.value.trim();
    if (kind === "json") download(`${name}.json`, "application/json", toJson(conversation.path, instructions));
    else download(`${name}.md`, "text/markdown", toMarkdown(conversation.path, instructions));
  }
  part("as-markdown").addEventListener("click", () => exportAs("markdown"));
  part("as-json").addEventListener("click", () => exportAs("json"));

  // --- Filling in

  async function fillIn() {
    if (!location.hash.startsWith("#prefill=")) return;
    const { takePrefill } = await import("./try/prefill.js");
    const given = takePrefill();
    if (!given || running) return;
    const option = [...model.options].find((one) => one.value === given.model
      || (given.model && one.dataset.aliases?.split(" ").includes(given.model)));
    if (option && !option.disabled) { model.value = option.value; chooseModel(); }
    for (const [name, value] of Object.entries(given.settings)) {
      part(`setting=${name}`).value = value;
      if (name === "max_tokens") tokens.dataset.touched = "yes";
    }
    const other = new Conversation();
    if (given.useCase && given.version) other.root.useCase = { id: given.useCase, version: given.version, isTried: false };
    for (const { role, content } of given.messages) {
      const column = { ...blankColumn(model.value), text: content };
      other.add(other.end, role === "user" ? { role, text: content, files: [] } : { role, columns: [column] });
    }
    other.root.given = given.messages.length;
    if (given.messages.length) await loadMarkdown().catch(() => {});
    show(other, given.system);
    prompt.value = given.prompt;
    if (given.prompt) ideas.hidden = true;
    if (given.system || Object.keys(given.settings).length) part("settings").open = true;
    showCodeIfPossible();
    composer.scrollIntoView({ block: "end", behavior: "instant" });
  }

  function takeDraft() {
    const draft = JSON.parse(sessionStorage.getItem(DRAFT));
    sessionStorage.removeItem(DRAFT);
    if (draft?.person !== document.body.dataset.person) return;
    [prompt.value, system.value] = [draft.prompt, draft.system];
    if (draft.prompt) ideas.hidden = true;
    if (draft.system) part("settings").open = true;
  }

  // --- What people do

  function chooseModel() {
    for (const about of form.querySelectorAll("[data-about]")) about.hidden = about.dataset.about !== model.value;
    const context = Number(model.selectedOptions[0]?.dataset.context ?? 0);
    if (context) tokens.max = context;
    else tokens.removeAttribute("max");
    // An answer as long as the context leaves no room for the question.
    if (!tokens.dataset.touched) tokens.value = context ? Math.min(DEFAULT_ANSWER, Math.ceil(context / 2)) : DEFAULT_ANSWER;
    part("with-tools").hidden = tools.disabled = !everyOne("tools"); // a disabled field cannot be wrong
    part("image-hint").hidden = !everyOne("vision");
    fileInput.accept = everyOne("vision") ? `${IMAGES},${TEXTS}` : TEXTS;
    showOthers();
  }

  function showOthers() {
    const free = [...model.options].filter((option) => !option.disabled && !models().includes(option.value));
    addButton.hidden = !free.length || selects().length >= MOST_MODELS;
  }

  addButton.addEventListener("click", () => {
    const taken = models(), select = model.cloneNode(true), row = element("div", "other-model");
    select.id = `try-model-${others.children.length + 2}`;
    delete select.dataset.model;
    select.dataset.other = "";
    select.removeAttribute("aria-describedby");
    select.setAttribute("aria-label", say("other-model"));
    offerTo(select);
    select.value = [...select.options].find((option) => !option.disabled && !taken.includes(option.value)).value;
    const remove = button("removeModel", "×", () => { row.remove(); chooseModel(); addButton.focus(); }, "quiet icon");
    remove.setAttribute("aria-label", say("remove-model"));
    row.append(select, remove);
    others.append(row);
    chooseModel();
    select.focus();
  });

  function chooseTenant() {
    for (const select of selects()) offerTo(select);
    for (const select of root.querySelectorAll("[data-task-model]")) offerTo(select);
    chooseModel();
  }

  const isSend = (event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.isComposing;

  form.addEventListener("submit", (event) => { event.preventDefault(); send(); });
  form.addEventListener("input", showCodeIfPossible);
  code.addEventListener("toggle", showCodeIfPossible);
  tenant.addEventListener("change", () => { chooseTenant(); showCodeIfPossible(); });
  form.addEventListener("change", (event) => {
    if (event.target.matches("select[data-model], select[data-other]")) { chooseModel(); showCodeIfPossible(); }
  });
  tokens.addEventListener("input", () => { tokens.dataset.touched = "yes"; });
  for (const field of [tools, schema]) field.addEventListener("input", () => checkJson(field));
  // What is folded away cannot be pointed at.
  form.addEventListener("invalid", (event) => event.target.closest("details")?.setAttribute("open", ""), true);
  stopButton.addEventListener("click", () => running?.abort());
  newButton.addEventListener("click", () => { show(new Conversation(), system.value); prompt.focus(); });
  attachButton.addEventListener("click", () => fileInput.click());
  fileInput.addEventListener("change", () => { attach([...fileInput.files]); fileInput.value = ""; });
  prompt.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) { event.preventDefault(); attach([...event.clipboardData.files]); }
  });
  form.addEventListener("dragover", (event) => { if (event.dataTransfer.types.includes("Files")) event.preventDefault(); });
  form.addEventListener("drop", (event) => {
    if (event.dataTransfer.files.length) { event.preventDefault(); attach([...event.dataTransfer.files]); }
  });
  for (const idea of form.querySelectorAll(".idea")) {
    idea.addEventListener("click", () => {
      prompt.value = idea.textContent;
      prompt.dispatchEvent(new Event("input", { bubbles: true }));
      prompt.focus();
    });
  }
  // The key and what renders answers are there by the time that the message is written. If there is none, sending says why.
  prompt.addEventListener("input", () => {
    keyOf(tenant.value).catch(() => {});
    loadMarkdown().catch(() => {});
  });
  prompt.addEventListener("keydown", (event) => {
    // Enter alone ends a conversion from kana and begins a new line.
    if (!isSend(event)) return;
    event.preventDefault();
    if (!running) form.requestSubmit();
  });

  document.querySelector("[name=language]")?.form.addEventListener("submit", () => {
    const draft = { person: document.body.dataset.person, prompt: prompt.value, system: system.value };
    sessionStorage.setItem(DRAFT, JSON.stringify(draft));
  });

  chooseTenant();
  busy(false);
  takeDraft();
  fillIn();
  addEventListener("hashchange", fillIn);
  // On a telephone the keyboard would cover what there is to choose.
  if (matchMedia("(pointer: fine)").matches) prompt.focus({ preventScroll: true });
}

if (form) startChat();
else for (const select of root.querySelectorAll("[data-task-model]")) offerTo(select);
const [first] = root.querySelectorAll("[data-panel]");
const wanted = root.querySelector(`[data-panel="${root.dataset.chosenTask}"]`) ?? first;
showPanel(wanted.dataset.panel);
startPanel(wanted.dataset.panel);
