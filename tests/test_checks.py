"""What is checked before a commit is what `make check` checks."""

import re

import yaml

from tests.installation import ROOT


def test_the_hooks_of_pre_commit_are_the_parts_of_make_check():
    (parts,) = re.findall(r"^check: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"  # no network
    assert [hook["entry"] for hook in local["hooks"]] == [f"make --silent {part}" for part in parts.split()]
