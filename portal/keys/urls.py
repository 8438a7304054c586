from django.urls import path

from portal.keys import edit_views, views

urlpatterns = [
    path("", views.key_list, name="keys"),
    path("new/", edit_views.new_key, name="key-new"),
    path("found/", views.report_leaked_key, name="key-report-leaked"),
    path("services/", views.service_list, name="key-services"),
    path("services/new/", edit_views.new_service_key, name="key-service-new"),
    path("<slug:prefix>/edit/", edit_views.edit_key, name="key-edit"),
    path("<slug:prefix>/user-secret/", edit_views.change_user_secret, name="key-user-secret"),
    path("<slug:prefix>/rotate/", edit_views.rotate_key, name="key-rotate"),
    path("<slug:prefix>/revoke/", edit_views.revoke_key, name="key-revoke"),
]
