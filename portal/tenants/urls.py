from django.urls import path

from portal.tenants import people_views, quota_views, request_views, tenant_views, views
from portal.web import converters  # noqa: F401 - registers `id`

urlpatterns = [
    path("tenants/", tenant_views.tenants, name="tenants"),
    path("tenants/new/", tenant_views.new, name="tenant-new"),
    path("tenants/quotas/", quota_views.defaults, name="tenant-defaults"),
    path("tenants/quotas/give/", quota_views.give_default, name="tenant-default-give"),
    path("tenants/quotas/<id:pk>/remove/", quota_views.take_default_away, name="tenant-default-remove"),
    path("tenant/<slug:slug>/", views.overview, name="tenant"),
    path("tenant/<slug:slug>/edit/", tenant_views.edit, name="tenant-edit"),
    path("tenant/<slug:slug>/switch/", tenant_views.switch, name="tenant-switch"),
    path("tenant/<slug:slug>/people/", people_views.people, name="tenant-people"),
    path("tenant/<slug:slug>/people/add/", people_views.add, name="tenant-person-add"),
    path("tenant/<slug:slug>/people/<id:pk>/", people_views.one, name="tenant-person"),
    path("tenant/<slug:slug>/people/<id:pk>/role/", people_views.role, name="tenant-person-role"),
    path("tenant/<slug:slug>/people/<id:pk>/remove/", people_views.remove, name="tenant-person-remove"),
    path("tenant/<slug:slug>/keys/", views.keys, name="tenant-keys"),
    path("tenant/<slug:slug>/quotas/", quota_views.quotas, name="tenant-quotas"),
    path("tenant/<slug:slug>/quotas/give/", quota_views.give, name="tenant-quota-give"),
    path("tenant/<slug:slug>/quotas/<id:pk>/remove/", quota_views.take_away, name="tenant-quota-remove"),
    path("tenant/<slug:slug>/requests/", request_views.requests, name="tenant-requests"),
    path("tenant/<slug:slug>/requests/<id:pk>/", request_views.decide, name="tenant-request-decide"),
    path("more/", request_views.more, name="more"),
    path("more/<id:pk>/", request_views.wish, name="wish"),
    path("more/<id:pk>/withdraw/", request_views.withdraw, name="wish-withdraw"),
]
