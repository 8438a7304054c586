from django.urls import path

from portal.quotas import key_views

urlpatterns = [path("keys/<slug:prefix>/", key_views.key_detail, name="key")]
