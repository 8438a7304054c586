"""What operators do to models and hosts, for pages, the API and commands.

Each function checks that `by` is an operator (see permissions.check_access), is one transaction, reads the row again in
it, and is audited with it (`operations.apps`). It raises ActionRefused for what cannot be done. The supervisor of the
model's host acts within its next round; nothing here waits for it.
"""

from collections.abc import Collection, Iterable
from copy import copy
from datetime import date
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Model
from django.utils.translation import gettext as _

from modelregistry import hosts, sampling
from modelregistry.engines.registry import engine_named
from modelregistry.models import Alias, Host, Replica, ServedModel
from portal.accounts import permissions
from portal.accounts.models import Tenant, User
from portal.keys.models import ModelAccess
from portal.web.refusals import Refused

GAVE_UP = (Replica.State.FAILED, Replica.State.BACKOFF)
# What `register_model` and `change_model` accept.
FIELDS = frozenset(field.name for field in ServedModel._meta.concrete_fields if field.editable) - {"id"}


class ActionRefused(Refused):
    """What an operator requested cannot be done."""


def choose_audit_verb(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return the verb by which the audit log records a change of a model, from the fields that differ."""
    names = set(after)
    if names <= {"enabled", "generation"}:
        if "enabled" not in names:
            return "restart"
        return "start" if after["enabled"] else "stop"
    return "retire" if names == {"retires_on"} else "change"


def start_model(by: User | None, model: ServedModel) -> ServedModel:
    """Start the model, and retry its failed or waiting replicas at once; a model that runs is left alone."""
    with transaction.atomic():
        row = _lock_row(by, model)
        gave_up = row.replica_set.filter(state__in=GAVE_UP).exists()
        if not row.enabled or gave_up:
            row.enabled = True
            row.generation += gave_up
            row.save(update_fields=["enabled", "generation"])
    return row


def stop_model(by: User | None, model: ServedModel) -> ServedModel:
    """Stop the model: its engines finish running requests and stop."""
    with transaction.atomic():
        row = _lock_row(by, model)
        if row.enabled:
            row.enabled = False
            row.save(update_fields=["enabled"])
    return row


def restart_model(by: User | None, model: ServedModel, *, seen: int | None = None) -> ServedModel:
    """Restart the model's engines once they have finished running requests.

    `seen`: the `generation` that the operator was looking at. If it is higher now, another operator has requested a
    restart since, and one is enough.
    """
    with transaction.atomic():
        row = _lock_row(by, model)
        if not row.enabled:
            raise ActionRefused(_("%(model)s is stopped. Start it instead.") % {"model": row.name}, code="stopped")
        if seen is None or seen >= row.generation:
            row.generation += 1
            row.save(update_fields=["generation"])
    return row


def register_model(
    by: User | None, *, aliases: Collection[str] = (), tenants: Collection[Tenant] = (), **values: Any
) -> ServedModel:
    """Register a model, to be started at once unless `enabled` is False. `values`: by the names in FIELDS."""
    permissions.check_access(by)
    load_parser_options(ServedModel(), values)
    with transaction.atomic():
        row = ServedModel()
        _save_values(row, values)
        set_aliases(by, row, aliases)
        set_visibility(by, row, tenants)
    return row


def change_model(by: User | None, model: ServedModel, **values: Any) -> ServedModel:
    """Change `values`, by the names in FIELDS. Engines restart if they are started with a changed value."""
    permissions.check_access(by)
    load_parser_options(model, values)
    with transaction.atomic():
        row = _lock_row(by, model)
        _save_values(row, values)
    return row


def calm_model(by: User | None, model: ServedModel) -> ServedModel:
    """Set what makes word loops rarer (`sampling.CALM`) where nothing is set."""
    permissions.check_access(by)
    with transaction.atomic():
        row = _lock_row(by, model)
        calmer = calmer_sampling(row)
        if calmer != row.sampling:
            _save_values(row, {"sampling": calmer})
    return row


def calmer_sampling(model: ServedModel) -> dict[str, Any]:
    """Return what `calm_model` would set."""
    return sampling.calm_down(model.sampling, engine_named(model.engine).sampling_members)


def unregister_model(by: User | None, model: ServedModel) -> None:
    """Remove the model from the catalogue with its aliases; its host's supervisor drains and stops its engines."""
    with transaction.atomic():
        _lock_row(by, model).delete()


def retire_model(by: User | None, model: ServedModel, on: date | None) -> ServedModel:
    """Set the day from which the model is not served any more; None: it is served for ever."""
    return change_model(by, model, retires_on=on)


def give_alias(by: User | None, name: str, model: ServedModel) -> Alias:
    """Make the alias `name` point to this model, whatever it pointed to before, without a gap for clients."""
    with transaction.atomic():
        row = _lock_row(by, model)
        alias = Alias.objects.select_for_update().filter(name=name).first() or Alias(name=name)
        if alias.pk is None or alias.model_id != row.pk:
            alias.model = row
            _validate(alias)
            alias.save()
    return alias


def set_aliases(by: User | None, model: ServedModel, names: Iterable[str]) -> None:
    """Make exactly these aliases point to this model: move those of other models, and delete its other ones."""
    wanted = set(names)
    with transaction.atomic():
        row = _lock_row(by, model)
        for alias in Alias.objects.select_for_update().filter(model=row).exclude(name__in=wanted):
            alias.delete()
        for name in sorted(wanted):
            try:
                give_alias(by, name, row)
            except ActionRefused as refusal:
                sentences = [sentence for of_field in refusal.fields.values() for sentence in of_field]
                raise ActionRefused(refusal.sentence, {"aliases": sentences}) from refusal


def set_visibility(by: User | None, model: ServedModel, tenants: Iterable[Tenant]) -> None:
    """Let only these tenants call the model; none: all may."""
    wanted = {tenant.pk: tenant for tenant in tenants}
    with transaction.atomic():
        row = _lock_row(by, model)
        present = {access.tenant_id: access for access in ModelAccess.objects.filter(model=row)}
        # New ones first: between the last old and the first new one it would be open to all.
        for number in wanted.keys() - present.keys():
            ModelAccess.objects.create(model=row, tenant=wanted[number])
        for number in present.keys() - wanted.keys():
            present[number].delete()


def change_host(by: User | None, host: Host, **values: Any) -> Host:
    """Change `values`, by the names in hosts.FIELDS. Engines move to a new address, and stop for maintenance."""
    permissions.check_access(by)
    try:
        return hosts.change_host(host, **values)
    except ValidationError as error:
        raise ActionRefused.of(error) from error


def remove_host(by: User | None, host: Host) -> None:
    """Remove a host that is gone and has no models."""
    permissions.check_access(by)
    try:
        hosts.remove_host(host)
    except ValidationError as error:
        raise ActionRefused(" ".join(error.messages)) from error


def _lock_row(by: User | None, model: ServedModel) -> ServedModel:
    """Return the row as it is now, locked until the transaction ends. Raises ActionRefused if it is gone."""
    permissions.check_access(by)
    row = ServedModel.objects.select_for_update().filter(pk=model.pk).first()
    if row is None:
        raise ActionRefused(_("%(model)s is not registered any more.") % {"model": model.name}, code="gone")
    return row


def load_parser_options(model: ServedModel, values: dict[str, Any]) -> None:
    """Ask the engine's parser about the arguments, before the transaction that checks `values`: it may take long.

    Does nothing within a transaction, which uses the answer that was given before.
    """
    if transaction.get_connection().in_atomic_block or not ({"args", "engine", "launcher", "host"} & values.keys()):
        return
    draft = copy(model)
    for name, value in values.items():
        setattr(draft, name, value)
    draft.load_parser_options()


def _save_values(row: ServedModel, values: dict[str, Any]) -> None:
    unknown = sorted(values.keys() - FIELDS)
    if unknown:
        raise TypeError(f"no fields of a model: {unknown}")
    for name, value in values.items():
        setattr(row, name, value)
    _validate(row)
    row.save()


def _validate(row: Model) -> None:
    try:
        row.full_clean()
    except ValidationError as error:
        raise ActionRefused.of(error) from error
