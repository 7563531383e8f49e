"use strict";

const API = "/_emulator/";
const MOST_CALLS = 500;
const MADE_UP = ["Asha", "Ravi", "Meera", "Kabir", "Leela", "Arjun", "Nila", "Dev"];
const STATUSES = {
  "503 Service Unavailable": { status: 503 },
  "500 Internal Server Error": { status: 500 },
  "429 with Retry-After: 5": { status: 429, headers: { "Retry-After": "5" } },
  "401 without a code: our credentials": { status: 401 },
  "403 Forbidden": { status: 403 },
  "404 Not Found": { status: 404 },
};

const byId = (id) => document.getElementById(id);

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const clockTime = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hourCycle: "h23" });
const shortPath = (path) => path.replace(/^.*\/(?!token$)/, "").replace(/^\/auth\/v1\//, "");
const short = (id, length = 8) => id.length > length ? id.slice(0, length) + "…" : id;

function lifetime(seconds) {
  const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const whole = Math.max(0, Math.ceil(seconds));
  const first = units.findIndex(([size]) => whole >= size);
  if (first < 0) return "0 s";
  const [size, name] = units[first];
  const rest = units[first + 1] ? Math.floor((whole % size) / units[first + 1][0]) : 0;
  return `${Math.floor(whole / size)} ${name}` + (rest ? ` ${rest} ${units[first + 1][1]}` : "");
}

/** The same colour wherever a session appears. */
function dot(sessionId) {
  const made = element("span", { className: "dot" });
  if (sessionId) made.style.setProperty("--dot", `hsl(${parseInt(sessionId.slice(0, 4), 16) % 360} 65% 50%)`);
  return made;
}

// Commands: what a button does is one request to the control API, and can be copied as a curl line.

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

function curl({ method, path, body }) {
  const start = method === "POST" ? "curl" : `curl -X ${method}`;
  const data = method === "POST" ? ` -d ${quoted(JSON.stringify(body ?? {}))}` : "";
  return `${start} ${location.origin}${API}${path}${data}`;
}

function say(text, bad = false) {
  byId("said").textContent = text;
  byId("said").classList.toggle("bad", bad);
}

async function run(command, label) {
  byId("command").textContent = curl(command);
  try {
    const body = command.method === "POST" ? JSON.stringify(command.body ?? {}) : undefined;
    const response = await fetch(API + command.path, { method: command.method, body });
    const answer = await response.json();
    say(response.ok ? `${label}: done.` : `${label}: ${answer.message}`, !response.ok);
    return response.ok ? answer : null;
  } catch {
    say(`${label}: the emulator does not answer.`, true);
    return null;
  }
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    say(`${what} copied.`);
  } catch { // not on https or localhost: the browser only lets people copy by themselves
    byId("command").textContent = text;
    getSelection().selectAllChildren(byId("command"));
    say(`${what} is selected below: copy it from there.`);
  }
}

/** A button and the copying of its curl line. `command` makes the command; `after` gets the answer. */
function action(label, command, { about = "", bad = false, after = () => {}, submit = false } = {}) {
  const name = about ? `${label}, ${about}` : label;
  const act = async () => {
    const answer = await run(command(), label);
    if (answer) after(answer);
  };
  const button = element("button", { type: submit ? "submit" : "button", textContent: label, className: bad ? "bad" : "" });
  const line = element("button", { type: "button", textContent: "curl", title: "Copy as a curl line" });
  button.setAttribute("aria-label", name);
  line.setAttribute("aria-label", `Copy the curl line of ${name}`);
  const show = () => (byId("command").textContent = curl(command()));
  [button, line].forEach((each) => ["focus", "pointerenter"].forEach((event) => each.addEventListener(event, show)));
  line.addEventListener("click", () => copy(curl(command()), "The curl line"));
  if (!submit) button.addEventListener("click", act);
  const made = element("span", { className: "split" }, button, line);
  made.act = act;
  made.enable = (on) => (button.disabled = !on);
  return made;
}

/** Keeps the nodes of a list, so that the focus and selections survive a change. */
function keyed(list, make) {
  const rows = new Map();
  return (items, keyOf) => {
    const wanted = new Set(items.map(keyOf));
    for (const [key, row] of rows) {
      if (!wanted.has(key)) {
        row.node.remove();
        rows.delete(key);
      }
    }
    items.forEach((item, index) => {
      const key = keyOf(item);
      if (!rows.has(key)) rows.set(key, make(item));
      const row = rows.get(key);
      row.update?.(item);
      if (list.children[index] !== row.node) list.insertBefore(row.node, list.children[index] ?? null);
    });
    const none = byId("no-" + list.id);
    if (none) none.hidden = items.length > 0;
  };
}

