from django.urls import path

from portal.api import pages

urlpatterns = [
    path("", pages.key_list, name="management-keys"),
    path("new/", pages.new_key, name="management-key-new"),
    path("<slug:prefix>/revoke/", pages.revoke_key, name="management-key-revoke"),
]
