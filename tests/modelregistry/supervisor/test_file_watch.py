from pathlib import Path

import pytest

from modelregistry.hostside.file_reading import digest_of


@pytest.fixture
def files(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "weights.safetensors").write_bytes(b"1234")
    return directory


def test_the_digest_of_files_is_the_same_until_one_changes(files):
    before = digest_of(files)
    assert digest_of(files) == before

    (files / "weights.safetensors").write_bytes(b"12345")

    assert digest_of(files) not in ("", before)


def test_a_file_that_comes_changes_the_digest(files):
    before = digest_of(files)

    (files / "tokenizer.json").touch()

    assert digest_of(files) != before


def test_files_that_cannot_be_read_have_a_digest_too(tmp_path):
    assert digest_of(tmp_path / "none") == digest_of(tmp_path / "none")