// The phone

const drawMessages = keyed(byId("messages"), (message) => {
  const button = element("button", { type: "button", textContent: "Copy" });
  button.setAttribute("aria-label", `Copy the code ${message.otp}`);
  button.addEventListener("click", () => copy(message.otp, "The code"));
  const node = element("li", {},
    element("small", { textContent: `${message.channel} to ${message.to}` }),
    element("div", { className: "row" }, element("span", { className: "otp", textContent: message.otp }), button),
    element("small", { textContent: clockTime(message.at) }));
  return { node };
});

// Sessions

let ahead = 0; // by how many seconds the emulator's clock is ahead of this one
const emulatorNow = () => Date.now() / 1000 + ahead;

function tokenLine(name) {
  const shortened = element("span", { className: "mono" });
  const bar = element("progress", {});
  bar.setAttribute("aria-hidden", "true");
  const left = element("span", {});
  let token = null;
  const tick = () => {
    const seconds = token ? token.expiresAt - emulatorNow() : 0;
    bar.max = token ? token.lifetime : 1;
    bar.value = Math.max(0, Math.min(seconds, bar.max));
    left.textContent = seconds > 0 ? lifetime(seconds) : "dead";
  };
  return {
    node: element("div", { className: "token" }, element("span", { textContent: name }), shortened, bar, left),
    tick,
    update(found) {
      token = found;
      shortened.textContent = token ? token.shortened : "–";
      tick();
    },
  };
}

function standing(session) {
  if (session.revoked) return ["revoked", "bad"];
  if (session.sessionToken) return session.foreign ? ["another merchant's", "warn"] : ["live", "good"];
  return session.refreshToken ? ["expired, can be renewed", "warn"] : ["expired", "bad"];
}

const ticking = new Set();

const hasEnded = (session) => session.revoked || !(session.sessionToken || session.refreshToken);

function sessionCard({ sessionId, userId, knownAs, startedAt }) {
  const badge = element("span", {});
  const generation = element("span", {});
  const tokens = [tokenLine("Session token"), tokenLine("Refresh token")];
  const on = (path, label, bad) =>
    action(label, () => ({ method: "POST", path, body: { sessionId } }), { about: `session ${short(sessionId)} of ${knownAs}`, bad });
  const [expire, kill, revoke] = [on("expire", "Expire"), on("kill-refresh", "Kill refresh"), on("revoke", "Revoke", true)];
  const node = element("li", {},
    element("div", { className: "title" }, dot(sessionId), element("b", { textContent: knownAs, title: knownAs }), badge),
    element("div", { className: "ids" },
      element("code", { textContent: short(sessionId), title: `session id ${sessionId}` }),
      element("code", { textContent: short(userId, 11), title: `user id ${userId}` }),
      element("span", { textContent: `since ${clockTime(startedAt)}` }), generation),
    ...tokens.map((line) => line.node),
    element("div", { className: "row" }, expire, kill, revoke));
  return {
    node,
    update(session) {
      const [text, kind] = standing(session);
      Object.assign(badge, { textContent: text, className: `badge ${kind}` });
      generation.textContent = session.generation > 1 ? `generation ${session.generation}` : "";
      tokens[0].update(session.sessionToken);
      tokens[1].update(session.refreshToken);
      expire.enable(session.sessionToken);
      kill.enable(session.refreshToken);
      revoke.enable(!session.revoked);
      tokens.forEach((line) => ticking.add(line));
    },
  };
}

const drawSessions = keyed(byId("sessions"), sessionCard);
const drawEnded = keyed(byId("ended"), sessionCard);

function showSessions(sessions) {
  const ended = sessions.filter(hasEnded);
  const hadFocus = byId("sessions").contains(document.activeElement);
  drawSessions(sessions.filter((session) => !hasEnded(session)), (session) => session.sessionId);
  drawEnded(ended, (session) => session.sessionId);
  byId("ended-count").textContent = `${ended.length} ended`;
  byId("ended-sessions").hidden = ended.length === 0;
  // The button that ended a session went with it.
  if (hadFocus && document.activeElement === document.body) byId("ended-count").focus();
}

setInterval(() => ticking.forEach((line) => (line.node.isConnected ? line.tick() : ticking.delete(line))), 1000);

// Calls

const known = new Map();
let paused = false;

function statusKind(call) {
  if (!call.status) return "warn";
  return call.status < 300 && call.outcome !== "success: false" ? "good" : "bad";
}

