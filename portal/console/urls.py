from django.urls import path

from portal.console import views

urlpatterns = [
    path("", views.home, name="home"),
    path("models/", views.models, name="models"),
    path("language/", views.switch_language, name="set_language"),
    path("favicon.ico", views.favicon),
]
