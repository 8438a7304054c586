"""Reads what a model's files say, and finds what an engine would only find minutes later. Pure; starts nothing.

`read_model` is the way in. Directories in Hugging Face's form are read by `checkpoint`, GGUF files by `gguf`. Only
headers are read, some MB at most: a model of 140 GB takes as long as a small one.
"""

from collections.abc import Collection
from pathlib import Path

from modelregistry.engines.registry import engine_named
from modelregistry.files import bounds, checkpoint, gguf, misplaced
from modelregistry.files.metadata import GGUF, ModelMetadata
from modelregistry.files.unreadable import UnreadableModel

RISKS = ("pickle", "remote-code")


def read_model(engine: str, path: str, allowed: Collection[str] = ()) -> ModelMetadata:
    """Return what the files of `path` say, in the form that the engine reads. Reads the disk.

    `allowed`: risks that an operator took for this model. Raises UnreadableModel.
    """
    if not path:
        raise UnreadableModel("no-path")
    if not Path(path).is_absolute() or "\0" in path:
        raise UnreadableModel("relative-path", path=path)
    form = engine_named(engine).model_format
    try:
        return _within_bounds(form, Path(path), allowed)
    except UnreadableModel as error:
        # What it is says more than how it is broken.
        raise (None if error.risk else misplaced.recognise(form, Path(path))) or error from None
    except OSError as error:
        raise UnreadableModel(
            "unreadable", path=error.filename or path, reason=error.strerror or type(error).__name__
        ) from error


def find_path_fault(engine: str, path: str, allowed_risks: Collection[str] = ()) -> UnreadableModel | None:
    """Return why a model cannot be read from a path on this machine; None: it can, as far as its headers show.

    Takes 1 to 30 ms for a model whose files were read before, so that a supervisor can ask before every start:
    files change after they were registered.
    """
    try:
        read_model(engine, path, allowed_risks)
    except UnreadableModel as error:
        return error
    return None


def _within_bounds(form: str, path: Path, allowed: Collection[str]) -> ModelMetadata:
    try:
        return bounds.check_metadata(_read_gguf(path) if form == GGUF else _read_directory(path, allowed))
    except bounds.OutOfBounds as error:
        code = "impossible-value" if error.value else "missing-value"
        raise UnreadableModel(code, path=path, name=error.name, value=error.value) from None


def _read_gguf(path: Path) -> ModelMetadata:
    if not path.exists():
        raise UnreadableModel("missing", path=path)
    if path.is_dir():
        raise UnreadableModel("directory", path=path)
    return gguf.read_gguf(path)


def _read_directory(path: Path, allowed: Collection[str]) -> ModelMetadata:
    if not path.exists():
        raise UnreadableModel("missing", path=path)
    if not path.is_dir():
        raise UnreadableModel("not-a-directory", path=path)
    for risk, file in checkpoint.find_risks(path).items():
        if risk not in allowed:
            raise UnreadableModel(risk, risk=risk, path=path, file=file)
    return checkpoint.read_checkpoint(path)
