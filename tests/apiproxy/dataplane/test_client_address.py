"""Where a call comes from, and keys that may be used from some networks only."""

import httpx2
import pytest
from django.test import RequestFactory
from hypothesis import example, given
from hypothesis import strategies as st

from apiproxy.dataplane.client_address import ClientAddress, client_address_of, in_networks, parse_networks, product_of
from apiproxy.dataplane.errors import NetworkNotAllowed
from portal.keys.lifecycle import issue_key
from portal.keys.models import ApiKey
from portal.web.client_address import client_address
from tests.waiting import until


def address_of(peer: str, forwarded: str | None = None, proxies: int = 0) -> str:
    lines = [] if forwarded is None else [(b"x-forwarded-for", forwarded.encode())]
    return client_address_of(peer, dict(lines), lines, proxies).address


words = st.sampled_from(["10.1.1.2", "192.0.2.9:4711", "[2001:db8::1]:80", "2001:DB8::1", "nonsense", "", " 10.0.0.1 "])


@given(words, st.none() | st.lists(words, max_size=4).map(", ".join), st.integers(0, 3))
@example("10.1.1.1", "6.6.6.6, 192.0.2.9, 10.1.1.2", 2)
def test_gateway_and_portal_find_the_same_address_of_a_client(settings_of, peer, forwarded, proxies):
    settings_of.TRUSTED_PROXIES = proxies
    more = {} if forwarded is None else {"HTTP_X_FORWARDED_FOR": forwarded}
    request = RequestFactory().get("/", REMOTE_ADDR=peer, **more)
    assert address_of(peer, forwarded, proxies) == (client_address(request) or "")


@pytest.fixture(scope="module")
def settings_of():
    """Provide Django's settings; hypothesis refuses a fixture that is made for each test."""
    from django.conf import settings

    before = settings.TRUSTED_PROXIES
    yield settings
    settings.TRUSTED_PROXIES = before


def test_a_header_that_came_in_two_lines_is_one_list():
    lines = [(b"x-forwarded-for", b"6.6.6.6, 192.0.2.9"), (b"x-forwarded-for", b"10.1.1.2")]
    assert client_address_of("10.1.1.1", dict(lines), lines, 2).address == "192.0.2.9"


@pytest.mark.parametrize(
    ("peer", "address"),
    [("::ffff:10.1.2.3", "10.1.2.3"), ("fe80::1%eth0", "fe80::1"), ("", ""), ("2001:db8:0::1", "2001:db8::1")],
)
def test_an_address_is_written_in_one_way(peer, address):
    assert address_of(peer) == address


@pytest.mark.parametrize(
    ("agent", "client"),
    [
        ("OpenAI/Python 2.8.0", "OpenAI/Python"),
        ("python-httpx/0.28.1", "python-httpx/0.28.1"),
        ("Mozilla/5.0 (Windows NT 10.0; Yamada's PC)", "Mozilla/5.0"),
        ("curl", "curl"),
        ("Dify(internal)", "Dify"),
        ("(a comment first)", ""),
        ("x" * 81, ""),
        ("a\tb", "a"),
        ("山田", ""),
        ("", ""),
    ],
)
def test_of_a_program_only_its_name_and_version_are_known(agent, client):
    assert product_of(agent.encode()) == client


def test_networks_hold_their_own_addresses_alone():
    allowed = parse_networks(["10.1.0.0/16", "2001:db8::/32", "192.168.7.5/32", "::ffff:172.16.0.0/108"])
    for address in ("10.1.255.255", "2001:db8:1::1", "192.168.7.5", "172.16.9.9"):
        assert in_networks(address, allowed)
    for address in ("10.2.0.0", "192.168.7.6", "2001:db9::1", "172.32.0.1", ""):
        assert not in_networks(address, allowed)


# --- over a real socket


@pytest.fixture
def restricted_key(counter) -> ApiKey:
    counter.key_row.networks = ["10.1.0.0/16"]
    counter.key_row.save()
    counter.wait_for_catalogue()
    return counter.key_row


def test_a_key_is_refused_from_a_network_that_is_not_its_own(counter, restricted_key, alice):
    refusal = NetworkNotAllowed("network_not_allowed", address="127.0.0.1")
    for response in (counter.chat(), counter.client.get("/v1/models"), counter.chat(stream=True)):
        assert response.status_code == 403
        assert response.json()["error"]["code"] == "network_not_allowed"
        assert response.json()["error"]["message"] == refusal.message("ja")
    alice.language = "en"
    alice.save()
    counter.wait_for_catalogue()
    assert counter.chat().json()["error"]["message"] == refusal.message("en")
    told = counter.client.post("/v1/messages", json={"model": "fake", "max_tokens": 1, "messages": []}).json()
    assert told["error"]["type"] == "permission_error"
    assert counter.engine.seen()["requests"] == []


def test_a_change_of_the_networks_is_followed(counter, restricted_key):
    restricted_key.networks = ["10.1.0.0/16", "127.0.0.0/8"]
    restricted_key.save()
    until(lambda: counter.chat().status_code == 200)


def test_a_client_behind_no_proxy_of_ours_cannot_choose_its_address(counter, restricted_key):
    headers = {"authorization": f"Bearer {counter.key}", "x-forwarded-for": "10.1.2.3"}
    assert httpx2.get(f"{counter.url}/v1/models", headers=headers).status_code == 403


class TestBehindAProxy:
    @pytest.fixture
    def server_options(self, settings):
        settings.TRUSTED_PROXIES = 1
        return {}

    @pytest.mark.parametrize(
        ("forwarded", "status"), [("10.1.2.3", 200), ("10.1.2.3, 10.2.2.3", 403), ("::ffff:10.1.2.3", 200), (None, 403)]
    )
    def test_the_proxys_word_decides(self, counter, restricted_key, forwarded, status):
        headers = {"x-forwarded-for": forwarded} if forwarded else {}
        assert counter.client.get("/v1/models", headers=headers).status_code == status


def test_a_key_shows_where_and_with_what_it_was_last_used(counter, research):
    body = {"model": "fake", "messages": []}
    agents = ("first/1.0 (a comment)", "second/2.0 more")
    for agent in agents:
        assert counter.client.post("/v1/chat/completions", json=body, headers={"user-agent": agent}).status_code == 200
    last = counter.usage(2)[-1]
    counter.key_row.refresh_from_db()
    assert (counter.key_row.last_used_from, counter.key_row.last_used_with) == ("127.0.0.1", "second/2.0")
    assert counter.key_row.last_used_at == last.started_at


def test_origins_meet_in_a_tuple():
    assert client_address_of("10.1.1.1", {b"user-agent": b"curl/8"}, [], 0) == ClientAddress("10.1.1.1", "curl/8")


def test_networks_cost_other_keys_nothing(counter, alice, research):
    _, text = issue_key(tenant=research, user=alice, name="free")
    counter.wait_for_catalogue()
    found = {key.networks for key in counter.application.gateway.catalogue.keys.values()}
    assert found == {()}
    assert counter.client.get("/v1/models", headers={"authorization": f"Bearer {text}"}).status_code == 200


@pytest.mark.parametrize("header", [b"x-openwebui-user-id", b"x-openwebui-user-jwt"])
def test_open_webui_is_known_by_the_headers_that_name_its_person(header):
    headers = {header: b"7", b"user-agent": b"Python/3.12 aiohttp/3.11"}
    assert client_address_of("10.0.0.1", headers, [], 0).client == "Open-WebUI"
    assert client_address_of("10.0.0.1", {b"user-agent": headers[b"user-agent"]}, [], 0).client == "Python/3.12"
