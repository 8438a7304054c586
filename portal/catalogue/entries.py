"""Models as the catalogue shows them: what each is good for, what it can do, and how it is now."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from django.db import models
from django.db.models import Exists, OuterRef, QuerySet
from django.db.models.fields.json import KT
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from modelregistry.capabilities import find_capabilities
from modelregistry.models import FileReport, Replica, ServedModel
from portal.catalogue.sizes import describe_quantisation, describe_size
from portal.catalogue.speeds import TodaySpeed, read_speeds
from portal.keys.model_access import AvailableModel, Liveness, describe_model, with_replicas
from portal.keys.models import ModelAccess
from portal.status.availability import read_shares
from portal.usage.loop_rates import LoopRate, read_recent_rates, read_usual_rates

LONG_CONTEXT = 32_768  # tokens: some 40 pages of Japanese


class Badge(models.TextChoices):
    """What people choose a model by."""

    VISION = "vision", _("images")
    TOOLS = "tools", _("tools")
    REASONING = "reasoning", _("reasoning")
    JAPANESE = "japanese", _("Japanese")
    LONG_CONTEXT = "long-context", _("long context")
    EMBEDDING = "embedding", _("embedding")
    RERANK = "rerank", _("reranking")
    SPEECH = "speech", _("speech")


BADGE_OF_TASK = {"embedding": Badge.EMBEDDING, "rerank": Badge.RERANK, "transcription": Badge.SPEECH}

PURPOSES: dict[str, Promise | str] = {
    "chat": _("For conversations, writing, summaries, questions and code."),
    "embedding": _("Turns text into numbers, for searching and comparing."),
    "rerank": _("Sorts found documents by how well they answer a question."),
    "transcription": _("Turns recorded speech into text."),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueEntry:
    """A model as the catalogue shows it. `good_for`: in one sentence. `size` and `quantisation` in words, or "".

    `speed` None: not called today. `wakes_in`: seconds that its last start took; None: not known. `loops`: None: its
    answers are not watched for word loops, or too few were. `available`: its share of the last 30 days, see
    `portal.status.availability`; None: it was not watched.
    """

    offer: AvailableModel
    good_for: str
    badges: tuple[Badge, ...]
    size: str
    quantisation: str
    parameters: int
    licence: str
    context: int | None  # of a request, or what the model itself reads
    speed: TodaySpeed | None
    wakes_in: int | None
    available: float | None
    loops: LoopRate | None
    tenants_only: bool  # not all tenants may use it

    @property
    def name(self) -> str:
        return self.offer.name

    @property
    def is_up(self) -> bool:
        return self.offer.state is Liveness.UP


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSummary:
    """What the catalogue needs of a model's files; 0, "" or (): they do not say, or were not read."""

    parameters: int = 0
    context: int = 0
    quantisation: str = ""
    licence: str = ""
    languages: tuple[str, ...] = ()


def read_entries(served: QuerySet[ServedModel], now: datetime, zone: ZoneInfo) -> list[CatalogueEntry]:
    """Return the entries of these models, by name. Nine queries, however many there are."""
    rules = ModelAccess.objects.filter(model=OuterRef("pk"))
    rows = list(with_replicas(served).annotate(is_restricted=Exists(rules)))
    files, speeds, loops = _read_files(served), read_speeds(now, zone), _read_loops(now)
    shares = read_shares([row.name for row in rows], zone, now)
    return [
        _entry_of(
            row, now, files.get(row.pk, FileSummary()), speeds.get(row.name), shares[row.name], loops.get(row.name)
        )
        for row in rows
    ]


def _read_files(served: QuerySet[ServedModel]) -> dict[int, FileSummary]:
    """Return what the files of these models say, by the model's number. One query.

    Databases differ in how they give a number and a list out of JSON: PostgreSQL both as texts, SQLite the list only.
    """
    columns = [KT(f"facts__{name}") for name in ("parameters", "context", "quantisation", "licence", "languages")]
    rows = FileReport.objects.filter(model__in=served).values_list("model_id", *columns)
    return {
        number: FileSummary(
            parameters=int(parameters or 0),
            context=int(context or 0),
            quantisation=quantisation or "",
            licence=licence or "",
            languages=tuple(json.loads(languages or "[]")),
        )
        for number, parameters, context, quantisation, licence, languages in rows
    }


def _read_loops(now: datetime) -> dict[str, LoopRate]:
    """Return the rates of the last four weeks, of models with enough answers. Two queries."""
    usual, recent = read_usual_rates(now), read_recent_rates(now)
    rates = {
        name: LoopRate(
            answers=sum(one[name].answers for one in (usual, recent) if name in one),
            looped=sum(one[name].looped for one in (usual, recent) if name in one),
        )
        for name in usual.keys() | recent.keys()
    }
    return {name: rate for name, rate in rates.items() if rate.known}


def _entry_of(
    row: Any,
    now: datetime,
    files: FileSummary,
    speed: TodaySpeed | None,
    available: float | None,
    loops: LoopRate | None,
) -> CatalogueEntry:
    offer = describe_model(row, now)
    context = offer.context or files.context or None
    return CatalogueEntry(
        offer=offer,
        good_for=offer.description or str(PURPOSES.get(offer.task, "")),
        badges=tuple(_badges_of(row, offer, context, files.languages)),
        size=describe_size(files.parameters),
        quantisation=describe_quantisation(files.quantisation),
        parameters=files.parameters,
        licence=row.licence or files.licence,
        context=context if offer.task != ServedModel.Task.TRANSCRIPTION else None,
        speed=speed,
        wakes_in=find_wake_time(row.replica_set.all()),
        available=available,
        loops=loops if offer.loops != ServedModel.Loops.OFF else None,
        tenants_only=row.is_restricted,
    )


def find_wake_time(replicas: Iterable[Replica]) -> int | None:
    """Return in how many seconds the fastest of a model's replicas was loaded at its last start, rounded for people."""
    known = [replica.load_seconds for replica in replicas if replica.load_seconds]
    if not known:
        return None
    seconds = min(known)
    step = 1 if seconds < 10 else 5 if seconds < 60 else 30
    return math.ceil(seconds / step) * step


def _badges_of(
    row: ServedModel, offer: AvailableModel, context: int | None, languages: tuple[str, ...]
) -> Iterable[Badge]:
    can = find_capabilities(row, languages)
    found = {Badge(one.value) for one in can}
    if context and context >= LONG_CONTEXT and offer.task == ServedModel.Task.CHAT:
        found.add(Badge.LONG_CONTEXT)
    if offer.task in BADGE_OF_TASK:
        found.add(BADGE_OF_TASK[offer.task])
    return [badge for badge in Badge if badge in found]
