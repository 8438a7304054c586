"""What is Active Directory's, against a real domain controller: Samba's."""

import pytest

from portal.accounts.models import User

pytestmark = pytest.mark.django_db


def places(user: User) -> dict[str, str]:
    return {membership.tenant.slug: membership.role for membership in user.memberships.select_related("tenant")}


class TestSignIn:
    @pytest.mark.parametrize("encryption", ["ldaps", "starttls"])
    def test_search_and_bind(self, connect_domain, domain, door, encryption):
        connect_domain(LDAP_SERVER_URI=domain.tls_uri if encryption == "ldaps" else domain.uri)
        user = door.enter("SUZUKI", "password of suzuki")
        assert (user.username, user.first_name, user.last_name) == ("suzuki", "一郎", "鈴木")
        assert places(user) == {"research": "member"}
        assert door.enter("suzuki", "password of tanaka") is None

    @pytest.mark.parametrize("template", ["%(user)s@corp.example.com", "CORP\\%(user)s"])
    def test_direct_bind(self, connect_domain, door, template):
        connect_domain(LDAP_USER_DN_TEMPLATE=template, LDAP_BIND_DN=None, LDAP_BIND_PASSWORD=None)
        assert places(door.enter("mori", "password of mori")) == {"research": "admin"}
        assert door.enter("mori", "password of suzuki") is None

    def test_groups_within_groups(self, connect_domain, door):
        connect_domain()
        assert places(door.enter("tanaka", "password of tanaka")) == {"research": "member"}

    def test_operators_are_members_of_their_group(self, connect_domain, door):
        connect_domain()
        assert door.enter("ito", "password of ito").is_staff
        assert not door.enter("kimura", "password of kimura").is_staff
