from django.urls import path

from portal.site import views

urlpatterns = [
    path("", views.home, name="home"),
    path("models/", views.models, name="models"),
    path("try/", views.try_it, name="try"),
    path("try/<slug:slug>/key/", views.try_key, name="try-key"),
    path("language/", views.switch_language, name="set_language"),
    path("favicon.ico", views.favicon),
]
