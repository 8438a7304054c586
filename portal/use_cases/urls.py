from django.urls import path

from portal.use_cases import views
from portal.web import converters  # noqa: F401 - registers `id`

urlpatterns = [
    path("", views.use_case_list, name="use-cases"),
    path("new/", views.new_use_case, name="use-case-new"),
    path("<id:pk>/", views.use_case_page, name="use-case"),
    path("<id:pk>/edit/", views.edit_use_case, name="use-case-edit"),
    path("<id:pk>/history/", views.use_case_history, name="use-case-history"),
    path("<id:pk>/decide/", views.decide_use_case, name="use-case-decide"),
    path("<id:pk>/try/", views.try_use_case, name="use-case-try"),
    path("<id:pk>/helped/", views.helped, name="use-case-helped"),
    path("<id:pk>/comments/", views.comment, name="use-case-comment"),
    path("<id:pk>/comments/<id:comment_pk>/delete/", views.delete_comment, name="use-case-comment-delete"),
]
