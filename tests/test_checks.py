"""What CONTRIBUTING.md says is so: the checks before a commit, and where things live."""

import re

import yaml

from tests.installation import ROOT


def test_the_hooks_of_pre_commit_are_the_parts_of_make_check():
    (parts,) = re.findall(r"^check: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"  # no network
    assert [hook["entry"] for hook in local["hooks"]] == [f"make --silent {part}" for part in parts.split()]


def test_the_files_that_contributing_names_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`([a-z_]+/[\w/.-]+\.\w+)`", text)) | set(re.findall(r"\]\(([^):]+)\)", text))
    assert len(named) > 20
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_contributing_shows_every_package():
    picture = re.search(r"```text\n(.+?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL).group(1)
    packages = {
        path.parent.name
        for top in ("apiproxy", "modelregistry", "portal")
        for path in ROOT.glob(f"{top}/*/__init__.py")
    }
    assert packages - {"frontend", "management", "migrations"} - set(re.findall(r"[a-z_]+", picture)) == set()


def test_the_readmes_lead_to_them():
    for readme in ("README.md", "README.ja.md"):
        text = (ROOT / readme).read_text()
        assert {"CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"} <= set(re.findall(r"\]\(([^)]+)\)", text))


def test_no_test_module_imports_another():
    """What tests share is in modules that hold no tests."""
    imports = re.compile(r"^(?:from|import) [\w.]*\btest_\w+|^from [\w.]+ import (?:\w+, )*test_\w+", re.MULTILINE)
    modules = {path.relative_to(ROOT): path.read_text() for path in (ROOT / "tests").rglob("*.py")}
    assert len(modules) > 100
    assert [path for path, text in modules.items() if imports.search(text)] == []
