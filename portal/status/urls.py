from django.urls import path

from portal.status import views

urlpatterns = [path("", views.status, name="status")]
