"""The pages of how use spreads: for operators of the company, for tenant admins of their tenant."""

from dataclasses import dataclass
from datetime import date
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import BadRequest, PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods, require_safe

from portal.accounts import permissions
from portal.accounts.models import User
from portal.accounts.permissions import current_user
from portal.adoption import channels, summary, tips
from portal.adoption.models import COMPANY, AdoptionSummary
from portal.adoption.suppression import LEAST
from portal.usage import chart
from portal.usage.scopes import ALL, TENANT
from portal.use_cases import gallery
from portal.use_cases.models import UseCase
from portal.web import posted_forms, table_export
from portal.web.templatetags.formatting import slot_of

CURVES = 6  # cohorts in the chart of retention: it has so many colours
LEAST_SHARED = 50  # people at least that a share is shown of: numbers rounded to fives say too little of fewer
TABLES = ("weeks", "channels", "tenants", "active", "retention", "ways", "models", "use_cases")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptionScope:
    """Whose counts are looked at. `number`: as in AdoptionSummary."""

    name: str
    label: str
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCell:
    """A step of a group: the people who did it. None: hidden, or it cannot be counted yet (`is_open`)."""

    step: str
    people: int | None
    of: int | None
    is_open: bool = False

    @property
    def width(self) -> int | None:
        """Of its bar, in per cent."""
        return round(100 * self.people / self.of) if self.people is not None and self.of else None

    @property
    def percent(self) -> int | None:
        """About how many: both numbers are rounded. None where that would say little."""
        return self.width if self.of is not None and self.of >= LEAST_SHARED else None


def scope_choices(user: User) -> list[AdoptionScope]:
    """Return the scopes that this person may look at. One query."""
    every = [AdoptionScope(name=ALL, label=_("everything"), number=COMPANY)] if permissions.may_operate(user) else []
    tenants = permissions.without_internal(permissions.administered_tenants(user)).order_by("name")
    return [*every, *(AdoptionScope(name=TENANT + one.slug, label=one.name, number=one.pk) for one in tenants)]


def find_scope(user: User, name: str) -> tuple[AdoptionScope, list[AdoptionScope]]:
    """Return the scope of this name ("": the first) and all choices.

    Raises PermissionDenied for people without any, Http404 for a scope that is not theirs.
    """
    choices = scope_choices(user)
    if not choices:
        raise PermissionDenied
    for one in choices:
        if name in ("", one.name):
            return one, choices
    raise Http404


@login_required
@never_cache
@require_safe
def adoption_page(request: HttpRequest) -> HttpResponse:
    scope, choices = find_scope(current_user(request), request.GET.get("of", ""))
    found = summary.read_summary(scope.number)
    context: dict[str, Any] = {"scope": scope, "scopes": choices, "summary": found}
    if found is not None:
        context |= describe(found)
        context["use_cases"] = named_use_cases(found.counts, current_user(request))
    return render(request, "adoption/adoption.html", context)


def describe(found: AdoptionSummary) -> dict[str, Any]:
    """Return what the template shows of a summary. No query."""
    counts, cohorts = found.counts, summary.Cohorts(as_of=found.as_of)
    weeks = counts["weeks"]
    active = {date.fromisoformat(week): number for week, number in counts["active"].items() if week != "total"}
    cohort_rows = [
        (week, step_cells(weeks.get(week.isoformat(), {}), _arrived(weeks, week)))
        for week in cohorts.closed[::-1]
        if _arrived(weeks, week) is not None
    ]
    charts = build_charts(active, counts["retention"], weeks, cohorts)
    known = {week: number for week, number in active.items() if number is not None}
    return {
        "funnel": step_cells(weeks.get("total", {}), weeks.get("total", {}).get("arrived")),
        "cohorts": cohort_rows,
        "unlisted": len(cohorts.closed) - len(cohort_rows),
        "channels": [
            (channels.CHANNELS[name], _by_channel(steps))
            for name, steps in counts["channels"].items()
            if any(steps.values())
        ],
        "tenants": [
            (name, step_cells(steps, steps.get("arrived"))) for name, steps, *_slug in counts.get("tenants", [])
        ],
        "ways": _ranked(
            (channels.CHANNELS[name], number) for name, number in counts["ways"].items() if name != "total"
        ),
        "models": _ranked((name, number) for name, number in counts["models"].items() if name != "total"),
        "steps": summary.STEPS,
        "first_week": cohorts.complete[0],
        "last_week": cohorts.complete[-1],
        "active": known,
        "latest": active[max(active)] if active else None,
        "charts": charts,
        "kept": find_kept(
            charts.get("retention"), {slot_of(week, "week"): _arrived(weeks, week) for week in cohorts.closed}
        ),
        "least": LEAST,
        "least_shared": LEAST_SHARED,
    }


def named_use_cases(counts: dict[str, Any], reader: User) -> list[tuple[UseCase, int]]:
    """Return the use cases that the reader may see with the people who used them, the most first. Two queries."""
    shown = {
        int(pk): number for pk, number in counts.get("use_cases", {}).items() if pk != "total" and number is not None
    }
    cases = gallery.with_texts(gallery.visible(reader).filter(pk__in=shown)) if shown else []
    return sorted(((case, shown[case.pk]) for case in cases), key=lambda row: (-row[1], row[0].pk))


