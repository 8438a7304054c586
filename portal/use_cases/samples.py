"""How programs call a use case: curl, Python, and the fields of Dify, with a placeholder for the key."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelregistry.models import ServedModel
from portal.accounts.models import User
from portal.keys import model_access
from portal.keys.code_samples import curl_sample, python_sample
from portal.keys.integrations import Fields, dify_fields
from portal.keys.model_access import AvailableModel, Liveness
from portal.use_cases.models import UseCaseText
from portal.use_cases.variables import fill_in

ANSWER = 1500  # tokens: two pages


@dataclass(frozen=True, slots=True, kw_only=True)
class UseCaseSamples:
    """`curl` and `python` with values filled in; `…_template` with the places for them, for the page's script."""

    curl: str
    python: str
    curl_template: str
    python_template: str
    dify: Fields


def find_offer(user: User, model: str) -> AvailableModel | None:
    """Return the chat model of this name or alias that the person may call, for "" the best to try. Three queries."""
    offered = model_access.available_models(model_access.offered_to(user).filter(task=ServedModel.Task.CHAT))
    if not model:
        return model_access.suggested_model(offered)
    return next((offer for offer in offered if model == offer.name or model in offer.aliases), None)


def make_use_case_samples(
    text: UseCaseText, model: str, offer: AvailableModel | None, values: Mapping[str, str], base_url: str
) -> UseCaseSamples:
    """Return the samples. `model`: as the case names it; "" for the name of `offer`."""
    named = model or (offer.name if offer else "MODEL")
    shown = AvailableModel(
        name=named,
        description="",
        task=ServedModel.Task.CHAT,
        context=offer.context if offer else None,
        state=offer.state if offer else Liveness.DOWN,
        tools=offer.tools if offer else False,
        vision=offer.vision if offer else False,
    )
    filled, open_ = make_body(text, values), make_body(text, {})
    prompts = [("SYSTEM", text.system), ("USER", text.prompt)]
    return UseCaseSamples(
        curl=curl_sample(shown, base_url, "", filled),
        python=python_sample(shown, base_url, "", filled),
        curl_template=curl_sample(shown, base_url, "", open_),
        python_template=python_sample(shown, base_url, "", open_),
        dify=[*dify_fields(shown, base_url, ""), *(row for row in prompts if row[1])],
    )


def make_body(text: UseCaseText, values: Mapping[str, str]) -> dict[str, Any]:
    """Return the body of the call, without the model."""
    messages = [{"role": "user", "content": fill_in(text.prompt, values)}]
    if text.system:
        messages.insert(0, {"role": "system", "content": fill_in(text.system, values)})
    return {"messages": messages, "max_tokens": ANSWER}
