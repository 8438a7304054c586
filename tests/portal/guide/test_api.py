"""The house rules in the API."""

import pytest

from portal.audit.models import AuditEvent
from portal.guide import house_rules

pytestmark = pytest.mark.django_db


def test_everyone_reads_them_and_the_defaults_until_there_are_any(call, alice):
    found = call(alice).get("house-rules/")
    assert (found["is_default"], found["edition"], found["rules_ja"], found["changed_at"]) == (True, 0, "", None)
    assert found["rules"]


def test_an_operator_writes_them_and_others_read_them_in_their_language(call, alice, olivia):
    answer = call(olivia)("PATCH", "house-rules/", {"edition": 0, "rules_ja": "規則", "rules_en": "The rules"})
    assert (answer.status_code, answer.json()["edition"]) == (200, 1)
    for language, text in (("ja", "規則"), ("en", "The rules")):
        found = call(alice)("GET", "house-rules/", **{"accept-language": language}).json()
        assert (found["rules"], found["is_default"]) == (text, False)
    assert AuditEvent.objects.filter(object_kind="house-rules").exists()


def test_what_is_not_sent_stays(call, olivia):
    house_rules.write_rules({"rules_ja": "規則", "contact_ja": "内線 1"}, 0)
    call(olivia)("PATCH", "house-rules/", {"edition": 1, "rules_ja": "新しい規則"})
    row = house_rules.stored_rules()
    assert (row.rules_ja, row.contact_ja) == ("新しい規則", "内線 1")


def test_of_two_operators_the_second_reads_first_what_the_first_wrote(call, olivia):
    body = {"edition": 0, "rules_en": "Mine"}
    assert call(olivia)("PATCH", "house-rules/", body).status_code == 200
    assert call(olivia)("PATCH", "house-rules/", {**body, "rules_en": "Theirs"}).status_code == 409
    assert house_rules.stored_rules().rules_en == "Mine"


@pytest.mark.parametrize(
    "body", [{"rules_ja": "規則"}, {"edition": -1}, {"edition": 0, "rules_ja": "x" * 10_001}, {"edition": 0, "x": "y"}]
)
def test_what_is_wrong_is_refused(call, olivia, body):
    assert call(olivia)("PATCH", "house-rules/", body).status_code == 400
    assert house_rules.stored_rules().pk is not None
    assert house_rules.stored_rules().edition == 0
