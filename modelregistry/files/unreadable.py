"""Why files cannot be used as a model, or for an argument: a code for programs, and its sentence for the operator."""

from collections.abc import Mapping
from pathlib import Path

from modelregistry.files.metadata import gettext_noop
from modelregistry.files.text import clean_text

SENTENCES: Mapping[str, str] = {
    "no-path": gettext_noop("This engine needs the path of a model."),
    "relative-path": gettext_noop("%(path)s is not an absolute path."),
    "missing": gettext_noop("%(path)s does not exist."),
    "directory": gettext_noop("%(path)s is a directory; this engine needs a GGUF file."),
    "not-a-directory": gettext_noop("%(path)s is not a directory; this engine needs a model directory."),
    "unreadable": gettext_noop("%(path)s cannot be read: %(reason)s."),
    "damaged-header": gettext_noop("%(path)s is damaged: its header makes no sense."),
    "unnamed-part": gettext_noop("%(path)s is one of several parts, and is not named like name-00001-of-00003.gguf."),
    "later-part": gettext_noop("%(path)s is a later part; give the path of the first one."),
    "cut-off": gettext_noop("%(path)s is cut off: it has %(actual)d bytes of %(expected)d."),
    "component": gettext_noop("%(path)s is not a model but a part of one (%(kind)s)."),
    "no-weights": gettext_noop("%(path)s holds no weights."),
    "missing-part": gettext_noop("A part of the model is missing: %(path)s."),
    "not-gguf": gettext_noop("%(path)s is not a GGUF file."),
    "cut-off-header": gettext_noop("%(path)s is cut off: it ends within its header."),
    "no-config": gettext_noop("%(path)s has no config.json; it does not hold a model for this engine."),
    "too-long": gettext_noop("%(path)s is too long: it has %(actual)d bytes, and its header says %(expected)d."),
    "cut-off-end": gettext_noop("%(path)s is cut off: its end is missing."),
    "dangling-link": gettext_noop(
        "%(path)s is a link that leads nowhere (%(target)s): copy the file behind it as well, for example with cp -L."
    ),
    "cache": gettext_noop(
        "%(path)s is a folder of Hugging Face’s cache; the model itself is %(inside)s: give that path."
    ),
    "dangling-links": gettext_noop(
        "%(path)s holds links that lead nowhere (%(name)s → %(target)s): it was copied without the files behind "
        "them. Copy the whole models--… folder of the cache, or this one with cp -L or rsync -L."
    ),
    "gguf-file": gettext_noop("%(path)s is a GGUF file: choose an engine that reads GGUF files."),
    "one-file": gettext_noop(
        "%(path)s is one file of a model directory: choose an engine that reads those, and give %(directory)s."
    ),
    "git-lfs-pointer": gettext_noop(
        "%(path)s is a pointer of Git LFS (%(size)d bytes), not the file itself: run “git lfs pull” where it was "
        "cloned, or fetch the model with “hf download”."
    ),
    "web-page": gettext_noop(
        "%(path)s is a web page that was saved under this name: download the file itself (on Hugging Face by its "
        "download link or “hf download”; gated models require a token)."
    ),
    "server-answer": gettext_noop(
        "%(path)s holds what a server answered instead of the file (%(said)s): fetch it again."
    ),
    "ggml": gettext_noop("%(path)s is in the format before GGUF, which no engine reads any more: take a GGUF file."),
    "empty-cache": gettext_noop(
        "%(path)s is a folder of Hugging Face’s cache without a snapshot in it: nothing was downloaded, or it was "
        "copied in part."
    ),
    "unfinished-cache": gettext_noop(
        "%(path)s is a folder of Hugging Face’s cache whose download was not finished (files: %(count)d): finish "
        "it with “hf download”, then give the path %(snapshot)s."
    ),
    "gguf-directory": gettext_noop("%(path)s is a directory; this engine needs a file of it, for example %(file)s."),
    "checkpoint": gettext_noop(
        "%(path)s is a model directory: choose an engine that reads those, or make a GGUF file of it with "
        "llama.cpp’s convert_hf_to_gguf.py."
    ),
    "lora-adapter": gettext_noop(
        "%(path)s is a LoRA adapter for %(base)s, not a model of its own: register that model and add the adapter "
        "to its arguments (--enable-lora --lora-modules name=%(path)s), or merge the two."
    ),
    "diffusers": gettext_noop("%(path)s is a pipeline that makes images (diffusers); no engine here serves it."),
    "gguf-files": gettext_noop(
        "%(path)s holds GGUF files: choose an engine that reads those, and give the path of one, for example %(file)s."
    ),
    "onnx": gettext_noop("%(path)s holds a model in ONNX, which no engine here reads: take its safetensors or GGUF."),
    "folder-of-models": gettext_noop(
        "%(path)s is a folder of models, not one itself: give the path of one, for example %(inner)s."
    ),
    "archive": gettext_noop("%(path)s is an archive (%(kind)s): unpack it first."),
    "impossible-value": gettext_noop("%(path)s is damaged: %(value)s is not a possible value of “%(name)s”."),
    "missing-value": gettext_noop("%(path)s is damaged: it does not say “%(name)s”."),
    "pickle": gettext_noop(
        "The weights in %(path)s are pickles (%(file)s), which can run any program when they are read. Take a "
        'model in safetensors, or allow the risk "pickle" for this model.'
    ),
    "remote-code": gettext_noop(
        "The model in %(path)s brings program code of its own (%(file)s), which the engine would run. Read that "
        'code first; then allow the risk "remote-code" for this model.'
    ),
    # Of files that arguments name.
    "no-directory": gettext_noop("%(path)s is not a directory."),
    "no-template": gettext_noop("%(path)s is not a chat template: it has no place to fill in ({{ … }})."),
}


class UnreadableModel(Exception):
    """A model's files cannot be used. `str()` is a sentence for the operator, in English.

    `code`: one of SENTENCES. `sentence` and `values` are the same before they are put together, to be translated by who
    has translations. Names of files come from others: what would write on a terminal is taken out of them.
    `risk`: "pickle" or "remote-code" if an operator may allow it by that name, else "".
    """

    def __init__(self, code: str, *, risk: str = "", **values: object) -> None:
        self.code = code
        self.sentence = SENTENCES[code]
        self.values = {name: _printable(value) for name, value in values.items()}
        super().__init__(self.sentence % self.values)
        self.risk = risk


def _printable(value: object) -> object:
    return clean_text(text, len(text)) if isinstance(value, str | Path) and (text := str(value)) else value
