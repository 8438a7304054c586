from django.urls import path

from portal.tenants import views

urlpatterns = [
    path("tenant/<slug:slug>/requests/", views.requests, name="tenant-requests"),
]
