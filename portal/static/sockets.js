// Sockets on which the server tells what is new. Imported by its plain name, which storages of static files keep beside
// the one with a hash.

const FIRST_RETRY = 1000, LAST_RETRY = 30000; // ms
const SILENCE = 45000; // ms; the server says something every 15 s: a socket that is silent for longer is dead

// Calls `message` with each message, `closed` when the socket is away (true: for good), and connects again by itself.
export function connect(path, { opened, message, closed }) {
  let delay = FIRST_RETRY;
  const open = () => {
    const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}${path}`);
    let heard;
    const hear = () => { clearTimeout(heard); heard = setTimeout(() => socket.close(), SILENCE); };
    socket.addEventListener("open", () => { delay = FIRST_RETRY; hear(); opened(); });
    socket.addEventListener("message", (event) => { hear(); message(JSON.parse(event.data)); });
    socket.addEventListener("close", () => {
      clearTimeout(heard);
      if (closed()) return;
      setTimeout(open, delay * (0.5 + Math.random() / 2));
      delay = Math.min(2 * delay, LAST_RETRY);
    });
    // One that is still connecting ends with its page; closing it now would be an error on the console.
    addEventListener("pagehide", () => { if (socket.readyState === WebSocket.OPEN) socket.close(); }, { once: true });
  };
  open();
}
