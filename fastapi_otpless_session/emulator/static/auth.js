// The pre-built UI: a sign-in form in <div id="otpless-login-page">, which calls the page's otpless(user).

const STYLE = `
  :host { color-scheme: light dark; --ink: #16191f; --soft: #5b6472; --line: #c3c9d2; --paper: #fff;
          --accent: #1c6b4c; --on-accent: #fff; --bad: #b3261e; display: block; max-width: 24rem; }
  @media (prefers-color-scheme: dark) {
    :host { --ink: #eef1f5; --soft: #a6afbd; --line: #48515f; --paper: #1b1f26;
            --accent: #63c99c; --on-accent: #0b1a13; --bad: #ff8a80; } }
  form { display: grid; gap: .85rem; padding: 1.25rem; border: 1px solid var(--line); border-radius: .75rem;
         background: var(--paper); color: var(--ink); font: 1rem/1.45 system-ui, sans-serif; }
  h2, p { margin: 0; } h2 { font-size: 1.15rem; } p { color: var(--soft); font-size: .9rem; }
  p[role=alert] { color: var(--bad); } p[role=alert]:empty { display: none; }
  .row { display: grid; grid-template-columns: 5rem 1fr; gap: .6rem; align-items: end; }
  label { display: grid; gap: .25rem; font-size: .85rem; color: var(--soft); }
  input { font: inherit; font-size: 1rem; color: var(--ink); background: transparent; min-width: 0;
          padding: .55rem .65rem; border: 1px solid var(--line); border-radius: .5rem; }
  input:disabled { opacity: .45; } input.otp { letter-spacing: .35em; font-variant-numeric: tabular-nums; }
  button { font: inherit; font-weight: 600; padding: .6rem .9rem; border-radius: .5rem; cursor: pointer;
           border: 1px solid var(--accent); background: var(--accent); color: var(--on-accent); }
  button.quiet { background: transparent; color: var(--accent); border-color: transparent; font-weight: 500; }
  button:disabled { opacity: .55; cursor: wait; }
  input:focus-visible, button:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
  .actions { display: flex; flex-wrap: wrap; gap: .25rem; }
`;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** A line that screen readers read out when it changes. */
function line(role, text = "") {
  const made = element("p", { textContent: text });
  made.setAttribute("role", role);
  return made;
}

function field(text, properties) {
  const input = element("input", properties);
  return { input, label: element("label", {}, text, input) };
}

class LoginPage {
  constructor(place) {
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(STYLE);
    this.root = place.shadowRoot || place.attachShadow({ mode: "open" });
    this.root.adoptedStyleSheets = [sheet];
    this.askForAddress();
  }

  show(form, focused) {
    this.root.replaceChildren(form);
    focused.focus({ preventScroll: true });
  }

  /** Runs a submit: one at a time, its failure shown. */
  async busy(form, act) {
    const buttons = [...form.querySelectorAll("button")];
    const alert = form.querySelector("[role=alert]");
    alert.textContent = "";
    buttons.forEach((button) => (button.disabled = true));
    const answer = await act();
    buttons.forEach((button) => (button.disabled = false));
    if (!answer.ok) {
      alert.textContent = answer.body.message || "Something went wrong. Try again.";
    }
    return answer;
  }

  askForAddress() {
    const code = field("Country code", { name: "countryCode", value: "+91", inputMode: "tel", autocomplete: "tel-country-code" });
    const contact = field("Phone number or e-mail", { name: "contact", required: true, autocomplete: "username", autocapitalize: "off" });
    const isPhone = () => !/[@a-z]/i.test(contact.input.value);
    const needsCode = () => isPhone() && !contact.input.value.trim().startsWith("+");
    contact.input.addEventListener("input", () => (code.input.disabled = !needsCode()));
    const form = element("form", {},
      element("h2", { textContent: "Sign in" }),
      element("div", { className: "row" }, code.label, contact.label),
      line("alert"),
      element("button", { textContent: "Continue" }),
      element("p", { textContent: "OTPLESS emulator: the code arrives on the emulator's own page." }));
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const value = contact.input.value.trim();
      const request = isPhone()
        ? { phone: value, countryCode: needsCode() ? code.input.value : "" }
        : { email: value };
      const answer = await this.busy(form, () => post("initiate", request));
      if (answer.ok) {
        this.askForOtp(request, answer.body);
      } else {
        contact.input.focus();
      }
    });
    this.show(form, contact.input);
  }

  askForOtp(request, sent) {
    const otp = field("6-digit code", { name: "otp", className: "otp", required: true, inputMode: "numeric", autocomplete: "one-time-code", maxLength: 6, pattern: "[0-9]{6}", title: "6 digits" });
    otp.input.value = sent.autoReadOtp || "";
    const to = request.email || (request.countryCode + " " + request.phone).trim();
    const note = element("p", { textContent: `We sent a code by ${sent.channel} to ${to}.` });
    const again = element("button", { type: "button", className: "quiet", textContent: "Send again" });
    const back = element("button", { type: "button", className: "quiet", textContent: "Change number or e-mail" });
    const form = element("form", {},
      element("h2", { textContent: "Enter the code" }), note, otp.label, line("alert"),
      element("button", { textContent: "Verify" }),
      element("div", { className: "actions" }, again, back));
    again.addEventListener("click", async () => {
      const answer = await this.busy(form, () => post("initiate", request));
      if (answer.ok) {
        note.textContent = `We sent a new code by ${answer.body.channel} to ${to}.`;
        otp.input.focus();
      }
    });
    back.addEventListener("click", () => this.askForAddress());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.verify(form, otp.input, request);
    });
    this.show(form, otp.input);
  }

  async verify(form, input, request) {
    const answer = await this.busy(form, () => verifyOtp({ ...request, otp: input.value.trim() }));
    if (!answer.ok) {
      input.select();
      return;
    }
    this.root.replaceChildren(element("form", {}, line("status", "Code accepted. The page signs you in now.")));
    if (typeof window.otpless === "function") {
      window.otpless(answer.body.otplessUser);
    }
  }
}

function start() {
  const place = document.getElementById("otpless-login-page");
  if (place) {
    new LoginPage(place);
  }
}

if (document.readyState === "loading") {
  document.addEventListener("DOMContentLoaded", start);
} else {
  start();
}
