"""What operators do to models: start, stop, restart, register, change, name, show, retire, unregister; and to hosts.

For pages, the API and commands. Each verb checks that `by` operates (see tenancy.check), is one transaction, sees the
row as it is then, and is audited with it (`operations.apps`). What cannot be done raises Refused. The supervisor of the
model's host follows within its next round; nothing here waits for it.
"""

from collections.abc import Collection, Iterable
from copy import copy
from datetime import date
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Model
from django.utils.translation import gettext as _

from modelregistry import hosts
from modelregistry.models import Alias, Host, Replica, ServedModel
from portal.accounts import permissions
from portal.accounts.models import Tenant, User
from portal.keys.models import ModelAccess
from portal.web.refusals import Refused

GAVE_UP = (Replica.State.FAILED, Replica.State.BACKOFF)
# What `register` and `change` may be given.
FIELDS = frozenset(field.name for field in ServedModel._meta.concrete_fields if field.editable) - {"id"}


class ActionRefused(Refused):
    """What an operator asked cannot be."""


def verb_of(before: dict[str, Any], after: dict[str, Any]) -> str:
    """What an audit calls a change of a model, by the fields that differ."""
    names = set(after)
    if names <= {"enabled", "generation"}:
        if "enabled" not in names:
            return "restart"
        return "start" if after["enabled"] else "stop"
    return "retire" if names == {"retires_on"} else "change"


def start_model(by: User | None, model: ServedModel) -> ServedModel:
    """To be served; replicas that failed or wait for another try are tried at once. Nothing if it runs."""
    with transaction.atomic():
        row = _locked(by, model)
        gave_up = row.replica_set.filter(state__in=GAVE_UP).exists()
        if not row.enabled or gave_up:
            row.enabled = True
            row.generation += gave_up
            row.save(update_fields=["enabled", "generation"])
    return row


def stop_model(by: User | None, model: ServedModel) -> ServedModel:
    """Not to be served: its engines finish running requests and stop."""
    with transaction.atomic():
        row = _locked(by, model)
        if row.enabled:
            row.enabled = False
            row.save(update_fields=["enabled"])
    return row


def restart_model(by: User | None, model: ServedModel, *, seen: int | None = None) -> ServedModel:
    """Return its engines finish what they are at and are started anew.

    `seen`: the `generation` that the operator was looking at. If it is higher by now somebody else has asked for a
    restart since, and one is enough.
    """
    with transaction.atomic():
        row = _locked(by, model)
        if not row.enabled:
            raise ActionRefused(_("%(model)s is stopped. Start it instead.") % {"model": row.name})
        if seen is None or seen >= row.generation:
            row.generation += 1
            row.save(update_fields=["generation"])
    return row


def register_model(
    by: User | None, *, aliases: Collection[str] = (), tenants: Collection[Tenant] = (), **values: Any
) -> ServedModel:
    """Return a new model, to be started at once unless `enabled` is False. `values` by the names in FIELDS."""
    permissions.check_access(by)
    load_parser_options(ServedModel(), values)
    with transaction.atomic():
        row = ServedModel()
        _write(row, values)
        set_aliases(by, row, aliases)
        set_visibility(by, row, tenants)
    return row


def change_model(by: User | None, model: ServedModel, **values: Any) -> ServedModel:
    """Return other `values`, by the names in FIELDS. What an engine is started with makes it start anew."""
    permissions.check_access(by)
    load_parser_options(model, values)
    with transaction.atomic():
        row = _locked(by, model)
        _write(row, values)
    return row


def unregister_model(by: User | None, model: ServedModel) -> None:
    """Off the catalogue for good, with its aliases; its host's supervisor drains and stops its engines."""
    with transaction.atomic():
        _locked(by, model).delete()


def retire_model(by: User | None, model: ServedModel, on: date | None) -> ServedModel:
    """Served until the day before; None: for ever."""
    return change_model(by, model, retires_on=on)


def give_alias(by: User | None, name: str, model: ServedModel) -> Alias:
    """Make `name` lead to this model from now on, wherever it led before: no client meets a moment without it."""
    with transaction.atomic():
        row = _locked(by, model)
        alias = Alias.objects.select_for_update().filter(name=name).first() or Alias(name=name)
        if alias.pk is None or alias.model_id != row.pk:
            alias.model = row
            _clean(alias)
            alias.save()
    return alias


def set_aliases(by: User | None, model: ServedModel, names: Iterable[str]) -> None:
    """Exactly these lead to this model. Those that led elsewhere are moved, those that are left out are no more."""
    wanted = set(names)
    with transaction.atomic():
        row = _locked(by, model)
        for alias in Alias.objects.select_for_update().filter(model=row).exclude(name__in=wanted):
            alias.delete()
        for name in sorted(wanted):
            try:
                give_alias(by, name, row)
            except ActionRefused as refusal:
                told = [sentence for found in refusal.fields.values() for sentence in found]
                raise ActionRefused(refusal.sentence, {"aliases": told}) from refusal


def set_visibility(by: User | None, model: ServedModel, tenants: Iterable[Tenant]) -> None:
    """Only these tenants may call it; none: all may."""
    wanted = {tenant.pk: tenant for tenant in tenants}
    with transaction.atomic():
        row = _locked(by, model)
        present = {access.tenant_id: access for access in ModelAccess.objects.filter(model=row)}
        # New ones first: between the last old and the first new one it would be open to all.
        for number in wanted.keys() - present.keys():
            ModelAccess.objects.create(model=row, tenant=wanted[number])
        for number in present.keys() - wanted.keys():
            present[number].delete()


def change_host(by: User | None, host: Host, **values: Any) -> Host:
    """Return other `values`, by the names in hosts.FIELDS. Engines move to a new address, and end for maintenance."""
    permissions.check_access(by)
    try:
        return hosts.change_host(host, **values)
    except ValidationError as error:
        raise ActionRefused.of(error) from error


def remove_host(by: User | None, host: Host) -> None:
    """Forget a host that is gone and have no models."""
    permissions.check_access(by)
    try:
        hosts.remove_host(host)
    except ValidationError as error:
        raise ActionRefused(" ".join(error.messages)) from error


def _locked(by: User | None, model: ServedModel) -> ServedModel:
    """Return the row as it is now, kept from others until the transaction ends. Refused if it is gone."""
    permissions.check_access(by)
    row = ServedModel.objects.select_for_update().filter(pk=model.pk).first()
    if row is None:
        raise ActionRefused(_("%(model)s is not registered any more.") % {"model": model.name})
    return row


def load_parser_options(model: ServedModel, values: dict[str, Any]) -> None:
    """Before a transaction in which these are checked: has the engine's parser asked, which may take its time.

    Within one nothing happens, and the arguments are checked by what was asked before.
    """
    if transaction.get_connection().in_atomic_block or not ({"args", "engine", "launcher", "host"} & values.keys()):
        return
    draft = copy(model)
    for name, value in values.items():
        setattr(draft, name, value)
    draft.load_parser_options()


def _write(row: ServedModel, values: dict[str, Any]) -> None:
    unknown = sorted(values.keys() - FIELDS)
    if unknown:
        raise TypeError(f"no fields of a model: {unknown}")
    for name, value in values.items():
        setattr(row, name, value)
    _clean(row)
    row.save()


def _clean(row: Model) -> None:
    try:
        row.full_clean()
    except ValidationError as error:
        raise ActionRefused.of(error) from error
