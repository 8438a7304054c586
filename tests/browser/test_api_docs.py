"""The API in a browser: its description, from this server alone, and the pages of management keys."""

import subprocess

import pytest
from playwright.sync_api import expect

from modelregistry.models import ServedModel
from portal.audit.models import AuditEvent
from portal.keys.models import ManagementKey
from tests.browser.pages import sign_in
from tests.pages import serve

pytestmark = pytest.mark.django_db(transaction=True)


def test_operators_read_the_api_and_try_it(open_page, olivia):
    serve("qwen")
    page = open_page("en")
    sign_in(page, "olivia")
    page.goto("/api/docs/")
    page.locator(".opblock-tag[data-tag=models]").click()
    stop = page.locator(".opblock-post", has_text="/api/v1/models/{id}/stop/")
    stop.locator(".opblock-summary-control").click()
    stop.locator(".try-out__btn").click()
    stop.get_by_placeholder("id").fill(str(ServedModel.objects.get().pk))
    stop.locator("button.execute").click()
    expect(stop.locator(".live-responses-table .response-col_status").last).to_contain_text("200")
    assert not ServedModel.objects.get().enabled
    assert AuditEvent.objects.latest("pk").action == "model.stop"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_opened_operations_can_be_read(open_page, olivia, axe, scheme):
    page = open_page("en", scheme=scheme)
    sign_in(page, "olivia")
    page.goto("/api/docs/")
    page.locator(".opblock-tag").first.wait_for()
    assert axe(page) == []
    for tag, method in (("models", "post"), ("keys", "get"), ("quotas", "delete"), ("seminars", "patch")):
        page.locator(f".opblock-tag[data-tag={tag}]").click()
        operation = page.locator(f".opblock-{method}").last
        operation.locator(".opblock-summary-control").click()
        operation.locator(".try-out__btn").click()
    assert axe(page) == []


def test_employees_read_of_what_is_theirs_in_their_language(open_page, alice):
    page = open_page("ja")
    sign_in(page, "alice")
    page.goto("/api/docs/")
    expect(page.locator("html")).to_have_attribute("lang", "ja")
    page.locator(".opblock-tag[data-tag=keys]").click()
    expect(page.locator("[id='operations-keys-keys_create']").first).to_be_visible()
    assert page.locator(".opblock-tag[data-tag=hosts]").count() == 0


def test_a_management_key_is_made_used_and_revoked(open_page, alice):
    page = open_page("en", width=360)
    sign_in(page, "alice")
    page.goto("/keys/management/")
    page.locator("main a.button[href='/keys/management/new/']").click()
    page.locator("[name=name]").fill("monthly report")
    page.locator("[name=scopes][value='usage:read']").check()
    page.locator("main form button").click()
    call = page.locator("pre code").inner_text()
    answer = subprocess.run(["sh", "-c", f"{call} --silent"], capture_output=True, text=True, timeout=30, check=True)
    assert '"username":"alice"' in answer.stdout
    page.locator("main a.button[href='/keys/management/']").click()
    page.locator("td summary").click()
    page.locator("form[action$='/revoke/'] button").click()
    expect(page.locator(".notice.success")).to_be_visible()
    assert ManagementKey.objects.get().revoked_at
    answer = subprocess.run(["sh", "-c", f"{call} --silent"], capture_output=True, text=True, timeout=30, check=True)
    assert '"status":401' in answer.stdout
