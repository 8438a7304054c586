"""What operators announced, and the house rules that they wrote."""

from dataclasses import dataclass
from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

from portal.demo.plan import NEW, OLD, SMALL
from portal.demo.rows import insert_row
from portal.demo.staff import HOME, Staff
from portal.guide import house_rules
from portal.guide.models import HouseRules
from portal.news.models import Announcement

Level = Announcement.Level
TOKYO = ZoneInfo("Asia/Tokyo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """An announcement: so many days from now, `at` an hour of Tokyo, for `lasts`. `tenants`: only for these."""

    ja: tuple[str, str]  # title and text
    en: tuple[str, str]
    begins: int
    lasts: timedelta
    at: time = time(9)
    level: str = Level.INFO
    ahead: int = 0
    tenants: tuple[str, ...] = ()


STORIES = (
    Story(
        ja=(
            "GPU サーバーの増設が終わりました",
            "東京のサーバーを 1 台増やし、混み合う時間帯の待ち時間が半分ほどになりました。設定の変更は不要です。",
        ),
        en=(
            "New GPU server in Tokyo",
            "With one more server in Tokyo, waits at busy hours are about half of what they were. Nothing to change.",
        ),
        begins=-41,
        lasts=timedelta(days=14),
    ),
    Story(
        ja=(
            "モデルの入れ替えに伴う短い停止",
            "18:30 から 30 分ほど、名古屋のモデルが順に停止しました。作業は完了しています。",
        ),
        en=(
            "Short outage for new model versions",
            "From 18:30 the models in Nagoya stopped one after another. This is done.",
        ),
        begins=-23,
        at=time(18, 30),
        lasts=timedelta(minutes=30),
        level=Level.MAINTENANCE,
        ahead=7,
    ),
    Story(
        ja=(
            f"{SMALL} が使えるようになりました",
            f"短い文の分類や言い換えには、速い `{SMALL}` をお試しください。[モデルの一覧](/models/)から選べます。",
        ),
        en=(
            f"{SMALL} is here",
            f"For sorting and rephrasing short texts try the quick `{SMALL}`, one of [the models](/models/).",
        ),
        begins=-3,
        lasts=timedelta(days=11),
    ),
    Story(
        ja=(
            f"{OLD} の提供終了について",
            f"`{OLD}` は来月で終了します。お使いのプログラムでは、代わりに `default` を指定してください。\n\n"
            f"`{NEW}` は準備中です。",
        ),
        en=(
            f"{OLD} is going away",
            f"`{OLD}` ends next month. Use `default` in your programs instead.\n\n`{NEW}` is being prepared.",
        ),
        begins=-8,
        lasts=timedelta(days=32),
    ),
    Story(
        ja=(
            "電源設備の点検",
            "東京のサーバーが 2 時間停止します。名古屋のモデルは使えます。夜間のバッチは前日までに終えてください。",
        ),
        en=(
            "Inspection of the power supply",
            "The servers in Tokyo stop for two hours. Models in Nagoya go on. Finish batch work the day before.",
        ),
        begins=4,
        at=time(22),
        lasts=timedelta(hours=2),
        level=Level.MAINTENANCE,
        ahead=7,
    ),
    Story(
        ja=("提案書の活用例を追加しました", "東日本営業部の皆さんが作った指示文を[活用例](/use-cases/)に載せました。"),
        en=(
            "New use cases for proposals",
            "Prompts by colleagues of your department are among [the use cases](/use-cases/).",
        ),
        begins=-5,
        lasts=timedelta(days=15),
        tenants=(HOME,),
    ),
)
RULES_JA = """
**入力してよいもの**

- 社内で公開済みの資料、自分で書いた文章、公開されている情報
- 名前や会社名を「A 社」「担当者」に置き換えた相談

**入力してはいけないもの**

- お客様の個人情報、未発表の決算や人事、パスワードやキー
- 「極秘」と書かれた資料（社内サーバーの中で処理されますが、権限のない人の目に触れる文書に混ざることがあります）

**使うとき**

- 送る・公開する・決める前に、数字と固有名詞を元の資料で確かめます
- 法律・税務・安全に関わる判断は、担当部署に確認します
"""
RULES_EN = """
**You may enter**

- papers that are public within the company, your own texts, and public information
- questions in which names are replaced, as “company A” or “the contact”

**Do not enter**

- personal data of customers, results and staff changes that are not announced, passwords or keys
- papers marked “top secret”: models run on our own servers, but an answer may end up where others read it

**When you use an answer**

- compare figures and names with the source before you send, publish or decide anything
- ask the department in charge about law, tax and safety
"""


def create_news(now: datetime, staff: Staff) -> None:
    """Write the announcements, as if each had been written shortly before it was first shown."""
    today = now.astimezone(TOKYO).date()
    for story in STORIES:
        begins = datetime.combine(today + timedelta(days=story.begins), story.at, tzinfo=TOKYO)
        row = insert_row(
            Announcement(
                level=story.level,
                title_ja=story.ja[0],
                text_ja=story.ja[1],
                title_en=story.en[0],
                text_en=story.en[1],
                begins_at=begins,
                ends_at=begins + story.lasts,
                days_ahead=story.ahead,
                shown_from=begins - timedelta(days=story.ahead),
                for_everyone=not story.tenants,
            )
        )
        row.tenants.set([staff.tenants[slug] for slug in story.tenants])
        Announcement.objects.filter(pk=row.pk).update(created_at=row.shown_from - timedelta(hours=2))


def create_rules(now: datetime) -> None:
    insert_row(
        HouseRules(
            pk=house_rules.ROW,
            rules_ja=RULES_JA.strip(),
            rules_en=RULES_EN.strip(),
            contact_ja="DX 推進室 生成 AI 相談窓口（内線 5120、dx-help@aoba.example.com）",
            contact_en="DX promotion office, questions about AI (extension 5120, dx-help@aoba.example.com)",
            edition=3,
        )
    )
    HouseRules.objects.update(changed_at=now - timedelta(days=47))
