"""One direction of a transplant, ready to be measured: base model, donor's tokenizer and rows, texts, shared tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F

from tokenarium.data.tokenizers import token_bytes
from tokenarium.errors import TokenariumError
from tokenarium.methods.tokenizers import swaplab, swaplab_texts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TINY = "tiny"  # stands for random models and tokenizers made here, to try the wiring


@dataclass(frozen=True)
class Space:
    """One embedding matrix of the two models. targets: (U, D) and points: (N, D), the donor's rows of new and of shared
    tokens; rows: (N, d), the base's rows of the shared ones; old: (V, d), all of the base's rows."""

    targets: Tensor
    points: Tensor
    rows: Tensor
    old: Tensor


Make = Callable[[Space], Tensor]  # new rows (U, d)


@dataclass(frozen=True)
class Setting:
    """Base and donor, matched by bytes, the restricted vocabulary `kept`, and every text in the new tokens.

    spaces: of the input embedding, and of the output embedding where the base has one of its own. encoded: text ->
    (row numbers, bytes of each token), by the new tokenizer; original: the same by the base's own, over its own ids.
    """

    base: PreTrainedModel
    start_row: Tensor
    kept: NDArray[np.int64]
    shared: tuple[NDArray[np.int64], NDArray[np.int64]]
    new_ids: NDArray[np.int64]
    symbols: list[bytes | None]
    pieces: list[list[int]]
    spaces: list[Space]
    encoded: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]
    original: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]
    window: int

    def model(self, make: Make) -> PreTrainedModel:
        """The base with the new tokenizer, its new rows made by `make`, for each embedding matrix on its own."""
        return self.swapped([make(space) for space in self.spaces])

    def swapped(self, new_rows: list[Tensor]) -> PreTrainedModel:
        """The base with the new tokenizer and these rows (U, d) of the new tokens, one tensor for each matrix."""
        pairs = zip(self.spaces, new_rows, strict=True)
        return swaplab.swap(self.base, *(swaplab.assemble(self.kept, self.shared, s.old, rows) for s, rows in pairs))

    def bits(self, model: PreTrainedModel) -> dict[str, NDArray[np.float64]]:
        """Text -> bits of every new token under a model of `model` or `swapped`."""
        return {name: self._bits(model, ids) for name, (ids, _) in self.encoded.items()}

    def original_bits(self) -> dict[str, NDArray[np.float64]]:
        """Text -> bits of every token of the base's own tokenizer under the base."""
        return {name: self._bits(self.base, ids) for name, (ids, _) in self.original.items()}

    def _bits(self, model: PreTrainedModel, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        return swaplab.token_bits(model, ids, self.start_row, self.window)

    def spell(self, ids: NDArray[np.int64]) -> list[str]:
        """What the new ids decode to; bytes that are no whole character as U+FFFD."""
        return [(self.symbols[index] or b"").decode("utf-8", "replace") for index in ids]

    def arrays(self) -> dict[str, NDArray[np.int64]]:
        """Ids and numbers of bytes, to be stored beside the bits: <text>.ids (new ids), .bytes, .original_bytes."""
        found = {"kept": self.kept, "new": self.new_ids, "shared_new": self.shared[0], "shared_old": self.shared[1]}
        for name, (places, lengths) in self.encoded.items():
            found |= {f"{name}.ids": self.kept[places], f"{name}.bytes": lengths}
            found[f"{name}.original_bytes"] = self.original[name][1]
        return found


def open_setting(root: Path, parameters: Mapping[str, Any]) -> Setting:
    """The setting that parameters describe.

    base, donor: models in models/, of the hub ("organisation/model"), or TINY. start: the base's token whose row stands
    before every window. device: of both. bytes_per_text, window: see `swaplab_texts.texts` and `swaplab.token_bits`.
    Raises TokenariumError where a model or a text was not made.
    """
    texts = swaplab_texts.texts(root, parameters["bytes_per_text"]).evaluation
    if parameters["base"] == TINY:
        old, base = _tiny(list(texts.values())[:2], 400, 32, parameters["start"])
        new, donor = _tiny(texts.values(), 500, 40, parameters["start"])
    else:
        old, base = _opened(root, parameters["base"], parameters["device"])
        new, donor = _opened(root, parameters["donor"], parameters["device"])
    setting = make_setting(old, base, new, donor, texts, parameters["start"], parameters["window"])
    if base.device.type == "cpu" and torch.backends.mkldnn.is_available():
        pack(base)
    return setting


def make_setting(
    old: Tokenizer,
    base: PreTrainedModel,
    new: Tokenizer,
    donor: PreTrainedModel,
    texts: Mapping[str, str],
    start: str,
    window: int,
) -> Setting:
    """The setting of two opened models. The donor is not kept, but for its rows of the kept tokens.

    An untied base needs both of the donor's matrices; a tied donor gives the same for both.
    """
    shared = swaplab.match(old, new)
    rows = min(len(_matrices(donor)[0]), len(_matrices(donor)[-1]))
    shared = tuple(ids[shared[0] < rows] for ids in shared)  # an id without a row (Gemma 3's image token) is no token
    kept = swaplab.restricted(new, texts.values(), shared[0])
    new_ids = swaplab.fresh(kept, shared)
    symbols, old_symbols = token_bytes(new), token_bytes(old)
    ours, theirs = _matrices(base), _matrices(donor)
    spaces = [
        Space(
            theirs[min(number, len(theirs) - 1)][torch.from_numpy(new_ids)],
            theirs[min(number, len(theirs) - 1)][torch.from_numpy(shared[0])],
            matrix[torch.from_numpy(shared[1])],
            matrix,
        )
        for number, matrix in enumerate(ours)
    ]
    encoded = {name: swaplab.encode(new, text, symbols) for name, text in texts.items()}
    return Setting(
        base,
        ours[0][old.token_to_id(start)],
        kept,
        shared,
        new_ids,
        symbols,
        swaplab.pieces(old, [symbols[index] or b"" for index in new_ids]),
        spaces,
        {name: (swaplab.renumber(kept, ids), lengths) for name, (ids, lengths) in encoded.items()},
        {name: swaplab.encode(old, text, old_symbols) for name, text in texts.items()},
        window,
    )


def _matrices(model: PreTrainedModel) -> list[Tensor]:
    """Input embedding, and the output embedding where it is another, as plain tensors."""
    weights = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    return [weight.detach() for weight in (weights[:1] if weights[0] is weights[1] else weights)]


class Packed(nn.Module):
    """A linear layer without bias whose weights oneDNN has laid out for the CPU: for inference only, a third faster."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.register_buffer("weight", linear.weight.detach().to_mkldnn())

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs.to_mkldnn(), self.weight).to_dense()


def pack(model: PreTrainedModel) -> None:
    """Replace the linear layers of the model's body by `Packed` ones, in place; the embeddings stay as they are."""
    for module in list(model.base_model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and child.bias is None:
                setattr(module, name, Packed(child))


def _opened(root: Path, name: str, device: str = "cpu") -> tuple[Tokenizer, PreTrainedModel]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = name if "/" in name else root / "models" / name
    if isinstance(path, Path) and not (path / "config.json").is_file():
        raise TokenariumError(f"{path} is missing: run `dvc repro model@{name}`")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).to(device).eval()
    return AutoTokenizer.from_pretrained(path).backend_tokenizer, model


def _tiny(texts: Iterable[str], vocab_size: int, dim: int, start: str) -> tuple[Tokenizer, PreTrainedModel]:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([start])
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=dim,
        intermediate_size=dim,
        num_hidden_layers=1,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(dim)
        return tokenizer, LlamaForCausalLM(config).eval()
