// What all pages share: clocks, times, messages, and buttons that call the session router.
"use strict";

const flashes = document.getElementById("flashes");

/** Shows a message at the top of the screen, below what one click has said already; screen readers read it out. */
function flash(text, kind) {
  const line = document.createElement("p");
  line.className = "flash " + kind;
  line.textContent = text;
  [...flashes.children].filter((other) => other.textContent === text).forEach((other) => other.remove());
  flashes.append(line);
}

/** Forgets the messages: with the next click they are old. */
function clearFlashes() {
  flashes.replaceChildren();
}

/** Lets OTPLESS's script put its form into the page; again after a sign-in that failed, for its form is used up by then. */
function offerForm({ src, appId }) {
  const script = document.createElement("script");
  Object.assign(script, { id: "otpless-sdk", src });
  script.dataset.appid = appId;
  document.getElementById("otpless-sdk")?.remove();
  document.body.append(script);
}

/** Calls the application: {ok, status, message}. Status 0 means that there was no answer. */
async function call(method, url) {
  try {
    const answer = await fetch(url, { method, headers: { Accept: "application/json" } });
    const body = answer.ok ? {} : await answer.json();
    return { ok: answer.ok, status: answer.status, message: body.detail?.message ?? body.detail };
  } catch {
    return { ok: false, status: 0, message: "The shop can't be reached. Try again." };
  }
}

// The tabs of a browser share the cookie, but only a request would tell them that it is gone.
const tabs = "BroadcastChannel" in window ? new BroadcastChannel("chai-corner") : null;

function askToSignIn(why) {
  const next = location.pathname + location.search;
  location.assign("/sign-in?" + new URLSearchParams({ next, why }));
}

if (tabs && document.body.hasAttribute("data-signed-in")) {
  tabs.addEventListener("message", ({ data }) => data === "signed-out" && askToSignIn("signed_out"));
}

async function press(button) {
  const { method, url, done, killed } = button.dataset;
  button.disabled = true;
  clearFlashes();
  const answer = await call(method, url);
  button.disabled = false;
  if (answer.status === 401) {
    location.assign(done || location.href); // over already: the page itself says so
  } else if (!answer.ok) {
    flash(answer.message || "That didn't work. Try again.", "bad");
  } else if (killed) {
    showKilled(killed);
  } else {
    if (url.startsWith("/auth/logout")) tabs?.postMessage("signed-out");
    location.assign(done);
  }
}

/** Says that the token is dead, on the clocks too. */
function showKilled(text) {
  flash(text, "note");
  document.querySelectorAll("[data-expires-at]").forEach((clock) => (clock.dataset.expiresAt = "killed"));
  tick();
}

function remaining(expiresAt) {
  if (!expiresAt) return "…";
  if (expiresAt === "killed") return "0:00 (expired just now)";
  const seconds = Math.floor((Date.parse(expiresAt) - Date.now()) / 1000);
  if (seconds <= 0) return "0:00 (the next click renews it)";
  const two = (number) => String(number).padStart(2, "0");
  const hours = Math.floor(seconds / 3600);
  const minutes = Math.floor(seconds / 60) % 60;
  return (hours ? hours + ":" + two(minutes) : two(minutes)) + ":" + two(seconds % 60);
}

function tick() {
  for (const clock of document.querySelectorAll("[data-expires-at]")) {
    clock.textContent = remaining(clock.dataset.expiresAt);
  }
}

/** A moment in the visitor's own time zone. */
function localTime(text) {
  return new Date(text).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

for (const button of document.querySelectorAll("button[data-url]")) {
  button.addEventListener("click", () => press(button));
}
for (const time of document.querySelectorAll("time")) {
  time.textContent = localTime(time.dateTime);
}
for (const link of document.querySelectorAll("nav a")) {
  if (link.pathname === location.pathname && !link.hash) link.setAttribute("aria-current", "page");
}
if (["swapped", "again"].some((said) => new URLSearchParams(location.search).has(said))) {
  history.replaceState(null, "", location.pathname); // said once; not again after a reload
}
const retry = document.querySelector("[data-retry-after]");
if (retry) {
  setTimeout(() => location.assign(retry.href), retry.dataset.retryAfter * 1000);
}
// A page that comes back by the back button may show a session that is over.
addEventListener("pageshow", (event) => event.persisted && location.reload());
tick();
setInterval(tick, 1000);
