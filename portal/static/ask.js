// A question typed on another page opens the playground filled in. It goes by the address's fragment, which no server
// receives; portal/static/try/prefill.js reads it, where all members are.

// What JSON.stringify writes, as UTF-8 in URL-safe base64: the form of `playground_link` in portal/keys.
function encode(filled) {
  const bytes = new TextEncoder().encode(JSON.stringify(filled));
  const text = Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

for (const form of document.querySelectorAll("[data-ask]")) {
  const question = form.querySelector("[data-question]");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    location.assign(`${form.action}#prefill=${encode({ prompt: question.value })}`);
  });
  question.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
}
