"""The state of a directory account: disabled, expired, locked. Pure functions of facts that are passed in.

There are two sources. The attributes of an entry say whether the account has ended, which also ends the person's access
here. The answer to a person's own bind says why it was refused.

An account that has ended (disabled, expired, or locked by an administrator) stops the person's keys at once. A password
that is too old or must be changed, and a lock after wrong passwords, stop only the sign-in for the first PATIENCE:
otherwise anyone could stop another person's keys by typing wrong passwords, and a company that has all passwords
changed would stop everyone's. If it is still so after PATIENCE, the person is taken to have left.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import ldap
from ldap.controls import DecodeControlTuples
from ldap.controls.ppolicy import PasswordPolicyControl

from portal.accounts.ldap.errors import (
    AccountDisabled,
    AccountExpired,
    AccountLocked,
    AccountRefused,
    PasswordExpired,
    PasswordMustChange,
    SignInRestricted,
)

# By LDAP_KIND. A server returns only what it has and what we may read.
ATTRIBUTES = {
    "activedirectory": (
        "userAccountControl",
        "accountExpires",
        "pwdLastSet",
        "lockoutTime",
        "whenChanged",
        "msDS-User-Account-Control-Computed",
        "msDS-UserPasswordExpiryTimeComputed",
    ),
    "openldap": (
        "pwdAccountLockedTime",  # OpenLDAP's password policy, draft-behera-ldap-password-policy 5.3.3
        "pwdEndTime",  # the same, 5.3.11
        "pwdReset",
        "nsAccountLock",  # 389 and FreeIPA
        "krbPrincipalExpiration",  # FreeIPA
        "loginDisabled",  # eDirectory
        "loginExpirationTime",
        "shadowExpire",  # RFC 2307: days since 1970
    ),
}
PATIENCE = timedelta(days=30)
DISABLED, LOCKED, PASSWORD_EXPIRED = 0x2, 0x10, 0x800000  # userAccountControl, [MS-ADTS] 2.2.16
LOCKED_FOR_GOOD = "000001010000Z"  # of pwdAccountLockedTime: by an administrator
WINDOWS_EPOCH = datetime(1601, 1, 1, tzinfo=UTC)
NEVER = 0x7FFFFFFFFFFFFFFF  # accountExpires, as well as 0

# In the message with which Active Directory refuses a bind: "… AcceptSecurityContext error, data 533, v1db1". All codes
# but 775 are returned for the right password only (a wrong one is 52e, an unknown name 525 or 52e).
SUB_CODE = re.compile(r"\bdata ([0-9a-f]{2,8})\b", re.IGNORECASE)
SUB_CODES: Mapping[int, type[AccountRefused]] = {
    0x530: SignInRestricted,
    0x531: SignInRestricted,
    0x532: PasswordExpired,
    0x533: AccountDisabled,
    0x701: AccountExpired,
    0x773: PasswordMustChange,
    0x775: AccountLocked,
}
# PasswordPolicyResponseValue.error of draft-behera-ldap-password-policy 6.2
POLICY_ERRORS: Mapping[int, type[AccountRefused]] = {
    0: PasswordExpired,
    1: AccountLocked,
    2: PasswordMustChange,
}
# Why an account has ended by its attributes, as in `Person.end_reason`.
# What keeps a person from signing in until it is fixed, for operators to read.
OBSTACLES: Mapping[str, str] = {
    "locked": "locked after wrong passwords",
    "password-expired": "the password has expired",
    "password-must-change": "the password must be changed first",
}
END_REASONS: Mapping[str, type[AccountRefused]] = {
    "disabled": AccountDisabled,
    "expired": AccountExpired,
    "locked": AccountLocked,
}


def find_end_reason(attributes: Mapping[str, Any], now: datetime) -> str:
    """Return why the account has ended, a key of END_REASONS; empty if it has not. Malformed values are ignored."""
    if _read_number(attributes, "userAccountControl") & DISABLED or _is_true(attributes, "loginDisabled"):
        return "disabled"
    if _is_true(attributes, "nsAccountLock"):
        return "disabled"
    if _read_text(attributes, "pwdAccountLockedTime") == LOCKED_FOR_GOOD:
        return "locked"
    ends = (
        _parse_windows_time(_read_number(attributes, "accountExpires")),
        parse_generalized_time(_read_text(attributes, "pwdEndTime")),
        parse_generalized_time(_read_text(attributes, "krbPrincipalExpiration")),
        parse_generalized_time(_read_text(attributes, "loginExpirationTime")),
        _parse_day(_read_number(attributes, "shadowExpire")),
    )
    return "expired" if any(end is not None and end <= now for end in ends) else ""


def has_lapsed(attributes: Mapping[str, Any], now: datetime) -> bool:
    """Return whether a lock or the password has prevented sign-in for PATIENCE.

    OpenLDAP keeps the time of an expired lock until the next sign-in, so there it may only mean that the person has not
    tried.
    """
    since = [parse_generalized_time(_read_text(attributes, "pwdAccountLockedTime"))]
    since.append(_parse_windows_time(_read_number(attributes, "msDS-UserPasswordExpiryTimeComputed")))
    if _read_number(attributes, "msDS-User-Account-Control-Computed") & LOCKED:
        since.append(_parse_windows_time(_read_number(attributes, "lockoutTime")))
    if _must_change_password(attributes):  # at least since the entry was changed last
        since.append(parse_generalized_time(_read_text(attributes, "whenChanged")))
    return any(at is not None and at + PATIENCE <= now for at in since)


def list_obstacles(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what keeps the person from signing in for now: keys of OBSTACLES."""
    computed = _read_number(attributes, "msDS-User-Account-Control-Computed")
    locked = _read_text(attributes, "pwdAccountLockedTime")
    must_change = _must_change_password(attributes)
    found = {
        "locked": computed & LOCKED or (locked and locked != LOCKED_FOR_GOOD),
        "password-expired": computed & PASSWORD_EXPIRED and not must_change,
        "password-must-change": must_change or _is_true(attributes, "pwdReset"),
    }
    return tuple(obstacle for obstacle, holds in found.items() if holds)


