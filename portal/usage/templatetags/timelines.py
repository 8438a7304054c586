"""Parts of a call's time, as people read them."""

from collections.abc import Mapping
from typing import Any

from django import template

register = template.Library()


@register.filter
def item(found: Mapping[Any, Any], key: Any) -> Any:
    """Return what is known under this key; "": nothing."""
    return found.get(key, "")
