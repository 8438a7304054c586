"""What a model can do beside its task: as its arguments, its files and its names show, or as an operator declared.

An engine is not asked, as it may not be running; and an external one does not say.
"""

import re
from collections.abc import Iterable

from modelregistry.engines.registry import engine_named
from modelregistry.models import ServedModel

Capability = ServedModel.Capability

# Models that were trained for Japanese, by the names of their families; and whatever says so of itself.
JAPANESE = re.compile(
    r"japanese|日本語|nihongo|\b(?:elyza|swallow|ezo|calm\d|plamo|rinna|sarashina|llm-jp|stockmark|tanuki|takane|ruri|"
    r"shisa|karakuri|fugaku|kotoba|reazon|cotomi|tsuzumi)",
    re.IGNORECASE,
)
# A publisher that names many languages has made a model for all of them, not for one.
FEW_LANGUAGES = 3


def find_capabilities(model: ServedModel, languages: Iterable[str] = ()) -> frozenset[Capability]:
    """Return what a model can do. `languages`: codes that its files name, where they were read."""
    engine = engine_named(model.engine).as_run_by(model.launcher)
    found = {Capability(one) for one in model.declared_capabilities if one in Capability.values}
    if engine.sees_images(model.args):
        found.add(Capability.VISION)
    if engine.calls_tools(model.args):
        found.add(Capability.TOOLS)
    if engine.reasons(model.args):
        found.add(Capability.REASONING)
    if is_for_japanese(model, list(languages)):
        found.add(Capability.JAPANESE)
    return frozenset(found)


def is_for_japanese(model: ServedModel, languages: list[str]) -> bool:
    """Return whether a model says that it is for Japanese: by its languages, or in a name or description of it."""
    if len(languages) <= FEW_LANGUAGES and any(code == "ja" or code.startswith("ja-") for code in languages):
        return True
    names = (model.name, model.path, model.upstream_model, model.description_ja, model.description_en)
    return any(JAPANESE.search(name) for name in names)
