"""Use cases of the company, people they helped, and feedback on answers of its last weeks."""

from datetime import datetime, timedelta
from random import Random

from portal.demo.rows import insert_row
from portal.demo.staff import HOME, Staff
from portal.feedback.models import Feedback
from portal.usage.models import UsageRecord
from portal.use_cases import reactions
from portal.use_cases.content import TextContent, UseCaseContent
from portal.use_cases.models import HelpedMark, UseCase, UseCaseComment, UseCaseVersion
from portal.use_cases.publishing import write_version
from portal.use_cases.starters import load_starters
from portal.use_cases.variables import Variable

State = UseCaseVersion.State

COMMENTS = ("助かりました。箇条書きのままでも使えます。", "表の形を指定すると、さらに見やすくなりました。")
OWN_CASES = (  # each with how many days ago it was proposed
    (
        UseCaseContent(
            kind="write",
            departments=("sales",),
            texts=(
                TextContent(
                    language="ja",
                    title="商談後のお礼メール",
                    summary="商談メモから、その日のうちに送るお礼メールを作ります。",
                    expected_input="商談メモ（箇条書きで構いません）。お客様の個人情報は入れないでください。",
                    prompt="次の商談メモをもとに、{{tone}}お礼メールを書いてください。次回までの宿題を箇条書きで入れます。\n\n{{memo}}",
                    variables=(
                        Variable(
                            name="tone", label="文体", kind="choice", example="丁寧な", choices=("丁寧な", "簡潔な")
                        ),
                        Variable(
                            name="memo",
                            label="商談メモ",
                            kind="text",
                            example="・新型ポンプの見積もりを希望\n・納期は 3 月中\n・次回は工場見学",
                        ),
                    ),
                ),
            ),
        ),
        9,
    ),
    (
        UseCaseContent(
            kind="write",
            departments=("sales", "planning"),
            texts=(
                TextContent(
                    language="ja",
                    title="展示会の名刺メモを整理",
                    summary="名刺の裏に書いたメモを、優先度と次の行動の表にまとめます。",
                    prompt="次のメモを「会社・関心・優先度・次の行動」の表にまとめてください。\n\n{{memo}}",
                    variables=(
                        Variable(
                            name="memo",
                            label="メモ",
                            kind="text",
                            example="A 社：省エネに関心、年内に訪問\nB 社：資料のみ",
                        ),
                    ),
                ),
            ),
        ),
        4,
    ),
    (
        UseCaseContent(
            kind="write",
            departments=("sales",),
            texts=(
                TextContent(
                    language="ja",
                    title="値上げのお知らせ文の下書き",
                    summary="値上げの理由と時期から、取引先へのお知らせ文を下書きします。",
                    prompt="次の条件で、取引先への値上げのお知らせ文を下書きしてください。\n\n{{facts}}",
                    variables=(
                        Variable(
                            name="facts", label="条件", kind="text", example="原材料の高騰、来年 4 月から、平均 5 %"
                        ),
                    ),
                ),
            ),
        ),
        1,
    ),
)
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
    create_own_cases(now, staff)


def create_own_cases(now: datetime, staff: Staff) -> None:
    """Write what people of the demo admin's tenant have proposed lately: two are published, one waits."""
    tenant, members, admin = staff.tenants[HOME], staff.members[HOME], staff.admin(HOME)
    for place, (content, days) in enumerate(OWN_CASES):
        author, at = members[(2 + place) % len(members)], now - timedelta(days=days)
        case = insert_row(UseCase(name=content.name, tenant=tenant, author=author, created_at=at))
        is_published = place < len(OWN_CASES) - 1
        version = write_version(
            case, content, number=1, author=author, state=State.PUBLISHED if is_published else State.PROPOSED
        )
        decided = {"decided_by": admin, "decided_at": at + timedelta(hours=4)} if is_published else {}
        UseCaseVersion.objects.filter(pk=version.pk).update(created_at=at, **decided)
        if not is_published:
            continue
        HelpedMark.objects.bulk_create(
            HelpedMark(use_case=case, user=user, minutes=minutes, at=at + timedelta(days=1, hours=number))
            for number, (user, minutes) in enumerate(zip(members[6:11], (15, 20, None, 10, 15), strict=False))
        )
        reactions.sum_up(case)
        counts = {"opened": 31 - 9 * place, "tried": 14 - 5 * place}
        UseCase.objects.filter(pk=case.pk).update(current=version, published_at=at + timedelta(hours=4), **counts)


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
