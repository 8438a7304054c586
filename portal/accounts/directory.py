"""The company directory (LDAP, Active Directory). The only file that knows LDAP."""

from typing import Any

import environs


def read(env: environs.Env) -> Any:
    """The LDAP_* settings, or None without them."""
    return None


def auth_settings(settings: Any) -> dict[str, Any]:
    return {}
