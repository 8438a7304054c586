"""The description of the API in a browser: nothing from elsewhere, nothing that the content security policy stops."""

import pytest
from playwright.sync_api import expect

from modelregistry.models import ServedModel
from portal.accounts.models import AuditEvent
from tests.browser.pages import sign_in
from tests.pages import serve

pytestmark = pytest.mark.django_db(transaction=True)


def test_operators_read_the_api_and_try_it(open_page, olivia):
    serve("qwen")
    page = open_page("en")
    sign_in(page, "olivia")
    page.goto("/api/docs/")
    expect(page.locator(".opblock").first).to_be_visible()
    stop = page.locator(".opblock-post", has_text="/api/v1/models/{id}/stop/")
    stop.locator(".opblock-summary-control").click()
    stop.get_by_role("button", name="Try it out").click()
    stop.get_by_placeholder("id").fill(str(ServedModel.objects.get().pk))
    stop.get_by_role("button", name="Execute").click()
    expect(stop.locator(".live-responses-table .response-col_status").last).to_contain_text("200")
    assert not ServedModel.objects.get().enabled
    assert AuditEvent.objects.latest("pk").action == "model.stop"
