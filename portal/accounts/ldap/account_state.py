"""What a directory says about an account besides its name: disabled, expired, locked. Pure; the facts are passed in.

Two sources. An entry's attributes say whether the account has come to an end, which also ends what the person has here.
The answer to a person's own bind says why it was refused.

What ends an account ends the keys at once: being disabled, expired, or locked by an administrator. A password that is
too old or must be changed, and a lock after wrong passwords, stop no more than the sign-in for the first PATIENCE: else
anybody could stop somebody's keys by typing wrong passwords, and a company that has all passwords changed would stop
everybody's. But where nobody has set that right for so long, the person has left.
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

# By LDAP_KIND. A server gives only what it has and what we may read.
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

# Of the message with which Active Directory refuses a bind: "… AcceptSecurityContext error, data 533, v1db1". All but
# 775 are given for the right password only (a wrong one is 52e, an unknown name 525 or 52e).
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
# An account that has ended by its attributes, as `Person.ended` names it.
ENDED: Mapping[str, type[AccountRefused]] = {
    "disabled": AccountDisabled,
    "expired": AccountExpired,
    "locked": AccountLocked,
}


def ended(attributes: Mapping[str, Any], now: datetime) -> str:
    """Why the account has come to an end, a key of ENDED; empty while it has not. Nonsense says nothing."""
    if _number(attributes, "userAccountControl") & DISABLED or _is_true(attributes, "loginDisabled"):
        return "disabled"
    if _is_true(attributes, "nsAccountLock"):
        return "disabled"
    if _text(attributes, "pwdAccountLockedTime") == LOCKED_FOR_GOOD:
        return "locked"
    ends = (
        _windows_time(_number(attributes, "accountExpires")),
        generalized_time(_text(attributes, "pwdEndTime")),
        generalized_time(_text(attributes, "krbPrincipalExpiration")),
        generalized_time(_text(attributes, "loginExpirationTime")),
        _day(_number(attributes, "shadowExpire")),
    )
    return "expired" if any(end is not None and end <= now for end in ends) else ""


def has_lapsed(attributes: Mapping[str, Any], now: datetime) -> bool:
    """Return whether nobody could sign in for PATIENCE, because of a lock or the password.

    OpenLDAP keeps the time of a lock that has passed until the next sign-in, so there it may be only that nobody tried.
    """
    since = [generalized_time(_text(attributes, "pwdAccountLockedTime"))]
    since.append(_windows_time(_number(attributes, "msDS-UserPasswordExpiryTimeComputed")))
    if _number(attributes, "msDS-User-Account-Control-Computed") & LOCKED:
        since.append(_windows_time(_number(attributes, "lockoutTime")))
    if _must_change(attributes):  # at least since the entry was changed last
        since.append(generalized_time(_text(attributes, "whenChanged")))
    return any(at is not None and at + PATIENCE <= now for at in since)


def remarks(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """What keeps the person from signing in for now, for operators."""
    computed = _number(attributes, "msDS-User-Account-Control-Computed")
    locked = _text(attributes, "pwdAccountLockedTime")
    must_change = _must_change(attributes)
    found = {
        "locked after wrong passwords": computed & LOCKED or (locked and locked != LOCKED_FOR_GOOD),
        "the password has expired": computed & PASSWORD_EXPIRED and not must_change,
        "the password must be changed first": must_change or _is_true(attributes, "pwdReset"),
    }
    return tuple(text for text, holds in found.items() if holds)


def refusal(error: ldap.LDAPError) -> AccountRefused | None:
    """Why a person's bind was refused, when the server tells; None for a wrong password and for all else."""
    facts = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
    info = str(facts.get("info", ""))
    if isinstance(error, ldap.INVALID_CREDENTIALS):
        policy = of_policy(DecodeControlTuples(facts.get("ctrls") or []))
        if policy is not None:
            return policy
        if "AcceptSecurityContext" in info and (code := SUB_CODE.search(info)):
            kind = SUB_CODES.get(int(code[1], 16))
            return kind(info) if kind else None
        # 389 has no control's error for it unless asked in its own way, but says so, after the right password only.
        return PasswordExpired(info) if "password expired" in info.lower() else None
    if isinstance(error, ldap.CONSTRAINT_VIOLATION):  # 389, FreeIPA: "Exceed password retry limit"
        return AccountLocked(info)
    return None


def is_told_to_anybody(error: ldap.LDAPError) -> bool:
    """Return whether a person's bind was refused for the account's sake before the password was looked at.

    389 does so with accounts that are disabled, FreeIPA with those that are expired. Passed on, it would tell whoever
    types a name that there is such an account.
    """
    facts = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
    info = str(facts.get("info", "")).lower()
    return isinstance(error, ldap.UNWILLING_TO_PERFORM) and ("inactivated" in info or "expired" in info)


def of_policy(controls: Any) -> AccountRefused | None:
    """What the password policy's response control adds to a bind, be it refused or accepted."""
    for control in controls:
        if isinstance(control, PasswordPolicyControl) and control.error is not None:
            kind = POLICY_ERRORS.get(int(control.error))
            return kind(f"password policy: {kind.__name__}") if kind else None
    return None


def generalized_time(text: str) -> datetime | None:
    """Of "20271231150000Z", "202712311500+0900", "20271231150000.5Z" (RFC 4517 3.3.13); None for anything else."""
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


def _must_change(attributes: Mapping[str, Any]) -> bool:
    """Of Active Directory: "User must change password at next logon"."""
    return _text(attributes, "pwdLastSet") == "0"


def _windows_time(value: int) -> datetime | None:
    """Of 100 ns since 1601 ([MS-ADA1] accountExpires)."""
    if value <= 0 or value >= NEVER:
        return None
    try:
        return WINDOWS_EPOCH + timedelta(microseconds=value // 10)
    except OverflowError:
        return None


def _day(value: int) -> datetime | None:
    """Of days since 1970; 0 and -1 mean never."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=value) if 0 < value < 1_000_000 else None


def _number(attributes: Mapping[str, Any], name: str) -> int:
    text = _text(attributes, name)
    return int(text) if re.fullmatch(r"-?\d{1,20}", text) else 0


def _is_true(attributes: Mapping[str, Any], name: str) -> bool:
    return _text(attributes, name).lower() == "true"


def _text(attributes: Mapping[str, Any], name: str) -> str:
    value = (attributes.get(name) or [""])[0]
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
