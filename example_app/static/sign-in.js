// The cookie shop's sign-in. OTPLESS's script calls otpless(user) when somebody has proved who they are. The promise
// that it gives, of whether they are signed in, is for the shop's own form.
"use strict";

async function otpless(user) {
  const trouble = document.getElementById("sign-in-trouble");
  trouble.hidden = true;
  try {
    const answer = await fetch("/auth/login", {
      method: "POST",
      headers: { "Content-Type": "application/json", Accept: "application/json" },
      body: JSON.stringify(user),
    });
    if (answer.ok) {
      location.replace(trouble.dataset.next);
      return true;
    }
    trouble.textContent = (await answer.json()).detail.message;
  } catch {
    trouble.textContent = "The shop can't be reached. Try again.";
  }
  trouble.hidden = false;
  if (document.getElementById("otpless-login-page")) {
    const { src, dataset } = document.getElementById("otpless-sdk");
    offerForm({ src, appId: dataset.appid });
  }
  return false;
}
