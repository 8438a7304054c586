"""The sign-in form, which says what is wrong when it is not the password, and that of a person's own settings."""

import math
from typing import Any

from django import forms
from django.conf import settings
from django.contrib.auth.forms import AuthenticationForm
from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from portal.accounts import ldap, throttle

# Why nobody was signed in although the password was not found wrong; none of it counts as an attempt. What is said of
# an account is said to who typed the right password, but for a lock: Active Directory tells it whatever was typed. It
# is told nevertheless. A stranger learns from it that a name exists only after as many wrong passwords as lock the
# account there, and our own lock, which is the same for all names, comes after five; whereas without it the people who
# are locked out, by a phone with an old password, would go on believing that they mistype.
TROUBLE = {
    ldap.NoAnswer: _("The company directory does not answer; try again in a few minutes."),
    ldap.Refused: _(
        "The company directory cannot be asked at the moment. Your password is not the reason;"
        " tell the people who run this server."
    ),
    ldap.NotAdmitted: _(
        "Your name and password are right, but you are not in the group that may use this service."
        " Ask the people who run this server or your IT desk."
    ),
    ldap.NameTaken: _(
        "Your name and password are right, but a local account here has the same name."
        " Tell the people who run this server."
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
        "invalid_login": _(
            "The name and the password do not belong together. Mind upper and lower case in the password."
        ),
        "inactive": _("This account is switched off. Ask the people who run this server."),
    }

    wait = 0  # seconds that a locked-out person must wait

    def clean(self) -> dict[str, Any]:
        assert self.request is not None
        try:
            with throttle.wait_turn(self.request, self.cleaned_data.get("username", "")):
                return super().clean()
        except throttle.Crowded as error:
            self.wait = 1
            raise ValidationError(
                _("There are too many attempts with this name at the same time. Try again in a moment."), code="locked"
            ) from error
        except ldap.DirectoryError as error:
            raise ValidationError(TROUBLE[type(error)], code="directory") from error

    def get_invalid_login_error(self) -> ValidationError:
        """Also when the attempts are used up, be it by this one: the right password would not help then."""
        if not getattr(self.request, "axes_locked_out", False):
            return super().get_invalid_login_error()
        assert self.request is not None
        self.wait = math.ceil(throttle.wait(self.request, self.cleaned_data["username"]).total_seconds())
        minutes = math.ceil(self.wait / 60)
        text = ngettext(
            "Too many failed attempts. Sign-in for this name is locked here; try again in %(minutes)s minute.",
            "Too many failed attempts. Sign-in for this name is locked here; try again in %(minutes)s minutes.",
            minutes,
        )
        return ValidationError(text % {"minutes": minutes}, code="locked")


class SettingsForm(forms.Form):
    """How the site is to a person. `theme` is this browser's, the others hold everywhere."""

    language = forms.ChoiceField(
        label=_("Language"),
        choices=settings.LANGUAGES,
        widget=forms.RadioSelect,
        help_text=_("Of the pages, of mails, and of what the API says about your keys."),
    )
    theme = forms.ChoiceField(
        label=_("Colours"),
        choices=[("system", _("as the system")), ("light", _("light")), ("dark", _("dark"))],
        widget=forms.RadioSelect,
        help_text=_("In this browser."),
    )
    wants_mail = forms.BooleanField(label=_("Notices come by mail as well"), required=False)
