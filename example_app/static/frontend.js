// Frontend-driven: the OTPLESS SDK keeps and renews the tokens, and the server only checks what it is sent.
"use strict";

let token = null;
const frontendTabs = "BroadcastChannel" in window ? new BroadcastChannel("chai-corner-frontend") : null;

/** Lets the SDK find a living token. Without one the SDK has forgotten the session, or OTPLESS can't be reached. */
async function renew() {
  const session = await OTPlessVerifySession();
  const before = token;
  token = session.success ? session.sessionToken : null;
  if (before && token && before !== token) flash("The SDK renewed your token just now — you didn't notice.", "good");
  return token;
}

async function send(path, options = {}) {
  const attempt = () => {
    const headers = new Headers(options.headers);
    if (token) headers.set("X-Session-Token", token);
    return fetch(path, { ...options, headers, credentials: "omit", redirect: "error" });
  };
  const answer = await attempt();
  if (answer.status !== 401) return answer;
  if (await renew()) return attempt();
  leave("session_expired");
  return answer;
}

async function signOut() {
  const answer = await send("/auth/logout", { method: "POST" }); // holds at once, on every worker
  if (!answer.ok) throw new Error("You could not be signed out. Try again.");
  frontendTabs?.postMessage("signed-out");
  await OTPlessLogout();
  leave();
}

const app = new App({
  fetch: send,
  socket: (path) => new WebSocket(location.origin.replace("http", "ws") + path, ["otpless-session", token]),
  signOut,
  // Ended here is the end, even while OTPLESS has yet to hear of it.
  isSignedIn: async (reason) => reason !== "session_revoked" && Boolean(await renew()),
});

frontendTabs?.addEventListener("message", () => leave());

/** The headless form calls this when somebody has signed in; a promise of whether the SDK has their session. */
window.otpless = async () => {
  const found = Boolean(await renew());
  if (found) await app.open();
  else flash("You could not be signed in. Try again.", "bad");
  return found;
};

renew().then((found) => {
  if (found) app.open();
  else find("sign-in-view").hidden = false;
});
