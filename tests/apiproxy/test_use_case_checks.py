"""The nightly checks of use cases through a real gateway: what is asked and found, and that no answer is stored."""

from django.core.management import call_command

from portal.keys.models import ApiKey
from portal.usage.models import UsageRecord
from portal.use_cases.models import UseCaseCheck
from tests.talkative_engine import Reply, talkative_engine
from tests.use_cases import text_content, use_case
from tests.waiting import until

Outcome = UseCaseCheck.Outcome
REPLIES = {
    "Answer politely:\nWhen do you open?": Reply(pieces=("We ", "open ", "at ", "nine.")),
    "Refuse": Reply(pieces=("I'm sorry, ", "but I can't help with that.")),
    "Nothing": Reply(pieces=()),
    "Fail": Reply(pieces=(), status=500),
}


def test_published_cases_are_checked_by_the_models_own_answers(counter, settings, alice, bob, research, capsys):
    fine = use_case(alice, research, publisher=bob, model="fake")
    for prompt in ("Refuse", "Nothing", "Fail"):
        use_case(alice, research, text_content(prompt=prompt, variables=()), publisher=bob, model="fake")
    settings.GATEWAY_URL, settings.CANARY_HOUR = counter.url, 3
    with talkative_engine(REPLIES.__getitem__) as engine:
        replica = counter.model.replica_set.get()
        counter.model.url = replica.url = engine.url
        counter.model.save()
        replica.save()
        counter.wait_for_catalogue()

        call_command("checkusecases", "--due")

        rows = UseCaseCheck.objects.order_by("use_case_id")
        assert [row.outcome for row in rows] == [Outcome.FINE, Outcome.REFUSED, Outcome.EMPTY, Outcome.FAILED]
        row = UseCaseCheck.objects.get(use_case=fine)
        assert (row.model, row.tokens, row.obstacle) == ("fake", 4, "")
        assert "nine" not in str(list(UseCaseCheck.objects.values()))
        asked = len(engine.requests)
        capsys.readouterr()
        call_command("checkusecases", "--due")
        assert capsys.readouterr().out.strip() == "nothing is due"
        assert len(engine.requests) == asked
    # They are calls of Madoguchi's own key, of the class that waits for everyone else.
    until(lambda: UsageRecord.objects.count() >= 4)
    assert set(UsageRecord.objects.values_list("key_id", flat=True)) == {
        ApiKey.objects.get(key_class=ApiKey.Class.CANARY).pk
    }
