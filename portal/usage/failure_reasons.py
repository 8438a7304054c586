"""Why a request got no complete answer, in the caller's words, and what to do about it.

There are two kinds of reasons: codes with which the gateway rejected a call (RejectionHour.code, defined in
apiproxy.dataplane.errors), and how a request that had reached an engine ended (UsageRecord.Status).
"""

from dataclasses import dataclass

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

# The columns of the sums that count requests without a complete answer.
FAILED_STATUSES = ("failed", "interrupted", "refused", "aborted")

REASONS: dict[str, tuple[Promise, Promise]] = {
    # --- rejected by the gateway
    "insufficient_quota": (
        _("the quota of a day or month was used up"),
        _("It is full again on the next day or month. More can be asked for under “What is left”."),
    ),
    "rate_limit_exceeded": (
        _("too many at once, or in a minute"),
        _("Let the program wait and try again: the answer says after how many seconds."),
    ),
    "batch_held_back": (
        _("a batch key’s request while others were waiting"),
        _("Let the program wait and try again: it goes on when fewer people wait for answers."),
    ),
    "model_not_found": (
        _("no such model, or not for this key"),
        _("Compare the name with the page “Models”, and what the key may use with the page of the key."),
    ),
    "model_unavailable": (_("the model was not running"), _("Operators see under Operations why, and can start it.")),
    "model_loading": (
        _("the model was just being loaded"),
        _("The first call wakes a sleeping model: try again after some seconds."),
    ),
    "network_not_allowed": (
        _("the key does not work from that network"),
        _("The networks that it works from are on the page of the key."),
    ),
    "context_length_exceeded": (
        _("the prompt was too long for the model"),
        _("Shorten the conversation, or choose a model with a longer context."),
    ),
    "request_too_large": (_("the request was too large"), _("Send less at once, smaller files for example.")),
    "unsupported_content_encoding": (
        _("the request was compressed in an unknown way"),
        _("The program that calls needs to be corrected: gzip and deflate can be read."),
    ),
    "invalid_request": (_("the request was no valid HTTP"), _("The program that calls needs to be corrected.")),
    "transfer_encoding": (_("the request was no valid HTTP"), _("The program that calls needs to be corrected.")),
    "url_too_long": (_("the address was too long"), _("The program that calls needs to be corrected.")),
    "headers_too_large": (
        _("the headers of the request were too large"),
        _("The program that calls needs to be corrected."),
    ),
    "server_busy": (
        _("too many large requests from everybody at once"),
        _("Try again after some seconds. If it happens often, tell the operators."),
    ),
    "request_timeout": (_("the request did not arrive as a whole"), _("Look at the network of the caller.")),
    "invalid_json": (_("the request was no valid JSON"), _("The program that calls needs to be corrected.")),
    "invalid_value": (
        _("a field of the request had a wrong value"),
        _("The answer names the field. The program that calls needs to be corrected."),
    ),
    "model_not_supported": (
        _("the model is not for that kind of request"),
        _("An embedding model cannot chat, for example. The page “Models” says what each is for."),
    ),
    "path_not_supported": (
        _("the model does not offer that kind of request"),
        _("The page “Models” says what each can do."),
    ),
    "unknown_url": (_("no such address"), _("Correct the address in the tool: it ends with /v1.")),
    "method_not_allowed": (
        _("the address was called in a wrong way"),
        _("The program that calls needs to be corrected."),
    ),
    "invalid_api_key": (_("the key did not work any more"), _("Make a new one under “API keys”.")),
    "metering_unavailable": (
        _("usage could not be recorded"),
        _("Nothing is answered that cannot be counted. Tell the operators."),
    ),
    "internal_error": (_("the server failed"), _("Tell the operators the request id that the answer names.")),
    "shutting_down": (_("the server was being restarted"), _("Try again: it takes some seconds.")),
    "engine_error": (
        _("the engine failed before it answered"),
        _("Try again. If it happens often, tell the operators."),
    ),
    "engine_busy": (_("the engine took no more requests"), _("Let the program wait and try again.")),
    "suspected_poison": (
        _("an engine stopped working under the same request before"),
        _("Change the request, mostly its grammar or schema. The operators see which request it was."),
    ),
    "answer_too_large": (_("the answer was too large"), _("Ask for less at once: fewer answers or alternatives.")),
    "engine_timeout": (
        _("the engine did not answer in time"),
        _("Ask for less at once. If it happens often, tell the operators."),
    ),
    # --- ended early, by the names of the sums
    "failed": (_("the engine failed"), _("Try again. If it happens often, tell the operators.")),
    "refused": (
        _("the engine refused the request"),
        _("Mostly a value that the model does not take: the answer says which."),
    ),
    "aborted": (
        _("the caller left"),
        _("Nothing to do if people stopped answers; else look at the caller’s time-out."),
    ),
    "interrupted": (_("the gateway was restarted"), _("Try again.")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureReason:
    """Why requests got no complete answer. `name`: the code or column. `advice` may be empty."""

    name: str
    title: str
    advice: str
    requests: int


def explain_failure(name: str, requests: int) -> FailureReason:
    """Return the reason in the reader's language; a code that is not known here is its own title."""
    title, advice = REASONS.get(name, (name, ""))
    return FailureReason(name=name, title=str(title), advice=str(advice), requests=requests)
