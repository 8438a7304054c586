"""The API is asked what its description allows, and much that it does not, as each of the cast with a management key.

Whatever it is asked, it answers as it describes itself, and nothing breaks it. Schemathesis makes the questions, the
same ones in each run; Django answers through its WSGI handler.
"""

from contextlib import suppress
from typing import Any

import hypothesis
import pytest
import schemathesis
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_started
from django.db import close_old_connections
from hypothesis import strategies
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from portal.notifications.models import Notice, Webhook
from portal.quotas.models import Quota, QuotaRequest
from portal.web.notify import notify
from tests.news import announce
from tests.pages import key_of, management_key_of, serve, service_key_of, use
from tests.use_cases import use_case

pytestmark = [pytest.mark.django_db, pytest.mark.timeout(900)]

# Of each operation, as each person, for each way of asking: 80 operations, 3 people and 3 ways are some 60 s of CPU.
QUESTIONS = 6
ASKING = hypothesis.settings(
    max_examples=QUESTIONS,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]


@pytest.fixture(autouse=True)
def _one_connection():
    """Answer requests within the test's transaction, as Django's own test client does."""
    request_started.disconnect(close_old_connections)
    yield
    request_started.connect(close_old_connections)


@pytest.fixture
def there(alice, bob, research, sales) -> dict[str, dict[str, Any]]:
    """Make one of each kind and return them by the first word of the addresses about it."""
    model = serve("qwen")
    own, service = key_of(alice, research), service_key_of(research)
    use(own)
    daily = {"tenant": research, "unit": "tokens", "window": "day"}
    quota = Quota.objects.create(**daily, user=alice, amount=100)
    quota_request = QuotaRequest.objects.create(**daily, user=alice, asked_by=alice, amount=200, previous_amount=100)
    notify([alice, bob], "membership-ended", "x", tenant="X", keys=1)
    return {
        "hosts": {"id": model.replica_set.get().host_id},
        "models": {"id": model.pk},
        "replicas": {"id": model.replica_set.get().pk},
        "keys": {"prefix": own.prefix},
        "services": {"prefix": service.prefix},
        "tenants": {"slug": "research", "username": "alice"},
        "quotas": {"id": quota.pk},
        "quota-requests": {"id": quota_request.pk},
        "news": {"id": announce().pk},
        "webhooks": {"id": Webhook.objects.create(name="hook", url="http://127.0.0.1:9/hook").pk},
        "use-cases": {"id": use_case(alice, research, publisher=bob).pk},
        "notices": {"id": Notice.objects.get(user=alice, kind="membership-ended").pk},
    }


@pytest.mark.parametrize("who", ["olivia", "bob", "alice"])
def test_it_answers_as_it_says_whatever_it_is_asked(request, there, who):
    headers = {"Authorization": f"Bearer {management_key_of(request.getfixturevalue(who))[1]}"}
    schema = schemathesis.openapi.from_wsgi("/api/schema/?format=json", WSGIHandler(), headers=headers)
    asked = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        for case in ways(operation, there):
            asked += ask(case, headers)
    assert asked >= 100, "hardly anything was asked"


def ways(operation: Any, there: dict[str, dict[str, Any]]) -> list[strategies.SearchStrategy[Any]]:
    """Ask as described, as not described, and about something that is there."""
    found = [operation.as_strategy(GenerationMode.POSITIVE), operation.as_strategy(GenerationMode.NEGATIVE)]
    known = there.get(operation.path.split("/")[3], {})
    if "{" in operation.path and known:
        named = {name: value for name, value in known.items() if f"{{{name}}}" in operation.path}
        found.append(operation.as_strategy(GenerationMode.POSITIVE, path_parameters=named))
    return found


def ask(cases: strategies.SearchStrategy[Any], headers: dict[str, str]) -> int:
    """Return how many questions were asked. Raises what Schemathesis found."""
    asked = []

    @ASKING
    @hypothesis.given(case=cases)
    def each(case: Any) -> None:
        response = case.call(headers=headers)
        assert response.status_code < 500, (case.as_curl_command(), response.text)
        case.validate_response(response, headers=headers, checks=CHECKS)
        asked.append(case)

    with suppress(hypothesis.errors.Unsatisfiable):  # nothing of the kind can be asked of it
        each()
    return len(asked)
