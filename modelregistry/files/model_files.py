"""Reads what a model's files say, and finds what an engine would only find minutes later. Pure; starts nothing.

`read_model` is the way in. Directories in Hugging Face's form are read by `checkpoint`, GGUF files by `gguf`. Only
headers are read, some MB at most: a model of 140 GB takes as long as a small one.
"""

from collections.abc import Collection
from pathlib import Path

from modelregistry.engines.registry import engine_named
from modelregistry.files import bounds, checkpoint, gguf, misplaced
from modelregistry.files.metadata import GGUF, ModelMetadata, UnreadableModel, gettext_noop

RISKS = {
    "pickle": gettext_noop(
        "The weights in %(path)s are pickles (%(file)s), which can run any program when they are read. "
        'Take a model in safetensors, or allow the risk "pickle" for this model.'
    ),
    "remote-code": gettext_noop(
        "The model in %(path)s brings program code of its own (%(file)s), which the engine would run. "
        'Read that code first; then allow the risk "remote-code" for this model.'
    ),
}


def read_model(engine: str, path: str, allowed: Collection[str] = ()) -> ModelMetadata:
    """Return what the files of `path` say, in the form that the engine reads. Reads the disk.

    `allowed`: risks that an operator took for this model. Raises UnreadableModel.
    """
    if not path:
        raise UnreadableModel(gettext_noop("This engine needs the path of a model."))
    if not Path(path).is_absolute() or "\0" in path:
        raise UnreadableModel(gettext_noop("%(path)s is not an absolute path."), path=path)
    form = engine_named(engine).model_format
    try:
        return _within_bounds(form, Path(path), allowed)
    except UnreadableModel as error:
        # What it is says more than how it is broken.
        raise (None if error.risk else misplaced.recognise(form, Path(path))) or error from None
    except OSError as error:
        raise UnreadableModel(
            gettext_noop("%(path)s cannot be read: %(reason)s."),
            path=error.filename or path,
            reason=error.strerror or type(error).__name__,
        ) from error


def _within_bounds(form: str, path: Path, allowed: Collection[str]) -> ModelMetadata:
    try:
        return bounds.check_metadata(_gguf(path) if form == GGUF else _directory(path, allowed))
    except bounds.OutOfBounds as error:
        sentence = (
            gettext_noop("%(path)s is damaged: %(value)s is not a possible value of “%(name)s”.")
            if error.value
            else gettext_noop("%(path)s is damaged: it does not say “%(name)s”.")
        )
        raise UnreadableModel(sentence, path=path, name=error.name, value=error.value) from None


def _gguf(path: Path) -> ModelMetadata:
    if not path.exists():
        raise UnreadableModel(gettext_noop("%(path)s does not exist."), path=path)
    if path.is_dir():
        raise UnreadableModel(gettext_noop("%(path)s is a directory; llama.cpp needs a GGUF file."), path=path)
    return gguf.read_gguf(path)


def _directory(path: Path, allowed: Collection[str]) -> ModelMetadata:
    if not path.exists():
        raise UnreadableModel(gettext_noop("%(path)s does not exist."), path=path)
    if not path.is_dir():
        raise UnreadableModel(gettext_noop("%(path)s is not a directory; vLLM needs a model directory."), path=path)
    for risk, file in checkpoint.find_risks(path).items():
        if risk not in allowed:
            raise UnreadableModel(RISKS[risk], risk=risk, path=path, file=file)
    return checkpoint.read_checkpoint(path)
