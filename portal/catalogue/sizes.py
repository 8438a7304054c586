"""The size and the quantisation of a model, as people say them."""

import re

from django.utils.formats import number_format
from django.utils.translation import get_language, pgettext
from django.utils.translation import gettext as _

# Beginnings of what files call their type of numbers, and its bits. GGUF: Q4_K_M, IQ3_XXS; checkpoints: AWQ INT4, FP8.
BITS = (
    (re.compile(r"\b(?:M?X?NV)?FP4\b|MXFP4|NVFP4", re.IGNORECASE), "FP4"),
    (re.compile(r"\bFP8|F8_E4M3|F8_E5M2", re.IGNORECASE), "FP8"),
    (re.compile(r"\bBF16\b|BFLOAT16", re.IGNORECASE), "BF16"),
    (re.compile(r"\bF(?:P|LOAT)?16\b", re.IGNORECASE), "FP16"),
    (re.compile(r"\bF(?:P|LOAT)?32\b", re.IGNORECASE), "FP32"),
    (re.compile(r"\bW?INT?(\d)\b|\bW(\d)A\d+\b|\bI?T?Q(\d)_|(\d)[ -]?bit", re.IGNORECASE), "INT"),
)


def describe_size(parameters: int) -> str:
    """Return "70 billion parameters", 「700億パラメータ」; "" if the number is not known."""
    if not parameters:
        return ""
    if (get_language() or "").startswith("ja"):
        unit, sign = (10**8, "億") if parameters >= 10**8 else (10**4, "万")
    else:
        unit, sign = (
            (10**9, pgettext("size of a model", "billion"))
            if parameters >= 10**9
            else (
                10**6,
                pgettext("size of a model", "million"),
            )
        )
    amount = parameters / unit
    digits = 0 if amount >= 10 or amount == int(amount) else 1
    number = number_format(round(amount, digits), decimal_pos=digits, force_grouping=True)
    space = "" if (get_language() or "").startswith("ja") else " "
    return _("%(number)s parameters") % {"number": f"{number}{space}{sign}"}


def describe_quantisation(name: str) -> str:
    """Return the kind of numbers that a quantisation has, before its own name: "INT4 (Q4_K_M)"; "" for none.

    What its name says already is not repeated: "INT4 (AWQ)" of AWQ-INT4, and MXFP4 as it is.
    """
    for pattern, kind in BITS:
        if found := pattern.search(name):
            bits = next((group for group in found.groups() if group), "") if kind == "INT" else ""
            return _put_first(f"{kind}{bits}", name)
    return name


def _put_first(kind: str, name: str) -> str:
    """Return the kind and, in brackets, what else the name says."""
    word = re.compile(rf"(?:[\W_]+|(?<![^\W_])){kind}(?![^\W_])[\W_]*", re.IGNORECASE)
    if word.search(name):
        rest = word.sub(" ", name).strip()
        return f"{kind} ({rest})" if rest else kind
    return name if kind.casefold() in name.casefold() else f"{kind} ({name})"
