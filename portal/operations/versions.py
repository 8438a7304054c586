"""Notifies operators of engine versions that failed their trial. Supervisors run the trials."""

from typing import Any

from modelregistry.models import EngineTrial
from portal.accounts.permissions import operators
from portal.web.notify import notify


def notify_failed_version(instance: EngineTrial, **_: Any) -> None:
    """Notify each operator of a failed trial, once for each installation of a version."""
    if instance.state != EngineTrial.State.FAILED:
        return
    ref = f"{instance.host_id} {instance.model_id} {instance.launcher} {instance.version} {instance.stamp}"
    notify(
        operators(),
        "engine-version-failed",
        ref[:100],
        path=f"/operations/models/{instance.model.name}/",
        model=instance.model.name,
        host=instance.host.name,
        engine=instance.launcher,
        version=instance.version,
        cause=instance.cause,
        detail=instance.detail,
    )
