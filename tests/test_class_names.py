"""A name of a class means one thing in the whole product."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("apiproxy", "portal", "modelregistry")
FRAMEWORK = {"Command"}  # what Django finds by its name
SAME_NOUN = {"Replica"}  # of the registry, and as the gateway's catalogue has it, which may not import the registry


def test_classes_of_different_things_have_different_names():
    """But for shapes of the API, which are named for the noun that they show: its description has their names."""
    found: dict[str, set[str]] = defaultdict(set)
    for path, node in classes():
        if not is_shape(path, node):
            found[node.name].add(path)
    several = {name: sorted(paths) for name, paths in found.items() if len(paths) > 1}
    assert {name: several[name] for name in several.keys() - FRAMEWORK - SAME_NOUN} == {}
    assert several.keys() >= FRAMEWORK | SAME_NOUN  # nothing is listed in vain


def classes() -> Iterator[tuple[str, ast.ClassDef]]:
    """Yield the classes of modules. Classes in others, such as Meta and choices, are named with theirs."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if "migrations" in path.parts:
                continue
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef):
                    yield str(path.relative_to(ROOT)), node


def is_shape(path: str, node: ast.ClassDef) -> bool:
    """Return whether it is a serializer of the API, `shapes.…` where it is used."""
    return path.endswith("/serializers.py") or any("serializers." in ast.unparse(base) for base in node.bases)
