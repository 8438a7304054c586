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
    path("seminars/<id:pk>/edit/", seminar_views.edit, name="seminar-edit"),
    path("seminars/<id:pk>/join/", seminar_views.join_as_named, name="seminar-join-named"),
    path("seminars/<id:pk>/people/", seminar_views.name_people, name="seminar-people"),
    path("seminars/<id:pk>/people/<id:person_pk>/remove/", seminar_views.withdraw_name, name="seminar-person-remove"),
    path("seminars/<id:pk>/keys/<id:participant_pk>/", seminar_views.take_back, name="seminar-take-back"),
    path("seminars/<id:pk>/end/", seminar_views.end, name="seminar-end"),
    path("<slug:course>/", views.course_page, name="course"),
]
