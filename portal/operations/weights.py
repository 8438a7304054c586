"""The operators' page of weights: how much callers are served beside others where calls wait, and what that means."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from django.contrib import messages
from django.core.exceptions import BadRequest, ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods

from modelregistry.plain_numbers import read_decimal
from portal.accounts.decorators import operator_required
from portal.accounts.models import LEAST_WEIGHT, MOST_WEIGHT, Tenant, User
from portal.accounts.permissions import current_user
from portal.keys import queries, weights
from portal.keys.canary_key import TENANT as CANARY_TENANT
from portal.keys.models import LEAST_SERVICE_WEIGHT, MOST_SERVICE_WEIGHT, ApiKey

# Rows of tenants and of service keys. Those beyond are set by the command and the API.
MAX_ROWS = 300
CLASSES = [value for value, _label in ApiKey.CHOOSABLE]
# Answers of which a part is shown as so many of so many; above it, per cent say more.
MAX_ANSWERS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightRow:
    """Something with a weight. `of`: as forms and the API name it."""

    of: str
    name: str
    weight: float | None  # None: of a key, as its class
    least: str  # bounds, as fields of pages take numbers in every language
    most: str
    counts_as: float  # people of weight 1; of a key whose people take their own turns, each of them
    share: Fraction | None = None  # of all answers in the example; None: not part of it
    key: ApiKey | None = None
    usual: str | None = None  # of a key, what its class has

    @property
    def typed(self) -> str:
        return "" if self.weight is None else f"{self.weight:g}"

    @property
    def percent(self) -> float:
        return 100 * float(self.share or 0)

    @property
    def answers(self) -> tuple[int, int] | None:
        """So many of so many answers; None: those would be too many to picture."""
        if self.share is None or self.share.denominator > MAX_ANSWERS:
            return None
        return self.share.numerator, self.share.denominator


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """All weights. The example: one person of each active tenant and one service key of it wait for the same model."""

    tenants: tuple[WeightRow, ...]
    classes: tuple[WeightRow, ...]
    keys: tuple[WeightRow, ...]

    @property
    def example(self) -> WeightRow | None:
        """The tenant that the example names: one of the greatest weight."""
        return max((one for one in self.tenants if one.share), key=lambda one: one.counts_as, default=None)


def read_weights() -> Weights:
    """Return all weights. Three queries."""
    of_classes = weights.class_weights()
    tenants = list(Tenant.objects.filter(is_active=True).exclude(slug=CANARY_TENANT).order_by("name")[:MAX_ROWS])
    service = of_classes[ApiKey.Class.INTERACTIVE]
    total = sum((exact(one.weight) for one in tenants), exact(service))
    return Weights(
        tenants=tuple(_tenant_row(one, total) for one in tenants),
        classes=tuple(_class_row(one, of_classes, total) for one, _label in ApiKey.CHOOSABLE),
        keys=tuple(_key_row(one, of_classes) for one in queries.weighted_keys()[:MAX_ROWS]),
    )


def exact(weight: float) -> Fraction:
    """Return the weight as it was typed: 0.1 is a tenth."""
    return Fraction(str(weight))


def _tenant_row(tenant: Tenant, total: Fraction) -> WeightRow:
    return WeightRow(
        of=f"tenant:{tenant.slug}",
        name=tenant.name,
        weight=tenant.weight,
        least=f"{LEAST_WEIGHT:g}",
        most=f"{MOST_WEIGHT:g}",
        counts_as=tenant.weight,
        share=exact(tenant.weight) / total,
    )


def _class_row(key_class: str, of_classes: dict[str, float], total: Fraction) -> WeightRow:
    weight = of_classes[key_class]
    return WeightRow(
        of=f"class:{key_class}",
        name=key_class,
        weight=weight,
        least=f"{LEAST_SERVICE_WEIGHT:g}",
        most=f"{MOST_SERVICE_WEIGHT:g}",
        counts_as=weight,
        share=exact(weight) / total if key_class == ApiKey.Class.INTERACTIVE else None,
    )


def _key_row(key: ApiKey, of_classes: dict[str, float]) -> WeightRow:
    people = of_classes[key.key_class] if key.weight is None else key.weight
    return WeightRow(
        of=f"key:{key.prefix}",
        name=key.service,
        weight=key.weight,
        least=f"{LEAST_SERVICE_WEIGHT:g}",
        most=f"{MOST_SERVICE_WEIGHT:g}",
        counts_as=key.tenant.weight * (1 if key.separates_users else people),
        key=key,
        usual=f"{of_classes[key.key_class]:g}",
    )


@operator_required
@require_http_methods(["GET", "HEAD", "POST"])
def show_weights(request: HttpRequest) -> HttpResponse:
    if request.method != "POST":
        return render(request, "operations/weights.html", {"weights": read_weights()})
    try:
        change_weight(
            current_user(request),
            request.POST.get("of", ""),
            weight=read_number(request.POST["weight"]) if "weight" in request.POST else ...,
            apart={"apart": True, "together": False}.get(request.POST.get("people", "")),
        )
    except ValidationError as error:
        messages.error(request, " ".join(error.messages))
        # With what was typed, in its own field.
        wrong = {"of": request.POST.get("of"), "typed": request.POST["weight"]} if "weight" in request.POST else {}
        return render(request, "operations/weights.html", {"weights": read_weights(), "wrong": wrong}, status=400)
    messages.success(request, _("Saved. The change applies within 2 seconds."))
    return redirect("operations-weights")


def read_number(text: str) -> float | None:
    """Return the number that was typed, None for nothing. Raises ValidationError."""
    if not text.strip():
        return None
    try:
        return read_decimal(text.strip())
    except ValueError as error:
        raise ValidationError(_("Enter a number."), code="no-number") from error


def change_weight(by: User, of: str, *, weight: Any = ..., apart: bool | None = None) -> None:
    """Set what is given of the tenant, class or key `of`. `weight` None: of a key, as its class.

    Raises BadRequest for what has no weight, Http404 for what does not exist, ValidationError for a wrong weight.
    """
    kind, _colon, name = of.partition(":")
    if kind == "key":
        key = get_object_or_404(queries.weighted_keys(), prefix=name)
        if weight is not ...:
            weights.set_key_weight(key, weight, by=by)
        if apart is not None:
            weights.separate_users(key, apart=apart, by=by)
        return
    if kind != "tenant" and (kind != "class" or name not in CLASSES):
        raise BadRequest(_("Name a tenant, a class or a service key: tenant:NAME, class:interactive or key:PREFIX."))
    if apart is not None:
        raise ValidationError(_("Only a service key has people behind it."), code="no-service")
    if weight is None or weight is ...:
        raise ValidationError(_("Enter a number."), code="no-number")
    if kind == "tenant":
        weights.set_tenant_weight(get_object_or_404(Tenant, slug=name), weight, by=by)
    else:
        weights.set_class_weight(name, weight, by=by)


def describe(rows: Sequence[WeightRow]) -> list[dict[str, Any]]:
    """Return the values of the API's Weight."""
    return [
        {
            "of": row.of,
            "name": row.name,
            "weight": row.weight,
            "counts_as": row.counts_as,
            "people": None if row.key is None else "apart" if row.key.separates_users else "together",
        }
        for row in rows
    ]
