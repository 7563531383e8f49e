// The headless SDK: the page brings its own form and is told what happens by events.

function happened(responseType, response, statusCode, success) {
  return { responseType, response, statusCode, success };
}

window.OTPless = class OTPless {
  /** The callback gets events: {responseType, response, statusCode, success}. */
  constructor(callback) {
    this.callback = typeof callback === "function" ? callback : () => {};
    sessionEndListeners.push(() => this.callback(happened("SESSION_END", {}, 200, true)));
  }

  /** Sends a one-time password; the returned promise gives an event of the type INITIATE. */
  async initiate({ channel, phone, countryCode, email } = {}) {
    const answer = await post("initiate", { channel, phone, countryCode, email });
    if (!answer.ok) {
      return this.failed("INITIATE", answer);
    }
    const { requestId, channel: sentBy, fallback, autoReadOtp } = answer.body;
    if (fallback) {
      this.callback(happened("FALLBACK_TRIGGERED", { requestId, deliveryChannel: sentBy }, 200, true));
    }
    if (autoReadOtp) {
      this.callback(happened("OTP_AUTO_READ", { requestId, otp: autoReadOtp }, 200, true));
    }
    return happened("INITIATE", { requestId, channel: sentBy, authType: "OTP" }, 200, true);
  }

  /** Verifies it: ONETAP or FAILED goes to the callback, the returned promise gives an event VERIFY. */
  async verify({ channel, phone, countryCode, email, otp } = {}) {
    const answer = await verifyOtp({ channel, phone, countryCode, email, otp });
    if (!answer.ok) {
      return this.failed("VERIFY", answer);
    }
    this.callback(happened("ONETAP", answer.body.otplessUser, 200, true));
    return happened("VERIFY", { verification: "COMPLETED" }, 200, true);
  }

  failed(responseType, answer) {
    const response = { errorMessage: answer.body.message, errorCode: answer.body.errorCode };
    if (responseType === "VERIFY") {
      this.callback(happened("FAILED", response, answer.status, false));
    }
    return happened(responseType, response, answer.status, false);
  }
};
