from django.urls import path

from portal.news import views
from portal.web import converters  # noqa: F401 - registers `id`

urlpatterns = [
    path("", views.news, name="news"),
    path("changes/", views.changes, name="news-changes"),
    path("new/", views.new_announcement, name="news-new"),
    path("<id:pk>/", views.edit_announcement, name="news-edit"),
    path("<id:pk>/close/", views.close, name="news-close"),
    path("<id:pk>/remove/", views.remove_announcement, name="news-remove"),
]
