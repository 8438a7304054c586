"""Our constants of the GGUF format are those of llama.cpp's Python package `gguf`."""

from enum import IntEnum

import pytest
from gguf import constants as package

from modelregistry.files import gguf_constants as ours


@pytest.mark.parametrize("name", ["GGUFValueType", "GGMLQuantizationType", "LlamaFileType", "PoolingType"])
def test_an_enumeration_has_the_members_of_the_package(name):
    assert _members(getattr(ours, name)) == _members(getattr(package, name))


def test_tensor_types_have_the_block_sizes_of_the_package():
    assert ours.GGML_QUANT_SIZES == package.GGML_QUANT_SIZES


def test_keys_are_those_of_the_package():
    keys = {(group, name): key for group, names in _public(ours.HeaderKeys) for name, key in _public(names)}
    assert keys
    assert keys == {(group, name): getattr(getattr(package.Keys, group), name) for group, name in keys}


def _members(enumeration: type[IntEnum]) -> dict[str, int]:
    return {member.name: int(member) for member in enumeration}


def _public(holder: type) -> list[tuple[str, object]]:
    return [(name, value) for name, value in vars(holder).items() if not name.startswith("_")]
