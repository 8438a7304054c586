"""Issue, rotate, change and revoke API keys: the verbs that pages, the command line and the API share.

Each checks the right of who asks (`by`, `created_by`; None: a command) and raises PermissionDenied.
"""

import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import TypedDict, Unpack

from django.conf import settings
from django.db import transaction
from django.db.models import Model, Q
from django.utils import timezone
from django.utils.translation import gettext as _

from modelregistry.models import ServedModel
from portal.accounts import permissions
from portal.accounts.models import Tenant, User
from portal.accounts.permissions import admins_of, operators
from portal.audit import tracking
from portal.keys import queries, secret
from portal.keys.models import YEARS, ApiKey, check_end, check_networks
from portal.keys.signals import key_replaced
from portal.web.notify import notify
from portal.web.templatetags.formatting import person

KEY = re.compile(rf"{secret.PREFIX}[0-9A-Za-z]{{{secret.LENGTH - len(secret.PREFIX)}}}")
# Why a key ended that somebody found; pages and notices say it in full.
LEAKED = "leaked"


class NotAMember(ValueError):
    """The person does not belong to the tenant of the key that is to be theirs, or that they shall answer for."""


class TooMany(ValueError):
    """There are as many keys as this person may have, or this tenant for its service keys; `most` is the number."""

    def __init__(self, most: int) -> None:
        super().__init__(f"at most {most} keys may work, or be made within a day")
        self.most = most

    @property
    def sentence(self) -> str:
        """In the reader's language."""
        return too_many(self.most)


class KeyRevoked(ValueError):
    """A revoked key does not change any more."""


class AlreadyReplaced(ValueError):
    """The key has a successor: that one is to be replaced."""


class Changes(TypedDict, total=False):
    """What of a key may change. `allowed_models` None: all that the tenant may use. `expires_at` None: never."""

    name: str
    purpose: str
    key_class: str
    networks: Sequence[str]
    takes_user_headers: bool
    expires_at: datetime | None
    allowed_models: Iterable[ServedModel] | None
    responsible: User | None


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
    allowed_models: Iterable[ServedModel] = (),
    expires_at: datetime | None = None,
    created_by: User | None = None,
) -> tuple[ApiKey, str]:
    """Return a new key and its text, which exists nowhere else: show it once.

    Give `user` for a personal key or `service` (and who is `responsible`) for a service key. Without `allowed_models`
    it is for all models that the tenant may use, without `networks` (as networks.parse gives them) from everywhere.
    Raises NotAMember, also for who is responsible, TooMany, and ValidationError for what is no network
    or too far an end.
    """
    if user is None or user != created_by:
        permissions.check_access(created_by, tenant)
    for member in (user, responsible):
        require_membership(member, tenant)
    check_networks(list(networks))
    check_end(expires_at)
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
        every_model=not chosen,
        expires_at=expires_at,
        created_by=created_by,
    )
    with transaction.atomic():
        _check_number(tenant, user)
        return key, _written(key, chosen)


def rotate_key(key: ApiKey, overlap: timedelta, *, by: User | None = None) -> tuple[ApiKey, str]:
    """(its successor, the successor's text): for the same, with the same rules and quotas, and as long a life.

    The old key goes on working for `overlap`, or less if it ends before; with none it ends now. A revoked or expired
    key has a successor too, and stays what it is. Raises AlreadyReplaced, NotAMember when its person has left, and
    TooMany when as many keys were made within a day.
    """
    _check(by, key)
    require_membership(key.user, key.tenant)
    now = timezone.now()
    with transaction.atomic():
        # Two at the same time queue here, so that the second one sees the first one's successor.
        key = ApiKey.objects.select_for_update().get(pk=key.pk)
        if ApiKey.objects.filter(replaces=key).exists():
            raise AlreadyReplaced(f"{key.prefix} has been replaced already")
        _check_number(key.tenant, key.user, only_new=True)
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
            every_model=key.every_model,
            expires_at=key.expires_at and now + min(key.expires_at - key.created_at, timedelta(days=365 * YEARS)),
            created_by=by,
            replaces=key,
        )
        text = _written(new, key.allowed_models.all())
        key_replaced.send(sender=None, old=key, new=new)
        if key.state == "active":
            end = now + overlap
            key.expires_at = min(key.expires_at or end, end)
            key.save(update_fields=["expires_at"])
    return new, text


def change_key(key: ApiKey, *, by: User | None = None, **changes: Unpack[Changes]) -> None:
    """Give the key these values; others stay. Gateways follow within one catalogue poll.

    Raises Ended, NotAMember for who shall be responsible, and ValidationError for what is no network or too far an end.
    """
    _check(by, key)
    if key.revoked_at:
        raise KeyRevoked(f"{key.prefix} is revoked")
    if "responsible" in changes and changes["responsible"] != key.responsible:
        require_membership(changes["responsible"], key.tenant)
    if "networks" in changes:
        check_networks(list(changes["networks"]))
    check_end(changes.get("expires_at"))
    with transaction.atomic():
        if "allowed_models" in changes:
            _allow(key, changes.pop("allowed_models"))
        for name, value in changes.items():
            setattr(key, name, list(value) if name == "networks" else value)  # type: ignore[call-overload]
        key.save(update_fields=[*changes, "every_model"])


