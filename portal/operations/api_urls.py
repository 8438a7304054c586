from django.urls import include, path
from rest_framework.routers import SimpleRouter

from portal.operations import api

router = SimpleRouter(use_regex_path=False)
router.register("hosts", api.Hosts, basename="api-hosts")
router.register("models", api.Models, basename="api-models")
router.register("replicas", api.Replicas, basename="api-replicas")

urlpatterns = [
    path("schema/", api.Schema.as_view(), name="api-schema"),
    path("docs/", api.docs, name="api-docs"),
    path("v1/overview/", api.OverviewView.as_view(), name="api-overview"),
    path("v1/presets/", api.PresetsView.as_view(), name="api-presets"),
    path("v1/", include(router.urls)),
    path("<path:rest>", api.Nowhere.as_view()),
]
