"""Programs are recorded as a short code of their class, in the row of a call and in the counts of its day."""

from datetime import date, timedelta

import pytest
from hypothesis import given, strategies

from portal.usage import client_classes, records
from portal.usage.models import UsageClientDay, UsageRecord
from tests.portal.usage.record_rows import NOON, row

CODES = {code for _, code in client_classes.BEGINNINGS} | {client_classes.OTHER, client_classes.UNKNOWN}


@pytest.mark.parametrize(
    ("product", "code"),
    [
        ("OpenAI/Python", "openai"),
        ("AsyncOpenAI/Python", "openai"),
        ("OpenAI/JS", "openai"),
        ("claude-cli/2.0.1", "claude-code"),
        ("codex_cli_rs/0.46.0", "codex"),
        ("Cline/3.1", "cline"),
        ("Continue/1.2", "continue"),
        ("Open-WebUI", "openwebui"),
        ("Mozilla/5.0", "browser"),
        ("curl/8.5", "curl"),
        ("", ""),
    ],
)
def test_a_program_is_known_by_its_product(product, code):
    assert client_classes.classify_client(product) == code


@given(strategies.text(max_size=80))
def test_whatever_a_program_calls_itself_its_code_is_one_of_a_few(product):
    assert client_classes.classify_client(product) in CODES
    longest = UsageRecord._meta.get_field("client_class").max_length
    assert longest is not None
    assert max(map(len, CODES)) <= longest


@pytest.mark.django_db
def test_the_programs_of_a_day_are_counted_once_with_the_answers_that_came_to_their_end():
    rows = [
        row("a", client_class="openai"),
        row("b", client_class="openai", status="looped"),
        row("c", client_class="openai", status="failed"),
        row("d"),  # of an older gateway
        row("e", client_class="openai", started_at=NOON + timedelta(hours=12)),  # the next day in the server's zone
    ]
    records.record_usage(rows)
    records.record_usage(rows[:3])
    counted = UsageClientDay.objects.values_list("day", "client_class", "requests", "answers")
    assert set(counted) == {
        (date(2026, 11, 22), "openai", 3, 2),
        (date(2026, 11, 22), "", 1, 1),
        (date(2026, 11, 23), "openai", 1, 1),
    }
    assert dict(UsageRecord.objects.values_list("request_id", "client_class"))["d"] == ""
