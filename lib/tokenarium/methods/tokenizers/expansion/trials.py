"""One source model and one language: expanded tokenizers, rows for them, scores before and after adaptation."""

import copy
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tokenarium.methods.tokenizers import vocab_expansion as expansion
from tokenarium.methods.tokenizers.expansion import lapt, source_model, texts
from tokenarium.study.experiments import open_results
from tokenarium.study.parameters import load_params

SOURCE = "expansion-source"


@dataclass
class Bench:
    """A source model, and text of the new language: `lines` to learn from, `documents` to score.

    start: id of the start symbol. auxiliary_size: vocabulary of the BPE that new tokens come from.
    """

    tokenizer: Tokenizer
    model: Any
    start: int
    lines: Sequence[str]
    documents: Sequence[str]
    auxiliary_size: int = expansion.AUXILIARY_SIZE
    _targets: dict[int, Tokenizer] = field(default_factory=dict, repr=False)
    _rows: dict[tuple, NDArray[np.float64]] = field(default_factory=dict, repr=False)

    @cached_property
    def matrix(self) -> NDArray[np.float64]:
        """The source's input matrix (V, d)."""
        return self.model.get_input_embeddings().weight.detach().double().cpu().numpy()

    @cached_property
    def auxiliary(self) -> list[tuple[str, str]]:
        return expansion.auxiliary_merges(self.tokenizer, self.lines, self.auxiliary_size)

    def target(self, num_new: int) -> Tokenizer:
        """The source tokenizer with `num_new` new tokens; itself with none."""
        if num_new == 0:
            return self.tokenizer
        if num_new not in self._targets:
            self._targets[num_new] = expansion.expand(self.tokenizer, self.auxiliary, num_new)
        return self._targets[num_new]

    def rows(self, method: str, num_new: int, seed: int = 0) -> NDArray[np.float64]:
        """Input rows of the new tokens, (num_new, d), see `init_rows`.

        Two more methods: "shuffled", Align's rows at other tokens, and "mean-official", Mean as released. `seed` is
        that of Random and of the shuffle; all others have one result.
        """
        key = (method, num_new, seed if method in ("random", "shuffled") else 0)
        if key not in self._rows:
            self._rows[key] = self._made(*key)
        return self._rows[key]

    def _made(self, method: str, num_new: int, seed: int) -> NDArray[np.float64]:
        if method == "shuffled":
            return expansion.shuffled(self.rows("align", num_new), seed)
        name, official = ("mean", True) if method == "mean-official" else (method, False)
        target = self.target(num_new)
        return expansion.init_rows(self.matrix, self.tokenizer, target, name, self.lines, seed, official=official)

    def head_rows(self, method: str, num_new: int, seed: int = 0) -> NDArray[np.float64] | None:
        """Output rows of the new tokens by the same rule on the output matrix; None where the matrices are tied."""
        if self.model.config.tie_word_embeddings:
            return None
        head = self.model.get_output_embeddings().weight.detach().double().cpu().numpy()
        name = "align" if method == "shuffled" else method.removesuffix("-official")
        rows = expansion.init_head_rows(
            self.matrix,
            head,
            self.tokenizer,
            self.target(num_new),
            name,
            self.lines,
            seed,
            official=method == "mean-official",
            official_head=False,
        )
        return expansion.shuffled(rows, seed) if method == "shuffled" else rows

    def tokens(self, num_new: int) -> NDArray[np.int64]:
        """(documents,) tokens of each document."""
        encodings = self.target(num_new).encode_batch(list(self.documents), add_special_tokens=False)
        return np.array([len(encoding.ids) for encoding in encodings])

    def expanded(self, method: str, num_new: int, seed: int, share: bool) -> Any:
        """The model with new rows, see `lapt.expanded`; a copy of it for no new tokens."""
        if num_new == 0:
            return self.model if share else copy.deepcopy(self.model)
        rows = self.rows(method, num_new, seed)
        return lapt.expanded(self.model, rows, self.head_rows(method, num_new, seed), share)

    def score(self, method: str, num_new: int, seed: int = 0) -> NDArray[np.float64]:
        """(documents,) bits of each document before adaptation."""
        model = self.expanded(method, num_new, seed, share=True)
        return lapt.document_bits(model, self.target(num_new), self.documents, self.start)

    def adapt(
        self, method: str, num_new: int, seed: int, recipe: lapt.Recipe, steps: int, look_at: Collection[int]
    ) -> NDArray[np.float64]:
        """(looks, documents) bits of each document after the numbers of steps `look_at` of one adaptation.

        seed: also of the order of the text.
        """
        model, tokenizer = self.expanded(method, num_new, seed, share=False), self.target(num_new)
        ids = lapt.stream(tokenizer, self.lines, self.start, seed, steps * recipe.block * recipe.batch)
        seen = []

        def look(step: int) -> None:
            if step in look_at:
                seen.append(lapt.document_bits(model, tokenizer, self.documents, self.start))

        lapt.adapt(model, lapt.blocks(ids, recipe.block, recipe.batch), recipe, steps, look)
        return np.stack(seen)


def readable(tokenizer: Tokenizer, index: int) -> str:
    """A token as text, a blank in it as a low line; bytes that are no whole letter in hexadecimal."""
    spelling = tokenizer.id_to_token(index)
    content = tokenizer.decoder.decode([spelling])
    if "\N{REPLACEMENT CHARACTER}" not in content:
        return content.replace(" ", "_")
    from tokenarium.methods.tokenizers.bpe import from_characters

    return f"<{from_characters(spelling).hex(' ')}>"


def open_source(root: Path, profile: str) -> tuple[Tokenizer, Any, int]:
    """(tokenizer, model, id of the start symbol) of the source model that the experiment `SOURCE` trained."""
    made = open_results(root, load_params(root), SOURCE, profile)
    tokenizer = Tokenizer.from_str(json.dumps(made.record("tokenizer")))
    model = source_model.llama(tokenizer, **made.parameters["shape"], seed=0)
    model = source_model.with_weights(model, made.arrays("weights"))
    if profile == "gpu":
        model = model.to(texts.device())
    return tokenizer, model, source_model.start_id(tokenizer)
