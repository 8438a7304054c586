"""Django's settings for sending mail, from the environment. No Django here: settings.py imports it."""

from typing import Any

import environs

TIMEOUT = 10  # seconds for each step with the mail server
SCHEMES = ("smtp", "submission")


def read_mail_settings(env: environs.Env) -> dict[str, Any]:
    """Return Django's EMAIL_* settings; none without EMAIL_URL. Raises environs.EnvError for what is no mail server."""
    if not env.str("EMAIL_URL", ""):
        return {}
    found: dict[str, Any] = env.dj_email_url("EMAIL_URL")
    if "EMAIL_BACKEND" not in found or not found["EMAIL_HOST"]:
        forms = " or ".join(f"{scheme}://[user:password@]host[:port]" for scheme in SCHEMES)
        raise environs.EnvError(f'Environment variable "EMAIL_URL" invalid: not of the form {forms}')
    # What the parser leaves unset would reach smtplib as None.
    credentials = {name: found[name] or "" for name in ("EMAIL_HOST_USER", "EMAIL_HOST_PASSWORD")}
    return {**found, **credentials, "EMAIL_TIMEOUT": found["EMAIL_TIMEOUT"] or TIMEOUT}
