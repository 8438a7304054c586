from django.urls import path

from portal.usage import request_views

urlpatterns = [
    path("", request_views.requests_page, name="requests"),
    path("export/", request_views.export, name="requests-export"),
    path("<str:request_id>/", request_views.request_page, name="request"),
]