def find_kept(curves: chart.Chart | None, arrived: dict[str, int | None]) -> dict[str, Any] | None:
    """Return what the chart of retention says first: of the longest curve the last "people" and "week", "since", "of".

    `arrived`: by the names of weeks.
    """
    if curves is None:
        return None
    longest = max(curves.series, key=lambda one: sum(value is not None for value in one.values))
    number, people = max((n, value) for n, value in enumerate(longest.values, 1) if value is not None)
    return {"since": longest.label, "week": number, "people": round(people), "of": arrived[longest.label]}


def _arrived(weeks: dict[str, Any], week: date) -> int | None:
    number: int | None = weeks.get(week.isoformat(), {}).get("arrived")
    return number


def step_cells(steps: dict[str, int | None], of: int | None) -> list[StepCell]:
    return [
        StepCell(step=step, people=steps.get(step), of=of, is_open=bool(steps) and step not in steps)
        for step in summary.STEPS
    ]


def _by_channel(steps: dict[str, int | None]) -> list[StepCell]:
    return [StepCell(step=step, people=steps.get(step), of=steps.get("answered")) for step in summary.OF_CHANNELS]


def _ranked(rows: Any) -> list[tuple[str, int]]:
    shown = [(name, number) for name, number in rows if number is not None]
    return sorted(shown, key=lambda row: (-row[1], str(row[0])))


def build_charts(
    active: dict[date, int | None], retention: dict[str, Any], weeks: dict[str, Any], cohorts: summary.Cohorts
) -> dict[str, chart.Chart]:
    """Return the charts that have anything to show."""
    charts: dict[str, chart.Chart] = {}
    if any(number is not None for number in active.values()):
        charts["active"] = chart.line_chart(
            {str(_("Active people")): active}, sorted(active), "week", name="active-people", measure="people"
        )
    curves: dict[str, dict[int, int]] = {}
    for week in cohorts.closed[::-1]:
        found = retention.get(week.isoformat(), {}) if _arrived(weeks, week) else {}
        people = {int(n): number for n, number in found.items() if number is not None}
        if len(people) > 1 and len(curves) < CURVES:
            curves[slot_of(week, "week")] = people
    if curves:
        numbers = range(1, max(max(people) for people in curves.values()) + 1)
        charts["retention"] = chart.line_chart(curves, list(numbers), "nth week", name="retention", measure="people")
    return charts


@login_required
@require_safe
def export(request: HttpRequest) -> HttpResponseBase:
    """Return one of TABLES as a file. A hidden number is empty there, as is one that cannot be counted yet."""
    scope, _choices = find_scope(current_user(request), request.GET.get("of", ""))
    table = request.GET.get("table", "weeks")
    if table not in TABLES:
        raise BadRequest(f"table must be one of {', '.join(TABLES)}")
    found = summary.read_summary(scope.number)
    counts = found.counts if found is not None else {}
    if table in ("weeks", "channels"):
        steps = summary.STEPS if table == "weeks" else summary.OF_CHANNELS
        rows = [
            {table[:-1]: name, **{step: numbers.get(step) for step in steps}}
            for name, numbers in sorted(counts.get(table, {}).items())
        ]
    elif table == "tenants":
        rows = [
            {"tenant": name, "slug": "".join(slug), **{step: (numbers or {}).get(step) for step in summary.STEPS}}
            for name, numbers, *slug in counts.get(table, [])  # without the slug if stored by an older version
        ]
    elif table == "retention":
        names = [str(n) for n in range(1, summary.RETENTION + 1)]
        rows = [
            {"week": week, **{f"week {name}": numbers.get(name) for name in names}}
            for week, numbers in sorted(counts.get(table, {}).items())
        ]
    elif table == "use_cases":
        rows = [
            {"name": case.current.text.title if case.current else "", "people": number}
            for case, number in named_use_cases(counts, current_user(request))
        ]
    else:
        rows = [
            {"name": name, "people": number}
            for name, number in sorted(counts.get(table, {}).items())
            if name != "total"
        ]
    as_of = found.as_of.isoformat() if found else "empty"
    return table_export.export_response(
        request, f"adoption-{scope.name.replace(':', '-')}-{table}-{as_of}", rows, ["name"]
    )


@login_required
@posted_forms.posted_from("settings")
def change_tips(request: HttpRequest) -> HttpResponse:
    """Switch one's own tips off or on."""
    wanted = posted_forms.posted_choice(request, "tips", "on", "off") == "on"
    tips.set_tips(current_user(request), wanted=wanted)
    messages.success(request, _("You will get tips again.") if wanted else _("You will get no more tips."))
    return redirect("notices")


@csrf_exempt  # the token, which only its person was mailed, is the proof; a mail program has no other
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def tips_by_link(request: HttpRequest, token: str) -> HttpResponse:
    """Let the person who was mailed this link switch tips off, and on again, without signing in.

    A mail program posts neither value, and means off (RFC 8058).
    """
    person = tips.person_of_link(token)
    if person is None:
        raise Http404
    if request.method == "POST":
        tips.set_tips(person, wanted=request.POST.get("tips") == "on")
    return render(request, "adoption/tips.html", {"wanted": person.wants_tips, "token": token})
