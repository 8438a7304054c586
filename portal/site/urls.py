from django.urls import path

from portal.site import playground_views, views

urlpatterns = [
    path("", views.home, name="home"),
    path("try/", playground_views.try_it, name="try"),
    path("try/<slug:slug>/key/", playground_views.try_key, name="try-key"),
    path("search/", views.search_site, name="search"),
    path("language/", views.switch_language, name="set_language"),
    path("favicon.ico", views.favicon),
]
