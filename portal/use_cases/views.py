"""The gallery of use cases, the page of one, and the forms to propose, edit and decide."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import get_language
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_safe

from portal.accounts.models import User
from portal.accounts.permissions import current_user
from portal.accounts.timezones import zone_of
from portal.keys.key_example import base_url
from portal.use_cases import cautions, gallery, publishing, reactions, versions
from portal.use_cases.content import UseCaseRefused, content_of
from portal.use_cases.forms import CommentForm, DecisionForm, GalleryForm, HelpedForm, UseCaseForms
from portal.use_cases.gallery import Publisher
from portal.use_cases.models import UseCase, UseCaseComment, UseCaseVersion
from portal.use_cases.samples import find_offer, make_use_case_samples
from portal.use_cases.signals import use_case_tried
from portal.use_cases.variables import example_values, fill_in, read_values
from portal.web import posted_forms
from portal.web.cautions import Caution
from portal.web.request_checks import is_prefetched

PAGE = 24  # cases of a list
MOST_OWN = 50  # of one's own and of those that wait, which are listed whole
COMMENTS = 100


@login_required
@require_safe
def use_case_list(request: HttpRequest) -> HttpResponse:
    """List the published cases that the person may see, and what waits for them."""
    user = current_user(request)
    form = GalleryForm(request.GET or None)
    query = form.query() if form.is_bound else gallery.GalleryQuery()
    page = Paginator(gallery.search(gallery.visible(user), query), PAGE).get_page(request.GET.get("page"))
    cases = list(gallery.with_texts(page.object_list))  # type: ignore[arg-type]
    publisher = Publisher(user)
    decides = publisher.is_any
    context = {
        "form": form,
        "query": query,
        "page": page,
        "cases": cases,
        "flags": gallery.find_flags(cases) if decides else {},
        "own": gallery.own_versions(user)[:MOST_OWN],
        "overtaken": gallery.overtaken_versions(user)[:MOST_OWN],
        "decides": decides,
        "waiting": gallery.waiting_versions(user)[:MOST_OWN] if decides else [],
        "hidden": gallery.hidden_cases(user)[:MOST_OWN] if decides else [],
        "zone": zone_of(user),
    }
    return render(request, "use_cases/list.html", context)


def find_case(user: User, pk: int) -> UseCase:
    """Return a case whose page the person may open. Raises Http404."""
    cases = gallery.readable(user).select_related("tenant", "author", "current__author")
    cases = cases.prefetch_related("current__texts")
    return get_object_or_404(cases, pk=pk)


@login_required
@never_cache
@require_safe
def use_case_page(request: HttpRequest, pk: int) -> HttpResponse:
    """Show a case.

    `?version=newest`: the newest version, to its author and to those who decide. `?version=proposed`: the one that
    waits for a decision, over which the person may have begun a draft. `?version=mine`: one's own draft, or replaced
    proposal, that is older than the newest version.

    A person who opens the page of a published case counts once a day, whichever version it shows.
    """
    case = find_case(current_user(request), pk)
    response = render_case(request, case)
    if request.method == "GET" and case.current_id and not is_prefetched(request):
        reactions.count_opened(current_user(request), case)
    return response


@login_required
@posted_forms.only_posted
def try_use_case(request: HttpRequest, pk: int) -> HttpResponse:
    """Count that the case is tried: the playground's script asks for it when the first message is sent.

    Without scripts, the prompt is shown filled in, to be copied. The values are neither stored nor logged.
    """
    case = find_case(current_user(request), pk)
    if case.current_id:
        reactions.count_tried(current_user(request), case)
        if case.author_id != current_user(request).pk:
            use_case_tried.send(sender=None, user=current_user(request))
    if request.headers.get("x-requested-with") == "fetch":
        return HttpResponse(status=204)
    return render_case(request, case, posted=request.POST)


def render_case(
    request: HttpRequest,
    case: UseCase,
    *,
    posted: Mapping[str, str] | None = None,
    helped_form: HelpedForm | None = None,
    comment_form: CommentForm | None = None,
    decision_form: DecisionForm | None = None,
    asked: Sequence[Caution] = (),
) -> HttpResponse:
    user = current_user(request)
    publisher = Publisher(user)
    newest = gallery.newest_version(user, case)
    may_edit, may_publish = publisher.may_edit(case), publisher.may_publish(case)
    wanted = request.GET.get("version", "")
    if newest is None or (case.current is None and not may_edit):
        raise Http404
    proposal = gallery.find_proposal(case) if may_edit else None
    overtaken = gallery.find_overtaken(newest)
    shown = choose_version(case, wanted if may_edit else "", newest, proposal)
    if wanted == "mine" and overtaken is not None:
        shown = case.versions.select_related("author").prefetch_related("texts").get(number=overtaken)
    # What waits for them is decided before a draft that they began over it, but on that draft's own page.
    decided = proposal if may_publish and proposal and shown.pk != newest.pk else newest
    text = shown.text_in(request.GET.get("language") or get_language() or "")
    values = read_values(text.fields, posted) if posted is not None else example_values(text.fields)
    offer = find_offer(user, shown.model)
    if decision_form is not None and decision_form.errors:
        decision_form.show_decided(decided.number)
    mark = case.marks.filter(user=user).first()
    context = {
        "case": case,
        "version": shown,
        "wanted": "mine" if shown.number == overtaken else "proposed" if shown == proposal else "newest",
        "newest": newest,
        "proposal": proposal if proposal != newest else None,
        "decided": decided,
        "overtaken": overtaken,
        "may_discard": publishing.may_discard(user, shown),
        "text": text,
        "fields": [(one, values[one.name]) for one in text.fields],
        "filled": {"system": fill_in(text.system, values), "prompt": fill_in(text.prompt, values)} if posted else None,
        "samples": make_use_case_samples(text, shown.model, offer, values, base_url(request)),
        "offer": offer,
        "may_edit": may_edit,
        "may_publish": may_publish,
        "may_publish_to_all": publisher.is_operator,
        "may_show_again": publishing.may_show_again(publisher, case),
        "flag": gallery.find_flag(case, shown) if may_publish else "",
        "check": gallery.last_check(case) if may_publish else None,
        "mark": mark,
        "is_author": case.author_id == user.pk,
        "helped_form": helped_form or HelpedForm(initial={"minutes": mark.minutes if mark else None}),
        "comments": comment_rows(case, user, may_publish),
        "comment_form": comment_form or CommentForm(),
        "decision_form": decision_form or DecisionForm(initial={"seen": decided.number}),
        "cautions": asked,
        "zone": zone_of(user),
    }
    wrong = any(form is not None and form.errors for form in (helped_form, comment_form, decision_form))
    return render(request, "use_cases/detail.html", context, status=400 if wrong else 200)


def choose_version(
    case: UseCase, wanted: str, newest: UseCaseVersion, proposal: UseCaseVersion | None
) -> UseCaseVersion:
    """Return the version to show; `wanted`: "newest", "proposed", or else what is published, if there is that."""
    if wanted == "proposed" and proposal is not None:
        return proposal
    if wanted in ("newest", "proposed") or case.current is None:
        return newest
    return case.current


def comment_rows(case: UseCase, user: User, may_publish: bool) -> list[dict[str, Any]]:
    rows = list(case.comments.select_related("author").order_by("-pk")[:COMMENTS])
    return [{"comment": one, "may_delete": may_publish or one.author_id == user.pk} for one in reversed(rows)]


# --- propose, edit, decide


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def new_use_case(request: HttpRequest) -> HttpResponse:
    user = current_user(request)
    if request.method != "POST":
        context = {"forms": UseCaseForms(user, is_new=True), "case": None, "may_publish": Publisher(user).is_any}
        return render(request, "use_cases/edit.html", context)
    forms = UseCaseForms(user, is_new=True, data=request.POST)
    step = posted_forms.posted_choice(request, "step", "draft", "propose", "publish")
    try:
        content = forms.content()
        if content is not None:
            slug = forms.general.cleaned_data["tenant"]
            tenant = gallery.tenants_to_propose_for(user).filter(slug=slug).first() if slug else None
            with transaction.atomic():
                case = publishing.create_case(user, tenant, content).use_case
                finish_edit(request, user, case, step)
            return redirect("use-case", case.pk)
    except UseCaseRefused as refusal:
        forms.refuse(refusal)
    context = {"forms": forms, "case": None, "may_publish": Publisher(user).is_any}
    return render(request, "use_cases/edit.html", context, status=400)


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def edit_use_case(request: HttpRequest, pk: int) -> HttpResponse:
    user = current_user(request)
    case = find_case(user, pk)
    publisher = Publisher(user)
    if not publisher.may_edit(case):
        raise Http404
    newest = gallery.newest_version(user, case)
    content = content_of(newest) if newest else None
    context = {"case": case, "newest": newest, "may_publish": publisher.may_publish(case)}
    if request.method != "POST":
        forms = UseCaseForms(user, content, is_new=False, seen=newest.number if newest else 0)
        return render(request, "use_cases/edit.html", {**context, "forms": forms})
    forms = UseCaseForms(user, content, is_new=False, data=request.POST)
    step = posted_forms.posted_choice(request, "step", "draft", "propose", "publish")
    try:
        changed = forms.content()
        if changed is not None:
            with transaction.atomic():
                seen = forms.general.cleaned_data["seen"]
                publishing.save_version(user, case, changed, seen=seen)
                finish_edit(request, user, case, step)
            return redirect("use-case", case.pk)
    except publishing.UseCaseChanged as refusal:
        forms.refuse(refusal)
        newest = gallery.newest_version(user, case)
        if newest is not None:
            forms.show_newest(newest.number)
        context |= {"newest": newest, "is_outdated": True}
    except UseCaseRefused as refusal:
        forms.refuse(refusal)
    return render(request, "use_cases/edit.html", {**context, "forms": forms}, status=400)


def finish_edit(request: HttpRequest, user: User, case: UseCase, step: str) -> None:
    """Propose or publish the new version as the button says. Raises UseCaseRefused."""
    if step == "draft":
        return
    (publishing.publish if step == "publish" else publishing.propose)(user, case)
    messages.success(request, done_sentence(step))


@login_required
@posted_forms.only_posted
def decide_use_case(request: HttpRequest, pk: int) -> HttpResponse:
    """Publish, return, hide or propose a case, or discard a draft of it, as the button says."""
    user = current_user(request)
    case = find_case(user, pk)
    verdict = posted_forms.posted_choice(
        request, "verdict", "publish", "publish-to-all", "return", "hide", "show", "propose", "discard"
    )
    form = DecisionForm(request.POST, verdict=verdict)
    if not form.is_valid():
        return render_case(request, case, decision_form=form)
    asked = cautions.find_cautions(case) if verdict == "publish-to-all" and Publisher(user).is_operator else []
    if asked and request.POST.get("confirmed") != form.confirmation():
        return render_case(request, case, decision_form=form, asked=asked)
    try:
        carry_out(user, case, verdict, form.cleaned_data)
    except publishing.UseCaseForbidden as refusal:
        raise Http404 from refusal
    except UseCaseRefused as refusal:
        form.refuse(refusal)
        return render_case(request, find_case(user, pk), decision_form=form)
    messages.success(request, done_sentence(verdict))
    if not gallery.readable(user).filter(pk=case.pk).exists():
        return redirect("use-cases")
    return redirect("use-case", case.pk)


def carry_out(user: User, case: UseCase, verdict: str, values: Mapping[str, Any]) -> None:
    """Do what the button says, with what DecisionForm took. Raises UseCaseRefused."""
    seen = values.get("seen") or 0  # of no version: what was not seen is not decided
    verbs: dict[str, Callable[[], object]] = {
        "return": partial(publishing.send_back, user, case, values.get("note", ""), seen=seen),
        "hide": partial(publishing.hide, user, case),
        "show": partial(publishing.show_again, user, case),
        "propose": partial(publishing.propose, user, case),
        "discard": partial(publishing.discard_draft, user, case, seen),
        "publish": partial(publishing.publish, user, case, seen=seen),
        "publish-to-all": partial(publishing.publish, user, case, company_wide=True, seen=seen),
    }
    verbs[verdict]()


def done_sentence(verdict: str) -> str:
    return {
        "publish": _("The use case is published."),
        "publish-to-all": _("The use case is published for the whole company."),
        "return": _("The use case is returned to its author."),
        "hide": _("The use case is hidden."),
        "show": _("The use case is shown again."),
        "propose": _("The use case is proposed. You are notified of the outcome."),
        "discard": _("The draft is discarded."),
    }[verdict]


@login_required
@require_safe
def use_case_history(request: HttpRequest, pk: int) -> HttpResponse:
    """Show the versions of a case with what each changed: the published ones to everyone who sees the case."""
    user = current_user(request)
    case = find_case(user, pk)
    rows = versions.read_history(user, case, all_states=Publisher(user).may_edit(case))
    return render(request, "use_cases/history.html", {"case": case, "rows": rows, "zone": zone_of(user)})


# --- reactions


@login_required
@posted_forms.only_posted
def helped(request: HttpRequest, pk: int) -> HttpResponse:
    user = current_user(request)
    case = get_object_or_404(gallery.visible(user), pk=pk)
    if posted_forms.posted_choice(request, "helped", "yes", "no") == "no":
        reactions.unmark_helped(user, case)
        return redirect("use-case", case.pk)
    form = HelpedForm(request.POST)
    if not form.is_valid():
        return render_case(request, find_case(user, pk), helped_form=form)
    try:
        reactions.mark_helped(user, case, form.cleaned_data["minutes"])
    except UseCaseRefused as refusal:
        messages.error(request, refusal.sentence)
    else:
        messages.success(request, _("Thank you. That helps others to choose."))
    return redirect("use-case", case.pk)


@login_required
@posted_forms.only_posted
def comment(request: HttpRequest, pk: int) -> HttpResponse:
    user = current_user(request)
    case = get_object_or_404(gallery.visible(user), pk=pk)
    form = CommentForm(request.POST)
    if form.is_valid():
        try:
            reactions.add_comment(user, case, form.cleaned_data["text"])
        except UseCaseRefused as refusal:
            form.add_error("text", refusal.sentence)
        else:
            return redirect("use-case", case.pk)
    return render_case(request, find_case(user, pk), comment_form=form)


@login_required
@posted_forms.only_posted
def delete_comment(request: HttpRequest, pk: int, comment_pk: int) -> HttpResponse:
    user = current_user(request)
    case = find_case(user, pk)
    rows = UseCaseComment.objects.select_related("use_case__tenant", "author")
    row = rows.filter(use_case=case, pk=comment_pk).first()
    if row is not None:  # else it was deleted already
        reactions.delete_comment(user, row)
    return redirect("use-case", case.pk)
