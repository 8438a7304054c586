from django.urls import path

from portal.keys import management_key_views

urlpatterns = [
    path("", management_key_views.key_list, name="management-keys"),
    path("new/", management_key_views.new_key, name="management-key-new"),
    path("<slug:prefix>/revoke/", management_key_views.revoke_key, name="management-key-revoke"),
]
