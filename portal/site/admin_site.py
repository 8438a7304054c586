"""Django's admin, as a site of ours."""

from functools import wraps
from typing import Any

from django.contrib.admin import AdminSite
from django.http import HttpRequest


class Site(AdminSite):
    def admin_view(self, view: Any, cacheable: bool = False) -> Any:
        """As Django's, but forms for new things are not filled in from the address: nonsense there is a 500."""
        inner = super().admin_view(view, cacheable)

        @wraps(inner)
        def unfilled(request: HttpRequest, *args: Any, **more: Any) -> Any:
            if request.path.endswith("/add/"):
                asked = request.GET.copy()
                for name in [name for name in asked if not name.startswith("_")]:  # `_popup` is Django's own word
                    del asked[name]
                request.GET = asked  # type: ignore[assignment]
            return inner(request, *args, **more)

        return unfilled
