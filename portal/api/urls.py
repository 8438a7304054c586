"""`/api/`. The endpoints of each app are in its api.py; they are registered here."""

from django.urls import include, path, register_converter
from django.urls.converters import StringConverter
from rest_framework.routers import SimpleRouter

from portal.accounts import api as accounts
from portal.api import views
from portal.audit import api as audit
from portal.guide import api as guide
from portal.keys import api as keys
from portal.lessons import api as lessons
from portal.news import api as news
from portal.notifications import api as notifications
from portal.notifications import webhook_api
from portal.operations import api as operations
from portal.operations import queue_api, weights_api
from portal.prices import api as prices
from portal.quotas import api as quotas
from portal.status import api as status
from portal.usage import api as usage
from portal.use_cases import api as use_cases


class Anything(StringConverter):
    """Like Django's `path`, but line feeds match as well, so that no address below `/api/` gets a page."""

    regex = "(?s:.+)"


register_converter(Anything, "anything")

router = SimpleRouter(use_regex_path=False)
router.register("keys", keys.Keys, basename="api-keys")
router.register("catalogue", keys.CatalogueModels, basename="api-catalogue")
router.register("management-keys", keys.ManagementKeys, basename="api-management-keys")
router.register("quotas", quotas.Quotas, basename="api-quotas")
router.register("quota-requests", quotas.Requests, basename="api-quota-requests")
router.register("prices", prices.Prices, basename="api-prices")
router.register("tenants", accounts.Tenants, basename="api-tenants")
router.register("news", news.Announcements, basename="api-news")
router.register("notices", notifications.Notices, basename="api-notices")
router.register("webhooks", webhook_api.Webhooks, basename="api-webhooks")
router.register("use-cases", use_cases.UseCases, basename="api-use-cases")
router.register("seminars", lessons.Seminars, basename="api-seminars")
router.register("hosts", operations.Hosts, basename="api-hosts")
router.register("models", operations.Models, basename="api-models")
router.register("replicas", operations.Replicas, basename="api-replicas")

urlpatterns = [
    path("schema/", views.Schema.as_view(), name="api-schema"),
    path("docs/", views.docs, name="api-docs"),
    path("v1/me/", accounts.MeView.as_view(), name="api-me"),
    path("v1/me/settings/", accounts.SettingsView.as_view(), name="api-settings"),
    path(
        "v1/tenants/<slug:slug>/members/",
        accounts.Members.as_view({"get": "list", "post": "create"}),
        name="api-members",
    ),
    path(
        "v1/tenants/<slug:slug>/members/<str:username>/",
        accounts.Members.as_view({"get": "retrieve", "patch": "partial_update", "delete": "destroy"}),
        name="api-member",
    ),
    path("v1/tenants/<slug:slug>/courses/", lessons.TenantCoursesView.as_view(), name="api-tenant-courses"),
    path("v1/seminars/join/", lessons.JoinSeminarView.as_view(), name="api-seminars-join"),
    path("v1/courses/", lessons.CoursesView.as_view(), name="api-courses"),
    path("v1/usage/", usage.UsageTotalsView.as_view(), name="api-usage"),
    path("v1/usage/series/", usage.UsageSeriesView.as_view(), name="api-usage-series"),
    path("v1/usage/groups/", usage.UsageGroups.as_view({"get": "list"}), name="api-usage-groups"),
    path("v1/usage/scopes/", usage.UsageScopesView.as_view(), name="api-usage-scopes"),
    path("v1/prices/settings/", prices.PriceSettingsView.as_view(), name="api-price-settings"),
    path("v1/requests/", usage.RequestsView.as_view(), name="api-requests"),
    path("v1/requests/<str:request_id>/", usage.RequestView.as_view(), name="api-request"),
    path("v1/audit/", audit.AuditView.as_view(), name="api-audit"),
    path("v1/allowances/", quotas.AllowancesView.as_view(), name="api-allowances"),
    path("v1/house-rules/", guide.HouseRulesView.as_view(), name="api-house-rules"),
    path("v1/status/", status.StatusView.as_view(), name="api-status"),
    path("v1/overview/", operations.OverviewView.as_view(), name="api-overview"),
    path("v1/queue/", queue_api.QueueView.as_view(), name="api-queue"),
    path("v1/weights/", weights_api.WeightsView.as_view(), name="api-weights"),
    path("v1/directory/", operations.DirectoryView.as_view(), name="api-directory"),
    path("v1/directory/sync/", operations.SynchroniseDirectoryView.as_view(), name="api-directory-sync"),
    path("v1/presets/", operations.PresetsView.as_view(), name="api-presets"),
    path("v1/", include(router.urls)),
    path("<anything:rest>", views.UnknownAddress.as_view()),
]
