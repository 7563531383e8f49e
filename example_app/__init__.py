"""A small shop that keeps its customers signed in with `fastapi_otpless_session`."""
