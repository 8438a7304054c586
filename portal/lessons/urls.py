from django.urls import path

from portal.lessons import seminar_views, views
from portal.web import converters  # noqa: F401 - registers `id`

urlpatterns = [
    path("", views.course_list, name="lessons"),
    path("interest/", views.change_interest, name="lessons-interest"),
    path("join/", seminar_views.join, name="seminar-join"),
    path("seminars/new/", seminar_views.new_seminar, name="seminar-new"),
    path("seminars/<id:pk>/", seminar_views.seminar_page, name="seminar"),
    path("seminars/<id:pk>/sheet/", seminar_views.seminar_sheet, name="seminar-sheet"),
    path("seminars/<id:pk>/end/", seminar_views.end, name="seminar-end"),
    path("<slug:course>/", views.course_page, name="course"),
]
