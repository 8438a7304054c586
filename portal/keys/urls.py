from django.urls import path

from portal.keys import editing, views

urlpatterns = [
    path("", views.key_list, name="keys"),
    path("new/", editing.new_key, name="key-new"),
    path("found/", views.found_key, name="key-found"),
    path("services/", views.service_list, name="key-services"),
    path("services/new/", editing.new_service_key, name="key-service-new"),
    path("<slug:prefix>/", views.key_detail, name="key"),
    path("<slug:prefix>/edit/", editing.edit_key, name="key-edit"),
    path("<slug:prefix>/rotate/", editing.rotate_key, name="key-rotate"),
    path("<slug:prefix>/revoke/", editing.revoke_key, name="key-revoke"),
]
