// The header channel: /auth/client.js keeps the token, and its window.otpless signs in.
"use strict";

const app = new App({
  fetch: otplessSession.fetch,
  socket: otplessSession.socket,
  signOut: otplessSession.signOut,
  isSignedIn: async () => {
    if (otplessSession.signedIn) await otplessSession.fetch("/auth/session").catch(() => null);
    return otplessSession.signedIn;
  },
});

otplessSession.on("signed-in", () => app.open());
otplessSession.on("signed-out", ({ code }) => leave(code));
otplessSession.on("sign-in-failed", (error) => {
  flash(error.status ? error.message : "The shop can't be reached. Try again.", "bad");
  app.askToSignIn();
});

if (otplessSession.signedIn) app.open();
else app.askToSignIn();
