"""Django's admin, as operators read it in Japanese."""

import re

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import Permission

from modelregistry.models import Host, Replica, ServedModel
from portal.accounts.models import Membership, Tenant, User
from portal.keys import lifecycle
from portal.keys.models import ManagementKey
from tests.fleet import fleet
from tests.html import all_of, has
from tests.pages import key_of, management_key_of, use
from tests.translations import japanese  # noqa: F401 - a fixture

pytestmark = pytest.mark.django_db

# Words that Japanese writes with Latin letters, and names of programs.
LATIN = {"API", "GPU", "ID", "IP", "URL", "JSON", "LDAP", "TP", "SSD", "RAM", "KV", "ms", "Open", "WebUI"}
# What Django and we say, not what the rows hold: filters, heads of columns, labels, and titles of groups.
WORDS = ("#changelist-filter summary", "thead th", "label", "fieldset h2", "fieldset legend", ".module caption")


@pytest.mark.usefixtures("japanese")
def test_lists_filters_and_forms_have_no_english_words(as_olivia, alice, research):
    fleet()
    use(key_of(alice, research))
    found, seen = {}, 0
    for model in apps.get_models():
        if not admin.site.is_registered(model):
            continue
        listed = f"/admin/{model._meta.app_label}/{model._meta.model_name}/"
        row = model._default_manager.first()
        for address in (listed, *([f"{listed}{row.pk}/change/"] if row else [])):
            page = as_olivia.get(address, headers={"accept-language": "ja"})
            assert page.status_code == 200
            words = {
                word for place in WORDS for one in all_of(page, place) for word in re.findall("[A-Za-z]{2,}", one.text)
            }
            seen += 1
            if wrong := words - LATIN:
                found[address] = wrong
    assert seen >= 20
    assert found == {}


def delete_in_admin(client, row, **form: str):
    return client.post(f"/admin/{row._meta.app_label}/{row._meta.model_name}/{row.pk}/delete/", form)


def delete_selected(client, row):
    form = {"action": "delete_selected", "_selected_action": str(row.pk)}
    return client.post(f"/admin/{row._meta.app_label}/{row._meta.model_name}/", form)


@pytest.mark.parametrize("which", ["tenant", "person"])
def test_what_holds_a_tenant_or_a_person_is_named_with_what_to_do_instead(as_olivia, alice, research, which):
    key = key_of(alice, research)
    lifecycle.revoke_key(key)
    row = research if which == "tenant" else alice
    change = f"/admin/{row._meta.app_label}/{row._meta.model_name}/{row.pk}/change/"
    for page in (delete_in_admin(as_olivia, row), delete_in_admin(as_olivia, row, post="yes")):
        assert page.status_code == 200
        assert has(page, "[data-kept]")
        assert change in {link["href"] for link in all_of(page, "#content a")}
        assert [link["href"] for link in all_of(page, "#deleted-objects a")] == [f"/admin/keys/apikey/{key.pk}/change/"]
    assert has(delete_selected(as_olivia, row), "[data-kept]")
    row.refresh_from_db()


def test_a_tenant_or_a_person_without_keys_is_deleted_with_what_belongs_to_them(as_olivia, research):
    eve = User.objects.create(username="eve")
    management_key_of(eve)
    for row in (eve, research):
        assert not has(delete_in_admin(as_olivia, row), "[data-kept]")
        assert delete_in_admin(as_olivia, row, post="yes").status_code == 302
    assert not Tenant.objects.filter(slug="research").exists()
    assert not ManagementKey.objects.exists()


@pytest.mark.parametrize("which", ["model", "host"])
def test_a_model_and_a_host_are_deleted_with_their_replicas(as_olivia, which):
    host = Host.objects.create(name="gone")
    model = ServedModel.objects.create(name="m", engine="external", url="http://10.0.0.1:8000")
    Replica.objects.create(model=model, host=host, index=0)
    assert delete_in_admin(as_olivia, model if which == "model" else host, post="yes").status_code == 302
    assert not Replica.objects.exists()


def test_an_operator_who_lacks_a_permission_reads_so(client, research):
    eve = User.objects.create(username="eve", is_staff=True)
    eve.user_permissions.add(Permission.objects.get(codename="delete_tenant"))
    client.force_login(eve, "portal.accounts.backends.LocalBackend")
    Membership.objects.create(user=eve, tenant=research)
    page = client.get(f"/admin/accounts/tenant/{research.pk}/delete/")
    assert page.context["perms_lacking"]
    assert delete_in_admin(client, research, post="yes").status_code == 403
