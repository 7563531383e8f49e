// A websocket that stays: it is opened again when the connection was lost, and not when the session is over.
"use strict";

const LONGEST_PAUSE = 15_000;
const STATES = {
  connecting: "Connecting …",
  open: "Live. New orders appear by themselves.",
  lost: "Connection lost. Trying again …",
  over: "Your session is over.",
};

/**
 * `open()` gives the websocket. `isSignedIn(reason)`, a promise, is asked when it was closed: the server may have said
 * why, but of a handshake that failed browsers tell a page nothing. `over(reason)` is called once, when the session has ended.
 */
function follow({ open, isSignedIn, heard, over }) {
  const place = document.getElementById("live-state");
  let failures = 0;

  function show(state) {
    place.dataset.state = state;
    place.textContent = STATES[state];
  }

  async function lost({ reason }) {
    if (!(await isSignedIn(reason))) {
      show("over");
      over(reason || "session_expired");
      return;
    }
    show("lost");
    failures += 1;
    setTimeout(connect, Math.min(LONGEST_PAUSE, 250 * 2 ** failures));
  }

  function connect() {
    const socket = open();
    socket.addEventListener("message", ({ data }) => {
      failures = 0;
      show("open");
      heard(JSON.parse(data));
    });
    socket.addEventListener("close", lost);
  }

  show("connecting");
  connect();
}

/** An order as a line of a list. */
function orderLine({ number, name, price, placed_at }) {
  const line = document.createElement("li");
  const [what, when] = [document.createElement("strong"), document.createElement("span")];
  what.textContent = `#${number} ${name}`;
  when.textContent = `${price} · ${localTime(placed_at)}`;
  when.className = "soft";
  line.append(what, " ", when);
  return line;
}

function showOrders(orders) {
  document.getElementById("order-list").replaceChildren(...orders.map(orderLine));
  document.getElementById("no-orders").hidden = orders.length > 0;
}