const drawCalls = keyed(byId("calls"), (item) => {
  if (item.gap) return { node: element("li", { className: "gap" }), update({ gap }) { this.node.textContent = `${gap} more that came too fast to show`; } };
  const badge = element("span", {});
  const outcome = element("span", { className: "outcome" });
  const took = element("span", { className: "took" });
  const whose = element("span", { className: "whose" });
  const node = element("li", {},
    element("span", { className: "at", textContent: clockTime(item.at) }),
    element("code", { textContent: shortPath(item.path), title: item.path }), whose, badge, outcome, took);
  return {
    node,
    update(call) {
      Object.assign(badge, { textContent: call.status || "…", className: `badge ${statusKind(call)}` });
      outcome.textContent = [call.outcome, call.fault && `fault: ${call.fault}`].filter(Boolean).join(" · ") || (call.status ? "" : "not answered yet");
      took.textContent = call.took === null ? "" : `${(call.took * 1000).toFixed(call.took < 0.01 ? 1 : 0)} ms`;
      if (call.sessionId && !whose.hasChildNodes()) whose.append(dot(call.sessionId), " ", element("code", { textContent: short(call.sessionId, 6) }));
    },
  };
});

function rememberCalls({ calls, counts }) {
  if (!Object.keys(counts).length) known.clear();
  // Numbers start anew with a restarted emulator.
  if (calls.length && Math.max(...known.keys(), 0) > calls[0].number) known.clear();
  calls.forEach((call) => known.set(call.number, call));
  const numbers = [...known.keys()].sort((one, other) => other - one);
  numbers.splice(MOST_CALLS).forEach((number) => known.delete(number));
  if (!paused) showCalls(numbers, counts);
  showConnection(numbers.length > 0);
}

let isConnected = null; // whether an application has found the emulator, so that it need not be told how to

function showConnection(hasCalls) {
  const before = isConnected;
  isConnected = isConnected || hasCalls;
  if (isConnected !== before) byId("connection").open = !isConnected;
}

function showCalls(numbers, counts) {
  const rows = [];
  numbers.forEach((number, index) => {
    if (index && numbers[index - 1] - number > 1) rows.push({ number: `gap ${number}`, gap: numbers[index - 1] - number - 1 });
    rows.push(known.get(number));
  });
  drawCalls(rows, (call) => call.number);
  byId("counts").replaceChildren(...Object.entries(counts).map(([path, count]) =>
    element("span", { className: "badge", textContent: `${shortPath(path)} ${count}` })));
}

// Trouble

const trouble = byId("trouble");

function fault(kind) {
  const { path, times, skip, status } = Object.fromEntries(new FormData(trouble));
  const body = { kind };
  if (path) body.path = path;
  if (times) body.times = Number(times);
  if (Number(skip)) body.skip = Number(skip);
  return { method: "POST", path: "faults", body: kind === "status" ? { ...body, ...STATUSES[status] } : body };
}

function slow() {
  const { path, seconds } = Object.fromEntries(new FormData(trouble));
  return { method: "POST", path: "latency", body: path ? { path, seconds: Number(seconds) } : { seconds: Number(seconds) } };
}

async function tellHowToConnect() {
  const told = await (await fetch(API + "settings")).json();
  for (const [name, what] of [["settings", "The list of settings"], ["script", "The script's tag"]]) {
    const button = element("button", { type: "button", textContent: "Copy" });
    button.setAttribute("aria-label", `Copy ${what.toLowerCase()}`);
    button.addEventListener("click", () => copy(told[name], what));
    byId(name).textContent = told[name];
    byId("copy-" + name).replaceChildren(button);
  }
}

async function listKinds() {
  const { kinds, paths } = await (await fetch(API + "faults")).json();
  trouble.elements.path.replaceChildren(
    element("option", { value: "", textContent: "all of them" }),
    ...paths.map((path) => element("option", { value: path, textContent: shortPath(path) })));
  byId("kinds").replaceChildren(...Object.entries(kinds).map(([kind, sentence]) => element("li", {},
    element("div", { className: "title" },
      element("code", { textContent: kind }), action("Fail", () => fault(kind), { about: `kind ${kind}`, bad: true })),
    element("p", { textContent: sentence }))));
}

const drawArmed = keyed(byId("armed"), () => ({
  node: element("li", {}),
  update({ text }) {
    this.node.textContent = text;
  },
}));

function faultText({ kind, path, status, skip, left }) {
  const what = kind === "status" ? `${kind} ${status}` : kind;
  const spared = skip ? `, after ${skip} more` : "";
  return `${what}: ${path ? shortPath(path) : "all calls"}${spared}, ${left === null ? "until cleared" : `${left} left`}`;
}

