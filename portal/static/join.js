// A QR code has the seminar's code in the fragment, which no server and no log receives: fill it in, and forget it.
const field = document.querySelector("[name=code]");
const code = decodeURIComponent(location.hash.slice(1));
if (/^[A-Za-z0-9-]{16,40}$/.test(code)) {
  if (!field.value) field.value = code;
  history.replaceState(null, "", location.pathname + location.search);
}
