"""Helpers for views that take only posted forms, and for the values that their buttons send."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from django.core.exceptions import BadRequest
from django.forms import BaseForm
from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect, render
from django.urls import Resolver404, resolve, reverse
from django.views.decorators.http import require_POST

View = Callable[..., HttpResponse]


def only_posted(view: View) -> View:
    """Let only POST pass, like require_POST, but redirect GET to the page above, where the form is.

    A browser gets there by GET when the session had ended before the form was sent, and the person signed in again.
    """
    return _redirect_gets(view, page_above)


def posted_from(page: str) -> Callable[[View], View]:
    """Return the decorator for a view whose form is on another page, by the name of its address: see `only_posted`."""
    return lambda view: _redirect_gets(view, lambda _path: reverse(page))


def _redirect_gets(view: View, page_of: Callable[[str], str]) -> View:
    @wraps(view)
    def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if request.method in ("GET", "HEAD"):
            return redirect(page_of(request.path))
        return require_POST(view)(request, *args, **kwargs)

    wrapper.only_posts = True  # type: ignore[attr-defined]  # kept by decorators around this one
    return wrapper


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


def posted_data(request: HttpRequest) -> QueryDict | None:
    """Return what was posted, for a form; None while the page only shows the form. Also an empty body was posted."""
    return request.POST if request.method == "POST" else None


def render_form(
    request: HttpRequest,
    template: str,
    form: BaseForm,
    context: Mapping[str, Any] | None = None,
    *,
    refused: bool = False,
) -> HttpResponse:
    """Return the page of a form, with `form` in its context: 400 if what was posted is wrong, as the API answers.

    What is shown before it is posted, asked about, or previewed is 200. `refused`: for a reason that no field has.
    """
    wrong = refused or (request.method == "POST" and bool(form.errors))
    return render(request, template, {**(context or {}), "form": form}, status=400 if wrong else 200)


def posted_choice(request: HttpRequest, name: str, *allowed: str) -> str:
    """Return the posted value of this name. Raises BadRequest (400) unless it is one of `allowed`.

    A missing or unknown value must never count as "the other one": once a button that sent nothing granted what was to
    be refused.
    """
    value = request.POST.get(name, "")
    if value not in allowed:
        raise BadRequest(f"{name} must be one of {', '.join(map(repr, allowed))}")
    return value
