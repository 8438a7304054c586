"""The kinds of notices: for each the facts that it needs, and its sentences in the reader's language.

Facts are JSON values. A time is stored with its offset (`at.astimezone(zone)`) and shown as it is stored: in the zone
of the tenant that it is about.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.utils.formats import date_format, number_format
from django.utils.translation import gettext as _
from django.utils.translation import ngettext, pgettext

from modelregistry.failure_advice import ADVICE
from modelregistry.overview import ModelState
from portal.accounts.models import DirectoryState
from portal.adoption import tips
from portal.canary.labels import label_findings
from portal.lessons.courses import all_courses
from portal.quotas.units import UNITS
from portal.web.templatetags.formatting import listed

Facts = Mapping[str, Any]
Sentence = Callable[[Facts], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoticeKind:
    """A kind of notice."""

    required: frozenset[str]  # the facts that its sentences need
    tone: str  # "fine", "watch" or "broken"
    title: Sentence
    text: Sentence
    # Also mailed to people who may no longer sign in. Other kinds would reveal internal matters to strangers.
    to_leavers: bool = False
    is_tip: bool = False  # it can be switched off, see `portal.adoption.tips`


def format_day(facts: Facts, name: str = "at") -> str:
    """Return the date of a moment, with its year."""
    return date_format(datetime.fromisoformat(facts[name]), pgettext("day with year", "j M Y"))


def format_minute(facts: Facts, name: str = "at") -> str:
    """Return a moment to the minute."""
    return f"{format_day(facts, name)} {datetime.fromisoformat(facts[name]):%H:%M}"


# --- keys


def key_expires_title(facts: Facts) -> str:
    return ngettext(
        "The key “%(key)s” expires tomorrow", "The key “%(key)s” expires in %(days)s days", facts["days"]
    ) % {"key": facts["key"], "days": facts["days"]}


def key_expires_text(facts: Facts) -> str:
    return _(
        "%(key)s (%(prefix)s…) of %(tenant)s stops working on %(day)s. Replace it on its page. The old key and the new"
        " one both work while you update your programs."
    ) % {**facts, "day": format_day(facts)}


def key_expired_text(facts: Facts) -> str:
    return _(
        "%(key)s (%(prefix)s…) of %(tenant)s stopped working on %(day)s. Requests from programs that still use it are"
        " refused with error 401. You can create a new key at any time."
    ) % {**facts, "day": format_day(facts)}


def key_revoked_text(facts: Facts) -> str:
    if facts["because"] == "leaked":
        because = _("It was reported as leaked. Check where it was stored before you create a new one.")
    else:
        because = _("Reason: %(because)s") % facts if facts["because"] else ""
    revoked = (
        _("%(by)s revoked %(key)s (%(prefix)s…) of %(tenant)s.")
        if facts["by"]
        else _("%(key)s (%(prefix)s…) of %(tenant)s was revoked.")
    )
    refused = _("Requests from programs that still use it are refused with error 401.")
    return f"{revoked % facts} {refused} {because}".strip()


def name_seminar(facts: Facts) -> str:
    """Return how a seminar is called, in the reader's language as far as its organiser did not choose the words."""
    course = all_courses().get(facts.get("course", ""))  # older notices say none
    if course is None:
        return _("“%(title)s”") % {"title": facts["title"]}
    if not facts["title"]:
        return _("the seminar “%(course)s”") % {"course": course.title}
    return _("“%(title)s” (course “%(course)s”)") % {"title": facts["title"], "course": course.title}


def responsible_left_text(facts: Facts) -> str:
    return (
        _(
            "%(person)s no longer belongs to %(tenant)s. The service key %(key)s (%(prefix)s…) keeps "
            "working. Name another responsible person, or revoke the key."
        )
        % facts
    )


def membership_ended_text(facts: Facts) -> str:
    first = _("You no longer belong to %(tenant)s.") % facts
    if not facts["keys"]:
        return first
    keys = ngettext(
        "Your API key there has stopped working.", "Your %(keys)s API keys there have stopped working.", facts["keys"]
    )
    help_ = _("If this is a mistake, ask the people who run this server or your IT desk.")
    return f"{first} {keys % facts} {help_}"


