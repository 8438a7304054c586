"""Notices by mail, taken by a real mail server."""

import smtplib
import socket
from datetime import timedelta

import environs
import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone
from django.utils.translation import override

from portal.notifications import mail_settings, mailing
from portal.notifications.models import Notice
from portal.web.notify import notify
from tests.installation import installed
from tests.mail import letterbox  # noqa: F401 - a fixture
from tests.portal.notifications import sentences

pytestmark = pytest.mark.django_db


@pytest.fixture
def connect(settings, monkeypatch):
    """Connect the portal to the mail server at this URL."""

    def connect(url: str) -> None:
        monkeypatch.setenv("EMAIL_URL", url)
        for name, value in mail_settings.read_mail_settings(environs.FileAwareEnv()).items():
            setattr(settings, name, value)
        settings.SENDS_MAIL = True
        settings.PUBLIC_URL = "https://llm.example.com"

    return connect


@pytest.fixture
def box(letterbox, connect):  # noqa: F811
    connect(letterbox.url)
    return letterbox


LEFT = {"tenant": "研究部", "keys": 0}
GRANTED = {"by": "Bob", "unit": "tokens", "window": "day", "model": "", "amount": 9, "granted": 9, "note": ""}


def left(users) -> None:
    notify(users, "membership-ended", "research", path="/keys/", **LEFT)


def request_is_granted(user) -> None:
    notify([user], "request-decided", "1", **GRANTED)


def test_a_notice_comes_by_mail_in_the_reader_s_language(box, alice, bob, settings):
    alice.language = "en"
    alice.save()
    left([alice, bob])
    assert mailing.send_mails(timezone.now()) == 2
    mails = {mail["To"]: mail for mail in box.mails}
    english, japanese = mails["alice@example.com"], mails["bob@example.com"]
    for mail, language in ((english, "en"), (japanese, "ja")):
        with override(language):
            site = str(settings.SITE_NAME)
        assert mail["Subject"].strip() == f"[{site}] {sentences.title('membership-ended', language, **LEFT)}"
        assert sentences.text("membership-ended", language, **LEFT) in mail.get_content()
    assert english["Subject"] != japanese["Subject"]
    assert "https://llm.example.com/keys/" in english.get_content()
    assert english["From"] == settings.DEFAULT_FROM_EMAIL


def test_it_comes_once(box, alice):
    left([alice])
    assert [mailing.send_mails(timezone.now()) for _ in range(2)] == [1, 0]
    assert alice.notices.get().mailed_at
    assert len(box.mails) == 1


def test_all_that_is_new_to_a_person_is_one_mail(box, alice):
    alice.language = "en"
    alice.save()
    left([alice])
    request_is_granted(alice)
    assert mailing.send_mails(timezone.now()) == 1
    [mail] = box.mails
    assert "2" in mail["Subject"]
    first, second = (
        sentences.title("membership-ended", "en", **LEFT),
        sentences.title("request-decided", "en", **GRANTED),
    )
    assert mail.get_content().index(first) < mail.get_content().index(second)


@pytest.mark.parametrize("reason", ["read", "unwanted", "without-address", "old"])
def test_who_need_not_be_mailed_is_not(box, alice, reason):
    left([alice])
    now = timezone.now()
    if reason == "read":
        alice.notices.update(read_at=now)
    elif reason == "unwanted":
        alice.wants_mail = False
    elif reason == "without-address":
        alice.email = ""
    else:
        now += timedelta(days=2, seconds=1)
    alice.save()
    assert mailing.send_mails(now) == 0
    assert box.mails == []


def test_who_may_no_longer_sign_in_is_told_that_alone(box, alice):
    left([alice])
    request_is_granted(alice)
    alice.is_active = False
    alice.language = "en"
    alice.save()
    assert mailing.send_mails(timezone.now()) == 1
    assert sentences.title("membership-ended", "en", **LEFT) in box.mails[0].get_content()
    assert sentences.title("request-decided", "en", **GRANTED) not in box.mails[0].get_content()


def test_what_cannot_be_read_is_no_mail_and_in_nobody_s_way(box, alice, bob):
    Notice.objects.create(user=alice, kind="membership-ended", ref="x", facts={"tenant": "without the rest"})
    left([bob])
    assert mailing.send_mails(timezone.now()) == 1
    assert [mail["To"] for mail in box.mails] == ["bob@example.com"]


def test_whom_the_server_does_not_know_stands_in_nobody_s_way(box, alice, bob):
    box.refuses["alice@example.com"] = "550 no such person"
    left([alice, bob])
    assert mailing.send_mails(timezone.now()) == 1
    assert [mail["To"] for mail in box.mails] == ["bob@example.com"]
    assert mailing.send_mails(timezone.now()) == 0


def test_who_is_refused_for_now_is_tried_again(box, alice):
    box.refuses["alice@example.com"] = "451 try again later"
    left([alice])
    assert mailing.send_mails(timezone.now()) == 0
    box.refuses.clear()
    assert mailing.send_mails(timezone.now()) == 1


