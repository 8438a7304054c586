"""How much callers are served beside others where calls wait: the weights that operators set.

A person counts as the weight of their tenant. A service key counts as so many people of its tenant: as its own weight
says, else as that of its class. Classes themselves are strict: batch calls wait until no interactive one does, and
compare their weights among themselves.
"""

from django.core.exceptions import ValidationError

from portal.accounts import permissions
from portal.accounts.models import Tenant, User
from portal.keys.models import ApiKey, ClassWeight

USUAL_TENANT_WEIGHT = 1.0
# A service answers many people, or works for them; how many is unknown.
USUAL_SERVICE_WEIGHT = 4.0


def class_weights() -> dict[str, float]:
    """Return how many people a service key counts as, by its class. One query."""
    return {
        **dict.fromkeys(ApiKey.Class.values, USUAL_SERVICE_WEIGHT),
        **dict(ClassWeight.objects.values_list("key_class", "weight")),
    }


def set_tenant_weight(tenant: Tenant, weight: float, *, by: User | None = None) -> None:
    """Set the weight of a tenant. Raises PermissionDenied, and ValidationError for what is no weight."""
    permissions.check_access(by)
    tenant.weight = weight
    tenant.full_clean()
    tenant.save(update_fields=["weight"])


def set_class_weight(key_class: str, weight: float, *, by: User | None = None) -> None:
    """Set how many people service keys of a class count as. Raises PermissionDenied or ValidationError."""
    permissions.check_access(by)
    row = ClassWeight.objects.filter(key_class=key_class).first() or ClassWeight(key_class=key_class)
    row.weight = weight
    row.full_clean(validate_unique=False)
    row.save()


def set_key_weight(key: ApiKey, weight: float | None, *, by: User | None = None) -> None:
    """Set how many people a service key counts as; None: as its class. Raises PermissionDenied or ValidationError."""
    permissions.check_access(by)
    key.weight = weight
    key.clean_fields(exclude=[field.name for field in key._meta.fields if field.name != "weight"])
    key.save(update_fields=["weight"])


def separate_users(key: ApiKey, *, apart: bool, by: User | None = None) -> None:
    """Let each person behind a service key take a turn of their own, or all of them share the key's.

    An operator's decision, for a key could make up people. Raises PermissionDenied, and ValidationError for a personal
    key.
    """
    permissions.check_access(by)
    if apart and key.user_id is not None:
        raise ValidationError("Only a service key has people behind it.", code="no-service")
    key.separates_users = apart
    key.save(update_fields=["separates_users"])
