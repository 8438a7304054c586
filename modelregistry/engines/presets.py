"""What to register for the models that this system was first built around, with the arguments they need. Pure.

Notes are English sentences for `gettext`; descriptions are for the catalogue, whose readers are not engineers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from modelregistry.files.metadata import ModelMetadata, gettext_noop


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A registration to begin with. `context` in tokens per request, `slots` in requests at a time.

    `place`: what has to be at the path; `memory`, `usage`: what an operator and callers should know.
    `architecture`: by which its files are known.
    """

    key: str
    source: str  # where it is published, as on Hugging Face
    engine: str
    task: str
    architecture: str
    context: int
    slots: int
    args: tuple[str, ...]
    description_ja: str
    description_en: str
    place: str
    memory: str
    usage: str

    def fields(self) -> dict[str, object]:
        """Return what it sets, by the names of ServedModel."""
        return {
            "engine": self.engine,
            "task": self.task,
            "context": self.context,
            "slots": self.slots,
            "args": list(self.args),
            "description_ja": self.description_ja,
            "description_en": self.description_en,
        }

    def is_of(self, facts: ModelMetadata) -> bool:
        """Return whether these are the files of such a model."""
        return facts.architecture == self.architecture


# The files are BF16; vLLM makes FP8 of them while it loads, embedding aside. Until some version in 2026 it called that
# "fp8"; 0.32 refuses that name for files that are not FP8 already.
EZO = Preset(
    key="ezo-9b-fp8",
    source="AXCXEPT/EZO-Common-9B-gemma-2-it",
    engine="vllm",
    task="chat",
    architecture="Gemma2ForCausalLM",
    context=8192,
    slots=16,
    args=("--quantization=fp8_per_tensor",),
    description_ja="EZO-Common-9B：日本語の文章作成・要約・質問応答に。入力と回答を合わせて 8,192 トークンまで。",
    description_en="EZO-Common-9B: writing, summaries and questions in Japanese. Up to 8,192 tokens, answer included.",
    place=gettext_noop(
        "The directory of the model as it is published (config.json, four *.safetensors files, tokenizer): "
        "18.5 GB in BF16."
    ),
    memory=gettext_noop(
        "About 10.2 GB of weights in FP8, and 2.1 GB of cache for each request that fills its context "
        "(21 of 42 layers see the last 4,096 tokens only): a card of 24 GB holds four such requests. "
        "FP8 is fastest on cards from 2023 on (Ada, Hopper); older ones save the memory only."
    ),
    usage=gettext_noop(
        "Its template refuses system messages (400, “System role not supported”): put them into the first message "
        "of the user. An older vLLM calls the quantisation fp8: then add the argument --quantization=fp8."
    ),
)

# No --quantization: vLLM sees AWQ in the files, and naming it by hand may choose a slower kernel.
LLAMA_70B = Preset(
    key="llama-3.1-70b-japanese-awq",
    source="cyberagent/Llama-3.1-70B-Japanese-Instruct-2407",
    engine="vllm",
    task="chat",
    architecture="LlamaForCausalLM",
    context=8192,
    slots=8,
    args=("--enable-auto-tool-choice", "--tool-call-parser=llama3_json"),
    description_ja="Llama 3.1 70B 日本語版：難しい質問や長い文章に。回答はやや遅めです。8,192 トークンまで。",
    description_en="Llama 3.1 70B Japanese: for hard questions and long texts, but slower. Up to 8,192 tokens.",
    place=gettext_noop(
        "A directory with the model in AWQ INT4, groups of 128 (config.json, nine *.safetensors files, tokenizer): "
        "39.8 GB. The published files are BF16 (141 GB); take a conversion that you trust, or make one."
    ),
    memory=gettext_noop(
        "39.8 GB of weights, and 2.7 GB of cache for each request that fills 8,192 tokens: with 8 requests one card "
        "of 80 GB, or two of 48 GB (--tensor-parallel 2). With --arg=--kv-cache-dtype=fp8 the cache takes half."
    ),
    usage=gettext_noop(
        "It can call tools. The model itself reads 131,072 tokens; a longer context takes cache in proportion."
    ),
)

# An encoder reads its whole input in one micro-batch, so -ub must not be below the context (else 500).
E5_LARGE = Preset(
    key="multilingual-e5-large-instruct",
    source="intfloat/multilingual-e5-large-instruct",
    engine="llama.cpp",
    task="embedding",
    architecture="bert",
    context=512,
    slots=4,
    args=("--pooling", "mean", "-b", "512", "-ub", "512"),
    description_ja=(
        "社内検索・RAG 用の埋め込み（1,024 次元、512 トークンまで）。検索する側の文だけ、先頭に"
        "「Instruct: （英語で一文の指示）」、改行、「Query: 」を付けてください。文書には付けません。"
    ),
    description_en=(
        "Embeddings for search and RAG (1,024 dimensions, up to 512 tokens). Begin a query, and only a query, with "
        "“Instruct: (one sentence in English)”, a new line, and “Query: ”. Documents go without."
    ),
    place=gettext_noop("One GGUF file, converted by llama.cpp’s convert_hf_to_gguf.py (F16: 1.1 GB, Q8_0: 0.6 GB)."),
    memory=gettext_noop(
        "1.1 GB in F16. An encoder has no cache; for the 512 tokens that it reads at a time llama.cpp takes 0.5 GB of "
        "RAM."
    ),
    usage=gettext_noop(
        "Queries look like this: “Instruct: Given a web search query, retrieve relevant passages that answer the "
        "query\\nQuery: …”. Without it search gets worse. Cosines of unlike texts are still about 0.7: compare, "
        "do not cut off. With llama-cpp-python leave the arguments away."
    ),
)

PRESETS: Mapping[str, Preset] = MappingProxyType({preset.key: preset for preset in (EZO, LLAMA_70B, E5_LARGE)})
