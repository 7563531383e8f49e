"""The shop's own settings. Those of the sessions are `OTPLESS_*` and none of its business."""

from pydantic_settings import BaseSettings, SettingsConfigDict


class ShopSettings(BaseSettings):
    """Read from `SHOP_*` variables or `.env`."""

    model_config = SettingsConfigDict(env_prefix="SHOP_", env_file=".env", extra="ignore", frozen=True)

    app_id: str = ""
    """The app id from the OTPLESS dashboard, for the sign-in page."""
    sdk_url: str = "https://otpless.com/v4/auth.js"
    """The frontend SDK with its own sign-in form."""
    headless_url: str = "https://otpless.com/v4/headless.js"
    """The frontend SDK for forms of one's own."""
    emulator_url: str = ""
    """Where the OTPLESS emulator runs, if it does: shows the button that expires a token."""
