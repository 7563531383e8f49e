"""Keeps people signed in to a FastAPI application through OTPLESS."""
