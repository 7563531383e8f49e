// What both SDK scripts share. The emulator serves it in front of each, inside one function.
"use strict";

const script = document.currentScript || document.getElementById("otpless-sdk");
const origin = new URL(script.src).origin;
const appId = script.dataset.appid || "";
const storageKey = "otpless-session-" + appId;
const sessionEndListeners = [];

/** Calls the emulator: {ok, status, body}. Status 0 means that there was no answer. */
async function post(name, body) {
  try {
    const response = await fetch(origin + "/_emulator/sdk/" + name, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...body, appId }),
    });
    return { ok: response.ok, status: response.status, body: await response.json() };
  } catch {
    return { ok: false, status: 0, body: { message: "OTPLESS cannot be reached. Try again." } };
  }
}

function storedSession() {
  try {
    return JSON.parse(localStorage.getItem(storageKey));
  } catch {
    return null;
  }
}

function storeSession({ sessionId, sessionToken, refreshToken }) {
  localStorage.setItem(storageKey, JSON.stringify({ sessionId, sessionToken, refreshToken }));
}

function endSession() {
  localStorage.removeItem(storageKey);
  sessionEndListeners.forEach((listener) => listener());
}

/** Verifies a one-time password and keeps the tokens of the sign-in. */
async function verifyOtp(request) {
  const answer = await post("verify", request);
  if (answer.ok) {
    storeSession(answer.body.otplessUser.sessionInfo);
  }
  return answer;
}

/** The browser's session, renewed if its token is dead: {success, sessionId, sessionToken, refreshToken}. */
window.OTPlessVerifySession = async () => {
  const stored = storedSession();
  if (!stored) {
    return { success: false };
  }
  const answer = await post("session", stored);
  if (!answer.ok) {
    return { success: false };
  }
  if (answer.body.success) {
    storeSession(answer.body);
  } else {
    endSession();
  }
  return answer.body;
};

/** Ends the browser's session: {success}. */
window.OTPlessLogout = async () => {
  const stored = storedSession();
  if (!stored) {
    return { success: false };
  }
  const answer = await post("logout", stored);
  if (!answer.ok) {
    return { success: false };
  }
  endSession();
  return { success: answer.body.success };
};
