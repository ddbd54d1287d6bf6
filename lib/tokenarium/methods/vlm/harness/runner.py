"""Run a LlavaForConditionalGeneration with a method's visual tokens, layer by layer (H7, H8, H10).

The loop is written out over the model's own modules. The prompt is read once (`read_prompts`): hooks see it and nothing
later, so what they choose is frozen. The answer's tokens then go through the same layers against what each of them has
kept (`read_answer`): a layer's cache holds the tokens that were there when it ran.

A token's place in the causal order is its row; its place in the rotary embedding is its id. In mode "compact" ids
count the rows of each layer, so a cut renumbers all that follow, and an answer's token has another id before the cut
than after it; in mode "preserve" they stay.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tokenarium.methods.vlm.harness.method import Cut, Method, Visual
from tokenarium.methods.vlm.harness.questions import Question
from tokenarium.methods.vlm.harness.views import LayerView, Memory, NeuronView


@dataclass
class LayerCache:
    """Keys and values (batch, kv_heads, tokens, head_dim) of one layer; hidden: (batch, tokens) bool or None.

    next_position: (batch, 1, K), the id of the first token of the answer in this layer.
    """

    key: Tensor
    value: Tensor
    hidden: Tensor | None
    next_position: Tensor

    def take(self, rows: Tensor) -> LayerCache:
        return LayerCache(
            self.key[rows],
            self.value[rows],
            None if self.hidden is None else self.hidden[rows],
            self.next_position[rows],
        )


@dataclass
class Batch:
    """Questions of one layout with equally many visual tokens, on their way through the language model.

    examples: their places among what was asked for. hidden: (batch, S, dim). positions: (batch, S, K), or (batch, full,
    K) with `unmerge`, (batch, full) int64 rows. start: row of the first visual token; num_visual: how many. patches:
    (batch, n) int64; source: (batch, n, N) or None. hidden_keys: (batch, S) bool or None.
    """

    examples: list[int]
    questions: list[Question]
    hidden: Tensor
    positions: Tensor
    start: int
    num_visual: int
    patches: Tensor
    source: Tensor | None
    unmerge: Tensor | None
    hidden_keys: Tensor | None
    memory: list[Memory]
    caches: list[LayerCache] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)  # visual tokens in each layer

    @property
    def parts(self) -> dict[str, slice]:
        """Rows of system prompt, visual tokens, text after them, and the answer's cue at its end."""
        length, stop = self.hidden.shape[1], self.start + self.num_visual
        cue = self.questions[0].cue
        return {
            "system": slice(0, self.start),
            "visual": slice(self.start, stop),
            "text": slice(stop, length),
            "cue": slice(length - cue, length),
        }


