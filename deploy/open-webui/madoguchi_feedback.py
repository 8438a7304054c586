"""
title: Feedback to Madoguchi
description: Two buttons below an answer, which say to Madoguchi whether it helped.
"""

# ruff: noqa: D205 - Open WebUI reads its first lines
# A Function of Open WebUI, of the kind Action, for answers of the models that madoguchi_models.py offers.

import httpx
from pydantic import BaseModel


class Action:
    actions = [{"id": "up", "name": "This helped"}, {"id": "down", "name": "This did not help"}]

    class Valves(BaseModel):
        base_url: str = "https://madoguchi.example.com/v1"
        api_key: str = ""  # the one of madoguchi_models.py

    def __init__(self):
        self.valves = self.Valves()

    async def action(self, body, __id__, __request__, __event_emitter__):
        """Send what was pressed, and say in the corner of the page whether it was taken."""
        answers = getattr(__request__.app.state, "madoguchi_answers", {})
        request_id = answers.get((body["chat_id"], body["id"]))
        if request_id is None:
            await say(__event_emitter__, "warning", "This answer can no longer be judged.")
            return {"status": "unknown"}
        note = {"request_id": request_id, "score": 1 if __id__ == "up" else -1}
        headers = {"Authorization": f"Bearer {self.valves.api_key}"}
        async with httpx.AsyncClient(timeout=30) as client:
            answer = await client.post(f"{self.valves.base_url}/feedback", json=note, headers=headers)
        if answer.is_success:
            await say(__event_emitter__, "success", "Thank you.")
            return {"status": "recorded"}
        await say(__event_emitter__, "error", answer.json()["error"]["message"])
        return {"status": "refused"}


async def say(emit, kind, text):
    if emit:
        await emit({"type": "notification", "data": {"type": kind, "content": text}})
