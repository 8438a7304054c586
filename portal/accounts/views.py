"""The pages for signing in and for a person's own settings. Signing out is Django's own view."""

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.contrib.auth.views import LoginView
from django.core.exceptions import NON_FIELD_ERRORS
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import get_language, override
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods

from portal.accounts.forms import SettingsForm, SignInForm
from portal.accounts.ldap.errors import DirectoryRefused, DirectoryUnavailable
from portal.accounts.models import User
from portal.web import posted_forms

DIRECTORY_TROUBLES = (DirectoryUnavailable, DirectoryRefused)  # not the person's fault
THEME_COOKIE = "theme"  # read by base.html; the switch in the bar on top writes it as well


class SignIn(LoginView):
    template_name = "accounts/sign_in.html"
    form_class = SignInForm
    http_method_names = ["get", "head", "post", "options"]  # Django's form views take PUT for POST

    def get_redirect_url(self, request: HttpRequest | None = None) -> str:
        """Return the page that was asked for; "" for the home page, instead of which people may be led elsewhere."""
        asked = super().get_redirect_url()
        return "" if asked == reverse("home") else asked

    def form_invalid(self, form: SignInForm) -> HttpResponse:  # type: ignore[override]
        response = super().form_invalid(form)
        troubled = any(form.has_error(NON_FIELD_ERRORS, one.code) for one in DIRECTORY_TROUBLES)
        response.status_code = 503 if troubled else 400
        if form.retry_after:
            response.status_code = 429
            response["Retry-After"] = str(form.retry_after)
        return response


@login_required
@require_http_methods(["GET", "HEAD", "POST"])
def settings_page(request: HttpRequest) -> HttpResponse:
    user = request.user
    assert isinstance(user, User)
    initial = {
        "language": get_language(),
        "theme": request.COOKIES.get(THEME_COOKIE, "system"),
        "wants_mail": user.wants_mail,
        "wants_tips": user.wants_tips,
    }
    form = SettingsForm(posted_forms.posted_data(request), initial=initial)
    if form.is_valid():
        return save_settings(request, user, form.cleaned_data)
    context = {
        "memberships": user.memberships.select_related("tenant").order_by("tenant__name"),
        "sends_mail": settings.SENDS_MAIL,
    }
    return posted_forms.render_form(request, "accounts/settings.html", form, context)


def save_settings(request: HttpRequest, user: User, values: dict[str, str]) -> HttpResponse:
    user.language, user.wants_mail = values["language"], bool(values["wants_mail"])
    user.wants_tips = bool(values["wants_tips"])
    user.save(update_fields=["language", "wants_mail", "wants_tips"])
    with override(user.language):
        messages.success(request, _("Saved."))
    response = redirect("settings")
    for name, value in ((settings.LANGUAGE_COOKIE_NAME, user.language), (THEME_COOKIE, values["theme"])):
        age = settings.LANGUAGE_COOKIE_AGE
        response.set_cookie(name, value, max_age=age, samesite="Lax", secure=settings.HTTPS)
    return response
