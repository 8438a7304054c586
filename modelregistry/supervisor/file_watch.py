"""Which state of the files of a host's models was read last."""

from collections.abc import Mapping

from modelregistry.hostside.surface import FileFacts, HostSurface, WatchedFiles
from modelregistry.supervisor.repository import DesiredModel


class FileWatch:
    """Remembers what was read, so that the host reads only what changed."""

    def __init__(self, host: HostSurface) -> None:
        self.host = host
        self.read: dict[int, str] = {}  # by the model's id, as `FilesRead.seen`

    async def read_changed(self, desired_models: Mapping[int, DesiredModel]) -> dict[int, FileFacts]:
        """Return the facts of the files that changed since the last call, by the model's id."""
        watched = [
            WatchedFiles(model=model, spec=desired.spec, seen=self.read.get(model, ""))
            for model, desired in desired_models.items()
            if not desired.external
        ]
        found = await self.host.read_changed_files(watched) if watched else []
        self.read.update({one.model: one.seen for one in found})
        return {one.model: one.facts for one in found}