function showTrouble({ faults, latency }) {
  const delays = Object.entries(latency).filter(([, seconds]) => seconds > 0);
  const rows = [
    ...faults.map((each) => ({ text: faultText(each) })),
    ...delays.map(([path, seconds]) => ({ text: `slower by ${seconds} s: ${path === "*" ? "all calls" : shortPath(path)}` })),
  ].map((row, index) => ({ ...row, index }));
  drawArmed(rows, (row) => row.index);
  byId("now").hidden = rows.length === 0;
  clearFaults.hidden = faults.length === 0;
  ends.replaceChildren(...delays.map(([path]) => action("Full speed", () => ({
    method: "POST", path: "latency", body: path === "*" ? { seconds: 0 } : { path, seconds: 0 } }),
  { about: path === "*" ? "all calls" : shortPath(path) })));
}

// Signing in

const signIn = byId("sign-in");

function makeUp() {
  const digits = String(Math.floor(Math.random() * 1e5)).padStart(5, "0");
  signIn.elements.name.value = MADE_UP[Math.floor(Math.random() * MADE_UP.length)];
  signIn.elements.mobile.value = "9199999" + digits;
}

function newcomer() {
  const given = Object.fromEntries([...new FormData(signIn)].filter(([, value]) => value !== ""));
  const body = { ...given, mobile: given.mobile ?? null };
  for (const name of ["session_lifetime", "refresh_lifetime"]) {
    if (name in given) body[name] = Number(given[name]);
  }
  if ("foreign" in given) body.foreign = true;
  return { method: "POST", path: "sign_in", body };
}

function welcome(user) {
  const button = element("button", { type: "button", textContent: "Copy the SDK's object" });
  button.title = "What a sign-in page sends to POST /auth/login";
  button.addEventListener("click", () => copy(JSON.stringify(user), "The SDK's object"));
  const whom = user.identities[0]?.name || user.userId;
  byId("signed-in").replaceChildren(`${whom} is signed in: session ${short(user.sessionInfo.sessionId)}`, button);
  byId("signed-in").hidden = false;
  makeUp();
}

// The page

const signInAction = action("Sign in", newcomer, { submit: true, after: welcome });
byId("sign-in-actions").append(signInAction);
signIn.addEventListener("submit", (event) => {
  event.preventDefault();
  signInAction.act();
});
const slowAction = action("Slow down", slow, { submit: true });
byId("slow-actions").append(slowAction);
trouble.addEventListener("submit", (event) => {
  event.preventDefault();
  slowAction.act();
});
trouble.elements.status.append(...Object.keys(STATUSES).map((text) => element("option", { textContent: text })));
byId("rotate").append(action("Rotate key", () => ({ method: "POST", path: "rotate-key" })));
const clearFaults = action("Clear the faults", () => ({ method: "DELETE", path: "faults" }));
const ends = element("span", { className: "row" });
byId("now-actions").append(clearFaults, ends);
const pause = element("button", { type: "button", textContent: "Pause" });
pause.setAttribute("aria-pressed", "false");
pause.addEventListener("click", () => {
  paused = !paused;
  pause.setAttribute("aria-pressed", String(paused));
  if (!paused && last.calls) rememberCalls(last.calls);
});
byId("call-actions").append(pause, action("Forget", () => ({ method: "DELETE", path: "calls" }), { about: "all calls" }));

const last = {};
const shown = {
  state(news) {
    ahead = news.now - Date.now() / 1000;
    drawMessages(news.inbox, (message) => `${message.at} ${message.to} ${message.otp}`);
    showSessions(news.sessions);
    const hidden = news.sessionCount - news.sessions.length;
    byId("session-count").textContent = `${news.sessionCount}${hidden ? `, the newest ${news.sessions.length} shown` : ""}`;
    byId("kid").textContent = news.kid;
    showTrouble(news);
  },
  calls: rememberCalls,
};

let source = null;
let retry = 0;

function link(text, live) {
  if (byId("link").textContent !== text) byId("link").textContent = text;
  byId("link").classList.toggle("live", live);
}

function connect() {
  clearTimeout(retry);
  source?.close();
  source = new EventSource(API + "events");
  source.addEventListener("open", () => {
    link("Live", true);
    if (!byId("kinds").hasChildNodes()) listKinds();
    tellHowToConnect(); // anew, for an emulator that was started again may have other options
  });
  source.addEventListener("error", () => {
    link("The emulator does not answer. Is it still running?", false);
    // Browsers try again after a lost connection, but not after an answer that they did not expect.
    if (source.readyState === EventSource.CLOSED) retry = setTimeout(connect, 1000);
  });
  for (const [name, show] of Object.entries(shown)) {
    source.addEventListener(name, (event) => show((last[name] = JSON.parse(event.data))));
  }
}

// A browser opens six connections to a host at most: a page that nobody sees leaves its own to others.
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) {
    connect();
  } else {
    source?.close();
    link("Paused while hidden", false);
  }
});

makeUp();
connect();
