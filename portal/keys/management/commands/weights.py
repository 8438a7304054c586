"""Show or set how much people and service keys are served beside others where calls wait for a model."""

import json
from argparse import ArgumentParser
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError

from modelregistry.plain_numbers import read_decimal
from modelregistry.terminal import format_table
from portal.accounts.models import Tenant
from portal.keys import queries, weights
from portal.keys.models import ApiKey

USUAL = "usual"


class Command(BaseCommand):
    help = "Shows the weights of tenants, classes and service keys. Where people wait for a model, one of a tenant of "
    help += "weight 2 is served twice as much as one of weight 1; a service key counts as so many people as its weight "
    help += "says, else as that of its class. With --weight it sets one, which takes effect within two seconds."

    def add_arguments(self, parser: ArgumentParser) -> None:
        of = parser.add_mutually_exclusive_group()
        of.add_argument("--tenant", metavar="T", help="short name of a tenant")
        classes = [value for value, _ in ApiKey.CHOOSABLE]
        of.add_argument("--class", dest="key_class", choices=classes, help="of service keys")
        of.add_argument("--key", metavar="PREFIX", help="a service key")
        parser.add_argument(
            "--weight", metavar="W", help=f"0.1 to 10, of services to 100; {USUAL}: what it is at first"
        )
        parser.add_argument(
            "--people",
            choices=["apart", "together"],
            help="of a key: the people behind it take turns of their own, or share the key's",
        )
        parser.add_argument("--json", action="store_true", help="as JSON, for programs")

    def handle(
        self,
        *,
        tenant: str | None,
        key_class: str | None,
        key: str | None,
        weight: str | None,
        people: str | None,
        **options: Any,
    ) -> str:
        if weight is not None and not (tenant or key_class or key):
            raise CommandError("--weight needs --tenant, --class or --key: of which?")
        if people and not key:
            raise CommandError("--people needs --key: of which?")
        row = _find(Tenant, "slug", tenant) if tenant else None
        service = _find_key(key) if key else None
        try:
            if weight is not None:
                _set_weight(row, key_class, service, weight)
            if people and service:
                weights.separate_users(service, apart=people == "apart")
        except ValidationError as error:
            raise CommandError("--weight: " + " ".join(error.messages)) from error
        found = _list_weights(row, key_class, service)
        return json.dumps(found) if options["json"] else _show(found)


def _find(model: Any, field: str, value: str) -> Any:
    row = model.objects.filter(**{field: value}).first()
    if row is None:
        raise CommandError(f"There is no {'key' if model is ApiKey else 'tenant'} {value}.")
    return row


def _find_key(prefix: str) -> ApiKey:
    key: ApiKey = _find(ApiKey, "prefix", prefix)
    if key.user_id is not None or key.is_canary:
        raise CommandError(f"{prefix} is no service key: a person's keys have the weight of their tenant.")
    return key


def _set_weight(tenant: Tenant | None, key_class: str | None, key: ApiKey | None, text: str) -> None:
    try:
        weight = None if text == USUAL else read_decimal(text)
    except ValueError as error:
        raise CommandError(f"--weight: {error}, nor {USUAL}.") from error
    if tenant:
        weights.set_tenant_weight(tenant, weights.USUAL_TENANT_WEIGHT if weight is None else weight)
    elif key_class:
        weights.set_class_weight(key_class, weights.USUAL_SERVICE_WEIGHT if weight is None else weight)
    elif key:
        weights.set_key_weight(key, weight)


def _list_weights(tenant: Tenant | None, key_class: str | None, key: ApiKey | None) -> list[dict[str, Any]]:
    """Return the weights of what is named, or of all."""
    of_classes = weights.class_weights()
    everything = tenant is None and key_class is None and key is None
    tenants = Tenant.objects.all() if everything else [tenant] if tenant else []
    classes = [value for value, _ in ApiKey.CHOOSABLE] if everything else [key_class] if key_class else []
    keys = queries.weighted_keys() if everything else [key] if key else []
    return [
        *({"tenant": one.slug, "weight": one.weight} for one in tenants),
        *({"class": one, "weight": of_classes[one]} for one in classes),
        *(
            {
                "key": one.prefix,
                "service": one.service,
                "weight": of_classes[one.key_class] if one.weight is None else one.weight,
                "own": one.weight is not None,
                "people": "apart" if one.separates_users else "together",
            }
            for one in keys
        ),
    ]


def _show(found: list[dict[str, Any]]) -> str:
    rows = []
    for one in found:
        kind = next(name for name in ("tenant", "class", "key") if name in one)
        about = ", ".join(filter(None, (one.get("service"), "people apart" if one.get("people") == "apart" else "")))
        rows.append((f"{kind} {one[kind]}", f"{one['weight']:g}", about))
    return "\n".join(format_table(("OF", "WEIGHT", ""), rows, numeric={"WEIGHT"}))
