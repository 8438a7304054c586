from django.urls import path

from portal.metering import views

urlpatterns = [
    path("", views.usage, name="usage"),
    path("export/", views.export, name="usage-export"),
]