def revoke_key(key: ApiKey, because: str = "", *, by: User | None = None) -> None:
    """End a key for good; gateways stop accepting it within one catalogue poll. Revoking twice changes nothing.

    Whom it concerns is told: the person whose it is; of a service key who is responsible and the tenant's admins.
    `because`: for them and the audit, in the words of `by`, who is not told what they did themselves.
    """
    _check(by, key)
    _end(key, because, by)


def revoke_leaked_key(key: ApiKey, by: User) -> None:
    """End a key whose full text somebody found where it must not be: whoever holds it may end it."""
    _end(key, LEAKED, by)


def _end(key: ApiKey, because: str, by: User | None) -> None:
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
    """Who is told of what becomes of a key. Of a service key in whose tenant nobody is left: operators."""
    if key.is_playground:
        return set()
    if key.user:
        return {key.user}
    people = set(admins_of(key.tenant))
    if key.responsible and is_answered_by(key):
        people.add(key.responsible)
    return people or set(operators())


def _check(by: User | None, key: ApiKey) -> None:
    """Raise PermissionDenied unless this person may change the key. Operators may; None: a command."""
    if by is None or not queries.manageable_by(by).filter(pk=key.pk).exists():
        permissions.check_access(by)


def is_answered_by(key: ApiKey) -> bool:
    """Return whether somebody is responsible for this service key who still is in its tenant."""
    who = key.responsible
    return who is not None and who.is_active and who.memberships.filter(tenant=key.tenant_id).exists()


def require_membership(user: User | None, tenant: Tenant) -> None:
    """Raise NotAMember; nobody is nobody's member and no matter."""
    if user is not None and not user.memberships.filter(tenant=tenant).exists():
        raise NotAMember(f"{user.get_username()} is not a member of {tenant.slug}")


def _check_number(tenant: Tenant, user: User | None, *, only_new: bool = False) -> None:
    """Raise TooMany. Of one owner's new keys each waits for the one before, so that none slips through beside it.

    `only_new`: for one that takes the place of another, which may be one too many for a while.
    """
    owner: type[Model] = User if user else Tenant
    list(owner._default_manager.select_for_update().filter(pk=(user or tenant).pk).values("pk"))
    keys = ApiKey.objects.filter(user=user, is_playground=False)
    most = settings.KEYS_PER_PERSON if user else settings.SERVICE_KEYS_PER_TENANT
    if (keys if user else keys.filter(tenant=tenant)).filter(count_keys(timezone.now(), only_new)).count() >= most:
        raise TooMany(most)


def count_keys(now: datetime, only_new: bool = False) -> Q:
    """Return the keys, for models or for management, that count against how many there may be."""
    new = Q(created_at__gt=now - timedelta(days=1))
    return new if only_new else new | Q(revoked_at=None) & (Q(expires_at=None) | Q(expires_at__gt=now))


def too_many(most: int) -> str:
    return _(
        "There are too many keys: %(most)d may work at a time, and as many be made within a day. Revoke those that are"
        " not needed any more."
    ) % {"most": most}


def find_in_text(text: str) -> tuple[list[ApiKey], int]:
    """Return our keys whose full text stands somewhere in this one.

    And how many more look like keys but are not ours.
    """
    texts = {word for word in KEY.findall(text) if secret.well_formed(word)}
    digests = [secret.digest_of(word, settings.API_KEY_SECRET) for word in texts]
    keys = list(ApiKey.objects.filter(digest__in=digests).select_related("tenant", "user", "responsible"))
    return keys, len(texts) - len(keys)


def _written(key: ApiKey, chosen: Iterable[ServedModel]) -> str:
    """Store a new key under a new text, which is returned."""
    text = secret.make_secret()
    key.prefix = text[: secret.PREFIX_LENGTH]
    key.digest = secret.digest_of(text, settings.API_KEY_SECRET)
    with transaction.atomic():
        key.save()
        key.allowed_models.set(chosen)
    return text


def models_of(key: ApiKey) -> list[str] | None:
    """Return the names of the models that it is for; None: all that the tenant may use."""
    return None if key.every_model else sorted(key.allowed_models.values_list("name", flat=True))


def notify_gateways(key: ApiKey, before: list[str] | None) -> None:
    """Tell the audit if it is for other models than before: it watches rows, and these are none of a key's row."""
    after = models_of(key)
    if before != after:
        tracking.record_event(
            "key.models", key, "key", before={"models": before}, after={"models": after}, tenant=key.tenant
        )


def _allow(key: ApiKey, models: Iterable[ServedModel] | None) -> None:
    before = models_of(key)
    key.every_model = models is None
    key.allowed_models.set(models or ())
    notify_gateways(key, before)
