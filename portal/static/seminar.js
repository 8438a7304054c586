// The organiser's page: renews the participants every few seconds while it is seen.

import { renew } from "./renew.js";

const EVERY = 5000; // ms
const area = document.querySelector("[data-participants]");

async function look() {
  if (document.hidden) return;
  try {
    const answer = await fetch(area.dataset.participants, { headers: { accept: "text/html" }, redirect: "manual" });
    if (!answer.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("[data-participants]");
    if (fresh) renew(area, fresh);
  } catch {
    // The server is away: what was last seen stays, and the next round asks again.
  }
}

setInterval(look, EVERY);
