"""Issue and revoke API keys: the two verbs that pages, the command line and the API share."""

import re
from collections.abc import Iterable
from datetime import datetime

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from modelregistry.models import ServedModel
from portal.accounts.models import Tenant, User
from portal.keys import secret
from portal.keys.models import ApiKey

KEY = re.compile(rf"{secret.LEAD}[0-9A-Za-z]{{{secret.LENGTH - len(secret.LEAD)}}}")


class NotAMember(ValueError):
    """The person does not belong to the tenant for which the key was asked."""


def issue(
    *,
    tenant: Tenant,
    name: str,
    user: User | None = None,
    service: str = "",
    allowed_models: Iterable[ServedModel] = (),
    expires_at: datetime | None = None,
    created_by: User | None = None,
) -> tuple[ApiKey, str]:
    """A new key and its text, which exists nowhere else: show it once.

    Give `user` for a personal key or `service` for a service key. Without `allowed_models` it is for all models that
    the tenant may use. Raises NotAMember.
    """
    if user is not None and not user.memberships.filter(tenant=tenant).exists():
        raise NotAMember(f"{user.get_username()} is not a member of {tenant.slug}")
    text = secret.make()
    chosen = list(allowed_models)
    with transaction.atomic():
        key = ApiKey.objects.create(
            tenant=tenant,
            user=user,
            service=service,
            name=name,
            prefix=text[: secret.PREFIX],
            digest=secret.digest(text, settings.API_KEY_SECRET),
            every_model=not chosen,
            expires_at=expires_at,
            created_by=created_by,
        )
        key.allowed_models.set(chosen)
    return key, text


def revoke(key: ApiKey, because: str = "") -> None:
    """Ends a key for good; gateways stop accepting it within one catalogue poll. Revoking twice changes nothing.

    `because`: for its owner, and the audit.
    """
    if key.revoked_at is None:
        key.revoked_at, key.revoked_because = timezone.now(), because[:200]
        key.save(update_fields=["revoked_at", "revoked_because"])


def found_in(text: str) -> tuple[list[ApiKey], int]:
    """Our keys whose full text stands somewhere in this one, and how many more look like keys but are not ours."""
    texts = {word for word in KEY.findall(text) if secret.well_formed(word)}
    digests = [secret.digest(word, settings.API_KEY_SECRET) for word in texts]
    keys = list(ApiKey.objects.filter(digest__in=digests).select_related("tenant"))
    return keys, len(texts) - len(keys)