def use_case_replaced_text(facts: Facts) -> str:
    happened = (
        _("%(by)s published another version instead of yours, “%(title)s”.")
        if facts["state"] == "published"
        else _("%(by)s proposed another version instead of yours, “%(title)s”.")
    )
    kept = _("Yours is kept. To keep what is missing now, copy it into an edit of the newest version.")
    return f"{happened % facts} {kept}"


# --- quotas


def format_quota(facts: Facts) -> str:
    """Return the amount of a quota, and the model if it is for one alone."""
    unit = UNITS.get(facts["unit"])  # None: of a newer version that was put back
    text = unit.format_amount(facts["amount"], facts["window"]) if unit else str(facts["amount"])
    return _("%(amount)s of %(model)s") % {"amount": text, "model": facts["model"]} if facts["model"] else text


def format_owner(facts: Facts) -> str:
    """Return the owner of a quota: the fact `of` is "you", "tenant" or "key", `owner` the name of the latter two."""
    if facts["of"] == "tenant":
        return _("All of %(owner)s") % facts
    return _("Key “%(owner)s”") % facts if facts["of"] == "key" else _("You")


def quota_near_text(facts: Facts) -> str:
    return _(
        "%(whose)s: %(percent)s%% of %(bound)s has been used. The quota resets on %(time)s. You can request more"
        " before it is used up."
    ) % {
        "whose": format_owner(facts),
        "percent": facts["percent"],
        "bound": format_quota(facts),
        "time": format_minute(facts, "renews_at"),
    }


def quota_reached_text(facts: Facts) -> str:
    return _(
        "%(whose)s: all of %(bound)s has been used. Further requests are refused with error 429. The quota resets on"
        " %(time)s. You can request more."
    ) % {
        "whose": format_owner(facts),
        "bound": format_quota(facts),
        "time": format_minute(facts, "renews_at"),
    }


def request_asked_text(facts: Facts) -> str:
    text = _("%(asker)s (%(tenant)s) requests %(bound)s instead of %(previous)s. Grant or refuse the request.") % {
        "asker": facts["asker"],
        "tenant": facts["tenant"],
        "bound": format_quota(facts),
        "previous": number_format(facts["previous_amount"], force_grouping=True),
    }
    reason = _("Reason: %(because)s") % {"because": facts["reason"]}
    return f"{text} {reason}" if facts["reason"] else text


def request_decided_title(facts: Facts) -> str:
    return _("Your quota request was refused") if facts["granted"] is None else _("Your quota request was granted")


def request_decided_text(facts: Facts) -> str:
    if facts["granted"] is None:
        text = _("%(by)s did not grant %(bound)s.") % {"by": facts["by"], "bound": format_quota(facts)}
    else:
        text = _("%(by)s granted %(bound)s.") % {
            "by": facts["by"],
            "bound": format_quota({**facts, "amount": facts["granted"]}),
        }
    note = _("Note: %(note)s") % facts
    return f"{text} {note}" if facts["note"] else text


# --- for operators


def break_glass_text(facts: Facts) -> str:
    return _(
        "%(account)s signed in at %(time)s from %(address)s. If none of the operators knows about it, find out who it"
        " was."
    ) % {
        "account": facts["account"],
        "time": format_minute(facts),
        "address": facts["address"] or "?",
    }


def directory_trouble_text(facts: Facts) -> str:
    text = _("Synchronising with the company directory failed at %(time)s: %(problem)s. Nothing was changed here.") % {
        "time": format_minute(facts),
        "problem": DirectoryState.Problem(facts["problem"]).label,
    }
    return f"{text} {facts['detail']}" if facts["detail"] else text


def directory_group_text(facts: Facts) -> str:
    texts = {
        "missing": _(
            "%(group)s (%(settings)s) was not found. People who have rights through it keep them, and no one else gets"
            " them, until the group is found again or the setting names another one."
        ),
        "moved": _(
            "%(group)s (%(settings)s) is now %(now)s. It is still synchronised. Change the setting to its new name."
        ),
        "replaced": _(
            "%(group)s (%(settings)s) is now a different group with the same name. Its members now have the rights that"
            " the group gives. Make sure that this is intended."
        ),
    }
    return texts[facts["problem"]] % facts


