"""The secrets that all processes of a site share: SECRET_KEY and API_KEY_SECRET, with those that they replace.

The database holds fingerprints of those in use, so that a second machine with secrets of its own is found when it
starts: it would refuse every other call, and sign people out with every other page. A secret is replaced with an
overlap, in which the former one is accepted too (`API_KEY_SECRET_FALLBACKS`, and Django's `SECRET_KEY_FALLBACKS`).
Meanwhile gateways store each key that is used under the new one, see `renew_digest`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import models
from django.utils import timezone

from portal.keys import secret
from portal.keys.models import ApiKey, IssuedKey, ManagementKey, SiteSecret

NAMES = ("SECRET_KEY", "API_KEY_SECRET")
KEYS: tuple[type[IssuedKey], ...] = (ApiKey, ManagementKey)


class OtherSecret(ImproperlyConfigured):
    """Another secret than the site's."""


@dataclass(frozen=True, slots=True)
class SecretState:
    """A secret of this process beside the site's. `keys`: not revoked, and stored under other secrets than this one."""

    name: str
    own: str  # fingerprint
    accepted: tuple[str, ...]  # fingerprints of its fallbacks
    of_site: str  # fingerprint; "": none is recorded yet
    keys: int

    @property
    def agrees(self) -> bool:
        return self.of_site in ("", self.own, *self.accepted)


def accepted_secrets(name: str = "API_KEY_SECRET") -> tuple[str, ...]:
    """Return the secret, and those that it replaces."""
    return str(getattr(settings, name)), *getattr(settings, f"{name}_FALLBACKS")


def digests_of(text: str) -> list[str]:
    """Return the digests under which the key with this text may be stored, the one of today's secret first."""
    return [secret.digest_of(text, one) for one in accepted_secrets()]


def renew_digest(model: type[IssuedKey], pk: int, text_digests: Sequence[str]) -> bool:
    """Store a key that was used under today's secret, unless it is; return whether it was not.

    No signal is sent: it is the same key, and gateways know it by either digest.
    """
    today, *former = text_digests
    stored = model._default_manager.filter(pk=pk, digest__in=former)
    return bool(stored.update(digest=today, digest_under=secret.fingerprint_of(settings.API_KEY_SECRET)))


def check_secrets() -> None:
    """Compare the secrets of this process with its site's; the first process of a site records its own.

    Raises OtherSecret, and DatabaseError.
    """
    for name in NAMES:
        check_secret(name)


def check_secret(name: str) -> None:
    """Compare this secret with the site's, and record it if it is newer. Raises OtherSecret."""
    own, *former = map(secret.fingerprint_of, accepted_secrets(name))
    row, _created = SiteSecret.objects.get_or_create(setting=name, defaults={"fingerprint": own})
    if row.fingerprint == own:
        if name == "API_KEY_SECRET" and not row.before:
            for model in KEYS:  # made by a version that did not note it, under the only one that there was
                model._default_manager.filter(digest_under="").update(digest_under=own)
        return
    if row.fingerprint not in former:
        raise OtherSecret(
            f"{name} of this process ({own}) is not the one of this site ({row.fingerprint}, since "
            f"{row.since.date()}). All machines of a site need the same: copy it from one that works. If no machine "
            "has it any more: manage.py sitesecrets --adopt"
        )
    if row.before != own:  # else it is this process's secret that was replaced, and it accepts the new one already
        _record(row, own)


def adopt_secrets() -> None:
    """Record the secrets of this process as the site's."""
    for name in NAMES:
        own = secret.fingerprint_of(accepted_secrets(name)[0])
        row, _created = SiteSecret.objects.get_or_create(setting=name, defaults={"fingerprint": own})
        if row.fingerprint != own:
            _record(row, own)


def _record(row: SiteSecret, fingerprint: str) -> None:
    # Of two processes that start at once, the second one finds it done.
    same = SiteSecret.objects.filter(pk=row.pk, fingerprint=row.fingerprint)
    same.update(fingerprint=fingerprint, before=row.fingerprint, since=timezone.now())


def read_states() -> list[SecretState]:
    """Return how the secrets of this process compare with those of its site."""
    of_site = dict(SiteSecret.objects.values_list("setting", "fingerprint"))
    return [
        SecretState(
            name,
            own=secret.fingerprint_of(own),
            accepted=tuple(map(secret.fingerprint_of, former)),
            of_site=of_site.get(name, ""),
            keys=_count_former(secret.fingerprint_of(own)) if name == "API_KEY_SECRET" else 0,
        )
        for name in NAMES
        for own, *former in [accepted_secrets(name)]
    ]


def _count_former(own: str) -> int:
    now = timezone.now()
    lives = models.Q(expires_at=None) | models.Q(expires_at__gt=now)
    return sum(
        model._default_manager.filter(lives, revoked_at=None).exclude(digest_under=own).count() for model in KEYS
    )
