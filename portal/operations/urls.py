"""Addresses of operators' pages. A model's name may contain slashes, so verbs come before it."""

from django.urls import path

from portal.operations import canary, directory, history_views, kept_data, queue_views, views, weights

urlpatterns = [
    path("", views.show_overview, name="operations"),
    path("queue/", queue_views.show_queue, name="operations-queue"),
    path("weights/", weights.show_weights, name="operations-weights"),
    path("data/", kept_data.show_kept_data, name="operations-data"),
    path("directory/", directory.directory, name="operations-directory"),
    path("directory/sync/", directory.synchronise, name="operations-directory-sync"),
    path("hosts/<id:pk>/", views.edit_host, name="operations-host"),
    path("hosts/<id:pk>/history/", history_views.show_host_history, name="operations-host-history"),
    path("hosts/<id:pk>/remove/", views.remove_host, name="operations-host-remove"),
    path("canary/<id:pk>/", canary.show_run, name="operations-canary"),
    path("canary/<id:pk>/accept/", canary.accept, name="operations-canary-accept"),
    path("ask/<path:name>/", canary.request_run, name="operations-ask"),
    path("history/<path:name>/", history_views.show_model_history, name="operations-model-history"),
    path("models/new/", views.new_model, name="operations-new"),
    path("models/<path:name>/", views.show_model, name="operations-model"),
    path("start/<path:name>/", views.start, name="operations-start"),
    path("calm/<path:name>/", views.calm, name="operations-calm"),
    path("stop/<path:name>/", views.stop, name="operations-stop"),
    path("restart/<path:name>/", views.restart, name="operations-restart"),
    path("edit/<path:name>/", views.edit_model, name="operations-edit"),
    path("unregister/<path:name>/", views.unregister, name="operations-unregister"),
]
