"""No list of the site, be it a page, an answer of the API, an export or a socket, shows a row of another tenant."""

import pytest
from django.test import Client

from portal.usage import live, scopes
from tests.conftest import person
from tests.pages import key_of, service_key_of, use
from tests.portal.foreign import MARK, Foreign, fill

pytestmark = pytest.mark.django_db

# {tenant}: the reader's own, or the other one to prove that its rows would be seen. {dora} belongs to both.
OF_A_TENANT = (
    "/tenant/{tenant}/",
    "/tenant/{tenant}/people/",
    "/tenant/{tenant}/people/{dora}/",
    "/tenant/{tenant}/people/{dora}/remove/",
    "/tenant/{tenant}/keys/",
    "/tenant/{tenant}/quotas/",
    "/tenant/{tenant}/requests/",
    "/usage/?of=tenant:{tenant}&by=key",
    "/usage/?of=tenant:{tenant}&by=user",
    "/usage/?of=tenant:{tenant}&by=end_user",
    "/usage/live/?of=tenant:{tenant}",
    "/usage/export/?of=tenant:{tenant}",
    "/usage/export/?of=tenant:{tenant}&by=key&format=json",
    "/usage/export/?of=tenant:{tenant}&by=detail",
    "/api/v1/tenants/{tenant}/members/",
    "/api/v1/keys/?tenant={tenant}&kind=service",
    "/api/v1/quotas/?tenant={tenant}",
    "/api/v1/quota-requests/?tenant={tenant}",
    "/api/v1/quota-requests/?tenant={tenant}&waiting=true",
    "/api/v1/allowances/?tenant={tenant}",
    "/api/v1/allowances/?tenant={tenant}&user=dora",
    "/api/v1/usage/?of=tenant:{tenant}",
    "/api/v1/usage/groups/?of=tenant:{tenant}&by=user",
    "/api/v1/usage/groups/?of=tenant:{tenant}&by=key",
    "/api/v1/usage/groups/?of=tenant:{tenant}&by=end_user",
    "/api/v1/usage/series/?of=tenant:{tenant}",
)
# Names the person and a number of keys, no rows.
BARE = ("/tenant/{tenant}/people/{dora}/remove/",)
OF_ONESELF = (
    "/",
    "/audit/",
    "/audit/export/",
    "/audit/export/?format=json",
    "/models/",
    "/try/",
    "/keys/",
    "/keys/?ended=1",
    "/keys/services/",
    "/keys/management/",
    "/notices/",
    "/settings/",
    "/usage/",
    "/usage/?by=key",
    "/usage/?by=end_user",
    "/usage/live/",
    "/usage/export/",
    "/usage/export/?by=detail",
    "/api/v1/me/",
    "/api/v1/tenants/",
    "/api/v1/notices/",
    "/api/v1/audit/",
    "/api/v1/usage/",
    "/api/v1/usage/series/",
    "/api/v1/usage/groups/?by=key",
    "/api/v1/usage/scopes/",
    "/api/v1/allowances/",
    "/api/v1/catalogue/",
    "/api/v1/keys/",
    "/api/v1/management-keys/",
    "/api/v1/quotas/",
    "/api/v1/quota-requests/",
    "/api/v1/quota-requests/?waiting=true",
)


@pytest.fixture
def foreign(research, alice, bob) -> Foreign:
    """Fill both tenants: with rows at home as well, each list is drawn."""
    found = fill(research)
    for key in (key_of(alice, research), key_of(found.both, research, "at home"), service_key_of(research, "bot")):
        use(key)
    return found


def read(who, address: str, of: str, foreign: Foreign) -> str:
    client = Client()
    client.force_login(who)
    response = client.get(address.format(tenant=of, dora=foreign.both.pk))
    assert response.status_code == 200, (address, response.status_code)
    return b"".join(response).decode()


def test_t2_what_is_one_s_own_holds_nothing_of_another_tenant(foreign, alice, bob):
    for who in (alice, bob):
        shown = {address: foreign.seen_in(read(who, address, "", foreign)) for address in OF_ONESELF}
        assert not {address: seen for address, seen in shown.items() if seen}, who


def test_t2_what_is_a_tenant_s_holds_nothing_of_another(foreign, bob, olivia, research):
    """For its admin, and for those who may see both."""
    admin = person("fay", research, role="admin")
    foreign.tenant.memberships.create(user=admin, role="admin")
    for who in (bob, olivia, admin):
        seen = foreign.seen_in if who == bob else foreign.seen_beside_its_name
        shown = {address: seen(read(who, address, research.slug, foreign)) for address in OF_A_TENANT}
        assert not {address: marks for address, marks in shown.items() if marks}, who


def test_t2_the_rows_of_the_other_tenant_are_seen_where_they_belong(foreign, olivia):
    """Or their absence elsewhere would prove nothing."""
    for address in OF_A_TENANT:
        assert foreign.seen_beside_its_name(read(olivia, address, MARK, foreign)) or address in BARE, address


def test_t2_a_socket_tells_nothing_of_another_tenant(foreign, alice, bob, research):
    frame = live.LiveUsageReader()(1)
    assert foreign.seen_in(str(live.usage_view(frame, None)))
    for who, name in ((alice, scopes.ME), (bob, scopes.ME), (bob, scopes.TENANT + research.slug)):
        assert not foreign.seen_in(str(live.usage_view(frame, scopes.find_scope(who, name).owner)))
