"""What attributes and refused binds say about an account, by literals as servers send them."""

from datetime import UTC, datetime, timedelta

import ldap
import pytest

from portal.accounts.ldap import account_state, errors

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)


def windows(at: datetime) -> bytes:
    return str(int((at - datetime(1601, 1, 1, tzinfo=UTC)).total_seconds()) * 10**7).encode()


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        ({}, ""),
        ({"userAccountControl": [b"512"]}, ""),
        ({"userAccountControl": [b"514"]}, "disabled"),
        ({"userAccountControl": [b"66050"]}, "disabled"),
        ({"accountExpires": [b"0"]}, ""),
        ({"accountExpires": [b"9223372036854775807"]}, ""),
        ({"accountExpires": [b"9223372036854775000"]}, ""),  # a date that no calendar has
        ({"accountExpires": [windows(NOW + timedelta(seconds=1))]}, ""),
        ({"accountExpires": [windows(NOW)]}, "expired"),
        ({"accountExpires": [b"soon"]}, ""),
        ({"accountExpires": ["133000000000000000"]}, "expired"),  # as django-auth-ldap gives it
        ({"pwdLastSet": [b"0"]}, ""),
        ({"nsAccountLock": [b"TRUE"]}, "disabled"),
        ({"nsAccountLock": [b"false"]}, ""),
        ({"pwdAccountLockedTime": [b"000001010000Z"]}, "locked"),
        ({"pwdAccountLockedTime": [b"20261129110000Z"]}, ""),  # after wrong passwords
        ({"pwdEndTime": [b"20261129115959Z"]}, "expired"),
        ({"pwdEndTime": [b"20261130000000Z"]}, ""),
        ({"krbPrincipalExpiration": [b"20261129205959+0900"]}, "expired"),
        ({"krbPrincipalExpiration": [b"20261129210001+0900"]}, ""),
        ({"loginDisabled": [b"TRUE"]}, "disabled"),
        ({"loginExpirationTime": [b"202001010000Z"]}, "expired"),
        ({"shadowExpire": [b"-1"]}, ""),
        ({"shadowExpire": [b"0"]}, ""),
        ({"shadowExpire": [b"20000"]}, "expired"),
        ({"shadowExpire": [b"30000"]}, ""),
        ({"shadowExpire": [b"\xff"]}, ""),
    ],
)
def test_d1_when_an_account_has_come_to_an_end(attributes, why):
    assert account_state.find_end_reason(attributes, NOW) == why


@pytest.mark.parametrize(
    ("attributes", "holds"),
    [
        ({}, False),
        ({"pwdAccountLockedTime": [b"20261031120000Z"]}, False),  # 29 days
        ({"pwdAccountLockedTime": [b"20261030120000Z"]}, True),
        ({"msDS-UserPasswordExpiryTimeComputed": [windows(NOW - timedelta(days=29))]}, False),
        ({"msDS-UserPasswordExpiryTimeComputed": [windows(NOW - timedelta(days=30))]}, True),
        ({"msDS-UserPasswordExpiryTimeComputed": [b"9223372036854775807"]}, False),
        ({"msDS-UserPasswordExpiryTimeComputed": [b"0"]}, False),
        ({"lockoutTime": [windows(NOW - timedelta(days=40))]}, False),  # the lock has passed
        (
            {
                "lockoutTime": [windows(NOW - timedelta(days=40))],
                "msDS-User-Account-Control-Computed": [b"16"],
            },
            True,
        ),
        ({"pwdLastSet": [b"0"], "whenChanged": [b"20261128120000.0Z"]}, False),
        ({"pwdLastSet": [b"0"], "whenChanged": [b"20261001120000.0Z"]}, True),
        ({"pwdLastSet": [b"1"], "whenChanged": [b"20261001120000.0Z"]}, False),
    ],
)
def test_d1_whose_password_is_not_set_right_for_long_has_left(attributes, holds):
    assert account_state.has_lapsed(attributes, NOW) is holds


def said(kind: type[ldap.LDAPError], info: str = "", ctrls: tuple[object, ...] = ()) -> ldap.LDAPError:
    return kind({"result": 49, "desc": "…", "info": info, "ctrls": list(ctrls)})


def windows_says(code: str) -> ldap.LDAPError:
    info = f"80090308: LdapErr: DSID-0C090439, comment: AcceptSecurityContext error, data {code}, v4563\0"
    return said(ldap.INVALID_CREDENTIALS, info)


def policy(*value: int) -> tuple[object, ...]:
    return (("1.3.6.1.4.1.42.2.27.8.5.1", False, bytes(value)),)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (windows_says("52e"), None),
        (windows_says("525"), None),
        (windows_says("530"), errors.SignInRestricted),
        (windows_says("531"), errors.SignInRestricted),
        (windows_says("532"), errors.PasswordExpired),
        (windows_says("533"), errors.AccountDisabled),
        (windows_says("701"), errors.AccountExpired),
        (windows_says("773"), errors.PasswordMustChange),
        (windows_says("775"), errors.AccountLocked),
        (windows_says("0"), None),
        (said(ldap.INVALID_CREDENTIALS, "data 533"), None),  # another server's words
        (said(ldap.INVALID_CREDENTIALS), None),
        (said(ldap.INVALID_CREDENTIALS, ctrls=policy(0x30, 0x03, 0x81, 0x01, 0x00)), errors.PasswordExpired),
        (said(ldap.INVALID_CREDENTIALS, ctrls=policy(0x30, 0x03, 0x81, 0x01, 0x01)), errors.AccountLocked),
        (said(ldap.INVALID_CREDENTIALS, ctrls=policy(0x30, 0x03, 0x81, 0x01, 0x02)), errors.PasswordMustChange),
        (said(ldap.INVALID_CREDENTIALS, ctrls=policy(0x30, 0x00)), None),
        (said(ldap.INVALID_CREDENTIALS, "password expired!"), errors.PasswordExpired),  # 389
        (said(ldap.UNWILLING_TO_PERFORM, "Account inactivated. Contact system administrator."), None),
        (said(ldap.CONSTRAINT_VIOLATION, "Exceed password retry limit. Please try later."), errors.AccountLocked),
        (said(ldap.SERVER_DOWN), None),
        (ldap.INVALID_CREDENTIALS(), None),
    ],
)
def test_d4_why_a_bind_was_refused(error, kind):
    refusal = account_state.classify_refusal(error)
    assert type(refusal) is (kind or type(None))


@pytest.mark.parametrize(
    ("info", "holds"),
    [
        ("Account inactivated. Contact system administrator.", True),  # 389
        ("Account (Kerberos principal) is expired", True),  # FreeIPA
        ("unauthenticated bind disallowed", False),
    ],
)
def test_d4_what_a_server_tells_before_it_looks_at_the_password(info, holds):
    assert account_state.is_refused_before_password(said(ldap.UNWILLING_TO_PERFORM, info)) is holds
    assert not account_state.is_refused_before_password(said(ldap.INVALID_CREDENTIALS, info))


def test_operators_are_told_what_keeps_somebody_from_signing_in():
    must_change = {"pwdLastSet": [b"0"], "msDS-User-Account-Control-Computed": [b"8388608"]}
    assert account_state.list_obstacles(must_change) == ("password-must-change",)
    computed = {"msDS-User-Account-Control-Computed": [b"8388624"]}
    assert account_state.list_obstacles(computed) == ("locked", "password-expired")
    assert account_state.list_obstacles({"pwdLastSet": [b"133000000000000000"]}) == ()
