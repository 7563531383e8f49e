"""`python -m fastapi_otpless_session doctor`: what goes wrong in practice, looked at in place, and how to mend it."""