def test_a_server_that_is_away_loses_nothing(letterbox, connect, alice):  # noqa: F811
    left([alice])
    with socket.socket() as nobody:  # has a port and does not listen
        nobody.bind(("127.0.0.1", 0))
        connect(f"smtp://127.0.0.1:{nobody.getsockname()[1]}")
        with pytest.raises(CommandError, match=r"127\.0\.0\.1"):
            call_command("sendnotices")
    assert alice.notices.get().mailed_at is None
    connect(letterbox.url)
    call_command("sendnotices")
    assert len(letterbox.mails) == 1


def test_a_fault_on_the_way_loses_nothing(box, alice, monkeypatch):
    left([alice])
    monkeypatch.setattr(box, "handle_DATA", broken)
    with pytest.raises(mailing.MailServerUnavailable):
        mailing.send_mails(timezone.now())
    monkeypatch.undo()
    assert mailing.send_mails(timezone.now()) == 1


async def broken(*_: object) -> str:
    return "421 going down"


def test_without_a_mail_server_nothing_is_sent(alice, settings):
    assert settings.SENDS_MAIL is False
    left([alice])
    assert mailing.send_mails(timezone.now()) == 0
    assert Notice.objects.get().mailed_at is None


def test_without_a_public_address_a_mail_has_no_links(box, alice, settings):
    settings.PUBLIC_URL = ""
    left([alice])
    mailing.send_mails(timezone.now())
    assert "http" not in box.mails[0].get_content()


def test_what_a_person_writes_cannot_forge_a_header(box, alice):
    facts = {"key": "x\r\nBcc: all@example.com", "prefix": "mdg_AbCdEfGh", "tenant": "研究部", "at": timezone.now()}
    notify([alice], "key-expired", "x", **facts)
    mailing.send_mails(timezone.now())
    assert [mail["Bcc"] for mail in box.mails] == [None]


class TestSettings:
    def read(self, monkeypatch, url: str) -> dict:
        monkeypatch.setenv("EMAIL_URL", url)
        return mail_settings.read_mail_settings(environs.FileAwareEnv())

    def test_a_mail_server_is_read_from_one_variable(self, monkeypatch):
        found = self.read(monkeypatch, "smtp://me:p%40ss@mail.example.com:587/?tls=True")
        wanted = {
            "EMAIL_HOST": "mail.example.com", "EMAIL_PORT": 587, "EMAIL_HOST_USER": "me",
            "EMAIL_HOST_PASSWORD": "p@ss", "EMAIL_USE_TLS": True, "EMAIL_TIMEOUT": 10,
        }  # fmt: skip
        assert wanted.items() <= found.items()

    def test_the_variable_may_be_in_a_file(self, monkeypatch, tmp_path):
        file = tmp_path / "url"
        file.write_text("smtp://mail.example.com\n")
        monkeypatch.setenv("EMAIL_URL_FILE", str(file))
        found = mail_settings.read_mail_settings(environs.FileAwareEnv(strip_whitespace=True))
        assert found["EMAIL_HOST"] == "mail.example.com"

    def test_none_is_no_mail(self):
        assert mail_settings.read_mail_settings(environs.FileAwareEnv()) == {}

    @pytest.mark.parametrize("url", ["http://mail", "mail.example.com", "smtp://mail:abc"])
    def test_what_is_no_mail_server_is_refused(self, monkeypatch, url):
        with pytest.raises(environs.EnvError, match="EMAIL_URL"):
            self.read(monkeypatch, url)


def test_the_mail_server_of_these_tests_is_a_real_one(letterbox):  # noqa: F811
    with smtplib.SMTP("127.0.0.1", letterbox.controller.port, timeout=10) as connection:
        assert connection.noop()[0] == 250


# A person whose key ends in three days.
FURNISH = """
from datetime import timedelta
from django.utils import timezone
from portal.accounts.models import Membership, Tenant, User
from portal.keys.lifecycle import issue_key
from portal.keys.models import ApiKey
tenant = Tenant.objects.create(slug="research", name="研究部")
user = User.objects.create_user("alice", "alice@example.com", "correct horse", language="en")
Membership.objects.create(user=user, tenant=tenant)
key, _ = issue_key(tenant=tenant, user=user, name="laptop", expires_at=timezone.now() + timedelta(days=2.5))
ApiKey.objects.filter(pk=key.pk).update(created_at=timezone.now() - timedelta(days=87))
print(key.prefix)
"""


def test_a_whole_installation_mails_what_comes_by_itself(letterbox, tmp_path):  # noqa: F811
    """The task's own process, with nothing but its environment."""
    environment = {"EMAIL_URL": letterbox.url, "PUBLIC_URL": "https://llm.example.com", "MAIL_FROM": "it@example.com"}
    with installed(tmp_path, **environment) as installation:
        prefix = installation.manage("shell", "-v0", "-c", FURNISH)
        assert installation.manage("sendnotices") == "1 mailed"
        assert installation.manage("sendnotices") == "0 mailed"
    [mail] = letterbox.mails
    assert (mail["From"], mail["To"]) == ("it@example.com", "alice@example.com")
    assert sentences.title("key-expires", "en", key="laptop", days=3) in mail["Subject"]
    assert f"https://llm.example.com/keys/{prefix}/" in mail.get_content()
