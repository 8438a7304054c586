"""Which part of the site answers which address. /v1 is not here: portal.asgi gives it to the gateway."""

from django.contrib import admin
from django.urls import include, path

from portal.console.views import admin_sign_in

handler400 = "portal.console.errors.bad_request"
handler500 = "portal.console.errors.server_error"

urlpatterns = [
    path("", include("portal.console.urls")),
    path("", include("portal.accounts.urls")),
    path("keys/management/", include("portal.api.page_urls")),
    path("keys/", include("portal.keys.urls")),
    path("notices/", include("portal.notices.urls")),
    path("usage/", include("portal.metering.urls")),
    path("", include("portal.tenants.urls")),
    path("operations/", include("portal.operations.urls")),
    path("api/", include("portal.api.urls")),
    path("admin/login/", admin_sign_in),
    path("admin/", admin.site.urls),
]
