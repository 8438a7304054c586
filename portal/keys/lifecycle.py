"""Issue, rotate, change and revoke API keys, for pages, the command line and the API alike.

Each function checks the rights of its caller (`by`, `created_by`; None: a command) and raises PermissionDenied. What
else cannot be done raises a KeyRefused.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, TypedDict, Unpack

from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext as _

from modelregistry.models import ServedModel
from modelregistry.one_line import check_one_line
from portal.accounts import permissions
from portal.accounts.models import Tenant, User
from portal.accounts.permissions import admins_of, operators
from portal.audit import tracking
from portal.keys import queries
from portal.keys.models import MAX_YEARS, ApiKey, check_expiry, check_networks
from portal.keys.signals import key_replaced, key_replacement_requested, key_requested
from portal.keys.site_secrets import OtherSecret, check_secret
from portal.web.notify import notify
from portal.web.refusals import Refused
from portal.web.row_locks import lock_row
from portal.web.templatetags.formatting import person

# The reason of a revocation after a leak; pages and notices spell it out.
LEAKED = "leaked"


class KeyRefused(Refused):
    """What was asked of a key cannot be done."""


class NotAMember(KeyRefused):
    """A person is not a member of the tenant whose key is to be theirs or their responsibility."""


class TooManyKeys(KeyRefused):
    """The person, or the tenant with its service keys, has as many keys as allowed."""


class KeyRevoked(KeyRefused):
    """A revoked key cannot change."""


class KeyOfTheCanary(KeyRefused):
    """Madoguchi itself renews this key; people can only revoke it."""


class AlreadyReplaced(KeyRefused):
    """The key has a successor, which is the one to replace."""


class Changes(TypedDict, total=False):
    """What may change of a key. `allowed_models` None: all that the tenant may use. `expires_at` None: never."""

    name: str
    purpose: str
    key_class: str
    networks: Sequence[str]
    takes_user_headers: bool
    end_user_nonce: str
    loop_guard: bool
    expires_at: datetime | None
    allowed_models: Iterable[ServedModel] | None
    responsible: User | None


def request_key(*, tenant: Tenant, user: User | None = None, **settings: Any) -> tuple[ApiKey, str]:
    """Return what `issue_key` returns of these, for a person who asks for it on a page or by the API.

    Raises what that raises, and what a receiver of `key_requested` raises.
    """
    with transaction.atomic():
        key_requested.send(sender=None, tenant=tenant, user=user)
        return issue_key(tenant=tenant, user=user, **settings)


def issue_key(
    *,
    tenant: Tenant,
    name: str,
    user: User | None = None,
    service: str = "",
    responsible: User | None = None,
    purpose: str = "",
    key_class: str = ApiKey.Class.INTERACTIVE,
    networks: Sequence[str] = (),
    takes_user_headers: bool = False,
    loop_guard: bool = True,
    allowed_models: Iterable[ServedModel] = (),
    expires_at: datetime | None = None,
    created_by: User | None = None,
    replaces: ApiKey | None = None,
) -> tuple[ApiKey, str]:
    """Return a new key and its text, which exists nowhere else: show it once.

    Give `user` for a personal key; `service` and the `responsible` person for a service key. Without `allowed_models`
    the key works for all models that the tenant may use, without `networks` (as `networks.parse_networks` gives them)
    from everywhere. `replaces`: a key without a successor, whose holder this one's is; nothing else is taken from it.
    Raises NotAMember (of `user` or `responsible`), TooManyKeys, and ValidationError for wrong
    networks, an expiry too far away or a name of more than one line.
    """
    if user is None or user != created_by:
        permissions.check_access(created_by, tenant)
    for member in (user, responsible):
        require_membership(member, tenant)
    check_networks(list(networks))
    check_expiry(expires_at)
    for line in (name, service, purpose):
        check_one_line(line)
    chosen = list(allowed_models)
    key = ApiKey(
        tenant=tenant,
        user=user,
        service=service,
        responsible=responsible,
        name=name,
        purpose=purpose,
        key_class=key_class,
        networks=list(networks),
        takes_user_headers=takes_user_headers,
        loop_guard=loop_guard,
        every_model=not chosen,
        expires_at=expires_at,
        created_by=created_by,
        replaces=replaces,
    )
    with transaction.atomic():
        _check_limit(tenant, user)
        return key, _save_new(key, chosen)


def rotate_key(key: ApiKey, overlap: timedelta, *, by: User | None = None) -> tuple[ApiKey, str]:
    """Return a successor of the key, and its text: same holder, settings and quotas, and as long a life.

    The old key keeps working for `overlap`, or less if it expires before; without overlap it expires now. A revoked
    or expired key can have a successor too, and stays revoked or expired. Raises AlreadyReplaced, NotAMember when its
    person has left, KeyOfTheCanary, TooManyKeys when as many keys as allowed were made within a day, and what a
    receiver of `key_replacement_requested` raises.
    """
    _check_may_manage(by, key)
    _check_not_canary(key)
    require_membership(key.user, key.tenant)
    now = timezone.now()
    with transaction.atomic():
        # Two at the same time queue here, so that the second one sees the first one's successor.
        key = ApiKey.objects.select_for_update().get(pk=key.pk)
        if ApiKey.objects.filter(replaces=key).exists():
            raise AlreadyReplaced(_("This key has been replaced already."))
        key_replacement_requested.send(sender=None, key=key)
        _check_limit(key.tenant, key.user, only_new=True)
        new = ApiKey(
            tenant=key.tenant,
            user=key.user,
            service=key.service,
            responsible=key.responsible,
            name=key.name,
            purpose=key.purpose,
            key_class=key.key_class,
            networks=key.networks,
            takes_user_headers=key.takes_user_headers,
            end_user_nonce=key.end_user_nonce,
            separates_users=key.separates_users,
            weight=key.weight,
            loop_guard=key.loop_guard,
            every_model=key.every_model,
            expires_at=key.expires_at and now + min(key.expires_at - key.created_at, timedelta(days=365 * MAX_YEARS)),
            created_by=by,
            replaces=key,
        )
        text = _save_new(new, key.allowed_models.all())
        key_replaced.send(sender=None, old=key, new=new)
        if key.state == "active":
            overlap_end = now + overlap
            key.expires_at = min(key.expires_at or overlap_end, overlap_end)
            key.save(update_fields=["expires_at"])
    return new, text


def may_be_replaced(key: ApiKey) -> bool:
    """Return whether no other package forbids that the key gets a successor, as far as is known now."""
    try:
        key_replacement_requested.send(sender=None, key=key)
    except KeyRefused:
        return False
    return True


def change_key(key: ApiKey, *, by: User | None = None, **changes: Unpack[Changes]) -> None:
    """Give the key these values; others stay. Gateways apply them within one catalogue poll.

    Raises KeyRevoked, KeyOfTheCanary, NotAMember for a new responsible person, and ValidationError as `issue_key`.
    """
    _check_may_manage(by, key)
    _check_not_canary(key)
    if key.revoked_at:
        raise KeyRevoked(_("This key is revoked."))
    if "responsible" in changes and changes["responsible"] != key.responsible:
        require_membership(changes["responsible"], key.tenant)
    if "networks" in changes:
        check_networks(list(changes["networks"]))
    check_expiry(changes.get("expires_at"))
    for line in (changes.get("name", ""), changes.get("purpose", "")):
        check_one_line(line)
    with transaction.atomic():
        if "allowed_models" in changes:
            _set_models(key, changes.pop("allowed_models"))
        for name, value in changes.items():
            setattr(key, name, list(value) if name == "networks" else value)  # type: ignore[call-overload]
        key.save(update_fields=[*changes, "every_model"])


def revoke_key(key: ApiKey, because: str = "", *, by: User | None = None) -> None:
    """Revoke a key for good; gateways stop accepting it within one catalogue poll. Revoking twice changes nothing.

    Notifies the `recipients`, except `by`. `because` is the reason for them and the audit, in the words of `by`.
    """
    _check_may_manage(by, key)
    _revoke(key, because, by)


def revoke_leaked_key(key: ApiKey, by: User) -> None:
    """Revoke a key whose full text was found in the wrong place. Every person who has the text may revoke the key."""
    _revoke(key, LEAKED, by)


def revoke_on_behalf(key: ApiKey, because: str, by: User) -> None:
    """Revoke a key for a person who may do so by another right than the key's, which the caller has checked."""
    _revoke(key, because, by)


