"""What people are shown of a cause (see `causes`): a sentence with its figures, and what to do about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.utils.functional import Promise
from django.utils.timesince import timesince
from django.utils.translation import gettext, ngettext, ngettext_lazy
from django.utils.translation import gettext_lazy as _

from portal.usage.causes import Cause, Figure
from portal.usage.failure_reasons import REASONS
from portal.web.templatetags.formatting import figure, round_seconds

NOTHING = _("There is nothing to do.")
TRY_AGAIN = _("Try again. If it happens often, contact the operators.")
COME_BACK = _("Let the program wait and try again: the answer gives the number of seconds.")
ASK_LESS = _("Ask for less at once. If it happens often, contact the operators.")
NEW_KEY = _("Create a new one under “API keys”.")
FEWER = _("Let the program send fewer requests at the same time.")

# Sentence and advice by the code of a cause.
TEXTS: dict[str, tuple[Promise, Promise]] = {
    # --- slow
    "waited_behind_own": (
        _("It waited %(seconds)s s for its turn, mostly behind requests of the same person or service."),
        FEWER,
    ),
    "waited_behind_others": (
        _("It waited %(seconds)s s for its turn, mostly behind requests of other people."),
        _("Those who were served least go first. If it happens often, contact the operators."),
    ),
    "waited_in_queue": (
        _("It waited %(seconds)s s for its turn, because the model was busy."),
        _("Those who were served least go first. If it happens often, contact the operators."),
    ),
    "batch_waited": (
        _("It waited %(seconds)s s, because requests of batch keys go after those of people."),
        _("Use an interactive key where a person waits for the answer."),
    ),
    "model_was_asleep": (
        _("The model was asleep, and was loaded for %(seconds)s s first."),
        _("Requests that follow soon are answered at once. Operators can keep a model awake."),
    ),
    "moved_to_other_replica": (
        _("An engine did not take it, so it was sent to another one after %(seconds)s s."),
        NOTHING,
    ),
    "long_prompt": (
        _("The model read a long prompt of %(prompt)s tokens for %(seconds)s s."),
        _("Shorten the prompt. One that begins like an earlier one is read faster."),
    ),
    "slow_start": (
        _("The model took %(seconds)s s to begin its answer."),
        _("If it happens often, contact the operators."),
    ),
    "slow_engine": (
        _("The answer came slowly, at %(speed)s instead of the usual %(usual_speed)s tokens/s."),
        _("If it happens often, contact the operators."),
    ),
    "long_answer": (
        _("The answer was long: %(tokens)s tokens in %(seconds)s s."),
        _("Ask for a shorter answer, or set max_tokens."),
    ),
    # --- ended early
    "cut_at_limit": (
        ngettext_lazy(
            "The answer was cut off after %(tokens)s token, the most that it could have.",
            "The answer was cut off after %(tokens)s tokens, the most that it could have.",
            "number",
        ),
        _("Raise max_tokens in the calling program, or shorten the prompt if the context is full."),
    ),
    "content_filtered": (_("A content filter of the engine ended the answer."), _("Change the request.")),
    "loop_stopped": (
        _("The answer fell into a word loop and was ended: %(looped)s of its %(tokens)s tokens repeat others."),
        _("A higher temperature, a shorter question or another model helps."),
    ),
    "loop_repeated": (
        _("The answer fell into a word loop: %(looped)s of its %(tokens)s tokens repeat others."),
        _("A higher temperature, a shorter question or another model helps."),
    ),
    "client_left": (
        _("The client disconnected after %(seconds)s s."),
        _("Nothing to do if a person stopped the answer; otherwise check the caller’s time-out."),
    ),
    "timed_out": (_("The model did not answer in time."), ASK_LESS),
    "engine_died": (_("The engine stopped or died while it worked on the request."), TRY_AGAIN),
    "engine_failed": (_("The engine failed while it worked on the request."), TRY_AGAIN),
    "engine_busy": (_("The engine accepted no more requests."), COME_BACK),
    "engine_refused": (
        _("The engine refused the request."),
        _("Usually a value that the model does not accept: the answer says which."),
    ),
    "context_too_long": (
        _("The request was longer than the model’s context length."),
        _("Shorten the conversation, or choose a model with a longer context."),
    ),
    "answer_too_large": (_("The answer was too large for the gateway."), ASK_LESS),
    "gateway_stopped": (_("The gateway was being stopped."), _("Try again: it takes a few seconds.")),
    "gateway_restarted": (_("The gateway was restarted while the request was running."), _("Try again.")),
    "gateway_failed": (
        _("The gateway failed while it worked on the request."),
        _("Send the operators the id of this request."),
    ),
    # --- refused
    "quota_used_up": (
        _("The quota %(whose)s was used up (%(window)s)."),
        _("It is full again the next day or month. You can request more under “What is left”."),
    ),
    "quota_is_zero": (
        _("Nothing may be used here: the quota %(whose)s is 0."),
        _("Ask an admin of the tenant, or an operator."),
    ),
    "rate_limited": (_("The limit %(whose)s was reached (%(window)s)."), COME_BACK),
    "too_many_at_once": (_("As many requests %(whose)s were running at the same time as are allowed."), FEWER),
    "model_busy": (
        _("Too many requests were waiting for the model, or it had waited for too long."),
        COME_BACK,
    ),
    "batch_held_back": (
        _("Requests of people went first, and too many of batch keys were waiting."),
        _("Let the program wait and try again: it continues when fewer people are waiting for answers."),
    ),
    "model_not_allowed": (
        _("There is no model of the requested name, or the key may not use it."),
        _("Check the name on the page “Models”, and the models of the key on its page."),
    ),
    "model_retired": (_("The model is no longer offered."), _("Choose another one on the page “Models”.")),
    "model_not_running": (
        _("The model was not running."),
        _("Operators can see why under Operations, and start it."),
    ),
    "too_many_loading": (
        _("Several other models were being loaded for the same caller, or had just been."),
        _("Let the program use fewer models within a minute, or try again after one."),
    ),
    "model_not_loaded": (
        _("The model was asleep, and took too long to be loaded."),
        _("A call waits four minutes for a model that sleeps, and it goes on being loaded: try again."),
    ),
    "network_not_allowed": (
        _("The key may not be used from the network of the caller."),
        _("The key’s page lists the networks that it works from."),
    ),
    "key_revoked": (_("The key had been revoked."), NEW_KEY),
    "key_expired": (_("The key had expired."), NEW_KEY),
    "key_stopped": (
        _("The key did not work, because its tenant is switched off or its owner no longer belongs to it."),
        _("Ask an operator for details."),
    ),
    "refused": (_("The gateway refused it: %(why)s."), COME_BACK),
    # --- neither
    "nothing_unusual": (_("Nothing was unusual: it waited for nothing, and was answered as fast as others."), NOTHING),
    "timeline_unknown": (_("An older gateway recorded this request, without its timeline."), NOTHING),
}

WHOSE = {
    "tenant": _("of the tenant"),
    "user": _("of the person"),
    "member": _("of the person in the tenant"),
    "key": _("of the key"),
    "": _("of the key"),
}
WINDOWS = {"minute": _("in one minute"), "day": _("in one day"), "month": _("in one month")}


@dataclass(frozen=True, slots=True, kw_only=True)
class CauseText:
    """A cause in the reader's language. `detail` and `advice` may be empty."""

    code: str
    effect: str
    sentence: str
    detail: str
    advice: str


