// The shop's own sign-in form over OTPLESS's headless SDK, which has no form: it sends codes, and tells by events.
"use strict";

function headlessForm() {
  const find = (id) => document.getElementById(id);
  const [ask, verify] = [find("ask-form"), find("code-form")];
  const problem = { INITIATE: find("ask-problem"), VERIFY: find("code-problem") };
  let request = null;

  const sdk = new OTPless(({ responseType, response }) => {
    if (responseType === "ONETAP") {
      finish(response);
    } else if (responseType === "OTP_AUTO_READ") {
      find("code").value = response.otp;
    } else if (responseType === "FALLBACK_TRIGGERED") {
      find("code-sent").textContent = `It could not be delivered there: we sent it by ${response.deliveryChannel}.`;
    }
  });

  /** Signs in. The code is used up: whoever could not be signed in with it asks for another. */
  async function finish(user) {
    if (await window.otpless(user)) return;
    find("code").value = "";
    show(ask, find("phone"));
  }

  /** One submit at a time; its failure is shown and read out. */
  async function submit(form, type, act) {
    const buttons = [...form.querySelectorAll("button")];
    problem[type].textContent = "";
    buttons.forEach((button) => (button.disabled = true));
    const answer = await act();
    buttons.forEach((button) => (button.disabled = false));
    if (!answer.success) {
      problem[type].textContent = answer.response.errorMessage || "That didn't work. Try again.";
    }
    return answer.success;
  }

  function show(form, focused) {
    [ask, verify].forEach((each) => (each.hidden = each !== form));
    focused.focus();
  }

  async function send(form, type) {
    find("code-sent").textContent = `We sent a code to ${request.countryCode} ${request.phone}.`;
    return submit(form, type, () => sdk.initiate(request));
  }

  ask.addEventListener("submit", async (event) => {
    event.preventDefault();
    request = { channel: "PHONE", phone: find("phone").value.trim(), countryCode: find("country-code").value.trim() };
    if (await send(ask, "INITIATE")) show(verify, find("code"));
    else find("phone").focus();
  });
  verify.addEventListener("submit", async (event) => {
    event.preventDefault();
    const otp = find("code").value.trim();
    if (!(await submit(verify, "VERIFY", () => sdk.verify({ ...request, otp })))) find("code").select();
  });
  find("again").addEventListener("click", async () => {
    if (await send(verify, "VERIFY")) find("code").focus();
  });
  find("change").addEventListener("click", () => show(ask, find("phone")));
  ask.querySelector("button").disabled = false; // until now the browser itself would have sent the form, to nobody
}

headlessForm();
