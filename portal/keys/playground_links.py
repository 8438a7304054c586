"""Links that open the playground filled in, as its script reads them: portal/static/try/prefill.js."""

import base64
import json

from django.urls import reverse


def playground_link(*, prompt: str, model: str = "", system: str = "") -> str:
    """Return the address of the playground with this in its boxes; nothing is sent before a person presses the button.

    All of it is in the fragment, which no server receives. `model`: a name or an alias; empty: the page chooses.
    `prompt` and `system` have at most 20,000 characters each.
    """
    filled = {"model": model, "system": system, "prompt": prompt}
    text = json.dumps({name: value for name, value in filled.items() if value}, ensure_ascii=False)
    return f"{reverse('try')}#prefill={base64.urlsafe_b64encode(text.encode()).decode().rstrip('=')}"
