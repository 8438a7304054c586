from django.urls import path

from portal.usage import views

urlpatterns = [
    path("", views.usage, name="usage"),
    path("live/", views.live_view, name="usage-live"),
    path("costs/export/", views.export_costs, name="usage-costs-export"),
    path("export/", views.export, name="usage-export"),
]
