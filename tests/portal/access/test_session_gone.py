"""The session ends while a form is filled in: who signs in again comes to a page, not to the browser's own error."""

import pytest
from django.test import Client
from django.urls import resolve

from portal.web.posted_forms import page_above
from tests.portal.access_rules import RULES, address_of

pytestmark = pytest.mark.django_db

FORMS = [path for path, rule in RULES.items() if rule.method == "POST" and not path.startswith("api/")]


@pytest.mark.parametrize("path", FORMS)
def test_p2_after_signing_in_the_page_of_the_form_is_shown(clients, filled, path):
    """By each who may send it."""
    address = address_of(path, filled)
    for who in RULES[path].who - {"nobody"}:
        browser: Client = clients[who]
        gone = Client().post(address, {"note": "typed for ten minutes"})
        if gone.status_code == 302 and gone.url.startswith("/sign-in/?"):
            assert gone.url == f"/sign-in/?next={address}"
        answer = browser.get(address, follow=True)
        assert answer.status_code == 200, (who, answer.redirect_chain)
        assert not answer.redirect_chain[-1][0].startswith("/sign-in/")


@pytest.mark.parametrize(
    ("form", "page"),
    [
        ("/tenant/research/people/add/", "/tenant/research/people/"),
        ("/tenant/research/people/7/role/", "/tenant/research/people/7/"),
        ("/tenant/research/requests/3/", "/tenant/research/requests/"),
        ("/tenant/research/quotas/3/remove/", "/tenant/research/quotas/"),
        ("/keys/mdg-abc/rotate/", "/keys/mdg-abc/"),
        ("/keys/management/mdg-abc/revoke/", "/keys/management/"),
        ("/more/5/withdraw/", "/more/5/"),
        ("/operations/start/org/model/", "/operations/"),
        ("/language/", "/"),
    ],
)
def test_p2_the_page_of_a_form_is_the_next_one_above_it(form, page):
    resolve(form)
    assert page_above(form) == page
