"""What there is to tell: for each kind of notice the facts that it needs, and its sentences in the reader's language.

Facts are what JSON holds. A time is written with its offset (`at.astimezone(zone)`), for it is read as it was written:
in the zone of the tenant that it is about.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.utils.formats import date_format, number_format
from django.utils.translation import gettext as _
from django.utils.translation import ngettext, pgettext

from modelregistry.failure_advice import ADVICE
from portal.accounts.models import DirectoryState
from portal.quotas.units import UNITS

Facts = Mapping[str, Any]
Sentence = Callable[[Facts], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """`needs`: the facts without which the sentences cannot be said. `tone`: "fine", "watch" or "broken".

    `to_leavers`: is mailed to somebody who may no longer sign in, too. Others would tell strangers of our affairs.
    """

    needs: frozenset[str]
    tone: str
    title: Sentence
    text: Sentence
    to_leavers: bool = False


def day(facts: Facts, name: str = "at") -> str:
    """Return the date of a moment, with its year."""
    return date_format(datetime.fromisoformat(facts[name]), pgettext("day with year", "j M Y"))


def minute(facts: Facts, name: str = "at") -> str:
    """Return a moment to the minute."""
    return f"{day(facts, name)} {datetime.fromisoformat(facts[name]):%H:%M}"


# --- keys


def key_expires(facts: Facts) -> str:
    return ngettext(
        "The key “%(key)s” expires tomorrow", "The key “%(key)s” expires in %(days)s days", facts["days"]
    ) % {"key": facts["key"], "days": facts["days"]}


def key_expires_text(facts: Facts) -> str:
    return _(
        "%(key)s (%(prefix)s…) of %(tenant)s stops working on %(day)s. Replace it on its page: the new key and the old"
        " one both work until you have changed your programs."
    ) % {**facts, "day": day(facts)}


def key_expired_text(facts: Facts) -> str:
    return _(
        "%(key)s (%(prefix)s…) of %(tenant)s stopped working on %(day)s. Programs that still use it are refused with"
        " error 401. You can create a new key at any time."
    ) % {**facts, "day": day(facts)}


def key_revoked_text(facts: Facts) -> str:
    if facts["because"] == "leaked":
        because = _("Somebody found it where it must not be. Look where it was kept before you create a new one.")
    else:
        because = _("Reason: %(because)s") % facts if facts["because"] else ""
    who = (
        _("%(by)s revoked %(key)s (%(prefix)s…) of %(tenant)s.")
        if facts["by"]
        else _("%(key)s (%(prefix)s…) of %(tenant)s was revoked.")
    )
    refused = _("Programs that still use it are refused with error 401.")
    return f"{who % facts} {refused} {because}".strip()


def responsible_left_text(facts: Facts) -> str:
    return (
        _(
            "%(person)s no longer belongs to %(tenant)s. The service key %(key)s (%(prefix)s…) goes on working: name"
            " somebody else who is responsible for it, or revoke it."
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
    whom = _("If that is a mistake, ask the people who run this server or your IT desk.")
    return f"{first} {keys % facts} {whom}"


# --- quotas


def bound(facts: Facts) -> str:
    """Return the amount of a quota, and the model if it is for one alone."""
    text = UNITS[facts["unit"]].format_amount(facts["amount"], facts["window"])
    return _("%(amount)s of %(model)s") % {"amount": text, "model": facts["model"]} if facts["model"] else text


def whose(facts: Facts) -> str:
    """Whom a quota bounds: `of` is "you", "tenant" or "key", `owner` the name of the latter two."""
    if facts["of"] == "tenant":
        return _("All of %(owner)s") % facts
    return _("Key “%(owner)s”") % facts if facts["of"] == "key" else _("You")


def quota_near_text(facts: Facts) -> str:
    return _(
        "%(whose)s: %(percent)s %% of %(bound)s is used. Full again: %(time)s. You can ask for more before it is used"
        " up."
    ) % {"whose": whose(facts), "percent": facts["percent"], "bound": bound(facts), "time": minute(facts, "renews_at")}


def quota_reached_text(facts: Facts) -> str:
    return _(
        "%(whose)s: all of %(bound)s is used. Further requests are refused with error 429. Full again: %(time)s. You"
        " can ask for more."
    ) % {"whose": whose(facts), "bound": bound(facts), "time": minute(facts, "renews_at")}


def request_asked_text(facts: Facts) -> str:
    text = _("%(asker)s of %(tenant)s wishes %(bound)s; so far it is %(had)s. Grant or refuse it.") % {
        "asker": facts["asker"],
        "tenant": facts["tenant"],
        "bound": bound(facts),
        "had": number_format(facts["had"], force_grouping=True),
    }
    reason = _("Reason: %(because)s") % {"because": facts["reason"]}
    return f"{text} {reason}" if facts["reason"] else text


def request_decided(facts: Facts) -> str:
    return _("Your request for more was refused") if facts["granted"] is None else _("Your request for more is granted")


def request_decided_text(facts: Facts) -> str:
    if facts["granted"] is None:
        text = _("%(by)s did not grant %(bound)s.") % {"by": facts["by"], "bound": bound(facts)}
    else:
        text = _("%(by)s gave %(bound)s.") % {
            "by": facts["by"],
            "bound": bound({**facts, "amount": facts["granted"]}),
        }
    note = _("Note: %(note)s") % facts
    return f"{text} {note}" if facts["note"] else text


# --- for operators


def break_glass_text(facts: Facts) -> str:
    return _(
        "%(account)s signed in at %(time)s from %(address)s. If nobody of you knows of it, find out who it was."
    ) % {
        "account": facts["account"],
        "time": minute(facts),
        "address": facts["address"] or "?",
    }


def directory_trouble_text(facts: Facts) -> str:
    text = _("Following the company directory failed at %(time)s: %(problem)s. Nothing was changed here.") % {
        "time": minute(facts),
        "problem": DirectoryState.Problem(facts["problem"]).label,
    }
    return f"{text} {facts['detail']}" if facts["detail"] else text


def directory_group_text(facts: Facts) -> str:
    texts = {
        "missing": _(
            "%(group)s (%(settings)s) was not found. Whoever has something through it keeps that, and nobody new gets"
            " it, until the group is found again or the setting names another."
        ),
        "moved": _(
            "%(group)s (%(settings)s) is now %(now)s. It is still followed; change the setting to its new name."
        ),
        "replaced": _(
            "%(group)s (%(settings)s) is another group than before, of the same name. What it gives now belongs to its"
            " members: make sure that this is meant."
        ),
    }
    return texts[facts["problem"]] % facts


def engine_version_failed_text(facts: Facts) -> str:
    text = (
        _(
            "On %(host)s, %(engine)s %(version)s was tried with %(model)s and did not prove itself. The model goes on"
            " with the version before it, and the new one is not tried again until it is installed anew."
        )
        % facts
    )
    advice = str(ADVICE.get(facts["cause"], ""))
    return f"{text} {advice or facts['detail'].partition(chr(10))[0]}".strip()


KEY = frozenset({"key", "prefix", "tenant"})
QUOTA = frozenset({"unit", "window", "model", "amount"})

KINDS: Mapping[str, Kind] = {
    # `days` left, `at` the end
    "key-expires": Kind(needs=KEY | {"days", "at"}, tone="watch", title=key_expires, text=key_expires_text),
    "key-expired": Kind(
        needs=KEY | {"at"},
        tone="broken",
        title=lambda facts: _("The key “%(key)s” has expired") % facts,
        text=key_expired_text,
    ),
    # `by` the name of who did it ("" unknown), `because` "" or a reason; "leaked" is told in full
    "key-revoked": Kind(
        needs=KEY | {"by", "because"},
        tone="broken",
        title=lambda facts: _("The key “%(key)s” was revoked") % facts,
        text=key_revoked_text,
    ),
    "management-key-expires": Kind(
        needs=frozenset({"key", "prefix", "days", "at"}),
        tone="watch",
        title=lambda facts: _("The management key “%(key)s” expires soon") % facts,
        text=lambda facts: (
            _("%(key)s (%(prefix)s…) stops working on %(day)s. Create a new one and change your programs to it.")
            % {**facts, "day": day(facts)}
        ),
    ),
    "management-key-found": Kind(
        needs=frozenset({"key", "prefix"}),
        tone="broken",
        title=lambda facts: _("The management key “%(key)s” was revoked") % facts,
        text=lambda facts: (
            _(
                "%(key)s (%(prefix)s…) was found where it must not be. Look where it was kept, and in the audit log"
                " what was done with it."
            )
            % facts
        ),
    ),
    # `person` the name of who was responsible
    "responsible-left": Kind(
        needs=KEY | {"person"},
        tone="watch",
        title=lambda facts: _("Nobody is responsible for the service key “%(key)s”") % facts,
        text=responsible_left_text,
    ),
    # `tenant` its name, `keys` how many of the person's stopped
    "membership-ended": Kind(
        needs=frozenset({"tenant", "keys"}),
        tone="broken",
        title=lambda facts: _("You no longer belong to %(tenant)s") % facts,
        text=membership_ended_text,
        to_leavers=True,
    ),
    # `of`, `owner`: see `whose`. `percent` used, `renews_at` when it is full again
    "quota-near": Kind(
        needs=QUOTA | {"of", "owner", "percent", "renews_at"},
        tone="watch",
        title=lambda facts: _("A usage limit is nearly reached"),
        text=quota_near_text,
    ),
    "quota-reached": Kind(
        needs=QUOTA | {"of", "owner", "renews_at"},
        tone="broken",
        title=lambda facts: _("A usage limit is reached"),
        text=quota_reached_text,
    ),
    # `asker` a name, `tenant` a name, `amount` wished, `had` so far, `reason` "" or what for
    "request-asked": Kind(
        needs=QUOTA | {"asker", "tenant", "had", "reason"},
        tone="watch",
        title=lambda facts: _("%(asker)s asks for more") % facts,
        text=request_asked_text,
    ),
    # `by` a name, `amount` wished, `granted` what was given or None, `note` "" or a text
    "request-decided": Kind(
        needs=QUOTA | {"by", "granted", "note"}, tone="fine", title=request_decided, text=request_decided_text
    ),
    # `account` its name, `address` "" or from where, `at` when
    "break-glass-used": Kind(
        needs=frozenset({"account", "address", "at"}),
        tone="broken",
        title=lambda facts: _("The account for emergencies was used"),
        text=break_glass_text,
    ),
    # `model`, `host`, `engine` and `version` names, `cause` "" or a code of advice, `detail` what happened
    "engine-version-failed": Kind(
        needs=frozenset({"model", "host", "engine", "version", "cause", "detail"}),
        tone="watch",
        title=lambda facts: _("%(engine)s %(version)s failed with %(model)s") % facts,
        text=engine_version_failed_text,
    ),
    # `problem` a DirectoryState.Problem, `detail` "" or what it said, `at` when
    "directory-trouble": Kind(
        needs=frozenset({"problem", "detail", "at"}),
        tone="broken",
        title=lambda facts: _("The company directory cannot be followed"),
        text=directory_trouble_text,
    ),
    # `group` its DN in the settings, `settings` which those are, `problem` "missing", "moved" or "replaced", `now` its
    # new DN or ""
    "directory-group": Kind(
        needs=frozenset({"group", "settings", "problem", "now"}),
        tone="watch",
        title=lambda facts: _("A group of the company directory has changed"),
        text=directory_group_text,
    ),
    # `person` a user name
    "last-operator-kept": Kind(
        needs=frozenset({"person"}),
        tone="watch",
        title=lambda facts: _("You stay an operator because there is no other"),
        text=lambda facts: (
            _(
                "%(person)s is no longer in the directory’s group of operators, and without this account nobody could"
                " run this server. Have somebody put into the group."
            )
            % facts
        ),
    ),
}
