// Conversations that a person asked this browser to keep: off unless switched on, at most so many and so long, without
// images. Of each person their own, but whoever uses this profile of the browser can read them, as the page says.

import { Conversation, pack, unpack } from "./conversation.js";

const MOST = 20; // conversations
const MOST_BYTES = 1_500_000; // characters of all of them; browsers keep 5 MB a site
const TITLE = 60; // characters
const PLACE = `playground-${document.body.dataset.person}`;

const read = () => {
  try { return JSON.parse(localStorage.getItem(PLACE)) ?? null; } catch { return null; }
};

function write(kept) {
  while (kept.length > MOST) kept.pop();
  while (kept.length && JSON.stringify(kept).length > MOST_BYTES) kept.pop();
  try { localStorage.setItem(PLACE, JSON.stringify(kept)); } catch { /* the browser's own limit: the last state stays */ }
}

export const isOn = () => read() !== null;
export const switchOn = () => { if (!isOn()) write([]); };
export const switchOff = () => localStorage.removeItem(PLACE);
// The newest first: {id, at, title}.
export const list = () => (read() ?? []).map(({ id, at, title }) => ({ id, at, title }));
export const forget = (id) => write((read() ?? []).filter((one) => one.id !== id));
export const forgetAll = () => write([]);

export function keep(conversation, system) {
  if (!isOn() || conversation.isEmpty) return;
  conversation.id ??= crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`; // plain http has no randomUUID
  const title = (conversation.path.find((node) => node.role === "user")?.text ?? "").trim().slice(0, TITLE);
  const one = { id: conversation.id, at: Date.now(), title, system, root: pack(conversation.root) };
  write([one, ...read().filter((kept) => kept.id !== one.id)]);
}

export function open(id) {
  const found = (read() ?? []).find((one) => one.id === id);
  if (!found) return { conversation: new Conversation(), system: "" };
  const conversation = unpack(found.root);
  conversation.id = id;
  return { conversation, system: found.system ?? "" };
}
