"""Next-token log probabilities after many contexts at once: their prefixes form a tree, and each is computed once.

The tree is one sequence to the model; an attention mask lets every token see its own ancestors only, and its position
is its depth. So contexts that share most of their tokens cost little more than one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenarium.methods.tokenizers.valid_encodings import Codec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Ids = tuple[int, ...]
ROWS_AT_ONCE = 64  # contexts whose logits are held in two copies


class TreeLogits:
    """`logits(ids)`: (vocabulary,) float32 log probabilities of the next token, for contexts that begin with `prefix`.

    prefix: at least one id; the model runs over it once. vocabulary: ids, at least as many as the model has rows; the
    others are impossible. `runs` counts calls of the model. Results are remembered until `clear`.
    Attention that slides is not imitated: keep contexts shorter than its window.
    """

    def __init__(self, model: PreTrainedModel, prefix: Sequence[int], vocabulary: int):
        from transformers import DynamicCache

        if not len(prefix):
            raise ValueError("the prefix needs at least one id, a start symbol say")
        self.model, self.prefix, self.vocabulary, self.runs = model, tuple(prefix), vocabulary, 0
        self._cache = DynamicCache()
        self._rows: dict[Ids, Tensor] = {}
        length = len(self.prefix)
        positions = torch.arange(length)
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        self._rows[self.prefix] = self._run(list(self.prefix), positions, mask, torch.tensor([length - 1]))[0]

    def __call__(self, ids: Sequence[int]) -> Tensor:
        key = tuple(ids)
        if key not in self._rows:
            self.prefetch([key])
        return self._rows[key]

    def clear(self) -> None:
        """Forget all contexts but the prefix."""
        self._rows = {self.prefix: self._rows[self.prefix]}

    def prefetch(self, contexts: Iterable[Sequence[int]]) -> None:
        """Run the model once over all contexts that are not known yet. Raises ValueError for another beginning."""
        wanted = [key for key in dict.fromkeys(tuple(ids) for ids in contexts) if key not in self._rows]
        length = len(self.prefix)
        for key in wanted:
            if key[:length] != self.prefix:
                raise ValueError(f"the context {key[:8]} does not begin with the prefix {self.prefix[:8]}")
        if not wanted:
            return
        nodes: dict[Ids, int] = {}
        for key in wanted:
            for count in range(length + 1, len(key) + 1):
                nodes.setdefault(key[:count], len(nodes))
        mask = torch.zeros(len(nodes), length + len(nodes), dtype=torch.bool)
        mask[:, :length] = True
        for key, place in nodes.items():  # a parent has its row before its children
            if (parent := nodes.get(key[:-1])) is not None:
                mask[place] = mask[parent]
            mask[place, length + place] = True
        positions = torch.tensor([len(key) - 1 for key in nodes])
        places = torch.tensor([nodes[key] for key in wanted])
        rows = self._run([key[-1] for key in nodes], positions, mask, places)
        self._cache.crop(-len(nodes))
        self._rows |= dict(zip(wanted, rows, strict=True))

    @torch.inference_mode()
    def _run(self, ids: list[int], positions: Tensor, mask: Tensor, places: Tensor) -> list[Tensor]:
        self.runs += 1
        device, dtype = self.model.device, self.model.dtype
        additive = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
        hidden = self.model.get_decoder()(
            input_ids=torch.tensor([ids], device=device),
            position_ids=positions[None].to(device),
            attention_mask=additive[None, None].to(device),
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state[0, places.to(device)]
        rows: list[Tensor] = []
        for part in hidden.split(ROWS_AT_ONCE):
            logits = self.model.get_output_embeddings()(part).float()
            missing = self.vocabulary - logits.shape[-1]
            logits = torch.nn.functional.pad(logits, (0, missing), value=-torch.inf)
            rows += logits.log_softmax(dim=-1).cpu().unbind()
        return rows


@dataclass(frozen=True)
class LanguageModel:
    """A model, the codec of its tokenizer and the id that begins every text."""

    model: PreTrainedModel
    codec: Codec
    start: int

    def logits(self, head: Ids) -> TreeLogits:
        """Log probabilities after contexts that begin with the start id and `head`."""
        return TreeLogits(self.model, (self.start, *head), len(self.codec))
