"""Our version of Django's admin site."""

from functools import wraps
from typing import Any

from django.contrib.admin import AdminSite
from django.http import HttpRequest


class Site(AdminSite):
    def admin_view(self, view: Any, cacheable: bool = False) -> Any:
        """Wrap a view of the admin, without filling forms for new rows from the address: invalid values cause a 500."""
        inner = super().admin_view(view, cacheable)

        @wraps(inner)
        def wrapper(request: HttpRequest, *args: Any, **more: Any) -> Any:
            if request.path.endswith("/add/"):
                query = request.GET.copy()
                for name in [name for name in query if not name.startswith("_")]:  # `_popup` is Django's own
                    del query[name]
                request.GET = query  # type: ignore[assignment]
            return inner(request, *args, **more)

        return wrapper
