"""The page for the first day, and the operators' page of the house rules."""

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_safe

from portal.accounts.decorators import operator_required
from portal.accounts.permissions import current_user, own_tenants
from portal.accounts.timezones import zone_of
from portal.guide import first_day, house_rules
from portal.guide.forms import HouseRulesForm
from portal.guide.house_rules import ReadableRules, RulesChanged, in_page_language
from portal.keys import playground_models
from portal.web import posted_forms


@login_required
@require_safe
def arrive(request: HttpRequest) -> HttpResponse:
    """Redirect a person who has just signed in: before their first answer to the page for the first day, else home."""
    return redirect("start" if first_day.needs_first_day(current_user(request)) else "home")


@login_required
@require_safe
def start(request: HttpRequest) -> HttpResponse:
    """Show what this is, what holds here, and a field for the first question."""
    user = current_user(request)
    tenants = list(own_tenants(user))
    context = {
        "zone": zone_of(user),
        "rules": house_rules.read_rules(),
        "tenants": tenants,
        "may_ask": bool(playground_models.model_choices(tenants)),
        "is_first": bool(tenants) and first_day.is_before_first_answer(user),
    }
    return render(request, "guide/start.html", context)


@login_required
@posted_forms.only_posted
def finish(request: HttpRequest) -> HttpResponse:
    """Redirect home, and no longer lead the person to the page at sign-in."""
    first_day.finish_first_day(current_user(request))
    return redirect("home")


@operator_required
@require_http_methods(["GET", "HEAD", "POST"])
def edit_rules(request: HttpRequest) -> HttpResponse:
    """Show the texts in a form; save them, or with the button for it only show how they will look."""
    row = house_rules.stored_rules()
    form = HouseRulesForm(posted_forms.posted_data(request), instance=row, initial={"edition": row.edition})
    preview = None
    if request.method == "POST" and form.is_valid():
        if "preview" in request.POST:
            preview = _preview_of(form.texts())
        else:
            try:
                house_rules.write_rules(form.texts(), form.cleaned_data["edition"])
            except RulesChanged:
                sentence = _(
                    "Another operator changed these texts meanwhile. Open the page again and add your changes."
                )
                form.add_error(None, ValidationError(sentence, code="changed-meanwhile"))
            else:
                messages.success(request, _("Saved."))
                return redirect("start")
    context = {"preview": preview, "default": house_rules.default_rules()}
    return posted_forms.render_form(request, "guide/edit_rules.html", form, context)


def _preview_of(texts: dict[str, str]) -> ReadableRules:
    rules = in_page_language(texts["rules_ja"], texts["rules_en"])
    return ReadableRules(
        rules=rules or house_rules.default_rules(),
        contact=in_page_language(texts["contact_ja"], texts["contact_en"]),
        is_default=not rules,
        changed_at=timezone.now(),
    )
