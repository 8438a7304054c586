"""Use cases of the company, people they helped, and feedback on answers of its last weeks."""

from datetime import datetime, timedelta
from random import Random

from portal.demo.staff import HOME, Staff
from portal.feedback.models import Feedback
from portal.usage.models import UsageRecord
from portal.use_cases import reactions
from portal.use_cases.models import HelpedMark, UseCase, UseCaseComment
from portal.use_cases.starters import load_starters

COMMENTS = ("助かりました。箇条書きのままでも使えます。", "表の形を指定すると、さらに見やすくなりました。")
COMPLAINTS = ("途中で終わってしまいました。", "もう少し短い回答がよかったです。", "")


def create_use_cases(chance: Random, now: datetime, staff: Staff) -> None:
    load_starters()
    people = staff.members[HOME]
    everyone = list({user.pk: user for members in staff.members.values() for user in members}.values())
    for place, case in enumerate(UseCase.objects.order_by("pk")):
        # The first ones are the best known; some help hardly anyone.
        most = max(3, len(everyone) // (5 + 3 * place) // 4)
        helped = chance.sample(everyone, min(len(everyone), chance.randrange(most // 2, most + 1)))
        HelpedMark.objects.bulk_create(
            HelpedMark(
                use_case=case,
                user=user,
                minutes=chance.choice((None, 5, 10, 15, 20, 30)),
                at=now - timedelta(days=chance.uniform(0.1, 33)),
            )
            for user in helped
        )
        reactions.sum_up(case)
        UseCase.objects.filter(pk=case.pk).update(
            published_at=now - timedelta(days=60 - place),
            opened=chance.randrange(20, 400),
            tried=chance.randrange(5, 120),
        )
        if place < len(COMMENTS):
            UseCaseComment.objects.create(use_case=case, author=people[place], text=COMMENTS[place], at=now)
    create_feedback(chance, now)


def create_feedback(chance: Random, now: datetime) -> None:
    """Give thumbs for every thirtieth of the last answers to people."""
    rows = UsageRecord.objects.filter(user__isnull=False, started_at__gt=now - timedelta(days=7))
    cases = list(UseCase.objects.order_by("pk")[:5])
    given = []
    for row in rows.order_by("pk")[:9000:30]:
        is_up = chance.random() < 0.85
        case = chance.choice(cases) if cases and chance.random() < 0.3 else None
        given.append(
            Feedback(
                request_id=row.request_id,
                key_id=row.key_id,
                user_id=row.user_id,
                tenant_id=row.tenant_id,
                score=1 if is_up else -1,
                comment="" if is_up else chance.choice(COMPLAINTS),
                at=row.started_at + timedelta(minutes=1),
                model=row.model,
                use_case=case,
                use_case_version=1 if case else None,
            )
        )
    Feedback.objects.bulk_create(given)
