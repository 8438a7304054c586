"""A strict reader of the format in which metrics are exposed."""

import re

NAME = r"[a-zA-Z_][a-zA-Z0-9_]*"
SAMPLE = re.compile(rf'({NAME})(?:\{{((?:{NAME}="[^"\\\n]*",?)+)\}})? (-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)')
LABEL = re.compile(rf'({NAME})="([^"]*)"')


def samples(text: str) -> dict[str, float]:
    """Return what a strict reader of the exposition format finds: every sample by its name and labels."""
    assert text.endswith("\n")
    kinds: dict[str, str] = {}
    found: dict[str, float] = {}
    family = ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            family = line.split(" ", 3)[2]
            assert family not in kinds, f"{family} is told twice"
            assert line.split(" ", 3)[3]
        elif line.startswith("# TYPE "):
            _, _, name, kinds[name] = line.split(" ")
            assert name == family
        else:
            sample = SAMPLE.fullmatch(line)
            assert sample, line
            name, labels, value = sample.groups()
            suffixes = ("_bucket", "_sum", "_count") if kinds[family] == "histogram" else ("",)
            assert name in {family + suffix for suffix in suffixes}
            assert kinds[family] != "counter" or name.endswith("_total")
            assert f"{name}{sorted(LABEL.findall(labels or ''))}" not in found
            found[f"{name}{sorted(LABEL.findall(labels or ''))}"] = float(value)
    check_histograms(found, [name for name, kind in kinds.items() if kind == "histogram"])
    return {plain(name): value for name, value in found.items()}


def plain(name: str) -> str:
    return re.sub(r"\('(\w+)', '([^']*)'\)", r"\1=\2", name)


def check_histograms(found: dict[str, float], names: list[str]) -> None:
    """Check that buckets never fall, and that the last one is the count."""
    for name in names:
        for whole in [key for key in found if key.startswith(f"{name}_count")]:
            of = whole.removeprefix(f"{name}_count[").removesuffix("]")
            buckets = [(key, value) for key, value in found.items() if key.startswith(f"{name}_bucket") and of in key]
            values = [value for _, value in buckets]
            assert values == sorted(values)
            assert "+Inf" in buckets[-1][0]
            assert values[-1] == found[whole]
