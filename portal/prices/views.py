"""The operators' pages of prices and budgets."""

from django.contrib import messages
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods

from modelregistry.models import ServedModel
from portal.accounts.decorators import operator_required
from portal.accounts.permissions import current_user
from portal.prices import price_list
from portal.prices.forms import BudgetForm, PriceForm
from portal.prices.models import TenantBudget, TokenPrice
from portal.web import posted_forms
from portal.web.editions import locked_if_posted

MAX_ROWS = 500


@operator_required
@require_http_methods(["GET", "HEAD", "POST"])
def price_page(request: HttpRequest) -> HttpResponse:
    """Show all prices and budgets; a posted price is added."""
    form = PriceForm(posted_forms.posted_data(request), models=known_models())
    if request.method == "POST" and form.store(current_user(request)):
        messages.success(request, _("Saved."))
        return redirect("prices")
    context = {
        "budget_form": BudgetForm(),
        "prices": TokenPrice.objects.order_by("kind", "model", "-first_day")[:MAX_ROWS],
        "budgets": TenantBudget.objects.select_related("tenant").order_by("tenant__name"),
        "shown_to_people": price_list.is_shown_to_people(),
    }
    return posted_forms.render_form(request, "prices/prices.html", form, context)


def known_models() -> list[str]:
    return list(ServedModel.objects.order_by("name").values_list("name", flat=True))


@operator_required
@require_http_methods(["GET", "HEAD", "POST"])
def edit_price(request: HttpRequest, pk: int) -> HttpResponse:
    with locked_if_posted(request, price_list.lock_prices):
        price = get_object_or_404(TokenPrice, pk=pk)
        form = PriceForm(posted_forms.posted_data(request), instance=price, models=known_models())
        if request.method == "POST" and form.store(current_user(request)):
            messages.success(request, _("Saved. Past days are computed with the new price as well."))
            return redirect("prices")
    return posted_forms.render_form(request, "prices/edit.html", form, {"pk": pk})


@operator_required
@posted_forms.only_posted
def remove_price(request: HttpRequest, pk: int) -> HttpResponse:
    try:
        price_list.remove_price(get_object_or_404(TokenPrice, pk=pk), by=current_user(request))
    except ValidationError as error:
        messages.error(request, " ".join(error.messages))
        return redirect("price", pk=pk)
    messages.success(request, _("The price was deleted."))
    return redirect("prices")


@operator_required
@posted_forms.only_posted
def set_budget(request: HttpRequest) -> HttpResponse:
    form = BudgetForm(request.POST)
    if not form.is_valid():
        messages.error(request, " ".join(str(message) for field in form.errors.values() for message in field))
        return redirect("prices")
    price_list.set_budget(form.cleaned_data["tenant"], form.cleaned_data["yen"], by=current_user(request))
    messages.success(request, _("Saved."))
    return redirect("prices")


@operator_required
@posted_forms.only_posted
def set_display(request: HttpRequest) -> HttpResponse:
    shown = posted_forms.posted_choice(request, "people", "show", "hide") == "show"
    price_list.set_shown_to_people(shown, by=current_user(request))
    messages.success(request, _("Saved."))
    return redirect("prices")
