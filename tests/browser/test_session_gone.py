"""The session ends while an admin writes why not: after signing in their words are there, and the button works."""

import pytest
from django.contrib.sessions.models import Session

from portal.quotas.models import QuotaRequest
from tests.browser.pages import enter

pytestmark = pytest.mark.django_db(transaction=True)

PAGE = "/tenant/research/requests/"
NOTE = "来月まで待ってください / wait until next month"


def signed_in_again(open_page, site, who: str):
    """Return the page of the form that Bob sent when his session was gone, after this one has signed in."""
    page = open_page("en")
    enter(page, site, "bob")
    page.goto(PAGE)
    page.locator("[name=note]").fill(NOTE)
    Session.objects.all().delete()
    page.locator("button[value=refuse]").click()
    page.locator("[name=username]").fill(who)
    page.locator("[name=password]").fill("correct horse")
    page.locator("main form button").click()
    page.wait_for_url(f"**{PAGE}")
    return page


def test_p2_what_was_typed_is_there_after_signing_in(open_page, site, open_request, alice, olivia):
    page = signed_in_again(open_page, site, "bob")
    assert page.locator("[name=note]").input_value() == NOTE
    with page.expect_navigation():
        page.locator("button[value=refuse]").click()
    open_request.refresh_from_db()
    assert (open_request.state, open_request.note) == (QuotaRequest.State.REFUSED, NOTE)


def test_p2_nobody_else_is_shown_it(open_page, site, open_request, olivia):
    page = signed_in_again(open_page, site, "olivia")
    assert page.locator("[name=note]").input_value() == ""
    assert page.evaluate("sessionStorage.getItem('typed')") is None
