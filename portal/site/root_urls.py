"""The addresses of the site. /v1 is not here: the gateway answers it."""

from django.contrib import admin
from django.urls import include, path

from portal.site.views import admin_sign_in

handler400 = "portal.web.errors.bad_request"
handler500 = "portal.web.errors.server_error"

urlpatterns = [
    path("", include("portal.site.urls")),
    path("", include("portal.accounts.urls")),
    path("start/", include("portal.guide.urls")),
    path("status/", include("portal.status.urls")),
    path("news/", include("portal.news.urls")),
    path("", include("portal.catalogue.urls")),
    path("audit/", include("portal.audit.urls")),
    path("keys/management/", include("portal.keys.management_key_urls")),
    path("keys/", include("portal.keys.urls")),  # first: a key is not called "new"
    path("", include("portal.quotas.urls")),
    path("notices/", include("portal.notifications.urls")),
    path("adoption/", include("portal.adoption.urls")),
    path("use-cases/", include("portal.use_cases.urls")),
    path("feedback/", include("portal.feedback.urls")),
    path("lessons/", include("portal.lessons.urls")),
    path("prices/", include("portal.prices.urls")),
    path("usage/", include("portal.usage.urls")),
    path("requests/", include("portal.usage.request_urls")),
    path("", include("portal.tenants.urls")),
    path("operations/", include("portal.operations.urls")),
    path("api/", include("portal.api.urls")),
    path("admin/login/", admin_sign_in),
    path("admin/", admin.site.urls),
]
