"""What the company is: its tenants, the services that they run, and the models of its own GPU hosts. Only values."""

from dataclasses import dataclass, field

CHAT, CODE, LARGE = "ezo-9b", "qwen2.5-coder-32b", "llama-3.3-swallow-70b"
EMBEDDING, BGE, RERANK, WHISPER = "ruri-v3-310m", "bge-m3", "bge-reranker-v2-m3", "whisper-large-v3-turbo"
SMALL, VISION, OLD, NEW = "gemma-3-4b-it", "qwen2.5-vl-7b", "elyza-llama-3-8b", "gpt-oss-120b"
PRECISE = "qwen2.5-72b"
NEW_ADDED = 6.2  # days ago

OFFICE_MIX = {CHAT: 62, LARGE: 28, SMALL: 6, VISION: 3, OLD: 1}
WRITERS_MIX = {LARGE: 55, CHAT: 38, VISION: 4, OLD: 3}
ENGINEERS_MIX = {CODE: 58, LARGE: 22, CHAT: 14, EMBEDDING: 4, SMALL: 2}
RESEARCH_MIX = {LARGE: 42, CODE: 26, CHAT: 18, EMBEDDING: 7, VISION: 5, SMALL: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Department:
    """A tenant."""

    slug: str
    name: str
    size: int  # its part of all people
    adoption: float = 0.5  # the part of its people who have a key in the end
    calls: float = 2.4  # of a typical one of these on a working day
    mix: dict[str, int] = field(default_factory=lambda: OFFICE_MIX)
    zone: str = "Asia/Tokyo"
    key_days: int | None = 180
    closing: float = 1.0  # how much more at the end of a month
    joint: bool = False  # a project, whose people belong to other tenants as well


DEPARTMENTS = (
    Department(slug="corporate-planning", name="経営企画部", size=60, adoption=0.62, mix=WRITERS_MIX, closing=1.3),
    Department(slug="general-affairs", name="総務部", size=70, adoption=0.46),
    Department(slug="human-resources", name="人事部", size=60, adoption=0.5),
    Department(slug="accounting", name="経理部", size=80, adoption=0.48, closing=1.8),
    Department(slug="legal", name="法務・知的財産部", size=40, adoption=0.68, calls=3.2, mix=WRITERS_MIX, key_days=90),
    Department(slug="information-systems", name="情報システム部", size=90, adoption=0.9, calls=3.6, mix=ENGINEERS_MIX),
    Department(slug="dx-promotion", name="DX 推進室", size=40, adoption=0.95, calls=4.2, mix=RESEARCH_MIX),
    Department(slug="sales-east", name="東日本営業部", size=220, adoption=0.42, calls=2.0, closing=1.25),
    Department(slug="sales-west", name="西日本営業部", size=180, adoption=0.36, calls=1.8, closing=1.25),
    Department(slug="overseas-sales", name="海外営業部", size=90, adoption=0.64, calls=3.0, mix=WRITERS_MIX),
    Department(slug="marketing", name="マーケティング部", size=70, adoption=0.7, calls=3.2, mix=WRITERS_MIX),
    Department(slug="customer-support", name="お客様相談センター", size=140, adoption=0.4, calls=2.2),
    Department(slug="research", name="研究開発本部", size=200, adoption=0.74, calls=3.4, mix=RESEARCH_MIX),
    Department(slug="product-design", name="製品設計部", size=210, adoption=0.52, mix=RESEARCH_MIX),
    Department(slug="production-engineering", name="生産技術部", size=190, adoption=0.34, calls=1.9),
    Department(slug="quality", name="品質保証部", size=110, adoption=0.44),
    Department(slug="procurement", name="購買部", size=70, adoption=0.4),
    Department(
        slug="aoba-software",
        name="青葉ソフトウェア株式会社",
        size=160,
        adoption=0.92,
        calls=4.6,
        mix=ENGINEERS_MIX,
        key_days=90,
    ),
    Department(
        slug="aoba-europe",
        name="Aoba Europe GmbH",
        size=70,
        adoption=0.6,
        calls=2.8,
        mix=WRITERS_MIX,
        zone="Europe/Berlin",
        key_days=365,
    ),
    Department(slug="skill-transfer", name="技術伝承プロジェクト", size=0, adoption=0.6, calls=1.2, joint=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service key."""

    tenant: str
    service: str
    name: str
    purpose: str
    mix: dict[str, int]
    hours: str  # as in `traffic.HOURS`
    calls: int  # on a working day in the end
    prompt: int  # typical tokens
    answer: int  # typical tokens
    since: int  # days ago
    weekends: float = 0.0  # the calls on other days, as a share of those on a working day
    batch: bool = False
    callers: int = 0  # how many end users it reports
    networks: tuple[str, ...] = ()
    client: str = "OpenAI/Python"


SERVICES = (
    Service(
        tenant="general-affairs",
        service="Dify",
        name="社内 FAQ ボット",
        purpose="就業規則・出張・備品などの問い合わせに社内文書から回答します（Dify で運用）。",
        mix={CHAT: 60, EMBEDDING: 30, RERANK: 10},
        hours="office",
        calls=620,
        prompt=2600,
        answer=240,
        since=86,
        callers=420,
        networks=("10.24.8.0/24",),
        client="python-httpx",
    ),
    Service(
        tenant="information-systems",
        service="Open WebUI",
        name="全社チャット（Open WebUI）",
        purpose="ブラウザーで使う全社向けのチャット画面です。",
        mix={CHAT: 58, LARGE: 36, VISION: 6},
        hours="office",
        calls=880,
        prompt=900,
        answer=380,
        since=74,
        weekends=0.06,
        callers=640,
        networks=("10.24.8.20/32", "10.24.8.21/32"),
        client="aiohttp",
    ),
    Service(
        tenant="information-systems",
        service="batch",
        name="夜間バッチ：議事録の要約",
        purpose="前日に録音された会議を文字に起こし、要約して共有フォルダーに置きます。",
        mix={WHISPER: 34, LARGE: 66},
        hours="night",
        calls=210,
        prompt=6200,
        answer=720,
        since=80,
        batch=True,
        networks=("10.24.9.0/24",),
    ),
    Service(
        tenant="dx-promotion",
        service="RAG",
        name="RAG 索引の更新",
        purpose="共有フォルダーと社内 Wiki の変更分を毎朝埋め込みに変換します。",
        mix={EMBEDDING: 90, BGE: 10},
        hours="dawn",
        calls=520,
        prompt=7400,
        answer=0,
        since=88,
        weekends=0.35,
        batch=True,
        networks=("10.24.9.0/24",),
    ),
    Service(
        tenant="sales-east",
        service="Dify",
        name="商談メモの整理",
        purpose="商談の音声メモから議事録と次の行動をまとめ、営業支援システムに登録します。",
        mix={CHAT: 64, WHISPER: 16, LARGE: 20},
        hours="office",
        calls=110,
        prompt=1900,
        answer=420,
        since=52,
        callers=74,
        networks=("10.24.8.0/24",),
        client="python-httpx",
    ),
    Service(
        tenant="sales-east",
        service="batch",
        name="日報の要約（毎朝）",
        purpose="前日の日報を支店ごとに要約し、支店長にメールで届けます。",
        mix={LARGE: 100},
        hours="dawn",
        calls=24,
        prompt=5200,
        answer=640,
        since=31,
        batch=True,
    ),
    Service(
        tenant="customer-support",
        service="Dify",
        name="オペレーター回答支援",
        purpose="お客様の質問に近い過去の回答を探し、返信の下書きを作ります。",
        mix={CHAT: 48, LARGE: 14, EMBEDDING: 26, RERANK: 12},
        hours="counter",
        calls=540,
        prompt=3100,
        answer=310,
        since=64,
        weekends=0.55,
        callers=96,
        networks=("10.31.4.0/22",),
        client="python-httpx",
    ),
    Service(
        tenant="customer-support",
        service="batch",
        name="通話の文字起こし",
        purpose="通話録音を夜間に文字に起こし、応対品質の確認に使います。",
        mix={WHISPER: 88, CHAT: 12},
        hours="night",
        calls=160,
        prompt=2100,
        answer=900,
        since=41,
        weekends=0.5,
        batch=True,
    ),
    Service(
        tenant="aoba-software",
        service="CI",
        name="コードレビュー（CI）",
        purpose="プルリクエストごとに変更点を読み、指摘をコメントします。",
        mix={CODE: 92, LARGE: 8},
        hours="office",
        calls=240,
        prompt=8800,
        answer=640,
        since=83,
        callers=70,
        client="OpenAI/JS",
    ),
    Service(
        tenant="research",
        service="RAG",
        name="特許・論文検索",
        purpose="特許公報と論文を意味で検索します。",
        mix={BGE: 62, RERANK: 24, LARGE: 14},
        hours="office",
        calls=260,
        prompt=2900,
        answer=260,
        since=57,
        callers=130,
    ),
    Service(
        tenant="quality",
        service="batch",
        name="不具合報告の分類",
        purpose="不具合報告を原因ごとに分類し、毎朝一覧にします。",
        mix={CHAT: 85, EMBEDDING: 15},
        hours="night",
        calls=130,
        prompt=1500,
        answer=90,
        since=70,
        weekends=0.2,
        batch=True,
    ),
    Service(
        tenant="production-engineering",
        service="agent",
        name="設備アラームの要約",
        purpose="設備のアラームを要約し、対処の候補を班長に送ります。",
        mix={SMALL: 70, CHAT: 30},
        hours="machines",
        calls=190,
        prompt=1100,
        answer=130,
        since=49,
        weekends=0.8,
        networks=("10.40.0.0/16",),
        client="Go-http-client",
    ),
    Service(
        tenant="overseas-sales",
        service="translation",
        name="見積書・契約書の翻訳",
        purpose="海外の取引先との文書を日英・日独で翻訳します。",
        mix={LARGE: 100},
        hours="office",
        calls=90,
        prompt=2800,
        answer=2300,
        since=62,
        callers=44,
    ),
    Service(
        tenant="accounting",
        service="batch",
        name="請求書の読み取り",
        purpose="PDF の請求書から金額・取引先・期日を読み取ります。",
        mix={VISION: 100},
        hours="office",
        calls=70,
        prompt=1900,
        answer=180,
        since=38,
        batch=True,
    ),
    Service(
        tenant="skill-transfer",
        service="RAG",
        name="熟練者インタビュー検索",
        purpose="熟練者の作業の動画と記録を検索します。",
        mix={EMBEDDING: 58, RERANK: 16, LARGE: 26},
        hours="office",
        calls=60,
        prompt=2300,
        answer=330,
        since=33,
        callers=38,
    ),
    Service(
        tenant="aoba-europe",
        service="Open WebUI",
        name="Open WebUI (Stuttgart)",
        purpose="Chat for everybody in the Stuttgart office.",
        mix={LARGE: 70, CHAT: 30},
        hours="office",
        calls=120,
        prompt=1000,
        answer=420,
        since=45,
        callers=52,
        networks=("172.20.16.0/20",),
        client="aiohttp",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedModel:
    """A model as it is served."""

    name: str
    ja: str
    en: str
    engine: str = "vllm"
    task: str = "chat"
    first: int = 200  # ms to its first token when no other request waits
    speed: float = 50.0  # tokens per second of one answer
    context: int = 8192
    slots: int = 16
    memory: tuple[float, float, float] = (10.0, 4.0, 1.5)  # GB on each device: weights, cache, overhead
    on: tuple[tuple[str, tuple[int, ...]], ...] = ()  # host and devices of each replica
    nodes: int = 1  # hosts over which each replica is split: `on` has its ranks
    moved: bool = False  # from SILENT, as it has no host of its own
    aliases: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    architecture: str = ""
    parameters: int = 0
    quantisation: str = ""
    tenants: tuple[str, ...] = ()  # only for these; empty: for all
    state: str = "ready"


HOSTS: dict[str, tuple[str, float, int]] = {  # name: card, its GB, how many
    "gpu-tokyo-01": ("NVIDIA H100 80GB HBM3", 85.5, 4),
    "gpu-tokyo-02": ("NVIDIA L40S", 48.3, 4),
    "gpu-nagoya-01": ("NVIDIA RTX 6000 Ada Generation", 51.5, 2),
    "gpu-nagoya-02": ("NVIDIA GeForce RTX 4090", 25.8, 2),
}
# The controller runs on the first one; the others form a cluster, with one more that is silent.
CONTROLLER = "gpu-tokyo-01"
SILENT = "gpu-osaka-01"
SILENT_HOST = ("NVIDIA GeForce RTX 4090", 25.8, 2)
# Two that have one model together, and one whose card is booked in Ray by work that is not Madoguchi's.
JOINT_HOSTS = {"gpu-tokyo-03": ("NVIDIA L40S", 48.3, 4), "gpu-tokyo-04": ("NVIDIA L40S", 48.3, 4)}
SHARED, SHARED_HOST, BOOKED_BY_OTHERS = "gpu-osaka-02", ("NVIDIA L40S", 48.3, 1), 36.0  # GB
ENGINES = (
    SimulatedModel(
        name=CHAT,
        ja="EZO-Common-9B（FP8）：日本語の文章作成・要約・質問応答に。まずはこれをお使いください。",
        en="EZO-Common-9B (FP8): writing, summaries and questions in Japanese. Begin with this one.",
        first=170,
        speed=78,
        memory=(10.2, 21.0, 1.8),
        on=(("gpu-tokyo-02", (0,)), ("gpu-tokyo-02", (1,))),
        aliases=("default", "gpt-4o-mini"),
        args=("--quantization=fp8_per_tensor",),
        architecture="Gemma2ForCausalLM",
        parameters=9_241_705_984,
        quantisation="FP8",
    ),
    SimulatedModel(
        name=LARGE,
        ja="Swallow 70B（AWQ）：難しい質問や長い文章、翻訳に。回答はやや遅めです。",
        en="Swallow 70B (AWQ): for hard questions, long texts and translation, but slower.",
        first=640,
        speed=34,
        context=16384,
        memory=(19.9, 52.0, 2.6),
        on=(("gpu-tokyo-01", (0, 1)), ("gpu-tokyo-01", (2, 3))),
        aliases=("gpt-4o",),
        args=("--enable-auto-tool-choice", "--tool-call-parser=llama3_json"),
        architecture="LlamaForCausalLM",
        parameters=70_553_706_496,
        quantisation="AWQ-INT4",
    ),
    SimulatedModel(
        name=CODE,
        ja="Qwen2.5 Coder 32B（AWQ）：プログラムの作成・説明・レビューに。",
        en="Qwen2.5 Coder 32B (AWQ): writes, explains and reviews programs.",
        first=360,
        speed=46,
        context=32768,
        memory=(19.3, 21.5, 2.2),
        on=(("gpu-tokyo-02", (2,)), ("gpu-nagoya-01", (0,))),
        aliases=("coder",),
        architecture="Qwen2ForCausalLM",
        parameters=32_763_876_352,
        quantisation="AWQ-INT4",
    ),
    SimulatedModel(
        name=VISION,
        ja="Qwen2.5-VL 7B：画像や PDF のページを読んで答えます。",
        en="Qwen2.5-VL 7B: reads pictures and pages of PDFs.",
        first=520,
        speed=62,
        memory=(16.6, 12.0, 2.4),
        on=(("gpu-nagoya-01", (1,)),),
        architecture="Qwen2_5_VLForConditionalGeneration",
        parameters=8_292_166_656,
        quantisation="BF16",
    ),
    SimulatedModel(
        name=SMALL,
        engine="llama.cpp",
        ja="Gemma 3 4B：短い文の分類や言い換えに。速く答えます。",
        en="Gemma 3 4B: sorts and rephrases short texts, quickly.",
        first=90,
        speed=96,
        memory=(2.8, 2.4, 0.5),
        on=(("gpu-nagoya-02", (0,)),),
        moved=True,
        architecture="gemma3",
        parameters=3_880_099_328,
        quantisation="Q4_K_M",
    ),
    SimulatedModel(
        name=EMBEDDING,
        engine="vllm",
        task="embedding",
        ja="Ruri v3 310M：日本語の社内検索・RAG 用の埋め込み（768 次元）。",
        en="Ruri v3 310M: embeddings for Japanese search and RAG (768 dimensions).",
        first=38,
        speed=0,
        memory=(0.7, 0.0, 1.1),
        on=(("gpu-nagoya-02", (1,)), ("gpu-tokyo-02", (3,))),
        aliases=("embedding",),
        architecture="ModernBertModel",
        parameters=314_000_000,
        quantisation="BF16",
    ),
    SimulatedModel(
        name=BGE,
        engine="llama.cpp",
        task="embedding",
        ja="BGE-M3：多言語の埋め込み（1,024 次元）。外国語の文書を含む検索に。",
        en="BGE-M3: embeddings in many languages (1,024 dimensions).",
        first=46,
        speed=0,
        memory=(1.2, 0.0, 0.5),
        on=(("gpu-nagoya-02", (1,)),),
        architecture="bert",
        parameters=567_754_752,
        quantisation="F16",
    ),
    SimulatedModel(
        name=RERANK,
        engine="llama.cpp",
        task="rerank",
        ja="BGE Reranker v2 M3：検索結果を質問に近い順に並べ替えます。",
        en="BGE Reranker v2 M3: sorts what a search found by how well it answers.",
        first=60,
        speed=0,
        memory=(1.2, 0.0, 0.5),
        on=(("gpu-nagoya-02", (1,)),),
        architecture="bert",
        parameters=567_755_777,
        quantisation="F16",
    ),
    SimulatedModel(
        name=WHISPER,
        task="transcription",
        ja="Whisper large-v3 turbo：録音を文字に起こします。",
        en="Whisper large-v3 turbo: turns recordings into text.",
        first=900,
        speed=140,
        context=448,
        memory=(1.7, 3.8, 1.2),
        on=(("gpu-tokyo-02", (3,)),),
        architecture="WhisperForConditionalGeneration",
        parameters=808_878_080,
        quantisation="FP16",
    ),
    SimulatedModel(
        name=OLD,
        engine="llama.cpp",
        ja="ELYZA Llama 3 8B：提供終了の予定です。ezo-9b をお使いください。",
        en="ELYZA Llama 3 8B: will be retired; use ezo-9b instead.",
        first=210,
        speed=58,
        memory=(4.9, 2.1, 0.6),
        on=(("gpu-nagoya-02", (0,)),),
        architecture="llama",
        parameters=8_030_261_248,
        quantisation="Q4_K_M",
    ),
    SimulatedModel(
        name=NEW,
        ja="gpt-oss 120B：評価中のモデルです（研究開発本部と DX 推進室のみ）。",
        en="gpt-oss 120B: being tried (research and DX promotion only).",
        first=700,
        speed=70,
        context=32768,
        memory=(63.0, 16.0, 3.0),
        on=(("gpu-nagoya-01", (0, 1)),),
        architecture="GptOssForCausalLM",
        parameters=116_829_156_672,
        quantisation="MXFP4",
        tenants=("research", "dx-promotion"),
        state="failed",
    ),
)
JOINT_MODEL = SimulatedModel(
    name=PRECISE,
    ja="Qwen2.5 72B（BF16）：量子化していない大型モデル。2 台のホストで動きます。長い契約書や論文に。",
    en="Qwen2.5 72B (BF16): a large model that is not quantised, on two hosts. For long contracts and papers.",
    first=900,
    speed=27,
    context=32768,
    memory=(18.2, 20.5, 2.9),
    on=(("gpu-tokyo-03", (0, 1, 2, 3)), ("gpu-tokyo-04", (0, 1, 2, 3))),
    nodes=2,
    args=("--pipeline-parallel-size=2",),
    architecture="Qwen2ForCausalLM",
    parameters=72_706_203_648,
    quantisation="BF16",
)
