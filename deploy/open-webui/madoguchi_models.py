"""
title: Models of Madoguchi
description: Offers the models of Madoguchi and remembers under which id each answer is known there.
"""

# ruff: noqa: D205 - Open WebUI reads its first lines
# A Function of Open WebUI, of the kind Pipe. With madoguchi_feedback.py people can say what they think of an answer:
# that needs the answer's header x-request-id, which Open WebUI does not keep by itself.

from collections import OrderedDict

import httpx
from pydantic import BaseModel

MOST = 10_000  # answers that are remembered, in this process; the oldest are forgotten
SECONDS = 600


class Pipe:
    class Valves(BaseModel):
        base_url: str = "https://madoguchi.example.com/v1"
        api_key: str = ""

    def __init__(self):
        self.valves = self.Valves()

    async def pipes(self):
        """Return the models that the key may call."""
        if not self.valves.api_key:
            return []
        async with httpx.AsyncClient(timeout=30) as client:
            answer = await client.get(f"{self.valves.base_url}/models", headers=self._headers())
        answer.raise_for_status()
        return [{"id": model["id"], "name": model["id"]} for model in answer.json()["data"]]

    async def pipe(self, body, __request__, __user__, __chat_id__=None, __message_id__=None):
        """Return the answer of a model, as a stream if that is asked for."""
        place = (__chat_id__, __message_id__)
        body = {**body, "model": body["model"].partition(".")[2]}
        headers = self._headers(__user__)
        if body.get("stream"):
            return self._stream(body, headers, __request__, place)
        async with httpx.AsyncClient(timeout=SECONDS) as client:
            answer = await client.post(f"{self.valves.base_url}/chat/completions", json=body, headers=headers)
        remember(__request__, place, answer)
        return answer.json()

    async def _stream(self, body, headers, request, place):
        async with (
            httpx.AsyncClient(timeout=SECONDS) as client,
            client.stream("POST", f"{self.valves.base_url}/chat/completions", json=body, headers=headers) as answer,
        ):
            if answer.status_code != 200:
                await answer.aread()
                raise RuntimeError(answer.json()["error"]["message"])
            remember(request, place, answer)
            async for line in answer.aiter_lines():
                if line and line != "data: [DONE]":  # Open WebUI ends the stream itself
                    yield f"{line}\n\n"

    def _headers(self, user=None):
        headers = {"Authorization": f"Bearer {self.valves.api_key}"}
        if user and user.get("email"):
            headers["X-OpenWebUI-User-Email"] = user["email"]
        return headers


def remember(request, place, answer):
    state = request.app.state
    if not hasattr(state, "madoguchi_answers"):
        state.madoguchi_answers = OrderedDict()
    if "x-request-id" in answer.headers:
        state.madoguchi_answers[place] = answer.headers["x-request-id"]
    while len(state.madoguchi_answers) > MOST:
        state.madoguchi_answers.popitem(last=False)
