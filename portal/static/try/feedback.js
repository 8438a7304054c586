// A thumb for an answer, and a sentence if a person likes to write one. Only these go to the server: never the answer.

import { button, element, say } from "./words.js";

const MOST_COMMENT = 1000; // characters
const root = document.querySelector("[data-playground]");

const SVG = "http://www.w3.org/2000/svg";
const THUMB = "M7 10.500v9.500H3.500V10.500zM7 10.500l3.800-7.500c1.700 0 2.800 1.200 2.500 2.900l-.7 3.600h5.700a2 2 0 0 1 2 2.400"
  + "l-1.300 6.400a2 2 0 0 1-2 1.700H7";

function drawThumb() {
  const drawn = document.createElementNS(SVG, "svg"), path = document.createElementNS(SVG, "path");
  drawn.setAttribute("viewBox", "0 0 24 24");
  drawn.setAttribute("aria-hidden", "true");
  path.setAttribute("d", THUMB);
  drawn.append(path);
  return drawn;
}

async function give(place, score, comment) {
  const { requestId, model, useCase, version } = place.dataset;
  const form = new FormData();
  const fields = { request_id: requestId, model, score, comment };
  if (useCase) Object.assign(fields, { use_case: useCase, version });
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  const token = root.querySelector("[name=csrfmiddlewaretoken]").value;
  const answer = await fetch(root.dataset.feedbackAddress, {
    method: "POST", body: form, headers: { "X-CSRFToken": token },
  });
  return answer.ok && !answer.redirected;
}

// Asks in `place`, a [data-feedback] with the id of the request and the model, and the use case that it came from.
export function askForVerdict(place) {
  const line = element("span", "hint"), thumbs = {};
  line.setAttribute("role", "status");
  line.dataset.verdict = "";
  let given = null;

  async function press(score, comment = "") {
    given = score;
    for (const [value, thumb] of Object.entries(thumbs)) thumb.setAttribute("aria-pressed", Number(value) === score);
    const done = await give(place, score, comment).catch(() => false);
    line.textContent = say(done ? "thanks" : "no-verdict");
    line.dataset.verdict = done ? score : "failed";
    if (done && !comment) showComment();
  }

  function showComment() {
    if (place.querySelector("form, input")) return;
    const field = element("input"), send = button("sendComment", say("send-comment"), submit);
    field.maxLength = MOST_COMMENT;
    field.dataset.comment = "";
    field.placeholder = say("comment");
    field.setAttribute("aria-label", say("comment"));
    function submit() {
      const text = field.value.trim();
      if (!text) { field.focus(); return; }
      field.remove();
      send.remove();
      press(given, text);
    }
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.isComposing) return;
      event.preventDefault(); // it would send the message
      submit();
    });
    place.append(field, send);
  }

  for (const [score, name] of [[1, "good"], [-1, "bad"]]) {
    thumbs[score] = button("thumb", "", () => press(score), "quiet icon");
    thumbs[score].append(drawThumb());
    thumbs[score].dataset.thumb = score;
    thumbs[score].setAttribute("aria-label", say(name));
    thumbs[score].setAttribute("aria-pressed", "false");
    thumbs[score].title = say(name);
  }
  place.replaceChildren(thumbs[1], thumbs[-1], line);
  place.hidden = false;
}