class Runner:
    """A model and a method, ready to read prompts. Raises ValueError for a method that the model cannot carry."""

    def __init__(self, model: LlavaForConditionalGeneration, method: Method):
        self.model, self.method = model, method
        self.layers = model.model.language_model.layers
        self.asked = set(method.layers(len(self.layers)))
        if self.asked and not self.asked <= set(range(1, len(self.layers) + 1)):
            raise ValueError(f"{method} asks after the layers {sorted(self.asked)} of {len(self.layers)}")
        rotary = model.model.language_model.rotary_emb
        self._frequencies, self._rotary_scale = rotary.inv_freq.float(), rotary.attention_scaling
        self._changes_neurons = method.overrides("neurons")

    # Positions

    def rotate(self, query: Tensor, key: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys (batch, heads, tokens, head_dim) turned to positions (batch, tokens, K)."""
        blocks, half = positions.shape[-1], len(self._frequencies)
        if half % blocks:
            raise ValueError(f"{half} rotary frequencies cannot be cut into {blocks} equal blocks")
        angles = positions.float().repeat_interleave(half // blocks, dim=-1) * self._frequencies
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = (angles.cos() * self._rotary_scale).to(query), (angles.sin() * self._rotary_scale).to(query)
        return apply_rotary_pos_emb(query, key, cos, sin)

    def _first_positions(self, question: Question, visual: Visual, num_patches: int) -> Tensor:
        """Ids at the input of the first layer: (S, K), or (full, K) when the visual tokens are to be unmerged."""
        before, after, device = len(question.before), len(question.after), visual.tokens.device
        if self.method.positions == "compact":
            if visual.positions is not None or visual.unmerge is not None:
                raise ValueError("a method that gives positions of its own or unmerges needs positions='preserve'")
            return torch.arange(before + len(visual.tokens) + after, device=device)[:, None]
        if visual.unmerge is not None:
            return torch.arange(before + num_patches + after, device=device)[:, None]
        offsets = visual.patches.clamp(min=0) if visual.positions is None else visual.positions
        offsets = offsets[:, None] if offsets.ndim == 1 else offsets
        text = torch.arange(after, device=device) + before + num_patches
        whole = [torch.arange(before, device=device), None, text]
        columns = [offsets + before if part is None else part[:, None].expand(-1, offsets.shape[1]) for part in whole]
        return torch.cat([column.to(offsets.dtype) for column in columns])

    # The prompt

    @torch.no_grad()
    def read_prompts(self, questions: Sequence[Question], visuals: Sequence[Visual], num_patches: int) -> list[Batch]:
        """Read prompts of one layout whose images have become equally many visual tokens.

        The batches that come back have the hidden states after the last layer and their caches; a method that cuts to
        different lengths splits the batch.
        """
        if (
            len(
                {(question.layout[:3], len(visual.tokens)) for question, visual in zip(questions, visuals, strict=True)}
            )
            > 1
        ):
            raise ValueError("a batch needs questions of one layout with equally many visual tokens")
        batches = [self._begin(questions, visuals, num_patches)]
        for number, layer in enumerate(self.layers, start=1):
            done = []
            for batch in batches:
                tensors = self._read_layer(number, layer, batch)
                done += self._cut(number, batch, tensors) if number in self.asked else [batch]
            batches = done
        return batches

    def _begin(self, questions: Sequence[Question], visuals: Sequence[Visual], num_patches: int) -> Batch:
        embed, device = self.model.get_input_embeddings(), self.model.device
        before, after = (
            embed(torch.tensor([getattr(question, part) for question in questions], dtype=torch.long, device=device))
            for part in ("before", "after")
        )
        tokens = torch.stack([visual.tokens for visual in visuals]).to(before)
        sources = [visual.source for visual in visuals]
        unmerge = [visual.unmerge for visual in visuals]
        if unmerge[0] is not None and self.asked:
            raise ValueError(f"{self.method} unmerges and cuts: only one of the two can be")
        start = before.shape[1]
        return Batch(
            list(range(len(questions))),
            list(questions),
            torch.cat((before, tokens, after), dim=1),
            torch.stack([self._first_positions(q, v, num_patches) for q, v in zip(questions, visuals, strict=True)]),
            start,
            tokens.shape[1],
            torch.stack([visual.patches for visual in visuals]),
            None if sources[0] is None else torch.stack(sources),
            None
            if unmerge[0] is None
            else torch.stack([_unmerged_rows(start, each, tokens.shape[1], after.shape[1]) for each in unmerge]),
            None,
            [Memory() for _ in questions],
        )

    def _read_layer(self, number: int, layer: torch.nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Run one layer over the prompt; returns what `after_layer` may look at."""
        batch.counts.append(batch.num_visual)
        attn_in = layer.input_layernorm(batch.hidden)
        query, key, value = self._project(layer.self_attn, attn_in)
        if batch.unmerge is not None:
            query, key, value = (_spread(each, batch.unmerge) for each in (query, key, value))
        query, key = self.rotate(query, key, batch.positions)
        mixed = _attend(query, key, value, layer.self_attn.scaling, batch.hidden_keys)
        if batch.unmerge is not None:
            mixed = _gather_means(mixed, batch.unmerge, batch.hidden.shape[1])
        attn_out = layer.self_attn.o_proj(mixed.transpose(1, 2).flatten(2))
        batch.hidden = batch.hidden + attn_out
        mlp_in = layer.post_attention_layernorm(batch.hidden)
        mlp_out = self._mlp(number, layer.mlp, mlp_in, batch, decoding=False)
        batch.hidden = batch.hidden + mlp_out
        batch.caches.append(LayerCache(key, value, batch.hidden_keys, batch.positions[:, -1:] + 1))
        return {
            "attn_in": attn_in,
            "attn_out": attn_out,
            "mlp_in": mlp_in,
            "mlp_out": mlp_out,
            "query": query,
            "key": key,
            "value": value,
        }

    def _project(self, attention: torch.nn.Module, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = (*normed.shape[:2], -1, attention.head_dim)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        query, key, value = (project(normed).view(shape).transpose(1, 2) for project in projections)
        return query, key, value

    def _mlp(self, number: int, mlp: torch.nn.Module, normed: Tensor, batch: Batch, decoding: bool) -> Tensor:
        if not self._changes_neurons:
            return mlp(normed)
        activations = mlp.act_fn(mlp.gate_proj(normed)) * mlp.up_proj(normed)
        none = slice(0, 0)
        parts = dict.fromkeys(("system", "visual", "text", "cue"), none) if decoding else batch.parts
        changed = [
            self.method.neurons(number, rows, NeuronView(**parts, memory=memory, decoding=decoding))
            for rows, memory in zip(activations, batch.memory, strict=True)
        ]
        return mlp.down_proj(torch.stack(changed))

    # What a method drops

    def _cut(self, number: int, batch: Batch, tensors: dict[str, Tensor]) -> list[Batch]:
        """Ask the method about every question of the batch, and put those together that keep equally many tokens."""
        cuts = []
        for row, (question, memory) in enumerate(zip(batch.questions, batch.memory, strict=True)):
            own = {name: tensor[row] for name, tensor in tensors.items()}
            own |= {"hidden": batch.hidden[row], "positions": batch.positions[row], "patches": batch.patches[row]}
            if batch.source is not None:
                own["source"] = batch.source[row]
            hidden_keys = None if batch.hidden_keys is None else batch.hidden_keys[row]
            view = LayerView(self.model, number, own, batch.parts, question, memory, self.rotate, hidden_keys)
            cuts.append(self._checked(self.method.after_layer(number, view), batch))
        if any(cut.zero is not None for cut in cuts):
            _zero(batch, cuts)
        if all(cut.keep is None and cut.hide is None for cut in cuts):
            return [batch]
        groups = defaultdict(list)
        for row, cut in enumerate(cuts):
            groups[batch.num_visual if cut.keep is None else len(cut.keep)].append(row)
        return [self._shortened(batch, rows, [cuts[row] for row in rows]) for rows in groups.values()]

    def _checked(self, cut: Tensor | Cut | None, batch: Batch) -> Cut:
        cut = Cut() if cut is None else Cut(cut) if isinstance(cut, Tensor) else cut
        if cut.keep is None:
            if cut.tokens is not None or cut.positions is not None:
                raise ValueError("a Cut with tokens or positions needs keep, the token that each stands for")
            return cut
        if len(cut.keep) and not 0 <= int(cut.keep.min()) <= int(cut.keep.max()) < batch.num_visual:
            raise ValueError(f"{self.method} keeps visual tokens that are not among the {batch.num_visual} there are")
        if cut.positions is not None and self.method.positions == "compact":
            raise ValueError("a method that gives positions of its own needs positions='preserve'")
        return cut

    def _shortened(self, batch: Batch, rows: list[int], cuts: list[Cut]) -> Batch:
        device = batch.hidden.device
        index = torch.tensor(rows, device=device)
        everything = torch.arange(batch.num_visual, device=device)
        keeps = torch.stack([everything if cut.keep is None else cut.keep.to(device) for cut in cuts])
        count, stop = keeps.shape[1], batch.start + batch.num_visual

        def cut_rows(values: Tensor, own: list[Tensor | None]) -> Tensor:
            """(batch, S, ...) with the visual rows replaced by those kept, or by `own` where a cut has some."""
            taken = values[index]
            middle = torch.stack(
                [
                    part[batch.start + keep] if new is None else new.to(part)
                    for part, keep, new in zip(taken, keeps, own, strict=True)
                ]
            )
            return torch.cat((taken[:, : batch.start], middle, taken[:, stop:]), dim=1)

        positions = batch.positions
        given = [cut.positions for cut in cuts]
        given = [each[:, None] if each is not None and each.ndim == 1 else each for each in given]
        columns = max([positions.shape[-1], *(each.shape[-1] for each in given if each is not None)])
        positions = positions.expand(-1, -1, columns) if positions.shape[-1] == 1 else positions
        given = [None if each is None else each.expand(-1, columns) for each in given]
        if any(each is not None and each.is_floating_point() for each in given):
            positions = positions.float()
        positions = cut_rows(positions, given)
        if self.method.positions == "compact":
            positions = torch.arange(positions.shape[1], device=device)[None, :, None].expand(len(rows), -1, -1)
        hidden_keys = batch.hidden_keys
        if hidden_keys is not None or any(cut.hide is not None for cut in cuts):
            hidden_keys = (
                batch.hidden.new_zeros(batch.hidden.shape[:2], dtype=torch.bool) if hidden_keys is None else hidden_keys
            )
            hidden_keys = hidden_keys.clone()
            for row, cut in zip(rows, cuts, strict=True):
                if cut.hide is not None:
                    hidden_keys[row] |= cut.hide.to(device)
            hidden_keys = cut_rows(hidden_keys, [None] * len(cuts))
        for row, keep in zip(rows, keeps, strict=True):
            memory = batch.memory[row]
            memory.per_token = {name: values[keep] for name, values in memory.per_token.items()}
        return Batch(
            [batch.examples[row] for row in rows],
            [batch.questions[row] for row in rows],
            cut_rows(batch.hidden, [cut.tokens for cut in cuts]),
            positions,
            batch.start,
            count,
            batch.patches[index].gather(1, keeps),
            self._source(batch, rows, cuts, keeps),
            None,
            hidden_keys,
            [batch.memory[row] for row in rows],
            [cache.take(index) for cache in batch.caches],
            list(batch.counts),
        )

    def _source(self, batch: Batch, rows: list[int], cuts: list[Cut], keeps: Tensor) -> Tensor | None:
        if batch.source is None and all(cut.source is None for cut in cuts):
            return None
        made = []
        for row, cut, keep in zip(rows, cuts, keeps, strict=True):
            num_patches = len(batch.questions[row].relevant)
            now = one_hot(batch.patches[row], num_patches) if batch.source is None else batch.source[row]
            made.append(now[keep] if cut.source is None else cut.source.to(now) @ now)
        return torch.stack(made)

    # The answer

    @torch.no_grad()
    def read_answer(self, batch: Batch, tokens: Tensor) -> Tensor:
        """Read the next tokens (batch, m) int64 of the answer against the caches, which grow by them.

        Returns the logits after each of them: (batch, m, vocabulary).
        """
        hidden = self.model.get_input_embeddings()(tokens)
        count = tokens.shape[1]
        for number, (layer, cache) in enumerate(zip(self.layers, batch.caches, strict=True), start=1):
            query, key, value = self._project(layer.self_attn, layer.input_layernorm(hidden))
            positions = cache.next_position + torch.arange(count, device=hidden.device)[None, :, None]
            query, key = self.rotate(query, key, positions)
            cache.key, cache.value = torch.cat((cache.key, key), dim=2), torch.cat((cache.value, value), dim=2)
            if cache.hidden is not None:
                cache.hidden = F.pad(cache.hidden, (0, count))
            cache.next_position = cache.next_position + count
            mixed = _attend(query, cache.key, cache.value, layer.self_attn.scaling, cache.hidden)
            hidden = hidden + layer.self_attn.o_proj(mixed.transpose(1, 2).flatten(2))
            normed = layer.post_attention_layernorm(hidden)
            if self._changes_neurons and count > 1:
                steps = [self._mlp(number, layer.mlp, normed[:, t : t + 1], batch, decoding=True) for t in range(count)]
                hidden = hidden + torch.cat(steps, dim=1)
            else:
                hidden = hidden + self._mlp(number, layer.mlp, normed, batch, decoding=True)
        return self.logits(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., vocabulary) of hidden states (..., dim) after the last layer."""
        return self.model.lm_head(self.model.model.language_model.norm(hidden))


def one_hot(patches: Tensor, num_patches: int) -> Tensor:
    """Which patch each token stands for: (n, num_patches) float; a row of zeros for -1."""
    return (patches[:, None] == torch.arange(num_patches, device=patches.device)).float()


def _attend(query: Tensor, key: Tensor, value: Tensor, scaling: float, hidden_keys: Tensor | None) -> Tensor:
    """Causal attention of the last rows: query (batch, heads, rows, head_dim), keys of all tokens so far.

    hidden_keys: (batch, tokens) bool, keys that nobody but the token itself sees.
    """
    rows, length = query.shape[2], key.shape[2]
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if hidden_keys is None and rows in (1, length):
        return F.scaled_dot_product_attention(query, key, value, is_causal=rows > 1, scale=scaling)
    seen = torch.ones(rows, length, dtype=torch.bool, device=key.device).tril(length - rows)
    if hidden_keys is not None:
        own = torch.ones(rows, length, dtype=torch.bool, device=key.device).triu(length - rows) & seen
        seen = seen & (~hidden_keys[:, None, None, :] | own)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling)


def _unmerged_rows(start: int, rows: Tensor, num_visual: int, after: int) -> Tensor:
    """The row of every position of the full sequence: (start + N + after,) int64; rows: (N,) of each patch."""
    first = torch.arange(start, device=rows.device)
    last = torch.arange(after, device=rows.device) + start + num_visual
    return torch.cat((first, rows + start, last))


def _spread(values: Tensor, rows: Tensor) -> Tensor:
    """(batch, heads, S, head_dim) at rows (batch, full): (batch, heads, full, head_dim)."""
    return values.gather(2, rows[:, None, :, None].expand(-1, values.shape[1], -1, values.shape[3]))


def _gather_means(values: Tensor, rows: Tensor, length: int) -> Tensor:
    """Mean of (batch, heads, full, head_dim) over the positions of each row: (batch, heads, length, head_dim)."""
    batch, heads, _, head_dim = values.shape
    index = rows[:, None, :, None].expand(-1, heads, -1, head_dim)
    out = values.new_zeros(batch, heads, length, head_dim)
    return out.scatter_reduce(2, index, values, reduce="mean", include_self=False)


def _zero(batch: Batch, cuts: list[Cut]) -> None:
    cache = batch.caches[-1]
    mask = torch.zeros(len(cuts), cache.key.shape[2], dtype=torch.bool, device=cache.key.device)
    for row, cut in enumerate(cuts):
        if cut.zero is not None:
            mask[row, batch.start : batch.start + batch.num_visual] = cut.zero.to(mask.device)
    keep = ~mask[:, None, :, None]
    cache.key, cache.value = cache.key * keep, cache.value * keep
