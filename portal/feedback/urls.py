from django.urls import path

from portal.feedback import views

urlpatterns = [
    path("", views.report, name="feedback"),
    path("give/", views.give, name="feedback-give"),
]
