"""Small real language models from GGUF files, as ordinary `from_pretrained` directories, and the proof that they work.

A GGUF file holds quantised weights. They are kept here as the float32 numbers that they stand for, which float16 and
bfloat16 could not hold exactly. The tokenizer is never the one that transformers rebuilds from the file: for Gemma 3
that is a wrong one, for SmolLM2 it has five more ids and puts a token before every text.
"""

import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenarium.data.fetching import make
from tokenarium.data.sources import Asset, Progress
from tokenarium.errors import TokenariumError
from tokenarium.files import write_json, write_whole

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LINES = 1000
PROSE = (
    "The lighthouse stood at the end of a narrow spit of land, and for most of the year nobody went near it. In "
    "winter the waves broke over the path, and the keeper, an old man who had once been a teacher, stayed inside for "
    "days. He kept a diary of the weather, the ships that passed and the birds that landed on the gallery to rest. "
    "When the wind came from the north, the windows rattled and the lamp had to be watched through the night. In "
    "spring the children from the village walked out to see him. They brought bread, letters and news, and he showed "
    "them how the great lens turned on its bed of mercury, so light that a single finger could move it. He told them "
    "that the lamp could be seen from twenty miles away, and that sailors on their way home looked for it as soon as "
    "it was dark. Years later, when the light had been replaced by a machine that needed no one, some of those "
    "children remembered his stories better than anything they had learned at school."
)


def recipe(asset: Asset) -> Callable[..., bool]:
    """The `build` of a model that is fetched: makes its directory unless it is there; True if made.

    seed and parameters are what every recipe is given; a fetched model has no use for them. The asset's own
    normalisation tries the model before it takes its place, see `check`, and prints what was found.
    The recipe raises TokenariumError for what `fetching.make` and `check` name; what stood in the directory before is
    then untouched.
    """

    def build(
        root: Path | str,
        output_dir: Path | str,
        seed: int = 0,
        parameters: Mapping[str, Any] | None = None,
        *,
        progress: Progress | None = None,
    ) -> bool:
        return make(asset, Path(root) / output_dir, source="packages", progress=progress)

    return build


def load(
    path: Path | str, device: "torch.device | str" = "cpu", dtype: "torch.dtype | None" = None
) -> "tuple[PreTrainedTokenizerBase, PreTrainedModel]":
    """Tokenizer and model (in evaluation mode, float32 unless dtype says otherwise) from a built directory.

    Raises TokenariumError if the directory was not built.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (Path(path) / "config.json").is_file():
        raise TokenariumError(f"{path} is missing: run `dvc repro model@{Path(path).name}`")
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True, dtype=dtype or torch.float32)
    return tokenizer, model.to(device).eval()


def bits_per_byte(tokenizer: "PreTrainedTokenizerBase", model: "PreTrainedModel", text: str) -> float:
    """Mean of the model's surprise at a text, bits a UTF-8 byte, after the tokenizer's start symbol.

    The text must fit the model's context. Where the tokenizer has no start symbol, ValueError.
    """
    import torch

    if tokenizer.bos_token_id is None:
        raise ValueError("the tokenizer has no start symbol")
    ids = tokenizer.encode(text, add_special_tokens=False)
    inputs = torch.tensor([[tokenizer.bos_token_id, *ids]], device=model.device)
    with torch.inference_mode():
        log_probabilities = model(inputs).logits[0, :-1].float().log_softmax(dim=-1)
    surprise = -log_probabilities.gather(1, inputs[0, 1:, None]).sum()
    return float(surprise) / math.log(2) / len(text.encode())


def greedy(tokenizer: "PreTrainedTokenizerBase", model: "PreTrainedModel", prompt: str, tokens: int = 12) -> str:
    """What the model continues a prompt with, always the most probable token, after the tokenizer's start symbol."""
    import torch

    ids = [tokenizer.bos_token_id, *tokenizer.encode(prompt, add_special_tokens=False)]
    with torch.inference_mode():
        made = model.generate(
            torch.tensor([ids], device=model.device),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=model.device),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
    return tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True)


def random_lines(tokenizer: "Tokenizer", count: int = LINES, seed: int = 0) -> list[str]:
    """Lines that exercise all of a vocabulary: each is eight tokens drawn alike from all ids, as text."""
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    draw = random.Random(seed)
    return [tokenizer.decode([draw.randrange(size) for _ in range(8)], skip_special_tokens=True) for _ in range(count)]


def convert(gguf: Path, output: Path, config: Mapping[str, Any]) -> None:
    """Write config.json and model.safetensors (float32) for the weights of a GGUF file.

    config: entries of config.json that the file does not say, or says wrongly.
    """
    import torch
    from safetensors.torch import save
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    with write_whole(output / "model.safetensors", "wb") as file:
        file.write(save(weights, metadata={"format": "pt"}))
    # The model calls itself quantised and refuses to be saved, but its weights are plain numbers.
    made = model.config.to_dict() | config | {"architectures": [type(model).__name__], "dtype": "float32"}
    for name in (
        "quantization_config",
        "transformers_version",
        "_name_or_path",
        "_model_name_or_path",
        "id2label",
        "label2id",
    ):
        made.pop(name, None)
    write_json(output / "config.json", made)


def check(
    path: Path | str, reference: "Tokenizer", bits: tuple[float, float], answers: Mapping[str, str]
) -> dict[str, Any]:
    """Open a built directory and try it; returns what was found, by name.

    reference: the tokenizer that the directory's must equal on LINES lines. bits: least and most bits per byte of
    PROSE. answers: prompt -> a word that the greedy continuation must hold.
    Raises TokenariumError for the first that fails.
    """
    tokenizer, model = load(path)
    lines = [*PROSE.split(". "), *random_lines(reference)][:LINES]
    for line in lines:
        expected = reference.encode(line).ids
        if tokenizer(line)["input_ids"] != expected:
            raise TokenariumError(f"{path}: its tokenizer is not the real one, for it splits {line!r} differently")
    rows = model.get_input_embeddings().num_embeddings
    found: dict[str, Any] = {
        "equal_lines": len(lines),
        "rows": rows,
        "bits_per_byte": bits_per_byte(tokenizer, model, PROSE),
    }
    if not bits[0] < found["bits_per_byte"] < bits[1]:
        raise TokenariumError(
            f"{path} predicts badly: {found['bits_per_byte']:.3f} bits per byte of plain English, expected {bits[0]} "
            f"to {bits[1]}; install the versions of requirements.lock"
        )
    for prompt, word in answers.items():
        found[prompt] = greedy(tokenizer, model, prompt)
        if word not in found[prompt]:
            raise TokenariumError(f"{path} continues {prompt!r} with {found[prompt]!r}, which lacks {word!r}")
    return found
