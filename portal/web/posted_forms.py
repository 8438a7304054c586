"""Forms of our own pages: addresses that take nothing but a form, and the few words that their buttons send."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.core.exceptions import BadRequest
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import Resolver404, resolve
from django.views.decorators.http import require_POST

View = Callable[..., HttpResponse]


def only_posted(view: View) -> View:
    """As require_POST, but a browser that is sent to such an address (after signing in, when the session was gone as
    the form was sent) goes to the page above it, where the form is."""

    @wraps(view)
    def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if request.method in ("GET", "HEAD"):
            return redirect(page_above(request.path))
        return require_POST(view)(request, *args, **kwargs)

    guarded.only_posts = True  # type: ignore[attr-defined]  # kept by decorators around this one
    return guarded


def page_above(path: str) -> str:
    """Return the nearest address above this one that is a page."""
    while path.strip("/"):
        path = path.rstrip("/").rpartition("/")[0] + "/"
        try:
            found = resolve(path)
        except Resolver404:
            continue
        if not getattr(found.func, "only_posts", False):
            break
    return path


def posted_choice(request: HttpRequest, name: str, *allowed: str) -> str:
    """Return the posted value of this name. Raises BadRequest (400) unless it is one of `allowed`.

    A value that is missing or unknown must never count as "the other one": a button that sent nothing granted once
    what was to be refused.
    """
    value = request.POST.get(name, "")
    if value not in allowed:
        raise BadRequest(f"{name} must be one of {', '.join(map(repr, allowed))}")
    return value
