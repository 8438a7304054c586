from django.urls import path

from portal.tenants import people_views, quota_views, request_views, tenant_views, views
from portal.web import converters  # noqa: F401 - registers `id`

urlpatterns = [
    path("tenants/", tenant_views.tenant_list, name="tenants"),
    path("tenants/new/", tenant_views.new_tenant, name="tenant-new"),
    path("tenants/quotas/", quota_views.default_list, name="tenant-defaults"),
    path("tenants/quotas/give/", quota_views.set_default, name="tenant-default-set"),
    path("tenants/quotas/<id:pk>/remove/", quota_views.remove_default, name="tenant-default-remove"),
    path("tenant/<slug:slug>/", views.overview, name="tenant"),
    path("tenant/<slug:slug>/edit/", tenant_views.edit_tenant, name="tenant-edit"),
    path("tenant/<slug:slug>/switch/", tenant_views.switch_tenant, name="tenant-switch"),
    path("tenant/<slug:slug>/people/", people_views.people_list, name="tenant-people"),
    path("tenant/<slug:slug>/people/add/", people_views.add_person, name="tenant-person-add"),
    path("tenant/<slug:slug>/people/<id:pk>/", people_views.person_detail, name="tenant-person"),
    path("tenant/<slug:slug>/people/<id:pk>/role/", people_views.change_role, name="tenant-person-role"),
    path("tenant/<slug:slug>/people/<id:pk>/champion/", people_views.appoint_champion, name="tenant-person-champion"),
    path("tenant/<slug:slug>/people/<id:pk>/remove/", people_views.remove_person, name="tenant-person-remove"),
    path("tenant/<slug:slug>/keys/", views.key_list, name="tenant-keys"),
    path("tenant/<slug:slug>/quotas/", quota_views.quota_list, name="tenant-quotas"),
    path("tenant/<slug:slug>/quotas/give/", quota_views.set_quota, name="tenant-quota-set"),
    path("tenant/<slug:slug>/quotas/<id:pk>/remove/", quota_views.remove_quota, name="tenant-quota-remove"),
    path("tenant/<slug:slug>/requests/", request_views.request_list, name="tenant-requests"),
    path("tenant/<slug:slug>/requests/<id:pk>/", request_views.decide_request, name="tenant-request-decide"),
    path("more/", request_views.new_request, name="quota-request-new"),
    path("more/<id:pk>/", request_views.edit_request, name="quota-request"),
    path("more/<id:pk>/withdraw/", request_views.withdraw_request, name="quota-request-withdraw"),
]
