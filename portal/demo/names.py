"""Names of people who do not exist: common family and given names, drawn and combined. Pure.

Family names are as frequent as in Japan: the first ones are the most common, so there are namesakes as in real life.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

# kanji:romaji, the most common first
FAMILY = """
佐藤:sato 鈴木:suzuki 高橋:takahashi 田中:tanaka 伊藤:ito 渡辺:watanabe 山本:yamamoto 中村:nakamura 小林:kobayashi
加藤:kato 吉田:yoshida 山田:yamada 佐々木:sasaki 山口:yamaguchi 松本:matsumoto 井上:inoue 木村:kimura 林:hayashi
斎藤:saito 清水:shimizu 山崎:yamazaki 森:mori 池田:ikeda 橋本:hashimoto 阿部:abe 石川:ishikawa 山下:yamashita
中島:nakajima 石井:ishii 小川:ogawa 前田:maeda 岡田:okada 長谷川:hasegawa 藤田:fujita 後藤:goto 近藤:kondo
村上:murakami 遠藤:endo 青木:aoki 坂本:sakamoto 福田:fukuda 太田:ota 西村:nishimura 藤井:fujii 金子:kaneko
岡本:okamoto 藤原:fujiwara 三浦:miura 中野:nakano 中川:nakagawa 原田:harada 松田:matsuda 竹内:takeuchi 小野:ono
田村:tamura 中山:nakayama 和田:wada 石田:ishida 森田:morita 上田:ueda 原:hara 内田:uchida 柴田:shibata 酒井:sakai
宮崎:miyazaki 横山:yokoyama 高木:takagi 安藤:ando 宮本:miyamoto 大野:ohno 小島:kojima 工藤:kudo 谷口:taniguchi
今井:imai 高田:takada 増田:masuda 丸山:maruyama 杉山:sugiyama 村田:murata 大塚:otsuka 新井:arai 小山:koyama
平野:hirano 藤本:fujimoto 河野:kono 上野:ueno 野口:noguchi 武田:takeda 松井:matsui 千葉:chiba 菅原:sugawara
岩崎:iwasaki 久保:kubo 木下:kinoshita 佐野:sano 野村:nomura 松尾:matsuo 市川:ichikawa 菊地:kikuchi 杉本:sugimoto
"""
GIVEN = """
健太:kenta 翔太:shota 大輔:daisuke 直樹:naoki 拓也:takuya 誠:makoto 健一:kenichi 達也:tatsuya 浩:hiroshi 隆:takashi
和也:kazuya 裕介:yusuke 亮:ryo 剛:tsuyoshi 修:osamu 学:manabu 大樹:daiki 涼太:ryota 悠斗:yuto 蓮:ren 陽介:yosuke
雄一:yuichi 浩二:koji 茂:shigeru 博:hiroshi 淳:jun 聡:satoshi 豊:yutaka 一郎:ichiro 慎吾:shingo 康平:kohei
智也:tomoya 優太:yuta 航:wataru 拓海:takumi 颯太:sota 英樹:hideki 正樹:masaki 哲也:tetsuya 孝之:takayuki
美咲:misaki 陽子:yoko 愛:ai 恵:megumi 由美子:yumiko 久美子:kumiko 智子:tomoko 裕子:yuko 真由美:mayumi 直美:naomi
さくら:sakura 七海:nanami 彩:aya 優花:yuka 千尋:chihiro 麻衣:mai 香織:kaori 瞳:hitomi 舞:mai 葵:aoi 結衣:yui
美穂:miho 京子:kyoko 明美:akemi 里奈:rina 奈々:nana 遥:haruka 純子:junko 綾子:ayako 友美:tomomi 早紀:saki
恵子:keiko 理恵:rie 沙織:saori 真理:mari 亜美:ami 莉子:riko 美優:miyu 杏奈:anna 和子:kazuko 典子:noriko
"""
EUROPEAN_FAMILY = """
Müller:mueller Schmidt:schmidt Schneider:schneider Fischer:fischer Weber:weber Meyer:meyer Wagner:wagner
Becker:becker Schulz:schulz Hoffmann:hoffmann Koch:koch Richter:richter Klein:klein Wolf:wolf Schröder:schroeder
Neumann:neumann Schwarz:schwarz Krüger:krueger Hofmann:hofmann Lange:lange Novák:novak Kowalski:kowalski Rossi:rossi
Martin:martin Dubois:dubois Jansen:jansen Larsen:larsen Weiß:weiss Köhler:koehler Braun:braun
"""
EUROPEAN_GIVEN = """
Anna:anna Lukas:lukas Marie:marie Felix:felix Laura:laura Jonas:jonas Julia:julia Paul:paul Sophie:sophie Max:max
Lena:lena Tim:tim Sarah:sarah Jan:jan Katharina:katharina Stefan:stefan Nina:nina Tobias:tobias Eva:eva Marco:marco
Claire:claire Piotr:piotr Jana:jana Andreas:andreas Petra:petra Martin:martin Ines:ines Thomas:thomas
"""


@dataclass(frozen=True, slots=True)
class Name:
    """The name of a person."""

    family: str
    given: str
    user: str  # romaji, unique in the company


def japanese_names(chance: Random) -> Iterator[Name]:
    """Yield names of Japanese people without end, with unique user names."""
    return _draw_names(chance, _pairs(FAMILY), _pairs(GIVEN), set())


def european_names(chance: Random) -> Iterator[Name]:
    return _draw_names(chance, _pairs(EUROPEAN_FAMILY), _pairs(EUROPEAN_GIVEN), set())


def _draw_names(
    chance: Random, families: list[tuple[str, str]], given: list[tuple[str, str]], taken: set[str]
) -> Iterator[Name]:
    weights = [1 / (place + 6) for place in range(len(families))]
    while True:
        family, family_name = chance.choices(families, weights)[0]
        first, first_name = chance.choice(given)
        user, number = f"{family_name}.{first_name}", 1
        while user in taken:
            number += 1
            user = f"{family_name}.{first_name}{number}"
        taken.add(user)
        yield Name(family, first, user)


def _pairs(text: str) -> list[tuple[str, str]]:
    pairs = (word.partition(":") for word in text.split())
    return [(shown, typed) for shown, _, typed in pairs]
