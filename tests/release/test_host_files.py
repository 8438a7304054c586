"""What the installer writes is whole or absent after a power cut, and it reads settings as systemd does."""

import importlib
import os
from pathlib import Path

import pytest

from apiproxy.server import handover
from tests.installation import ROOT


@pytest.fixture(autouse=True)
def _installer(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "deploy")


@pytest.fixture
def layout(tmp_path):
    layout = importlib.import_module("versions.layout").Layout(tmp_path)
    layout.version("1.0.0").mkdir(parents=True)
    return layout


@pytest.fixture
def synced(monkeypatch, layout):
    """Return what was brought to the disk, with whether the version was complete and where `current` led by then."""
    seen = []

    def note(place: str) -> None:
        seen.append((place, layout.is_complete("1.0.0"), layout.linked("current")))

    monkeypatch.setattr(os, "sync", lambda: note("all"))
    monkeypatch.setattr(os, "fsync", lambda number: note(Path(os.readlink(f"/proc/self/fd/{number}")).name))
    return seen


def test_a_version_is_complete_once_all_of_it_is_on_the_disk(layout, synced):
    layout.complete("1.0.0", "sum")
    assert synced == [("all", False, ""), (".complete.new", False, ""), ("1.0.0", True, "")]


def test_a_switch_is_on_the_disk_when_it_is_done(layout, synced):
    layout.link("current", "1.0.0")
    assert synced[-1] == ("madoguchi", False, "1.0.0")
    layout.unlink("current")
    assert synced[-1] == ("madoguchi", False, "")


# Each as systemd 252 and 255 read it: systemd.exec(5), EnvironmentFile=.
@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("", ""),
        ("plain", "plain"),
        ("postgres://a:b=c@d/e?x=1#y", "postgres://a:b=c@d/e?x=1#y"),
        ('"two words"', "two words"),
        ("'two words'", "two words"),
        ('  "spaces around"  ', "spaces around"),
        (r'"a\"b"', 'a"b'),
        (r'"a\\b"', r"a\b"),
        (r'"a\$b\`c"', "a$b`c"),
        (r'"a\nb"', r"a\nb"),
        (r"'a\b'", r"a\b"),
        ("'it\"s'", 'it"s'),
        ('"it\'s"', "it's"),
        (r"a\\b", r"a\b"),
        (r"a\ b", "a b"),
        ("日本語", "日本語"),
    ],
)
def test_installer_and_hand_over_read_a_value_as_systemd_does(tmp_path, written, value):
    file = tmp_path / "environment"
    file.write_text(f"# a comment\nNAME={written}\nLAST=1\n")
    expected = {"NAME": value, "LAST": "1"}
    assert importlib.import_module("versions.programs").read_environment(file) == expected
    assert handover.read_environment(file) == expected


@pytest.mark.parametrize(
    "line",
    ["NAME", "A B=c", "NAME='open", 'NAME="open', "NAME=two words", 'NAME=a"b"', "NAME=on\\", r'NAME="a\"', "A-B=c"],
)
def test_the_installer_refuses_a_line_that_looks_otherwise_than_systemd_reads_it(tmp_path, line):
    file = tmp_path / "environment"
    file.write_text(f"FIRST=1\n{line}\nLAST=1\n")
    with pytest.raises(importlib.import_module("versions.layout").Refused, match="line 2"):
        importlib.import_module("versions.programs").read_environment(file)


def test_settings_that_are_not_utf_8_are_refused(tmp_path):
    file = tmp_path / "environment"
    file.write_bytes("# 日本語\n".encode("shift_jis"))
    with pytest.raises(importlib.import_module("versions.layout").Refused, match=str(file)):
        importlib.import_module("versions.programs").read_environment(file)
