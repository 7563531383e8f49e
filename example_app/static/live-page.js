// The cookie shop's live page: browsers send the cookie with the handshake.
"use strict";

follow({
  open: () => new WebSocket(location.origin.replace("http", "ws") + "/live/orders"),
  isSignedIn: async () => (await call("GET", "/auth/session")).status !== 401,
  heard: ({ orders }) => showOrders(orders),
  over: askToSignIn,
});
