"""The secrets of a site are found to differ where they do, and replaced without a key that stops working."""

from datetime import timedelta

import pytest
from django.utils import timezone

from apiproxy.bridge import catalogue_loader
from portal.audit.models import AuditEvent
from portal.keys import end_user_secret, management_keys, site_secrets
from portal.keys.leaked_keys import find_in_text
from portal.keys.lifecycle import KeyRefused, issue_key
from portal.keys.models import ApiKey, ManagementKey, SiteSecret
from portal.keys.secret import fingerprint_of
from portal.keys.site_secrets import OtherSecret, check_secret, check_secrets, read_states

pytestmark = pytest.mark.django_db(transaction=True)  # the catalogue's loader closes connections that are old
NAME = "API_KEY_SECRET"
OLD, NEW = "the old one", "the new one"


@pytest.fixture(autouse=True)
def _old(settings):
    settings.API_KEY_SECRET, settings.API_KEY_SECRET_FALLBACKS = OLD, []


@pytest.fixture
def use(settings):
    """Return what gives this process a secret and its fallbacks."""

    def use(secret: str, *fallbacks: str) -> None:
        settings.API_KEY_SECRET, settings.API_KEY_SECRET_FALLBACKS = secret, list(fallbacks)

    return use


def keys_left() -> int:
    return next(state.keys for state in read_states() if state.name == NAME)


def agrees() -> bool:
    return all(state.agrees for state in read_states())


def test_the_first_process_records_its_secrets_and_others_are_refused_by_name(use):
    check_secrets()
    assert {row.setting: row.fingerprint for row in SiteSecret.objects.all()}[NAME] == fingerprint_of(OLD)
    assert agrees()
    use(NEW)
    with pytest.raises(OtherSecret) as refusal:
        check_secrets()
    assert NAME in str(refusal.value)
    assert OLD not in str(refusal.value)
    assert not agrees()


def test_a_key_is_not_made_where_no_gateway_would_know_it(use, alice, research):
    check_secrets()
    use(NEW)
    with pytest.raises(KeyRefused):
        issue_key(tenant=research, user=alice, name="laptop")
    assert not ApiKey.objects.exists()


def test_a_secret_is_replaced_machine_by_machine(use):
    """Each machine accepts the new one first, then makes it its own, then forgets the old one."""
    check_secrets()
    use(OLD, NEW)
    check_secrets()
    use(NEW, OLD)
    check_secrets()
    use(OLD, NEW)  # a machine that is not so far
    check_secrets()
    use(NEW)
    check_secrets()
    use(OLD)
    with pytest.raises(OtherSecret):
        check_secrets()


def test_it_is_replaced_once_more(use):
    check_secret(NAME)
    for secret, former in ((NEW, OLD), ("third", NEW), (OLD, "third")):
        use(secret, former)
        check_secret(NAME)
        assert SiteSecret.objects.get(setting=NAME).fingerprint == fingerprint_of(secret)


def test_a_site_that_lost_its_secrets_adopts_others(use):
    check_secrets()
    use(NEW)
    site_secrets.adopt_secrets()
    check_secrets()
    assert agrees()


def test_keys_of_a_version_that_did_not_note_it_are_of_the_only_secret(alice, research):
    issue_key(tenant=research, user=alice, name="laptop")
    ApiKey.objects.update(digest_under="")
    assert keys_left() == 1
    check_secrets()
    assert keys_left() == 0


def test_a_key_that_is_used_is_stored_under_the_new_secret(use, alice, research):
    text, other = (issue_key(tenant=research, user=alice, name=name)[1] for name in ("laptop", "other"))
    use(NEW, OLD)
    check_secrets()
    assert keys_left() == 2
    pk = ApiKey.objects.get(name="laptop").pk
    events = AuditEvent.objects.count()
    catalogue_loader.renew_digests({pk: catalogue_loader.digests(text)})
    catalogue_loader.renew_digests({pk: catalogue_loader.digests(other)})  # of another key
    assert keys_left() == 1
    assert AuditEvent.objects.count() == events
    use(NEW)
    known = catalogue_loader.load().keys
    assert [digest in known for one in (text, other) for digest in catalogue_loader.digests(one)] == [True, False]


def test_a_management_key_works_meanwhile_and_after_it_was_used(use, alice):
    scopes = [scope.name for scope in management_keys.usable_scopes(alice)][:1]
    key, text = management_keys.issue_management_key(
        user=alice, name="script", scopes_=scopes, expires_at=timezone.now() + timedelta(days=9)
    )
    use(NEW, OLD)
    assert management_keys.find_management_key(text) == key
    use(NEW)
    assert management_keys.find_management_key(text) == key
    assert ManagementKey.objects.get().digest_under == fingerprint_of(NEW)


def test_a_leaked_key_is_found_by_either_secret(use, alice, research):
    text = issue_key(tenant=research, user=alice, name="laptop")[1]
    use(NEW, OLD)
    assert [key.name for key in find_in_text(ApiKey, text)[0]] == ["laptop"]


def test_a_program_may_sign_its_people_with_the_former_secret(use, alice, research):
    key, _text = issue_key(tenant=research, service="Open WebUI", name="webui")
    signed_with = end_user_secret.make_user_secret(key).encode()
    use(NEW, OLD)
    [known] = catalogue_loader.load().keys.values()
    assert known.user_secret != signed_with
    assert known.former_user_secrets == (signed_with,)
    use(OLD)
    [known] = catalogue_loader.load().keys.values()
    assert (known.user_secret, known.former_user_secrets) == (signed_with, ())
