from django.urls import path

from portal.keys import views

urlpatterns = [
    path("", views.key_list, name="keys"),
    path("new/", views.new_key, name="key-new"),
    path("found/", views.found_key, name="key-found"),
    path("<slug:prefix>/", views.key_detail, name="key"),
    path("<slug:prefix>/revoke/", views.revoke_key, name="key-revoke"),
]