def classify_refusal(error: ldap.LDAPError) -> AccountRefused | None:
    """Return why a person's bind was refused, if the server says so; None for a wrong password and anything else."""
    facts = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
    info = str(facts.get("info", ""))
    if isinstance(error, ldap.INVALID_CREDENTIALS):
        policy = read_policy_control(DecodeControlTuples(facts.get("ctrls") or []))
        if policy is not None:
            return policy
        if "AcceptSecurityContext" in info and (code := SUB_CODE.search(info)):
            kind = SUB_CODES.get(int(code[1], 16))
            return kind(info) if kind else None
        # 389 reports this in a control only if asked in its own way, but says it in words, after the right password.
        return PasswordExpired(info) if "password expired" in info.lower() else None
    if isinstance(error, ldap.CONSTRAINT_VIOLATION):  # 389, FreeIPA: "Exceed password retry limit"
        return AccountLocked(info)
    return None


def is_refused_before_password(error: ldap.LDAPError) -> bool:
    """Return whether the server refused a bind because of the account, before it checked the password.

    389 does so for disabled accounts, FreeIPA for expired ones. Passed on, it would reveal to any stranger that an
    account of this name exists.
    """
    facts = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
    info = str(facts.get("info", "")).lower()
    return isinstance(error, ldap.UNWILLING_TO_PERFORM) and ("inactivated" in info or "expired" in info)


def read_policy_control(controls: Any) -> AccountRefused | None:
    """Return the refusal in the password policy's response control of a bind, be it refused or accepted."""
    for control in controls:
        if isinstance(control, PasswordPolicyControl) and control.error is not None:
            kind = POLICY_ERRORS.get(int(control.error))
            return kind(f"password policy: {kind.__name__}") if kind else None
    return None


def parse_generalized_time(text: str) -> datetime | None:
    """Parse "20271231150000Z", "202712311500+0900", "20271231150000.5Z" (RFC 4517 3.3.13); None for anything else."""
    found = re.fullmatch(r"(\d{10})(\d{2})?(\d{2})?(?:[.,]\d+)?(Z|[+-]\d{4})", text.strip())
    if not found:
        return None
    hour, minute, second, zone = found.groups()
    try:
        return datetime.strptime(
            f"{hour}{minute or '00'}{second or '00'}{zone.replace('Z', '+0000')}", "%Y%m%d%H%M%S%z"
        )
    except ValueError:
        return None


def _must_change_password(attributes: Mapping[str, Any]) -> bool:
    """Return whether Active Directory has "User must change password at next logon" for the account."""
    return _read_text(attributes, "pwdLastSet") == "0"


def _parse_windows_time(value: int) -> datetime | None:
    """Return the time that is so many 100 ns after 1601 ([MS-ADA1] accountExpires); None for never."""
    if value <= 0 or value >= NEVER:
        return None
    try:
        return WINDOWS_EPOCH + timedelta(microseconds=value // 10)
    except OverflowError:
        return None


def _parse_day(value: int) -> datetime | None:
    """Return the time that is so many days after 1970; None for 0 and -1, which mean never."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=value) if 0 < value < 1_000_000 else None


def _read_number(attributes: Mapping[str, Any], name: str) -> int:
    text = _read_text(attributes, name)
    return int(text) if re.fullmatch(r"-?\d{1,20}", text) else 0


def _is_true(attributes: Mapping[str, Any], name: str) -> bool:
    return _read_text(attributes, name).lower() == "true"


def _read_text(attributes: Mapping[str, Any], name: str) -> str:
    value = (attributes.get(name) or [""])[0]
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
