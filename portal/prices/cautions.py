"""What an operator may not mean by a price. Pages ask once before they save it; the API and `setprice` name it."""

from decimal import Decimal

from django.utils.translation import gettext as _

from modelregistry.models import ServedModel
from portal.prices.models import TokenPrice
from portal.web.cautions import Caution
from portal.web.templatetags.formatting import figure

# Yen for 1,000 tokens: ten times the dearest service, and the price of a million tokens at a usual one.
DEAR = Decimal(1000)
CODES = ("no-model", "dear")


def find_cautions(price: TokenPrice) -> list[Caution]:
    """Return all that to ask about before this price is saved, in the order of CODES. Two queries.

    A deleted model may get prices still, and one that is registered tomorrow.
    """
    return [one for one in (_find_strange_model(price), _find_dear_amount(price)) if one is not None]


def _find_strange_model(price: TokenPrice) -> Caution | None:
    if ServedModel.objects.filter(name=price.model).exists():
        return None
    if price.pk and TokenPrice.objects.filter(model=price.model, pk=price.pk).exists():
        return None
    sentence = _("There is no model of the name %(model)s now. Usage has the names of models, not those of aliases.")
    return Caution("no-model", sentence % {"model": price.model})


def _find_dear_amount(price: TokenPrice) -> Caution | None:
    amounts = (price.input_price, price.output_price, price.cached_price)
    dear = [amount for amount in amounts if amount is not None and amount.is_finite() and amount >= DEAR]
    if not dear:
        return None
    sentence = _("%(amount)s yen for 1,000 tokens is more than any service takes. Is it the price of a million?")
    return Caution("dear", sentence % {"amount": figure(max(dear))})
