from django.urls import path

from portal.notifications import views, webhook_views
from portal.web import converters  # noqa: F401 - registers `id`

urlpatterns = [
    path("", views.notice_list, name="notices"),
    path("read/", views.read_all, name="notices-read"),
    path("webhooks/", webhook_views.webhook_list, name="webhooks"),
    path("webhooks/new/", webhook_views.new_webhook, name="webhook-new"),
    path("webhooks/<id:pk>/", webhook_views.edit_webhook, name="webhook"),
    path("webhooks/<id:pk>/test/", webhook_views.test_webhook, name="webhook-test"),
    path("webhooks/<id:pk>/remove/", webhook_views.remove_webhook, name="webhook-remove"),
    path("<id:pk>/", views.open_notice, name="notice"),
]
