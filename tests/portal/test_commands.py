"""The operator's commands: what they print, what they change, and what they say of bad input."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from http import HTTPStatus
from http.client import HTTPConnection
from io import StringIO

import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.utils import timezone

from modelregistry.models import ServedModel
from portal.accounts.models import Tenant, User
from portal.keys import end_user_secret, secret
from portal.keys.lifecycle import AlreadyReplaced, NotAMember
from portal.keys.models import ApiKey
from portal.quotas.administration import MAX_AMOUNT
from portal.quotas.models import Quota
from portal.usage.management.commands import pruneusage
from portal.usage.models import UsageRecord
from tests.installation import ROOT
from tests.pages import key_of, service_key_of, use
from tests.ports import unused_port


def run(*words: str) -> str:
    out = StringIO()
    call_command(*words, stdout=out)
    return out.getvalue().strip()


def refusal(*words: str, named: str = "") -> CommandError:
    """Return the error with which the command refuses; asserts that it names this."""
    with pytest.raises(CommandError) as caught:
        run(*words)
    assert named in str(caught.value)
    return caught.value


def cause_of(error: CommandError) -> type[BaseException] | None:
    return type(error.__cause__) if error.__cause__ else None


@pytest.fixture
def model(db) -> ServedModel:
    return ServedModel.objects.create(name="m", engine="external", url="http://127.0.0.1:1")


def test_createkey_prints_a_personal_key_and_nothing_else(alice):
    text = run("createkey", "--tenant", "research", "--user", "Alice", "--expires", "90d")
    assert secret.is_well_formed(text)
    key = ApiKey.objects.get()
    assert (key.user, key.prefix) == (alice, text[:12])
    assert timedelta(days=89) < key.expires_at - timezone.now() <= timedelta(days=90)
    assert text not in str(ApiKey.objects.values())


def test_createkey_makes_a_service_key_for_some_models(research, model):
    run("createkey", "--tenant", "research", "--service", "Dify", "--models", "m")
    key = ApiKey.objects.get()
    assert (key.user, key.service, key.name) == (None, "Dify", "Dify")
    assert [*key.allowed_models.all()] == [model]


def test_createkey_keeps_all_that_was_said(research, alice):
    words = ["--responsible", "ALICE", "--name", "bot", "--purpose", "help desk", "--class", "batch"]
    run(
        "createkey",
        "--tenant",
        "research",
        "--service",
        "Dify",
        *words,
        "--networks",
        "10.1.0.0/16,192.168.7.5",
        "--takes-user-headers",
        "--no-loop-guard",
    )
    key = ApiKey.objects.get()
    assert (key.responsible, key.name, key.purpose, key.key_class) == (alice, "bot", "help desk", "batch")
    assert (key.networks, key.takes_user_headers) == (["10.1.0.0/16", "192.168.7.5/32"], True)
    assert not key.loop_guard


@pytest.mark.parametrize(
    ("proposed", "words", "days"),
    [(90, [], 90), (None, [], None), (90, ["--expires", "never"], None), (90, ["--expires", "2w"], 14)],
)
def test_createkey_takes_the_tenant_s_word_for_how_long(research, proposed, words, days):
    research.key_days = proposed
    research.save()
    run("createkey", "--tenant", "research", "--service", "Dify", *words)
    end = ApiKey.objects.get().expires_at
    assert end is None if days is None else timedelta(days=days) - (end - timezone.now()) < timedelta(minutes=1)


def test_createkey_makes_no_key_of_the_canary(research):
    refusal("createkey", "--tenant", "research", "--service", "mine", "--class", "canary", named="canary")
    assert not ApiKey.objects.exists()


def test_weights_are_shown_and_set(research, sales):
    assert json.loads(run("weights", "--tenant", "research", "--weight", "2.5", "--json")) == [
        {"tenant": "research", "weight": 2.5}
    ]
    lines = [line.split() for line in run("weights").splitlines()]
    assert lines[1:] == [
        *(["tenant", "research", "2.5"], ["tenant", "sales", "1"]),
        *(["class", "interactive", "4"], ["class", "batch", "4"]),
    ]
    research.refresh_from_db()
    assert research.weight == 2.5


def test_a_class_and_a_service_key_have_weights_of_their_own(research):
    assert json.loads(run("weights", "--class", "batch", "--weight", "2", "--json")) == [
        {"class": "batch", "weight": 2}
    ]
    key = service_key_of(research, "Dify", key_class="batch")
    known = {"key": key.prefix, "service": "Dify"}
    (found,) = json.loads(run("weights", "--key", key.prefix, "--json"))
    assert found == {**known, "weight": 2, "own": False, "people": "together"}
    words = ("--weight", "30", "--people", "apart", "--json")
    (found,) = json.loads(run("weights", "--key", key.prefix, *words))
    assert found == {**known, "weight": 30, "own": True, "people": "apart"}
    (found,) = json.loads(run("weights", "--key", key.prefix, "--weight", "usual", "--people", "together", "--json"))
    assert found == {**known, "weight": 2, "own": False, "people": "together"}


def test_usual_takes_back_what_was_set(research):
    for of, usual in (("--tenant", 1), ("--class", 4)):
        name = "research" if of == "--tenant" else "batch"
        run("weights", of, name, "--weight", "2")
        (found,) = json.loads(run("weights", of, name, "--weight", "usual", "--json"))
        assert found["weight"] == usual


def test_a_person_s_key_has_no_weight_and_no_secret_for_end_users(research, alice):
    key = key_of(alice, research)
    refusal("weights", "--key", key.prefix, "--weight", "2", named=key.prefix)
    with pytest.raises(CommandError):
        run("usersecret", key.prefix)
    key.refresh_from_db()
    assert (key.weight, key.end_user_nonce) == (None, "")


def test_usersecret_prints_the_settings_of_open_webui_and_a_rotated_key_keeps_its_secret(research):
    key = service_key_of(research, "Open WebUI")
    lines = dict(line.split("=") for line in run("usersecret", key.prefix).splitlines())
    text = lines["FORWARD_USER_INFO_HEADER_JWT_SECRET"]
    key.refresh_from_db()
    assert end_user_secret.secret_of(key.end_user_nonce) == text
    assert text not in str(ApiKey.objects.values_list())
    run("rotatekey", key.prefix)
    assert ApiKey.objects.get(replaces=key).end_user_nonce == key.end_user_nonce
    run("usersecret", key.prefix, "--remove")
    key.refresh_from_db()
    assert key.end_user_nonce == ""


@pytest.mark.parametrize(
    ("words", "named"),
    [
        *((["--weight", "2"], "--tenant"), (["--tenant", "nobody"], "nobody")),
        *(
            (["--tenant", "research", "--weight", wrong], "--weight")
            for wrong in ("0", "10.1", "nan", "-inf", "1_0", "２")
        ),
    ],
)
def test_what_is_no_weight_is_refused(research, words, named):
    refusal("weights", *words, named=named)
    research.refresh_from_db()
    assert research.weight == 1


def test_rotatekey_prints_the_new_key(research, alice):
    old = run("createkey", "--tenant", "research", "--user", "alice")
    new = run("rotatekey", old[:12], "--overlap", "2")
    assert secret.is_well_formed(new)
    assert ApiKey.objects.get(prefix=new[:12]).replaces.prefix == old[:12]
    assert ApiKey.objects.get(prefix=old[:12]).expires_at - timezone.now() <= timedelta(days=2)
    assert cause_of(refusal("rotatekey", old)) is AlreadyReplaced
    assert cause_of(refusal("rotatekey", "mdg_nonsense", named="mdg_nonsense")) is ApiKey.DoesNotExist
    refusal("rotatekey", new, "--overlap", "-1", named="--overlap")


def test_revokekey_keeps_the_reason(research, alice):
    text = run("createkey", "--tenant", "research", "--user", "alice")
    run("revokekey", text, "--because", "the laptop was lost")
    assert ApiKey.objects.get().revoked_because == "the laptop was lost"
    assert alice.notices.get().facts["because"] == "the laptop was lost"


@pytest.mark.parametrize(
    ("words", "named", "cause"),
    [
        (["--tenant", "research", "--user", "alice", "--responsible", "alice"], "--responsible", None),
        (["--tenant", "research", "--service", "s", "--responsible", "charlie"], "Charlie", NotAMember),
        (["--tenant", "research", "--service", "s", "--responsible", "nope"], "nope", User.DoesNotExist),
        (["--tenant", "research", "--user", "alice", "--networks", "office"], "office", ValidationError),
        (["--tenant", "nope", "--user", "alice"], "nope", Tenant.DoesNotExist),
        (["--tenant", "research", "--user", "nope"], "nope", User.DoesNotExist),
        (["--tenant", "research", "--user", "charlie"], "Charlie", NotAMember),
        (["--tenant", "research", "--user", "alice", "--models", "m,nope"], "nope", None),
        (["--tenant", "research", "--user", "alice", "--expires", "soon"], "'soon'", None),
        (["--tenant", "research", "--user", "alice", "--expires", "2020-01-01"], "2020-01-01", None),
        (["--tenant", "research"], "--user --service", None),
    ],
)
def test_createkey_says_what_is_wrong_and_makes_nothing(alice, charlie, model, words, named, cause):
    assert cause_of(refusal("createkey", *words, named=named)) is cause
    assert not ApiKey.objects.exists()


def test_revokekey_takes_a_prefix_or_the_whole_key_and_may_be_repeated(alice):
    text = run("createkey", "--tenant", "research", "--user", "alice")
    assert run("revokekey", text[:12]) == text[:12]
    first = ApiKey.objects.get().revoked_at
    run("revokekey", text)
    assert ApiKey.objects.get().revoked_at == first
    assert cause_of(refusal("revokekey", "mdg_nonsense", named="mdg_nonsense")) is ApiKey.DoesNotExist


def test_setquota_sets_changes_and_removes(alice, model):
    for amount in ("5", "0", "7"):
        run("setquota", "--user", "alice", "--model", "m", "--unit", "tokens", "--per", "day", "--amount", amount)
        quota = Quota.objects.get()
        assert (quota.user, quota.model, quota.amount) == (alice, model, int(amount))
    run("setquota", "--user", "alice", "--unit", "tokens", "--per", "day", "--amount", "1")
    assert Quota.objects.count() == 2
    removed = str(Quota.objects.get(model=model))
    of_the_model = ["--user", "alice", "--model", "m", "--unit", "tokens", "--per", "day"]
    assert removed in run("setquota", *of_the_model, "--amount", "none")
    assert Quota.objects.get().model is None
    assert run("setquota", *of_the_model, "--amount", "none") == ""


@pytest.mark.parametrize(
    ("owner", "tenant", "user", "default_for"),
    [
        (["--tenant", "research", "--user", "alice"], True, True, ""),
        (["--tenant", "research", "--default-for", "member"], True, False, "member"),
        (["--tenant", "research", "--default-for", "service"], True, False, "service"),
        (["--default-for", "tenant"], False, False, "tenant"),
    ],
)
def test_setquota_is_for_members_and_defaults_too(alice, research, owner, tenant, user, default_for):
    run("setquota", *owner, "--unit", "tokens", "--per", "day", "--amount", "5")
    quota = Quota.objects.get()
    assert (quota.tenant, quota.user, quota.default_for) == (
        research if tenant else None,
        alice if user else None,
        default_for,
    )


@pytest.mark.parametrize(
    "owner",
    [
        [],
        ["--tenant", "research", "--key", "mdg_12345678"],
        ["--tenant", "research", "--default-for", "tenant"],
        ["--default-for", "member"],
        ["--user", "alice", "--default-for", "member"],
        ["--tenant", "research", "--user", "alice", "--default-for", "member"],
    ],
)
def test_setquota_asks_of_whom_when_that_is_not_one_thing(alice, owner):
    refusal("setquota", *owner, "--unit", "tokens", "--per", "day", "--amount", "5", named="--default-for tenant")
    assert not Quota.objects.exists()


def test_setquota_of_a_member_is_for_members(research, charlie):
    words = ["--tenant", "research", "--user", "charlie", "--unit", "tokens", "--per", "day", "--amount", "5"]
    assert "research" in str(refusal("setquota", *words, named="charlie"))
    assert not Quota.objects.exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--tenant", "nope", "--unit", "tokens", "--per", "day", "--amount", "1"], "nope"),
        (["--key", "mdg_12345678", "--unit", "tokens", "--per", "day", "--amount", "1"], "mdg_12345678"),
        (["--tenant", "research", "--unit", "tokens", "--amount", "1"], "--per"),
        (["--tenant", "research", "--unit", "concurrent", "--per", "day", "--amount", "1"], "--per"),
        (["--tenant", "research", "--unit", "tokens", "--per", "day", "--amount", "-1"], "--amount"),
        (["--tenant", "research", "--unit", "tokens", "--per", "day", "--amount", "x"], "'x'"),
        (["--user", "alice", "--unit", "tokens", "--per", "day", "--amount", str(MAX_AMOUNT + 1)], str(MAX_AMOUNT)),
        (["--tenant", "research", "--unit", "tokens", "--per", "day", "--amount", "1", "--model", "nil"], "nil"),
    ],
)
def test_setquota_says_what_is_wrong_and_sets_nothing(research, words, named):
    refusal("setquota", *words, named=named)
    assert not Quota.objects.exists()


@pytest.fixture
def used(alice) -> ApiKey:
    run("createkey", "--tenant", "research", "--user", "alice")
    key = ApiKey.objects.get()
    now = timezone.now()
    for number, (model, ago) in enumerate([("a", 0), ("a", 0), ("b", 3)]):
        use(key, tokens=(10, number), at=now - timedelta(days=ago), model=model)
    return key


@pytest.mark.parametrize(
    ("by", "values"),
    [("model", ["a", "b"]), ("tenant", ["research"]), ("user", ["alice"]), ("day", None), ("key", None)],
)
def test_usage_as_json_has_just_the_promised_fields(used, by, values):
    rows = json.loads(run("usage", "--by", by, "--json"))
    numbers = {"requests", "prompt_tokens", "completion_tokens", "total_tokens"}
    numbers |= {"looped", "looped_tokens", "saved_tokens"}
    assert all(set(row) == {by, *numbers} for row in rows)
    assert values is None or [row[by] for row in rows] == values
    assert sum(row["requests"] for row in rows) == 3
    assert sum(row["total_tokens"] for row in rows) == 33


def test_usage_since_a_day_leaves_out_what_was_before(used):
    since = timezone.localdate() - timedelta(days=1)
    assert [row["model"] for row in json.loads(run("usage", "--since", str(since), "--json"))] == ["a"]
    refusal("usage", "--since", "yesterday", named="yesterday")


def test_usage_prints_a_table_for_people(used):
    head, first, *_ = run("usage").splitlines()
    assert head.split() == ["model", "requests", "prompt_tokens", "completion_tokens", "total_tokens"]
    assert first.split() == ["a", "2", "20", "1", "21"]


def test_usage_of_nobody_is_an_empty_list(db):
    assert run("usage", "--json") == "[]"


def test_pruning_deletes_old_records_and_no_sum(used, monkeypatch):
    monkeypatch.setattr(pruneusage, "BATCH", 2)
    for _ in range(5):
        use(used, at=timezone.now() - timedelta(days=41))
    before = run("usage")
    assert run("pruneusage", "--older-than", "40") == "5"
    assert UsageRecord.objects.count() == 3
    assert run("usage") == before


def test_pruning_spares_what_quotas_of_a_month_are_counted_from(used):
    refusal("pruneusage", "--older-than", "31", named="40")
    assert UsageRecord.objects.count() == 3


@pytest.mark.parametrize("words", [("request", b"req\xff"), ("weights", "--tenant", b"\xff")])
def test_an_argument_that_is_no_text_is_refused_without_a_stack(words, tmp_path):
    env = {**os.environ, "MADOGUCHI_VAR": str(tmp_path)}
    done = subprocess.run([sys.executable, ROOT / "manage.py", *words], capture_output=True, env=env)
    assert done.returncode == 1
    assert done.stderr.startswith(b"madoguchi: ")
    assert b"Traceback" not in done.stderr


def test_runserver_and_nothing_else_takes_the_server_that_speaks_to_sockets():
    """All commands would import Twisted for it, a third of their time."""

    def manage(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-X", "importtime", ROOT / "manage.py", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True)

    assert "--http_timeout" in manage("runserver", "--help").stdout  # daphne's option
    assert "twisted" not in manage("check", "--help").stderr


def test_runserver_without_daphne_serves_pages_and_warns_that_the_gateway_is_missing(tmp_path):
    port = unused_port()
    hide_daphne = (  # `importlib.util.find_spec` then finds no daphne
        "import runpy, sys; sys.modules['daphne'] = None; sys.argv = ['manage.py', *sys.argv[1:]]; "
        "runpy.run_path('manage.py', run_name='__main__')"
    )
    command = [sys.executable, "-u", "-c", hide_daphne, "runserver", "--noreload", f"127.0.0.1:{port}"]
    server = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "portal.settings", "MADOGUCHI_VAR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with server:
        try:
            assert server.stdout
            printed = "".join(iter(server.stdout.readline, "Quit the server with CONTROL-C.\n"))
            assert "apiproxy.W001" in printed
            connection = HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("GET", "/")
            assert connection.getresponse().status == HTTPStatus.FOUND  # to the sign-in page
        finally:
            server.kill()
