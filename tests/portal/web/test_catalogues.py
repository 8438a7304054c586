"""Texts that are not compiled are found, and `up` says so before it starts."""

import os
from io import StringIO

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command

from apiproxy.bridge.management.commands import up
from portal.web.catalogues import find_uncompiled


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "ja" / "LC_MESSAGES" / "django.po"
    path.parent.mkdir(parents=True)
    path.write_text("")
    return path


def test_missing_and_older_catalogues_are_found(tmp_path, texts):
    assert find_uncompiled([tmp_path]) == [texts]
    texts.with_suffix(".mo").write_bytes(b"")
    assert find_uncompiled([tmp_path]) == []
    os.utime(texts.with_suffix(".mo"), (1, 1))
    assert find_uncompiled([tmp_path]) == [texts]
    assert find_uncompiled([tmp_path / "nowhere"]) == []


def test_up_warns_before_it_starts(tmp_path, texts, monkeypatch):
    monkeypatch.setattr(settings, "LOCALE_PATHS", [tmp_path])
    for step in ("prepare_state", "check_schema", "compare_secrets"):
        monkeypatch.setattr(up, step, lambda *_: None)

    def stop() -> None:
        raise CommandError("far enough")

    monkeypatch.setattr(up, "raise_file_limit", stop)
    said = StringIO()
    with pytest.raises(CommandError):
        call_command("up", stderr=said)
    assert str(texts) in said.getvalue()