def describe_cause(cause: Cause) -> CauseText:
    sentence, advice = TEXTS[cause.code]
    if cause.code == "refused":
        why, advice = REASONS.get(str(cause.figures["code"]), (cause.figures["code"], advice))
        shown = {"why": str(why)}
    else:
        shown = format_figures(cause.figures)
    return CauseText(
        code=cause.code,
        effect=cause.effect,
        sentence=str(sentence % shown),
        detail=" ".join(describe_surroundings(cause)),
        advice="" if advice is NOTHING else str(advice),
    )


def format_figures(figures: Mapping[str, Figure]) -> dict[str, Any]:
    """Return the figures as sentences have them; `number`: the tokens, by which there is one or several."""
    shown: dict[str, Any] = {name: figure(value) for name, value in figures.items() if isinstance(value, int)}
    shown |= {name: figure(round(value)) for name, value in figures.items() if isinstance(value, float)}
    shown["seconds"] = round_seconds(float(figures.get("ms", 0)) / 1000)
    shown["number"] = figures.get("tokens", 0)
    scope, window = str(figures.get("scope", "")), str(figures.get("window", ""))
    return shown | {"whose": str(WHOSE.get(scope, scope)), "window": str(WINDOWS.get(window, window))}


def describe_surroundings(cause: Cause) -> list[str]:
    """Return sentences about what was around the call, and what is usual."""
    found, figures = [], cause.figures
    if cause.code in ("waited_behind_own", "waited_behind_others"):
        found.append(
            gettext("Running meanwhile: %(own)s of the same caller, %(others)s of others.") % format_figures(figures)
        )
    usual = figures.get("usual_ms")
    if usual:
        found.append(gettext("Usually it takes %(seconds)s s.") % {"seconds": round_seconds(float(usual) / 1000)})
    beside = figures.get("beside")
    if beside and cause.code in ("slow_start", "slow_engine", "long_prompt"):
        text = ngettext(
            "%(number)s other request ran on the same engine.",
            "%(number)s other requests ran on the same engine.",
            int(beside),
        )
        found.append(text % {"number": figure(int(beside))})
    retry_after = figures.get("retry_after")
    if retry_after:
        text = gettext("The caller was asked to come back after %(pause)s.")
        found.append(text % {"pause": format_pause(int(retry_after))})
    return found


def format_pause(seconds: int) -> str:
    """Return seconds, from two minutes on minutes, hours or days."""
    if seconds < 120:
        return gettext("%(seconds)s s") % {"seconds": figure(seconds)}
    begin = datetime(2000, 1, 1, tzinfo=UTC)  # any will do
    return timesince(begin, begin + timedelta(seconds=seconds))
