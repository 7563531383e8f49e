// The cookie shop's sign-in. OTPLESS's script calls otpless(user) when somebody has proved who they are.
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
      location.replace(document.getElementById("sign-in-trouble").dataset.next);
      return;
    }
    trouble.textContent = (await answer.json()).detail.message;
  } catch {
    trouble.textContent = "The shop can't be reached. Reload this page and try again.";
  }
  trouble.hidden = false;
}
