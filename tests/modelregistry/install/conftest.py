from pathlib import Path

import pytest


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """Return a directory that pip takes wheels from, in place of the package index."""
    directory = tmp_path / "index"
    directory.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    return directory
