"""A posted form that is shown again because of what is wrong in it is a 400 on every page, as in the API."""

import pytest

from tests.html import has
from tests.portal.access_rules import RULES, WRITES, address_of

pytestmark = pytest.mark.django_db

FORMS = sorted({path for method, path in WRITES if method == "POST" and not path.startswith("api/")})
WRONG = {"amount": "x", "names": "", "minutes": "x", "weight": "x", "of": "tenant:1", "helped": "yes", "step": "draft"}


def answers_to(path: str, clients, filled) -> dict[int, bool]:
    """Return whether the page says what is wrong, by the status of the answers to those who may send the form."""
    found: dict[int, bool] = {}
    for who in sorted(RULES[path].who - {"nobody"}):
        for body in ({}, WRONG):
            answer = clients[who].post(address_of(path, filled), body)
            if not answer.streaming and "text/html" in answer["content-type"]:
                says = has(answer, ".field.wrong")
                found[answer.status_code] = found.get(answer.status_code, False) or says
    return found


def test_what_is_wrong_in_a_form_is_a_400(clients, filled):
    answers = {path: answers_to(path, clients, filled) for path in FORMS}
    assert [path for path, found in answers.items() if found.get(200)] == []
    wrong = [path for path, found in answers.items() if found.get(400)]
    assert len(wrong) > 15, wrong  # it has seen forms that say what is wrong
