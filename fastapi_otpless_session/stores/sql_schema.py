"""The PostgreSQL store's tables, as one script that makes or migrates them and may run again."""
# ruff: noqa: S608 - the script is made of names of our own

from __future__ import annotations

SCHEMA_VERSION = 1
LOCKS = 0x6F74706C
"""The advisory locks of this package: 1 to make the tables, 2 to purge. The number is "otpl" in ASCII."""

# Whatever writes a row often leaves the indexed columns alone, and a page has room for the new version: it stays off
# the indexes then (a "heap-only" update). Ids are compared as bytes, so that no change of a locale's order matters.
SCHEMA = f"""\
-- The tables of fastapi-otpless-session. Running this again is harmless.
BEGIN;
SELECT pg_advisory_xact_lock({LOCKS}, 1);
CREATE TABLE IF NOT EXISTS otpless_meta (
    name text PRIMARY KEY,
    value integer NOT NULL
);
CREATE TABLE IF NOT EXISTS otpless_sessions (
    session_id text COLLATE "C" PRIMARY KEY,
    user_id text COLLATE "C" NOT NULL,
    state text NOT NULL,
    end_reason text,
    generation bigint NOT NULL,
    confirmations text NOT NULL,
    rotated_at double precision NOT NULL,
    session_token bytea NOT NULL,
    token_expires_at double precision NOT NULL,
    refresh_token bytea NOT NULL,
    lease_owner text,
    lease_until double precision NOT NULL,
    lease_follows_lost_answer boolean NOT NULL DEFAULT false,
    fence bigint NOT NULL,
    validated_at double precision NOT NULL,
    created_at double precision NOT NULL,
    last_seen_at double precision NOT NULL,
    expires_at double precision NOT NULL,
    summary text NOT NULL,
    revocation_due double precision,
    revocation_attempts bigint NOT NULL
) WITH (fillfactor = 80);
CREATE TABLE IF NOT EXISTS otpless_tokens (
    digest bytea PRIMARY KEY,
    session_id text COLLATE "C" NOT NULL,
    generation bigint NOT NULL,
    expires_at double precision NOT NULL
);
CREATE INDEX IF NOT EXISTS otpless_sessions_user ON otpless_sessions (user_id) WHERE state = 'active';
CREATE INDEX IF NOT EXISTS otpless_sessions_due ON otpless_sessions (revocation_due) WHERE revocation_due IS NOT NULL;
CREATE INDEX IF NOT EXISTS otpless_sessions_expiry ON otpless_sessions (expires_at);
CREATE INDEX IF NOT EXISTS otpless_tokens_expiry ON otpless_tokens (expires_at);
INSERT INTO otpless_meta (name, value) VALUES ('schema', {SCHEMA_VERSION})
    ON CONFLICT (name) DO UPDATE SET value = greatest(otpless_meta.value, excluded.value);
COMMIT;
"""
