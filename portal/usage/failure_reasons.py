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
        _("It is full again the next day or month. You can request more under “What is left”."),
    ),
    "rate_limit_exceeded": (
        _("too many requests at once, or in a minute"),
        _("Let the program wait and try again: the answer gives the number of seconds."),
    ),
    "batch_held_back": (
        _("a batch key’s request while other requests were waiting"),
        _("Let the program wait and try again: it continues when fewer people are waiting for answers."),
    ),
    "model_busy": (
        _("too many requests waited for the model, or for too long"),
        _("Let the program wait and try again: the answer gives the number of seconds."),
    ),
    "model_not_found": (
        _("no such model, or not for this key"),
        _("Check the name on the page “Models”, and the models of the key on its page."),
    ),
    "model_unavailable": (_("the model was not running"), _("Operators can see why under Operations, and start it.")),
    "model_without_room": (
        _("there was no memory for the model"),
        _(
            "Models that are always kept loaded, or other work on its hosts, use it. Operators can see what does, and"
            " let such a model give its place to others."
        ),
    ),
    "model_loading": (
        _("the model took too long to be loaded"),
        _("A call waits four minutes for a model that sleeps, and it goes on being loaded: try again."),
    ),
    "too_many_loading": (
        _("several other models were being loaded for the same caller, or had just been"),
        _("Let the program use fewer models within a minute, or try again after one."),
    ),
    "network_not_allowed": (
        _("the key does not work from that network"),
        _("The key’s page lists the networks that it works from."),
    ),
    "context_length_exceeded": (
        _("the prompt was too long for the model"),
        _("Shorten the conversation, or choose a model with a longer context."),
    ),
    "request_too_large": (_("the request was too large"), _("Send less at once, smaller files for example.")),
    "unsupported_content_encoding": (
        _("the request was compressed in an unknown way"),
        _("The calling program needs to be corrected: gzip and deflate are supported."),
    ),
    "invalid_request": (_("the request was not valid HTTP"), _("The calling program needs to be corrected.")),
    "transfer_encoding": (_("the request was not valid HTTP"), _("The calling program needs to be corrected.")),
    "url_too_long": (_("the address was too long"), _("The calling program needs to be corrected.")),
    "headers_too_large": (
        _("the headers of the request were too large"),
        _("The calling program needs to be corrected."),
    ),
    "server_busy": (
        _("too many large requests from all clients at once"),
        _("Try again after a few seconds. If it happens often, contact the operators."),
    ),
    "request_timeout": (_("the request did not arrive completely"), _("Check the caller’s network.")),
    "invalid_json": (_("the request was not valid JSON"), _("The calling program needs to be corrected.")),
    "invalid_value": (
        _("a field of the request had a wrong value"),
        _("The answer names the field. The calling program needs to be corrected."),
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
        _("the address was called with the wrong method"),
        _("The calling program needs to be corrected."),
    ),
    "invalid_api_key": (_("the key no longer worked"), _("Create a new one under “API keys”.")),
    "metering_unavailable": (
        _("usage could not be recorded"),
        _("Calls that cannot be recorded are not answered. Contact the operators."),
    ),
    "request_not_found": (
        _("feedback on a request that is not the caller’s, or that does not exist"),
        _("Send the id of the answer’s header x-request-id, with the key of the same person or tenant."),
    ),
    "request_too_old": (
        _("feedback on a request of more than a week ago"),
        _("Send feedback within seven days of the answer."),
    ),
    "feedback_unavailable": (
        _("feedback could not be recorded"),
        _("Send it again after half a minute. If it happens often, contact the operators."),
    ),
    "internal_error": (_("the server failed"), _("Send the operators the request id from the answer.")),
    "shutting_down": (_("the server was being restarted"), _("Try again: it takes a few seconds.")),
    "engine_error": (
        _("the engine failed before it answered"),
        _("Try again. If it happens often, contact the operators."),
    ),
    "engine_busy": (_("the engine accepted no more requests"), _("Let the program wait and try again.")),
    "suspected_poison": (
        _("an engine has failed under the same request before"),
        _("Change the request, usually its grammar or schema. The operators can see which request it was."),
    ),
    "answer_too_large": (_("the answer was too large"), _("Ask for less at once: fewer answers or alternatives.")),
    "engine_timeout": (
        _("the engine did not answer in time"),
        _("Ask for less at once. If it happens often, contact the operators."),
    ),
    # --- ended early, by the names of the sums
    "failed": (_("the engine failed"), _("Try again. If it happens often, contact the operators.")),
    "refused": (
        _("the engine refused the request"),
        _("Usually a value that the model does not accept: the answer says which."),
    ),
    "aborted": (
        _("the client disconnected"),
        _("Nothing to do if people stopped answers; otherwise check the caller’s time-out."),
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