def engine_version_failed_text(facts: Facts) -> str:
    text = (
        _(
            "On %(host)s, %(engine)s %(version)s was tried with %(model)s and failed. The model continues with the"
            " previous version. The new one is not tried again until it is installed again."
        )
        % facts
    )
    advice = str(ADVICE.get(facts["cause"], ""))
    return f"{text} {advice or facts['detail'].partition(chr(10))[0]}".strip()


def canary_failed_text(facts: Facts) -> str:
    return _(
        "On %(host)s it answered the fixed test prompts with: %(findings)s. The page shows its answers beside the ones"
        " that were right before."
    ) % {"host": facts["host"], "findings": listed(label_findings(facts["findings"]))}


def model_down_text(facts: Facts) -> str:
    known = facts["reason"] in ModelState.values
    return _(
        "It has not answered since %(time)s (%(reason)s). Calls to it wait or are refused. The page shows the cause and"
        " what helps."
    ) % {"time": format_minute(facts), "reason": ModelState(facts["reason"]).label if known else facts["reason"]}


def model_up_text(facts: Facts) -> str:
    return _("It did not answer from %(began)s to %(ended)s.") % {
        "began": format_minute(facts),
        "ended": format_minute(facts, "ended_at"),
    }


def host_silent_text(facts: Facts) -> str:
    return _(
        "It has not answered the controller since %(time)s. Engines that still answer keep serving. Replicas that do"
        " not are started on other hosts where they fit; models that belong to this host alone wait for it."
    ) % {"time": format_minute(facts)}


def host_back_text(facts: Facts) -> str:
    return _(
        "It did not answer the controller from %(began)s to %(ended)s. What still runs there is kept, and what was"
        " moved to other hosts meanwhile stays on them."
    ) % {"began": format_minute(facts), "ended": format_minute(facts, "ended_at")}


def replicas_moved_text(facts: Facts) -> str:
    text = (
        _("They did not answer any more, as their host is silent: %(moved)s")
        if facts["silent"]
        else _("They could not run there, as the pages of the models say: %(moved)s")
    )
    return text % {"moved": listed(facts["moved"])}


def booking_trouble_text(facts: Facts) -> str:
    sentences = {
        "does-not-fit": _(
            "Since %(time)s there has been no room there for %(replicas)s, and other work on the Ray cluster has booked"
            " %(others)s. They start when there is room, there or on another host."
        ),
        "booking-held": _(
            "Since %(time)s Ray cannot book what %(replicas)s take there, because other work on the cluster has booked"
            " %(others)s. The engines run all the same; either may run out of memory."
        ),
        "booking-not-offered": _(
            "Since %(time)s Ray cannot book what %(replicas)s take there: on this host it was started without offering"
            " that memory. Restart the host’s service; engines go on."
        ),
    }
    late = _(
        "Since %(time)s Ray has not booked what %(replicas)s take there, although there is room. The engines run"
        " all the same, but other work may book that memory."
    )
    return sentences.get(facts["cause"], late) % {
        "time": format_minute(facts),
        "replicas": listed(facts["replicas"]),
        "others": listed(facts["others"]) or _("that memory"),
    }


def backup_overdue_text(facts: Facts) -> str:
    if facts["at"]:
        text = _("It was made on %(minute)s, and should never be older than %(hours)s hours.") % {
            "minute": format_minute(facts),
            "hours": facts["hours"],
        }
    else:
        text = _("There should always be one that is not older than %(hours)s hours.") % facts
    failed = _("The last one failed: %(error)s") % facts if facts["error"] else ""
    return " ".join(filter(None, [text, failed]))


def disk_nearly_full_text(facts: Facts) -> str:
    return _(
        "%(free)s GB are left on the disk of %(path)s. When nothing is left, engines do not start, and a gateway there"
        " refuses calls."
    ) % {"path": facts["directory"], "free": number_format(facts["free_gb"], force_grouping=True)}


