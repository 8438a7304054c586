"""What vLLM's configuration classes fill in where config.json is silent: class_defaults.json. Pure but for reading it.

gemma-3-4b-it has no head counts in its config.json, llava no layers: they are in the classes. The table is written by
class_defaults_writer.py out of an engine's environment, so that neither engine nor network is needed to read a model.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("class_defaults.json")


@cache
def load_table() -> Mapping[str, Mapping[str, Any]]:
    """Return the table by model type. 85 kB, read once in 1 ms."""
    kinds: Mapping[str, Mapping[str, Any]] = json.loads(TABLE.read_text())["kinds"]
    return kinds


def defaults_of(kind: str) -> Mapping[str, Any]:
    """Return what the class of this model type fills in; empty: the type is not known here.

    `pattern`: the kinds of its layers, as far as they repeat themselves.
    """
    return load_table().get(kind, {})


def text_kind(kind: str) -> str:
    """Return the model type of the language part of a model that sees or hears as well; "": it has none apart."""
    return str(defaults_of(kind).get("text", ""))
