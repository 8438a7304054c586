// Makes a part of a page what the server renders now, and touches only what differs: the focus, what is scrolled or
// unfolded, and what is being typed stay as they are.

const KEYS = ["id", "data-live", "data-participant", "data-awaited", "data-key"];
const FOCUSABLE = "a, button, summary, input, select, textarea, [tabindex]";

const keyOf = (node) => KEYS.map((name) => node.getAttribute?.(name)).find(Boolean) ?? null;
const isOpen = (node, name) => node.nodeName === "DETAILS" && name === "open"; // the reader's

function renewAttributes(old, fresh) {
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !isOpen(old, name)) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value && !isOpen(old, name)) old.setAttribute(name, value);
  }
}

// Rows are recognised by their keys, wherever they are now; all else by its place.
function renewChildren(old, fresh, kept) {
  const next = [...fresh.childNodes], keys = new Set(next.map(keyOf)), byKey = new Map();
  for (const child of [...old.children]) {
    const key = keyOf(child);
    if (key && !keys.has(key)) child.remove();
    else if (key) byKey.set(key, child);
  }
  let place = old.firstChild;
  for (const node of next) {
    const key = keyOf(node), fits = place?.nodeName === node.nodeName && !keyOf(place);
    const same = key ? byKey.get(key) : (fits && place);
    if (!same) { old.insertBefore(node, place); continue; }
    byKey.delete(key); // one that there is twice is not moved back
    if (same !== place) old.insertBefore(same, place);
    place = same.nextSibling;
    renewNode(same, node, kept);
  }
  while (place) {
    const rest = place.nextSibling;
    place.remove();
    place = rest;
  }
}

function renewNode(old, fresh, kept) {
  if (old === kept || old.isEqualNode(fresh)) return;
  if (old.nodeName !== fresh.nodeName) { old.replaceWith(fresh); return; }
  if (old.nodeType !== Node.ELEMENT_NODE) { old.nodeValue = fresh.nodeValue; return; }
  renewAttributes(old, fresh);
  renewChildren(old, fresh, kept);
}

// `fresh` is used up. `kept`: an element that stays as it is. If what had the focus is gone, what is in its place has it.
export function renew(old, fresh, kept = null) {
  const active = old.contains(document.activeElement) ? document.activeElement : null;
  const at = active ? [...old.querySelectorAll(FOCUSABLE)].indexOf(active) : -1;
  renewNode(old, fresh, kept);
  if (!active || document.activeElement === active) return;
  const others = [...old.querySelectorAll(FOCUSABLE)];
  (active.isConnected ? active : others[Math.min(at, others.length - 1)])?.focus({ preventScroll: true });
}