def gpu_xid_text(facts: Facts) -> str:
    return ngettext(
        "The driver reported it once. Put the host into maintenance, then see MadoguchiGpuXid in OPERATIONS.md.",
        "The driver reported such errors %(count)s times. Put the host into maintenance, then see MadoguchiGpuXid in"
        " OPERATIONS.md.",
        facts["count"],
    ) % {"count": number_format(facts["count"], force_grouping=True)}


def certificate_ends_text(facts: Facts) -> str:
    return _(
        "Its certificate for the cluster ends on %(day)s. From then on the host is refused when it joins again. Run"
        " rotatecluster before, as RAY.md describes."
    ) % {"day": format_day(facts, "ends_at")}


def spool_growing_text(facts: Facts) -> str:
    return _(
        "Since %(time)s usage has waited there on disk (%(megabytes)s MB), although the database answers. Calls are"
        " served, but pages and quotas of the month lack them. The gateway’s log says why."
    ) % {"time": format_minute(facts), "megabytes": number_format(facts["megabytes"], force_grouping=True)}


def controller_replaced_text(facts: Facts) -> str:
    return _(
        "Since %(time)s the controller is %(holder)s (term %(term)s). %(before)s had not left: its machine or process"
        " has died, or is cut off from the database. Engines go on."
    ) % {**facts, "time": format_minute(facts)}


# --- budgets


def budget_text(facts: Facts) -> str:
    return _(
        "%(tenant)s: the usage of this month costs ¥%(spent)s of a budget of ¥%(yen)s (%(percent)s%%). Nothing is"
        " refused. The page shows which models and people it is for."
    ) % {
        **facts,
        "spent": number_format(facts["spent"], force_grouping=True),
        "yen": number_format(facts["yen"], force_grouping=True),
    }


# --- tips


def tip_no_call_text(facts: Facts) -> str:
    return _(
        "You have a key but have not had an answer with it yet. Your home page has a call to copy, already filled in."
        " The quickest way is “Try it”: type a question as you would ask a colleague."
    )


def tip_away_text(facts: Facts) -> str:
    return _(
        "You have not used a model for two weeks. Three examples: paste a long mail and ask for its three main points;"
        " paste your notes and ask for minutes with decisions and open questions; describe a table and ask for the"
        " formula."
    )


# --- use cases, feedback


def feedback_digest_text(facts: Facts) -> str:
    count = facts["up"] + facts["down"]
    thumbs = ngettext(
        "In the week from %(day)s there was %(count)s thumb, %(up)s of them up.",
        "In the week from %(day)s there were %(count)s thumbs, %(up)s of them up.",
        count,
    ) % {"day": format_day(facts), "count": count, "up": facts["up"]}
    comments = ngettext("There is %(count)s comment.", "There are %(count)s comments.", facts["comments"])
    return f"{thumbs} {comments % {'count': facts['comments']}}"


KEY = frozenset({"key", "prefix", "tenant"})
QUOTA = frozenset({"unit", "window", "model", "amount"})