def revoke_silently(key: ApiKey, because: str) -> None:
    """Revoke a key whose person is notified of the reason in another way. The caller has checked who may."""
    _revoke(key, because, key.user)


def _revoke(key: ApiKey, because: str, by: User | None) -> None:
    if key.revoked_at is not None:
        return
    with transaction.atomic():
        key.revoked_at, key.revoked_because = timezone.now(), because[:200]
        key.save(update_fields=["revoked_at", "revoked_because"])
        notify(
            [one for one in recipients(key) if one != by],
            "key-revoked",
            key.prefix,
            path=f"/keys/{key.prefix}/",
            key=key.name,
            prefix=key.prefix,
            tenant=key.tenant.name,
            by=person(by) if by else "",
            because=key.revoked_because,
        )


def recipients(key: ApiKey) -> set[User]:
    """Return the people to notify of what happens to a key.

    That is its person; for a service key its responsible person and the tenant's admins, or the operators if the
    tenant has neither.
    """
    if key.is_playground:
        return set()
    if key.user:
        return {key.user}
    people = set(admins_of(key.tenant))
    if key.responsible and is_responsible_a_member(key):
        people.add(key.responsible)
    return people or set(operators())


def _check_may_manage(by: User | None, key: ApiKey) -> None:
    """Raise PermissionDenied unless this person may change the key. Operators may; None: a command."""
    if by is None or not queries.manageable_by(by).filter(pk=key.pk).exists():
        permissions.check_access(by)


