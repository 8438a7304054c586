// What the page says, in its language: the sentences of the template, figures, and elements with text alone.

const words = document.querySelector("template[data-words]").content;
export const language = document.documentElement.lang;

export const word = (name) => words.querySelector(`[data-word="${name}"]`);
export const say = (name, facts = {}) => word(name).textContent.replace(/\{(\w+)\}/g, (_, fact) => facts[fact]);

const formats = new Map(); // making one takes 30 times as long as using it
export function number(value, digits = 0) {
  if (!formats.has(digits)) {
    const fraction = { minimumFractionDigits: digits, maximumFractionDigits: digits };
    formats.set(digits, new Intl.NumberFormat(language, fraction));
  }
  return formats.get(digits).format(value);
}
// A time as other pages write it: 「今日 9:05」, 「11月30日 9:05」, 「2025年11月30日」.
export function moment(at, now = new Date()) {
  const when = new Date(at), writes = language === "en" ? "en-GB" : language; // 30 Nov, not Nov 30
  const format = (parts) => new Intl.DateTimeFormat(writes, parts).format(when);
  const time = { hour: language === "ja" ? "numeric" : "2-digit", minute: "2-digit", hourCycle: "h23" };
  if (when.toDateString() === now.toDateString()) return say("today", { time: format(time) });
  const day = { day: "numeric", month: language === "ja" ? "long" : "short" };
  return format(when.getFullYear() === now.getFullYear() ? { ...day, ...time } : { ...day, year: "numeric" });
}
export const megabytes = (bytes) => `${number(bytes / 1024 / 1024, bytes < 1024 * 1024 ? 2 : 0)} MB`;

export function element(name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}

// A button that does no more than `press`; `name` is its data attribute.
export function button(name, text, press, className = "quiet") {
  const made = element("button", className, text);
  made.type = "button";
  made.dataset[name] = "";
  made.addEventListener("click", press);
  return made;
}

// To the page of the request, which is there when its usage is recorded: in seconds.
export function timesLink(requestId) {
  const link = word("times").cloneNode(true);
  link.href = link.getAttribute("href").replace("ID", encodeURIComponent(requestId));
  return link;
}

let copied = 0;

// A button that copies the text of `source`, by the script of all pages.
export function copyButton(source, text = say("copy"), className = "copy quiet") {
  copied += 1;
  source.id ||= `copied-${copied}`;
  const made = element("button", className, text);
  made.type = "button";
  made.dataset.copy = source.id;
  return made;
}

// A link to a file that is made when it is pressed.
export function download(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000); // the browser has begun to read it by then
}
