"""The sign-in form, which says what is wrong when it is not the password, and the form of a person's own settings."""

import math
from typing import Any

from django import forms
from django.conf import settings
from django.contrib.auth.forms import AuthenticationForm
from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from portal.accounts import ldap, throttle

# Why the sign-in failed although the password was not found wrong; none of these counts as an attempt. The state of an
# account is shown only after the right password, except for a lock, which Active Directory reports whatever was typed.
# It is shown nevertheless: a stranger learns that a name exists only after as many wrong passwords as lock the account
# there, while our own lock, which is the same for all names, comes after five. Without the message, people who are
# locked out by a phone with an old password would keep believing that they mistype.
SIGN_IN_ERRORS = {
    ldap.DirectoryUnavailable: _("The company directory does not answer; try again in a few minutes."),
    ldap.DirectoryRefused: _(
        "The company directory cannot be reached properly right now. Your password is not the reason;"
        " please contact the people who run this server."
    ),
    ldap.NotAdmitted: _(
        "Your name and password are right, but you are not in the group that may use this service."
        " Ask the people who run this server or your IT desk."
    ),
    ldap.NameTaken: _(
        "Your name and password are right, but a local account here has the same name."
        " Please contact the people who run this server."
    ),
    ldap.AccountDisabled: _(
        "Your account is disabled in the company directory. Ask your IT desk; your password is not the reason."
    ),
    ldap.AccountExpired: _(
        "Your account in the company directory has expired. Ask your IT desk; your password is not the reason."
    ),
    ldap.AccountLocked: _(
        "The company directory has locked this account, as it does after too many wrong passwords. Wait until it is"
        " unlocked, or ask your IT desk."
    ),
    ldap.PasswordExpired: _(
        "Your password has expired in the company directory. Set a new one there (at your computer’s own sign-in, for"
        " example), then sign in here with the new one."
    ),
    ldap.PasswordMustChange: _(
        "You must choose a new password in the company directory first (at your computer’s own sign-in, for example)."
        " Then sign in here with the new one."
    ),
    ldap.SignInRestricted: _(
        "The company directory does not let you sign in at this time or from this service. Ask your IT desk; your"
        " password is not the reason."
    ),
}


class SignInForm(AuthenticationForm):
    error_messages = {
        "invalid_login": _("The name or the password is wrong. Passwords distinguish upper and lower case."),
        "inactive": _("This account is switched off. Ask the people who run this server."),
    }

    retry_after = 0  # seconds that a locked-out person must wait

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["username"].label = _("User name")  # as everywhere else; Django's own is "Username"

    def clean(self) -> dict[str, Any]:
        assert self.request is not None
        try:
            with throttle.wait_turn(self.request, self.cleaned_data.get("username", "")):
                return super().clean()
        except throttle.TooManyAttempts as error:
            self.retry_after = 1
            raise ValidationError(
                _("There are too many attempts with this name at the same time. Try again in a moment."), code="locked"
            ) from error
        except ldap.DirectoryError as error:
            raise ValidationError(SIGN_IN_ERRORS[type(error)], code=error.code) from error

    def get_invalid_login_error(self) -> ValidationError:
        """Return the message for a wrong password, or for a lock if the attempts are used up, also by this one."""
        if not getattr(self.request, "axes_locked_out", False):
            return super().get_invalid_login_error()
        assert self.request is not None
        self.retry_after = math.ceil(
            throttle.remaining_lock(self.request, self.cleaned_data["username"]).total_seconds()
        )
        minutes = math.ceil(self.retry_after / 60)
        text = ngettext(
            "Too many failed attempts. Sign-in for this name is locked here; try again in %(minutes)s minute.",
            "Too many failed attempts. Sign-in for this name is locked here; try again in %(minutes)s minutes.",
            minutes,
        )
        return ValidationError(text % {"minutes": minutes}, code="locked")


class SettingsForm(forms.Form):
    """A person's settings. `theme` is for this browser only, the others apply everywhere."""

    language = forms.ChoiceField(
        label=_("Language"),
        choices=settings.LANGUAGES,
        widget=forms.RadioSelect,
        help_text=_("For pages, mails, and API messages about your keys."),
    )
    theme = forms.ChoiceField(
        label=_("Colours"),
        choices=[("system", _("same as system")), ("light", _("light")), ("dark", _("dark"))],
        widget=forms.RadioSelect,
        help_text=_("In this browser."),
    )
    wants_mail = forms.BooleanField(label=_("Send me notices by mail as well"), required=False)
    wants_tips = forms.BooleanField(
        label=_("Send me a tip now and then if I have not used models for some time"),
        required=False,
        help_text=_("At most one in two weeks, on working days. No other person learns of it."),
    )
