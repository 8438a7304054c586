"""Where a model's files are on a host, and where a copy of them is made: below the models' folder, and nowhere else.

A model that is a directory gets it whole, by one rename. A GGUF file may share its folder with others: what comes with
it is put there first and itself last, so that it is never there without its parts.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelregistry.install import copying, model_import
from modelregistry.install.copying import SUMS, CannotImport
from modelregistry.install.model_import import MAX_ENTRIES, WITHIN, Found
from modelregistry.terminal import is_printable
from modelregistry.transfer.surface import OfferedFile

LONGEST_NAME = 1000


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model's place. Make it by `find`."""

    models: Path
    path: Path  # as engines are given it

    @classmethod
    def find(cls, models: Path, path: str) -> "ModelFolder":
        """Return the place of a model. Raises CannotImport where it is not below the models' folder, or not safely."""
        where = Path(path)
        outside = CannotImport(
            f"{path} is not below {models}, where this host keeps models’ files (“models” of its host.json, or "
            "MADOGUCHI_MODELS): files are copied to and from there only, and a model’s path is the same on all hosts.",
            code="outside",
            path=where,
        )
        if "\0" in path or str(where) != os.path.normpath(path) or not where.is_relative_to(models) or where == models:
            raise outside
        if any(part.startswith(".") for part in where.relative_to(models).parts) or not is_printable(path):
            raise outside
        found = cls(models, where)
        if not found._parent.resolve().is_relative_to(models.resolve()):
            raise outside
        return found

    @property
    def is_file(self) -> bool:
        """Whether it is a GGUF file, and not a directory."""
        return self.path.suffix == ".gguf"

    @property
    def folder(self) -> Path:
        """What its files' names are relative to."""
        return self.path.parent if self.is_file else self.path

    @property
    def _parent(self) -> Path:
        """The folder in which its draft is made: beside its own, on the same disk."""
        return self.models if self.folder == self.models else self.folder.parent

    @property
    def draft_name(self) -> str:
        """The name under which its draft is made, see `copying.drafting`."""
        return f"{self.folder.name}.{self.path.stem}" if self.is_file else self.folder.name

    def list_files(self) -> dict[str, Path]:
        """Return its files, by their names within the folder. Raises CannotImport."""
        found = self._found()
        if not all(place.is_relative_to(self.models.resolve()) for place in found.places):
            raise copying.link_out(self.path, self.path.resolve(), [self.models])
        return model_import.files_of(found)

    def _found(self) -> Found:
        listing = model_import.find_models(self.path)
        found = next((one for one in listing.models if one.path == self.path), None)
        if found is None or (found.path.is_dir() and self.is_file):
            raise CannotImport(f"{self.path} is no model.", code="no-model", path=self.path)
        return found

    def read_known_sums(self, files: Mapping[str, Path]) -> dict[str, str]:
        """Return the checksums with which its files came here, of those that have not changed since."""
        try:
            written = (self.folder / SUMS).stat().st_mtime_ns
        except OSError:
            return {}
        sums = copying.read_sums(self.folder / SUMS)
        return {name: sums[name] for name, path in files.items() if name in sums and path.stat().st_mtime_ns <= written}

    # --- Where a copy is made

    @property
    def draft_folder(self) -> Path:
        return self._parent

    def has(self, sizes: Mapping[str, int]) -> bool:
        """Return whether it is there already. Raises CannotImport for something else that is there in its place."""
        if not os.path.lexists(self.path):
            return False
        there = {name: self.folder / name for name in sizes}
        if all(path.is_file() and path.stat().st_size == sizes[name] for name, path in there.items()):
            return True
        raise self._taken(self.path)

    def _taken(self, path: Path) -> CannotImport:
        sentence = f"{path} is there already, and is not what is to be copied: remove it, and run it again."
        return CannotImport(sentence, code="exists", path=path)

    def put(self, draft: Path, sums: Mapping[str, str]) -> None:
        """Give the files of a draft that is whole their place. Raises CannotImport, OSError."""
        if not self.is_file:
            if os.path.lexists(self.folder):
                raise self._taken(self.folder)
            draft.rename(self.folder)
        elif not self.folder.exists():
            draft.rename(self.folder)
        else:
            self._merge(draft, sums)
        copying.flush(self.folder)
        copying.flush(self.folder.parent)

    def _merge(self, draft: Path, sums: Mapping[str, str]) -> None:
        for name in sums:
            at = self.folder / name
            is_there = name != self.path.name and os.path.lexists(at)
            if is_there and (at.is_symlink() or copying.digest_of(at) != sums[name]):
                raise self._taken(at)
        copying.write_sums(self.folder / SUMS, {**copying.read_sums(self.folder / SUMS), **sums})
        for name in sorted(sums, key=lambda name: name == self.path.name):
            (draft / name).rename(self.folder / name)
        shutil.rmtree(draft)

    def drop_draft(self) -> None:
        """Delete what a copy that was given up has brought. Raises CannotImport while it goes on."""
        with copying.drafting(self._parent, self.draft_name) as draft:
            shutil.rmtree(draft)


def check_names(files: Sequence[OfferedFile]) -> None:
    """Raise CannotImport unless the names that another host gave are those of files within one folder."""
    names = {file.name for file in files}
    if not 0 < len(files) <= MAX_ENTRIES or len(names) < len(files):
        raise CannotImport(f"{len(files)} files were offered, which no model has.", code="bad-offer")
    for file in files:
        parts = file.name.split("/")
        good = len(file.name) <= LONGEST_NAME and len(parts) <= WITHIN + 1 and is_printable(file.name)
        if not good or any(part.startswith(".") or not part for part in parts) or file.name == SUMS or file.size < 0:
            raise CannotImport(
                f"A file was offered as {file.name[:100]!a}, which is no name for one.", code="bad-offer"
            )
