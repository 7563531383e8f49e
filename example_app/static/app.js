// The shop as one page, for frontends that send the token themselves. How they keep it is their `way`:
//   fetch(path, options), socket(path), signOut(), isSignedIn(): as their names say; all but isSignedIn return promises
"use strict";

const KILLED = "Your token is dead at OTPLESS. Now order something.";
const SWAPPED = "Your session token was swapped just now — you didn't notice.";
const find = (id) => document.getElementById(id);

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** The page for whoever is signed out, with the reason. */
function leave(code) {
  location.replace(location.pathname + "?" + new URLSearchParams({ why: code || "signed_out" }));
}

class App {
  constructor(way) {
    this.way = way;
    this.isOpen = false;
    this.isLeaving = false;
    document.querySelectorAll("[data-product]").forEach((button) => {
      button.addEventListener("click", () => this.busy(button, () => this.order(button.dataset.product)));
    });
    this.on("sign-out", () => this.signOut());
    this.on("sign-out-everywhere", () => this.signOut({ everywhere: true }));
    this.on("expire", async () => {
      if (await this.call("/demo/expire", { method: "POST" })) showKilled(KILLED);
    });
  }

  /** Signs out. The websocket may end before the next page is there: then that is no news. */
  async signOut(options) {
    this.isLeaving = true;
    try {
      await this.way.signOut(options);
    } catch (error) {
      this.isLeaving = false;
      throw error;
    }
  }

  on(id, act) {
    const button = find(id);
    if (button) button.addEventListener("click", () => this.busy(button, act));
  }

  async busy(button, act) {
    button.disabled = true;
    clearFlashes();
    try {
      await act();
    } catch (error) {
      flash(error.message || "The shop can't be reached. Try again.", "bad");
    }
    button.disabled = false;
  }

  /** Shows the shop to whoever is signed in. */
  async open() {
    const hadForm = !find("sign-in-view").hidden;
    find("sign-in-view").hidden = true;
    for (const id of ["app-view", "badge", "sign-out"]) find(id).hidden = false;
    if (hadForm) {
      clearFlashes(); // of a sign-in that failed
      find("app-view").querySelector("h1").focus(); // the form that had the focus is gone
    }
    await this.load();
    if (this.isOpen) return;
    this.isOpen = true;
    follow({
      open: () => this.way.socket("/live/orders"),
      isSignedIn: (reason) => this.way.isSignedIn(reason),
      heard: ({ orders }) => showOrders(orders),
      over: (code) => this.isLeaving || leave(code),
    });
  }

  /** Shows the sign-in form; OTPLESS's script is fetched only now. */
  askToSignIn() {
    const { sdkUrl, appId } = find("sign-in-view").dataset;
    find("sign-in-view").hidden = false;
    offerForm({ src: sdkUrl, appId });
  }

  /** Calls the application: its JSON, or null where it refused, which is shown. */
  async call(path, options = {}) {
    let answer;
    try {
      answer = await this.way.fetch(path, { ...options, headers: { Accept: "application/json" } });
    } catch {
      flash("The shop can't be reached. Try again.", "bad");
      return null;
    }
    if (answer.headers.has("X-Session-Token")) flash(SWAPPED, "good"); // whichever call it was that came first
    if (answer.ok) return answer.status === 204 ? {} : answer.json();
    if (answer.status === 503) {
      flash("OTPLESS can't be reached at the moment. You stay signed in: try again in a minute.", "note");
    } else if (answer.status !== 401) {
      const { detail } = await answer.json();
      flash(detail.message || detail, "bad");
    }
    return null;
  }

  async load() {
    const [session, devices] = await Promise.all([this.call("/auth/session"), this.call("/auth/sessions")]);
    if (session) this.showSession(session);
    if (devices) this.showDevices(devices);
  }

  showSession(session) {
    const [first] = session.details.identities;
    const contact = first && (first.identity_type === "MOBILE" ? "+" + first.identity_value : first.identity_value);
    find("visitor").textContent = session.name || session.email || contact || "you";
    document.querySelectorAll("[data-expires-at]").forEach((clock) => (clock.dataset.expiresAt = session.expires_at));
    tick();
    if (session.stale) flash("OTPLESS can't be reached at the moment. You stay signed in.", "note");
  }

  showDevices(devices) {
    find("devices").hidden = devices.length === 0;
    find("device-list").replaceChildren(...devices.map((device) => this.device(device)));
  }

  device({ id, current, device, place, created_at }) {
    const about = element("span", { className: "soft", textContent: `${place || "unknown place"} · signed in ${localTime(created_at)}` });
    const name = element("strong", { textContent: device || "Unknown device" });
    const end = element("button", { type: "button", className: "quiet", textContent: "Sign out" });
    end.setAttribute("aria-label", `Sign out ${device || "the unknown device"}`);
    end.addEventListener("click", () => this.busy(end, async () => {
      if (await this.call("/auth/sessions/" + id, { method: "DELETE" })) {
        flash("That device is signed out.", "good");
        await this.load();
      }
    }));
    return element("li", {}, element("div", {}, name, element("br"), about),
      current ? element("span", { className: "tag", textContent: "this one" }) : end);
  }

  async order(product) {
    const order = await this.call("/api/orders/" + product, { method: "POST" });
    if (order) {
      flash(`Ordered: ${order.name}. It is number ${order.number}.`, "good");
      await this.load();
    }
  }
}
