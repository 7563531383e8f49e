// The header channel in a browser: keeps the session token, sends it, replaces it when the server swaps it, and shares
// it among the tabs. No dependencies; ES2018. Include it from the session router, before the OTPLESS SDK:
//
//   <script src="/auth/client.js"></script>
//
// The page of another origin includes it from the API: its requests go to where the script came from.
//
//   otplessSession.signIn(otplessUser)          a promise of the session; the SDK's callback does it unless you have one
//   otplessSession.fetch(path, options)         as fetch
//   otplessSession.socket(path, protocols)      as new WebSocket
//   otplessSession.signOut({ everywhere })      ends the session, in all tabs; `everywhere`: all of the user's sessions
//   otplessSession.on(event, listener)          returns a function that takes the listener off again
//   otplessSession.signedIn                     whether there is a token
//
// Events, in every tab: "signed-in" (also when somebody else did), "signed-out" with { code }: why the server ended it,
// or null for a sign-out; and "sign-in-failed" with the error, where the SDK's callback is ours.
// Errors have `code` and `status` of the server's refusal; `code` is null where the application has a body of its own.
(function () {
  "use strict";

  const HEADER = "X-Session-Token"; // the server puts the name from its settings here
  const AS_BEARER = false; // and here whether it does not read that header: it answers in it all the same
  const SUBPROTOCOL = "otpless-session";
  const POLICY_VIOLATION = 1008;
  const UNSAID = { credentials: "same-origin", redirect: "follow" }; // what a Request has whether it was told so or not

  // Only its own address tells where the API is. A copy in a bundle has none, and is of no use beside the router's.
  const found = /^([^?#]*\/)client\.js(?:[?#]|$)/.exec((document.currentScript || {}).src || "");
  if (!found && window.otplessSession) return;
  if (!found) throw new Error('client.js: include it with <script src="…/client.js">, not in a bundle or as a module');
  const base = new URL(found[1]);
  const key = "otpless-session-token " + base.href;
  if (window[key]) return; // included twice: the first has the page's listeners, and the SDK calls it back
  window[key] = true;

  const listeners = { "signed-in": [], "signed-out": [], "sign-in-failed": [] };

  let storage = usableStorage();
  let isSigningOut = false;
  let known = storage ? storage.getItem(key) : null; // the token that this tab knew last

  /** Return localStorage, full or not, or null where there is none: then each tab keeps its own token. */
  function usableStorage() {
    try {
      window.localStorage.getItem(key);
      return window.localStorage;
    } catch (error) {
      return null;
    }
  }

  function read() {
    return storage ? storage.getItem(key) : known;
  }

  function write(token, code) {
    const before = read();
    known = token;
    try {
      if (storage && token) storage.setItem(key, token);
      else if (storage) storage.removeItem(key);
    } catch (error) {
      replace(token);
    }
    tell(before, token, isSigningOut ? null : code); // a websocket may hear of the end first
  }

  /** Write where it is full. The old token must not stay: another tab that sends it may end the session. */
  function replace(token) {
    try {
      storage.removeItem(key);
      storage.setItem(key, token);
    } catch (error) {
      storage = null; // this tab goes on by itself
    }
  }

  function claims(token) {
    try {
      return JSON.parse(atob(token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/")));
    } catch (error) {
      return {};
    }
  }

  function sessionOf(token) {
    return token && (claims(token).sessionId || claims(token).sub || token);
  }

  /** Whether one token of a session was issued after another. */
  function isNewer(one, other) {
    const [a, b] = [claims(one), claims(other)];
    return sessionOf(one) === sessionOf(other) && (a.iat !== b.iat ? a.iat > b.iat : a.exp > b.exp);
  }

  /** Tell the page, unless the token was only swapped. */
  function tell(before, after, code) {
    if (sessionOf(before) === sessionOf(after)) return;
    if (after) emit("signed-in");
    else emit("signed-out", { code: code || null });
  }

  function emit(name, detail) {
    listeners[name].slice().forEach((listener) => {
      try {
        listener(detail);
      } catch (error) {
        setTimeout(() => { throw error; }); // the page's own; it must not keep us from going on
      }
    });
  }

  /** See what another tab did meanwhile. */
  function look() {
    const [before, after] = [known, read()];
    if (before && after && isNewer(before, after)) {
      write(before); // two tabs wrote at once, and the older token came last
    } else {
      known = after;
      tell(before, after);
    }
  }

  /** Keep a token that came in answer to a request with `sent`, unless another tab has a newer one or signed out. */
  function keep(token, sent) {
    const current = read();
    if (!current || sessionOf(token) !== sessionOf(sent)) return; // a cache may answer with somebody else's
    if (current === sent ? !isNewer(current, token) : isNewer(token, current)) write(token);
  }

  function isOver(code) {
    return /^session_(?!unavailable)/.test(code || "");
  }

  /** A 401 is the end of the session if it is ours, and about the token that we still have. */
  async function checkRefusal(response, sent) {
    const { code } = await detail(response.clone());
    const isSignIn = code === "sign_in_refused" || response.url.split("?")[0] === base.href + "login";
    if (isSignIn) return; // which says nothing of the session that there is
    const isOurs = isOver(code) || /realm="otpless"/.test(response.headers.get("WWW-Authenticate") || "");
    if (isOurs && sent && read() === sent) write(null, code || "session_invalid"); // a challenge says no more
  }

  /** What a refusal says; nothing, where the application has a body of its own. */
  async function detail(response) {
    try {
      const { code, message } = (await response.json()).detail;
      return typeof code === "string" ? { code, message } : {};
    } catch (error) {
      return {};
    }
  }

  async function refusal(response) {
    const { code, message } = await detail(response);
    return Object.assign(new Error(message || "The server answered " + response.status), {
      code: code || null,
      status: response.status,
    });
  }

  function address(path) {
    const url = new URL(path, base.origin);
    const origin = url.origin.replace(/^ws/, "http");
    if (origin !== base.origin) throw new TypeError("The token is for " + base.origin + ", not for " + origin);
    return url;
  }

  /**
   * As fetch, for paths of the API. Cookies stay out of it: a cookie with another session would be a conflict. Redirects
   * are not followed, unless the options say so: the browser would take the token along, to other origins, too. What a
   * Request says of itself holds as well, but for UNSAID.
   */
  async function call(input, options) {
    const isRequest = input instanceof Request;
    const target = isRequest ? (address(input.url), input) : address(input);
    const given = options || {};
    // A browser lets no token into such a request, without a word: its answer is not about our session.
    if ((given.mode || (isRequest && input.mode)) === "no-cors") return fetch(target, options);
    const said = (name) => given[name] || (isRequest && input[name] !== UNSAID[name] && input[name]);
    const careful = { credentials: said("credentials") || "omit", redirect: said("redirect") || "manual" };
    // With any options at all, a browser forgets these two of a Request.
    const kept = isRequest ? { referrer: input.referrer, referrerPolicy: input.referrerPolicy } : {};
    const request = new Request(target, Object.assign(kept, given, careful));
    const sent = read();
    if (sent && AS_BEARER) request.headers.set("Authorization", "Bearer " + sent);
    else if (sent) request.headers.set(HEADER, sent);
    const response = await fetch(request);
    if (response.type === "opaqueredirect" && !said("redirect")) {
      throw new Error(request.url + " answered with a redirect, which is not followed: the token would go along. Ask " +
        'for where it leads (a "/" more or less?), or pass { redirect: "follow" } where that is on this server');
    }
    const token = response.headers.get(HEADER);
    if (token) keep(token, sent);
    else if (response.status === 401) await checkRefusal(response, sent);
    return response;
  }

  async function signIn(otplessUser) {
    const response = await call(base.href + "login?channel=header", {
      method: "POST",
      headers: { "Content-Type": "application/json", Accept: "application/json" },
      body: JSON.stringify(otplessUser),
    });
    if (!response.ok) throw await refusal(response);
    const token = response.headers.get(HEADER);
    if (!token) throw new Error("No " + HEADER + " to read: list it in CORSMiddleware's expose_headers");
    write(token);
    return response.json();
  }

  /** End the session here only once the server has: a sign-out that failed is not to look like one. */
  async function signOut(options) {
    const sent = read();
    if (!sent) return;
    const path = options && options.everywhere ? "logout-all" : "logout";
    isSigningOut = true;
    try {
      const response = await call(base.href + path, { method: "POST", headers: { Accept: "application/json" } });
      const isThere = sessionOf(read()) === sessionOf(sent); // a 401 of ours has taken it away
      if (isThere && !response.ok) throw await refusal(response);
      if (isThere) write(null);
    } finally {
      isSigningOut = false;
    }
  }

  function socket(path, protocols) {
    const url = address(path);
    url.protocol = url.protocol.replace("http", "ws");
    const token = read();
    if (token && AS_BEARER) throw new Error("A websocket can only bring the token where OTPLESS_TOKEN_SOURCES has header");
    const opened = new WebSocket(url.href, (token ? [SUBPROTOCOL, token] : []).concat(protocols || []));
    let wasOpen = false;
    opened.addEventListener("open", () => (wasOpen = true));
    opened.addEventListener("close", ({ code, reason }) => {
      if (!token || sessionOf(read()) !== sessionOf(token)) return;
      if (code === POLICY_VIOLATION && isOver(reason)) write(null, reason);
      else if (!wasOpen) call(base.href + "session").catch(() => {}); // why, a page cannot read
    });
    return opened;
  }

  function on(name, listener) {
    if (!listeners[name]) throw new TypeError("There is no event " + name);
    listeners[name].push(listener);
    return () => (listeners[name] = listeners[name].filter((each) => each !== listener));
  }

  window.addEventListener("storage", (event) => {
    if (storage && (event.key === key || event.key === null)) look();
  });
  window.addEventListener("pageshow", look); // back from the browser's cache, which no event reaches
  if (typeof window.otpless !== "function") {
    window.otpless = (otplessUser) => {
      signIn(otplessUser).catch((error) => emit("sign-in-failed", error));
    };
  }
  window.otplessSession = Object.freeze({
    signIn, signOut, fetch: call, socket, on,
    get signedIn() { return Boolean(read()); },
  });
})();
