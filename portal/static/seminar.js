// The organiser's page: renews the participants every few seconds while it is seen.
const EVERY = 5000; // ms
const area = document.querySelector("[data-participants]");

async function renew() {
  if (document.hidden) return;
  try {
    const answer = await fetch(location.pathname, { headers: { accept: "text/html" }, redirect: "manual" });
    if (!answer.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("[data-participants]");
    if (fresh) area.replaceChildren(...document.adoptNode(fresh).childNodes);
  } catch {
    // The server is away: what was last seen stays, and the next round asks again.
  }
}

setInterval(renew, EVERY);
