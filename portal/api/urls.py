"""`/api/`. Each app's endpoints stand in its own api.py and are registered here."""

from django.urls import include, path
from rest_framework.routers import SimpleRouter

from portal.api import views
from portal.operations import api as operations

router = SimpleRouter(use_regex_path=False)
router.register("hosts", operations.Hosts, basename="api-hosts")
router.register("models", operations.Models, basename="api-models")
router.register("replicas", operations.Replicas, basename="api-replicas")

urlpatterns = [
    path("schema/", views.Schema.as_view(), name="api-schema"),
    path("docs/", views.docs, name="api-docs"),
    path("v1/overview/", operations.OverviewView.as_view(), name="api-overview"),
    path("v1/presets/", operations.PresetsView.as_view(), name="api-presets"),
    path("v1/", include(router.urls)),
    path("<path:rest>", views.Nowhere.as_view()),
]