def _check_not_canary(key: ApiKey) -> None:
    if key.is_canary:
        raise KeyOfTheCanary(_("Madoguchi itself uses this key. It can only be revoked."))


def is_responsible_a_member(key: ApiKey) -> bool:
    """Return whether this service key has a responsible person who is an active member of its tenant."""
    who = key.responsible
    return who is not None and who.is_active and who.memberships.filter(tenant=key.tenant_id).exists()


def require_membership(user: User | None, tenant: Tenant) -> None:
    """Raise NotAMember unless the person, if there is one, is a member of the tenant."""
    if user is not None and not user.memberships.filter(tenant=tenant).exists():
        raise NotAMember(
            _("%(person)s is not a member of %(tenant)s.") % {"person": person(user), "tenant": tenant.name}
        )


def _check_limit(tenant: Tenant, user: User | None, *, only_new: bool = False) -> None:
    """Raise TooManyKeys. Locks the owner's row, so that of keys made at the same time none slips through.

    `only_new`: for a key that replaces another one; together they may exceed the limit for a while.
    """
    if user:
        lock_row(User, user.pk)
    else:
        lock_row(Tenant, tenant.pk)
    keys = ApiKey.objects.filter(user=user, is_playground=False)
    most = settings.KEYS_PER_PERSON if user else settings.SERVICE_KEYS_PER_TENANT
    counted = (keys if user else keys.filter(tenant=tenant)).filter(counts_against_limit(timezone.now(), only_new))
    if counted.count() >= most:
        raise TooManyKeys(limit_sentence(most))


def counts_against_limit(now: datetime, only_new: bool = False) -> Q:
    """Return the condition for keys, API keys or management keys, that count against the number allowed."""
    new = Q(created_at__gt=now - timedelta(days=1))
    return new if only_new else new | Q(revoked_at=None) & (Q(expires_at=None) | Q(expires_at__gt=now))


def limit_sentence(most: int) -> str:
    """Return the sentence for a person who has as many keys as allowed."""
    return _(
        "There are too many keys: at most %(most)d can be valid at a time, and at most %(most)d can be created within a"
        " day. Revoke keys that are no longer needed."
    ) % {"most": most}


def _save_new(key: ApiKey, chosen: Iterable[ServedModel]) -> str:
    """Store a new key under a new text, which is returned. Raises KeyRefused if no gateway would know the key."""
    try:
        check_secret("API_KEY_SECRET")
    except OtherSecret as error:  # of a command on a machine that has a secret of its own
        raise KeyRefused(str(error)) from error
    text = key.assign_text()
    with transaction.atomic():
        key.save()
        key.allowed_models.set(chosen)
    return text


def models_of(key: ApiKey) -> list[str] | None:
    """Return the names of the models that the key is for; None: all that the tenant may use."""
    return None if key.every_model else sorted(key.allowed_models.values_list("name", flat=True))


def record_models_change(key: ApiKey, before: list[str] | None) -> None:
    """Record in the audit if the key's models changed: the audit watches rows, and models are not in a key's row."""
    after = models_of(key)
    if before != after:
        tracking.record_event(
            "key.models", key, "key", before={"models": before}, after={"models": after}, tenant=key.tenant
        )


def _set_models(key: ApiKey, models: Iterable[ServedModel] | None) -> None:
    before = models_of(key)
    key.every_model = models is None
    key.allowed_models.set(models or ())
    record_models_change(key, before)
