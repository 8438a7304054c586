"""A unit of limits that only this test knows: what the gateway and the portal do with it takes no code of theirs."""

import time
from typing import Any

import pytest
from django.db.models import Value

from apiproxy.dataplane.limits import units
from portal.quotas import units as quota_units
from portal.quotas.models import Quota
from portal.quotas.units import QuotaUnit, Words
from tests.waiting import until

BYTES = units.Unit(
    name="bytes",
    counts="request_bytes",
    header="bytes",
    error_type="requests",
    words={"en": "bytes", "ja": "バイト"},
)
BYTES_OF_QUOTAS = QuotaUnit(
    name="bytes",
    label="bytes",
    windows={"minute": Words(choice="bytes per minute", amount="%(n)s bytes per minute")},
    recorded=Value(0),
)


@pytest.fixture(params=["in this process", "in Redis"])
def server_options(request, redis_process, settings, monkeypatch) -> dict[str, Any]:
    monkeypatch.setitem(units.UNITS, BYTES.name, BYTES)
    monkeypatch.setitem(quota_units.UNITS, BYTES_OF_QUOTAS.name, BYTES_OF_QUOTAS)
    if request.param == "in Redis":
        redis_process.client.flushall()
        settings.REDIS_URL = redis_process.url
    return {}


def test_calls_are_admitted_limited_and_settled_by_it(counter, research):
    Quota.objects.create(tenant=research, unit="bytes", window="minute", amount=1000)
    counter.wait_for_catalogue()
    until(lambda: time.time() % 60 < 45)  # so that the window does not end meanwhile

    first = counter.chat(user="a" * 500)
    assert first.status_code == 200
    assert first.headers["x-ratelimit-limit-bytes"] == "1000"
    left = 1000 - len(first.request.content)
    assert first.headers["x-ratelimit-remaining-bytes"] == str(left)

    second = counter.chat(user="a" * 50)
    assert second.status_code == 200
    left -= len(second.request.content)
    assert second.headers["x-ratelimit-remaining-bytes"] == str(left)
    assert counter.chat(user="a" * 500).status_code == 200  # what is left may be exceeded by one call

    refused = counter.chat()
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["type"]) == (429, "rate_limit_exceeded", "requests")
    assert "1,000" in error["message"]
    assert BYTES.words["ja"] in error["message"]
    assert refused.headers["x-ratelimit-limit-bytes"] == "1000"
    assert refused.headers["x-ratelimit-remaining-bytes"] == "0"
    assert 1 <= int(refused.headers["retry-after"]) <= 60


def test_an_upload_is_settled_by_the_bytes_that_came(counter, research):
    Quota.objects.create(tenant=research, unit="bytes", window="minute", amount=100_000_000)
    counter.wait_for_catalogue()
    until(lambda: time.time() % 60 < 45)

    files = {"file": ("a.wav", b"x" * 5000)}
    first = counter.client.post("/v1/audio/transcriptions", data={"model": "fake"}, files=files)
    assert first.status_code == 200
    size = int(first.request.headers["content-length"])
    assert int(first.headers["x-ratelimit-remaining-bytes"]) == 100_000_000 - size
    second = counter.chat()
    assert int(second.headers["x-ratelimit-remaining-bytes"]) == 100_000_000 - size - len(second.request.content)


def test_every_unit_of_the_gateway_is_one_of_quotas():
    assert units.UNITS.keys() == quota_units.UNITS.keys()
    for name, unit in units.UNITS.items():
        assert unit.while_running == ("" in quota_units.UNITS[name].windows)
