"""Addresses of the catalogue. A model may be called "compare", so that page is beside theirs."""

from django.urls import path

from portal.catalogue import views
from portal.web import converters  # noqa: F401 - registers `model`

urlpatterns = [
    path("models/", views.show_catalogue, name="models"),
    path("models/<model:name>/", views.show_model, name="model"),
    path("compare/", views.compare, name="compare"),
]