KINDS: Mapping[str, NoticeKind] = {
    # `days` left, `at` the expiry
    "key-expires": NoticeKind(
        required=KEY | {"days", "at"}, tone="watch", title=key_expires_title, text=key_expires_text
    ),
    "key-expired": NoticeKind(
        required=KEY | {"at"},
        tone="broken",
        title=lambda facts: _("The key “%(key)s” has expired") % facts,
        text=key_expired_text,
    ),
    # `by` the name of the person who did it ("" unknown), `because` "" or a reason; "leaked" is spelled out
    "key-revoked": NoticeKind(
        required=KEY | {"by", "because"},
        tone="broken",
        title=lambda facts: _("The key “%(key)s” was revoked") % facts,
        text=key_revoked_text,
    ),
    "management-key-expires": NoticeKind(
        required=frozenset({"key", "prefix", "days", "at"}),
        tone="watch",
        title=lambda facts: _("The management key “%(key)s” expires soon") % facts,
        text=lambda facts: (
            _("%(key)s (%(prefix)s…) stops working on %(day)s. Create a new one and update your programs.")
            % {**facts, "day": format_day(facts)}
        ),
    ),
    "management-key-found": NoticeKind(
        required=frozenset({"key", "prefix"}),
        tone="broken",
        title=lambda facts: _("The management key “%(key)s” was revoked") % facts,
        text=lambda facts: (
            _(
                "%(key)s (%(prefix)s…) was reported as leaked. Check where it was stored, and check the audit log for"
                " what was done with it."
            )
            % facts
        ),
    ),
    # `person` the name of the person who was responsible
    "responsible-left": NoticeKind(
        required=KEY | {"person"},
        tone="watch",
        title=lambda facts: _("No one is responsible for the service key “%(key)s”") % facts,
        text=responsible_left_text,
    ),
    # `tenant` its name, `keys` how many of the person's stopped
    "membership-ended": NoticeKind(
        required=frozenset({"tenant", "keys"}),
        tone="broken",
        title=lambda facts: _("You no longer belong to %(tenant)s") % facts,
        text=membership_ended_text,
        to_leavers=True,
    ),
    # `of`, `owner`: see `format_owner`. `percent` used, `renews_at` when it renews
    "quota-near": NoticeKind(
        required=QUOTA | {"of", "owner", "percent", "renews_at"},
        tone="watch",
        title=lambda facts: _("A quota is almost used up"),
        text=quota_near_text,
    ),
    "quota-reached": NoticeKind(
        required=QUOTA | {"of", "owner", "renews_at"},
        tone="broken",
        title=lambda facts: _("A quota is used up"),
        text=quota_reached_text,
    ),
    # `asker` a name, `tenant` a name, `amount` requested, `had` until now, `reason` "" or what for
    "request-asked": NoticeKind(
        required=QUOTA | {"asker", "tenant", "previous_amount", "reason"},
        tone="watch",
        title=lambda facts: _("%(asker)s requests a higher quota") % facts,
        text=request_asked_text,
    ),
    # `by` a name, `amount` requested, `granted` the amount or None, `note` "" or a text
    "request-decided": NoticeKind(
        required=QUOTA | {"by", "granted", "note"},
        tone="fine",
        title=request_decided_title,
        text=request_decided_text,
    ),
    # `account` its name, `address` "" or from where, `at` when
    "break-glass-used": NoticeKind(
        required=frozenset({"account", "address", "at"}),
        tone="broken",
        title=lambda facts: _("The account for emergencies was used"),
        text=break_glass_text,
    ),
    # `model`, `host`, `engine` and `version` names, `cause` "" or a code of advice, `detail` what happened
    "engine-version-failed": NoticeKind(
        required=frozenset({"model", "host", "engine", "version", "cause", "detail"}),
        tone="watch",
        title=lambda facts: _("%(engine)s %(version)s failed with %(model)s") % facts,
        text=engine_version_failed_text,
    ),
    # `model` a name, `reason` a ModelState, `at` when it stopped answering
    "model-down": NoticeKind(
        required=frozenset({"model", "reason", "at"}),
        tone="broken",
        title=lambda facts: _("%(model)s does not answer") % facts,
        text=model_down_text,
    ),
    # … and `ended_at`
    "model-up": NoticeKind(
        required=frozenset({"model", "at", "ended_at"}),
        tone="fine",
        title=lambda facts: _("%(model)s answers again") % facts,
        text=model_up_text,
    ),
    # `host` a name, `at` since when it is silent
    "host-silent": NoticeKind(
        required=frozenset({"host", "at"}),
        tone="broken",
        title=lambda facts: _("The host %(host)s is silent") % facts,
        text=host_silent_text,
    ),
    # … and `ended_at`
    "host-back": NoticeKind(
        required=frozenset({"host", "at", "ended_at"}),
        tone="fine",
        title=lambda facts: _("The host %(host)s answers again") % facts,
        text=host_back_text,
    ),
    # `host` the name of the one before, `moved` texts as "qwen #0 → gpu-02", `silent` whether that host is
    "replicas-moved": NoticeKind(
        required=frozenset({"host", "moved", "silent", "at"}),
        tone="watch",
        title=lambda facts: (
            ngettext(
                "%(count)s replica was moved away from %(host)s",
                "%(count)s replicas were moved away from %(host)s",
                len(facts["moved"]),
            )
            % {"count": len(facts["moved"]), "host": facts["host"]}
        ),
        text=replicas_moved_text,
    ),
    # `cause` a code of `booking_notices.CAUSES`, `replicas` texts as "qwen #0", `others` as "GPU 0: 60.0 GB"
    "booking-trouble": NoticeKind(
        required=frozenset({"host", "cause", "replicas", "others", "at"}),
        tone="watch",
        title=lambda facts: (
            (
                _("Other work on Ray holds memory of %(host)s that models need")
                if facts["cause"] in ("does-not-fit", "booking-held")
                else _("Memory of %(host)s is not booked in Ray")
            )
            % facts
        ),
        text=booking_trouble_text,
    ),
    # `directory` one on it, `free_gb` a number, `at` since when
    "disk-nearly-full": NoticeKind(
        required=frozenset({"host", "directory", "free_gb", "at"}),
        tone="broken",
        title=lambda facts: _("A disk of %(host)s is nearly full") % facts,
        text=disk_nearly_full_text,
    ),
    # `device` the index of a GPU, `code` of the error, `count` of such errors
    "gpu-xid": NoticeKind(
        required=frozenset({"host", "device", "code", "count", "at"}),
        tone="broken",
        title=lambda facts: _("GPU %(device)s of %(host)s has a fault (Xid %(code)s)") % facts,
        text=gpu_xid_text,
    ),
    "certificate-ends": NoticeKind(
        required=frozenset({"host", "ends_at", "at"}),
        tone="watch",
        title=lambda facts: _("The certificate of %(host)s ends soon") % facts,
        text=certificate_ends_text,
    ),
    # `host` the machine of a gateway
    "spool-growing": NoticeKind(
        required=frozenset({"host", "megabytes", "at"}),
        tone="broken",
        title=lambda facts: _("Usage is not recorded on %(host)s") % facts,
        text=spool_growing_text,
    ),
    # `holder` and `before` say which processes, `term` a number, `at` since when
    "controller-replaced": NoticeKind(
        required=frozenset({"holder", "before", "term", "at"}),
        tone="watch",
        title=lambda facts: _("Another controller has taken over"),
        text=controller_replaced_text,
    ),
    # `at` when the newest backup was made, or None; `hours` how old it may be; `error` of a later failure, or ""
    "backup-overdue": NoticeKind(
        required=frozenset({"at", "hours", "error"}),
        tone="broken",
        title=lambda facts: _("The newest backup is too old") if facts["at"] else _("There is no backup yet"),
        text=backup_overdue_text,
    ),
    # `model` and `host` names, `findings` codes of `canary.judging`
    "canary-failed": NoticeKind(
        required=frozenset({"model", "host", "findings"}),
        tone="broken",
        title=lambda facts: _("%(model)s fails the canary") % facts,
        text=canary_failed_text,
    ),
    "canary-passed": NoticeKind(
        required=frozenset({"model", "host"}),
        tone="fine",
        title=lambda facts: _("%(model)s passes the canary again") % facts,
        text=lambda facts: _("On %(host)s it answers the fixed test prompts as it should.") % facts,
    ),
    # `title` of the use case, `by` the name of the person who did it
    "use-case-proposed": NoticeKind(
        required=frozenset({"title", "by"}),
        tone="watch",
        title=lambda facts: _("A use case waits for your decision"),
        text=lambda facts: _("%(by)s proposes “%(title)s”. Publish it or return it with a comment.") % facts,
    ),
    "use-case-published": NoticeKind(
        required=frozenset({"title", "by"}),
        tone="fine",
        title=lambda facts: _("Your use case is published"),
        text=lambda facts: _("%(by)s published “%(title)s”. Thank you for sharing it.") % facts,
    ),
    # `note` what should change
    "use-case-returned": NoticeKind(
        required=frozenset({"title", "by", "note"}),
        tone="watch",
        title=lambda facts: _("Your use case needs a change"),
        text=lambda facts: _("%(by)s returned “%(title)s”: %(note)s") % facts,
    ),
    # `state` of the other version, "proposed" or "published"
    "use-case-replaced": NoticeKind(
        required=frozenset({"title", "by", "state"}),
        tone="watch",
        title=lambda facts: _("Another version replaces the one that you proposed"),
        text=use_case_replaced_text,
    ),
    "use-case-hidden": NoticeKind(
        required=frozenset({"title", "by"}),
        tone="watch",
        title=lambda facts: _("Your use case is hidden"),
        text=lambda facts: _("%(by)s has hidden “%(title)s”. Only those who publish it can show it again.") % facts,
    ),
    # `title` of the seminar, "" for one that is called as its `course`; `by` a name; `at` its beginning, `until` its
    # end
    "seminar-invited": NoticeKind(
        required=frozenset({"title", "course", "by", "at"}),
        tone="fine",
        title=lambda facts: _("You are invited to a seminar"),
        text=lambda facts: (
            _("%(by)s invites you to %(seminar)s on %(minute)s. Join on its page when it begins; you need no code.")
            % {"by": facts["by"], "seminar": name_seminar(facts), "minute": format_minute(facts)}
        ),
    ),
    "seminar-moved": NoticeKind(
        required=frozenset({"title", "course", "at", "until"}),
        tone="watch",
        title=lambda facts: _("A seminar has new hours"),
        text=lambda facts: (
            _("%(seminar)s now begins on %(begins)s and ends on %(ends)s.")
            % {
                "seminar": name_seminar(facts),
                "begins": format_minute(facts),
                "ends": format_minute(facts, "until"),
            }
        ),
    ),
    "seminar-over": NoticeKind(
        required=frozenset({"title", "course"}),
        tone="fine",
        title=lambda facts: _("The seminar is over: what next?"),
        text=lambda facts: (
            _(
                "Thank you for taking part in %(seminar)s. Its key no longer works. Go on with the steps that are left,"
                " create a key of your own if you need one, and choose a use case that is close to your work."
            )
            % {"seminar": name_seminar(facts)}
        ),
    ),
    # `tenant` a name, "" all of them; `up`, `down` and `comments` numbers; `at` the beginning of the week
    "feedback-digest": NoticeKind(
        required=frozenset({"tenant", "up", "down", "comments", "at"}),
        tone="fine",
        title=lambda facts: (
            _("Feedback of last week: %(tenant)s") % facts if facts["tenant"] else _("Feedback of last week")
        ),
        text=feedback_digest_text,
    ),
    # `problem` a DirectoryState.Problem, `detail` "" or what it said, `at` when
    "directory-trouble": NoticeKind(
        required=frozenset({"problem", "detail", "at"}),
        tone="broken",
        title=lambda facts: _("The company directory cannot be synchronised"),
        text=directory_trouble_text,
    ),
    # `group` its DN in the settings, `settings` which those are, `problem` "missing", "moved" or "replaced", `now` its
    # new DN or ""
    "directory-group": NoticeKind(
        required=frozenset({"group", "settings", "problem", "now"}),
        tone="watch",
        title=lambda facts: _("A group of the company directory has changed"),
        text=directory_group_text,
    ),
    # `tenant` its name, `spent` and `yen` amounts, `percent` of the budget
    "budget-near": NoticeKind(
        required=frozenset({"tenant", "spent", "yen", "percent"}),
        tone="watch",
        title=lambda facts: _("The month’s budget of %(tenant)s is almost used up") % facts,
        text=budget_text,
    ),
    "budget-reached": NoticeKind(
        required=frozenset({"tenant", "spent", "yen", "percent"}),
        tone="broken",
        title=lambda facts: _("The month’s budget of %(tenant)s is used up") % facts,
        text=budget_text,
    ),
    tips.NO_CALL: NoticeKind(
        required=frozenset(),
        tone="fine",
        title=lambda facts: _("Your key is ready: try a first question"),
        text=tip_no_call_text,
        is_tip=True,
    ),
    tips.AWAY: NoticeKind(
        required=frozenset(),
        tone="fine",
        title=lambda facts: _("Three things to ask a model this week"),
        text=tip_away_text,
        is_tip=True,
    ),
    # `person` a user name
    "last-operator-kept": NoticeKind(
        required=frozenset({"person"}),
        tone="watch",
        title=lambda facts: _("You remain an operator because there is no other"),
        text=lambda facts: (
            _(
                "%(person)s is no longer in the directory’s group of operators. Without this account, no one could run"
                " this server. Have another person added to the group."
            )
            % facts
        ),
    ),
}
