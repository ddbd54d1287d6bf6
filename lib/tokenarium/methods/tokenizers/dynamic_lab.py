"""The bench of dynamic tokenization: a model with the rows that each arm gives its tokens, passages and prompts.

A token is a string in GPT-2's byte alphabet. "original" rows are the model's own, "FVT" means of a token's pieces,
"hypernet" what ZeTT's hypernetwork predicts, for every token as in the paper; "mixed" predicts rows for merged tokens
alone. The start symbol keeps its own row in every arm.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from tokenarium.data import libreoffice_help
from tokenarium.methods.tokenizers import dynamic_tokenization as dt
from tokenarium.methods.tokenizers import zett
from tokenarium.models import hypernet_tiny, lm_tiny

MAXLEN = 7  # pieces of a surface form, where the hypernetwork has places for more


# A model and the rows of any token


class Base:
    """A causal model, frozen, that is fed rows in place of ids.

    model, hypernet: folders below root, where there is one for each seed `seed<n>` in them, or names on the Hugging
    Face hub; the hypernetwork's repository there has the tokenizer that it was trained with. hypernet may be None.
    """

    def __init__(
        self, root: Path, seed: int, model: str, hypernet: str | None = None, device: torch.device | str = "cpu"
    ):
        place = next((each for each in (root / model / f"seed{seed}", root / model) if each.is_dir()), None)
        whole = AutoModelForCausalLM.from_pretrained(place or model, dtype=torch.float32, use_safetensors=True)
        whole.requires_grad_(False).eval().to(device)
        self.body: nn.Module = whole.model
        self.config = whole.config
        self.rows_in: Tensor = whole.get_input_embeddings().weight
        self.rows_out: Tensor = whole.get_output_embeddings().weight
        self.start: Tensor = self.rows_in[whole.config.bos_token_id]
        self.device = self.rows_in.device
        if place is None:
            self.tokenizer = Tokenizer.from_pretrained(hypernet or model)
        else:
            self.tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
        self.tokenize = zett.model_tokenize(self.tokenizer)
        if hypernet is not None:
            self._source = hypernet_tiny.source_rows(whole)
            if place is None:
                params = load_file(hf_hub_download(hypernet, hypernet_tiny.WEIGHTS))
                self._hypernet = zett.Hypernet(params).eval().to(device)
            else:
                self._hypernet = hypernet_tiny.load(root / hypernet / f"seed{seed}").to(device)
            params = self._hypernet.params
            self._maxlen = min(MAXLEN, len(params["model.embeddings.position_embeddings.weight"]))
            self._pad_id = len(params["model.embeddings.word_embeddings.weight"]) - 1

    def tokens(self, text: str) -> list[str]:
        """A text in the model's own tokens."""
        return self.tokenizer.encode(text, add_special_tokens=False).tokens

    def ids(self, tokens: Sequence[str]) -> list[int]:
        """The ids of the model's own tokens."""
        return [self.tokenizer.token_to_id(token) for token in tokens]

    def boundary(self, name: str) -> dt.IsValid:
        """The validity of pairs at the boundary "pretokens" or "word", with no special token in any pair."""
        special = {each.content for each in self.tokenizer.get_added_tokens_decoder().values() if each.special}
        return dt.pretokens(self.tokenizer.pre_tokenizer, special) if name == "pretokens" else dt.word(special)

    def original(self, tokens: list[str]) -> Tensor:
        """The model's own input rows; every token must be one of its own."""
        return self.rows_in[self.ids(tokens)]

    def fvt(self, tokens: list[str]) -> Tensor:
        """The mean of the pieces' own rows, which for an unmerged token is its own row."""
        return zett.mean_of_pieces([self.tokenize(token) for token in tokens], self.rows_in)

    @torch.no_grad()
    def predicted(self, tokens: list[str]) -> tuple[Tensor, Tensor]:
        """Input and output rows from the hypernetwork, (tokens, d) each."""
        forms = zett.surface_form_matrix(tokens, self._maxlen, self.tokenize, self._pad_id, {})
        rows_in, rows_out, _ = self._hypernet(torch.from_numpy(forms).to(self.device), self._source)
        return rows_in, rows_in if rows_out is None else rows_out

    def hypernet(self, tokens: list[str]) -> Tensor:
        """Input rows from the hypernetwork, for unmerged tokens too."""
        return self.predicted(tokens)[0]

    def mixed(self, tokens: list[str]) -> Tensor:
        """Input rows from the hypernetwork for merged tokens, the model's own for all others."""
        own = self.tokenizer.get_vocab()
        merged = [token for token in tokens if token not in own]
        rows = self.fvt(tokens)
        if merged:
            rows[[place for place, token in enumerate(tokens) if token not in own]] = self.hypernet(merged)
        return rows

    def rows(self, arm: str, size: int) -> dt.RowCache:
        """The rows of an arm ("original", "FVT", "hypernet", "mixed"), the `size` last used ones kept."""
        makers: dict[str, Callable[[list[str]], Tensor]] = {
            "original": self.original,
            "FVT": self.fvt,
            "hypernet": self.hypernet,
            "mixed": self.mixed,
        }
        return dt.RowCache(makers[arm], size)


def device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# Which section of the help is this?


def sections(root: Path, languages: Sequence[str], count: int) -> list[str]:
    """The sections (folders of pages) with most text in the first language's training split, most first."""
    sizes: Counter[str] = Counter()
    for page, paragraphs in _pages(root, languages, "train").items():
        sizes[page.rpartition("/")[0]] += sum(len(texts[0]) for texts in paragraphs)
    return [name for name, _ in sizes.most_common(count)]


def help_passages(
    root: Path, languages: Sequence[str], names: Sequence[str], split: str, characters: int, most: int
) -> tuple[dict[str, list[str]], NDArray[np.int64]]:
    """Passages by language, aligned, and the section of each, (passages,).

    A passage is whole paragraphs of one page that all languages have, until the first language's are `characters` long;
    what is shorter than half of that is left out. At most `most` passages of a section, in a mixed but fixed order.
    """
    rng = np.random.default_rng(0)
    found: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for page, paragraphs in _pages(root, languages, split).items():
        held: list[tuple[str, ...]] = []
        for place, texts in enumerate(paragraphs, 1):
            held.append(texts)
            length = sum(len(each[0]) for each in held)
            if length >= characters or (place == len(paragraphs) and length >= characters // 2):
                found[page.rpartition("/")[0]].append(tuple("\n".join(parts) for parts in zip(*held, strict=True)))
                held = []
    chosen = [
        (label, found[name][index])
        for label, name in enumerate(names)
        for index in rng.permutation(len(found[name]))[:most]
    ]
    order = rng.permutation(len(chosen))
    texts = {language: [chosen[index][1][place] for index in order] for place, language in enumerate(languages)}
    return texts, np.array([chosen[index][0] for index in order], dtype=np.int64)


def _pages(root: Path, languages: Sequence[str], split: str) -> dict[str, list[tuple[str, ...]]]:
    held = [{row["id"]: row["text"] for row in libreoffice_help.load(root, each, split)} for each in languages]
    pages: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for identifier in held[0]:
        if all(identifier in each for each in held):
            pages[identifier.partition("#")[0]].append(tuple(each[identifier] for each in held))
    return pages


# What comes after this context?


def prompts(
    root: Path, numbers: Mapping[str, int], tokens_of: Callable[[str], list[str]], context: int, follow: int
) -> list[tuple[list[str], list[str]]]:
    """(context, continuation) in tokens from the middle of held-out documents, one each; documents too short are left.

    numbers: kind of text (see `lm_tiny.documents`) -> prompts at most.
    """
    found = []
    for kind, number in numbers.items():
        taken = 0
        for text in lm_tiny.documents(root, {kind: 10**12}, "test"):
            start = max((len(text) - 8 * (context + follow)) // 2, 0)
            start = text.rfind("\n", 0, start) + 1 if start else 0
            tokens = tokens_of(text[start : start + 16 * (context + follow)])
            if taken < number and len(tokens) >= context + follow:
                found.append((tokens[:context], tokens[context : context + follow]))
                taken += 1
    return found


@torch.no_grad()
def continuation_bits(
    base: Base, contexts: Sequence[Sequence[str]], rows: dt.RowCache, follow: Sequence[Sequence[str]], batch_size: int
) -> NDArray[np.float64]:
    """Bits of each continuation, (prompts,): contexts in any tokens and rows, continuations in the model's own.

    follow: as many tokens for every prompt.
    """
    bits = []
    for first in range(0, len(contexts), batch_size):
        chosen = slice(first, first + batch_size)
        inputs, mask = dt.embed(contexts[chosen], rows, base.start)
        ids = torch.tensor([base.ids(tokens) for tokens in follow[chosen]], device=base.device)
        places = mask.sum(dim=1, keepdim=True) + torch.arange(ids.shape[1], device=base.device)
        inputs = torch.cat([inputs, inputs.new_zeros(len(ids), ids.shape[1], inputs.shape[2])], dim=1)
        # Continuations begin where each context ends; what comes after them is padding that no earlier state sees.
        inputs = inputs.scatter(1, places[..., None].expand(-1, -1, inputs.shape[2]), F.embedding(ids, base.rows_in))
        states = base.body(inputs_embeds=inputs, use_cache=False).last_hidden_state
        before = states.gather(1, (places - 1)[..., None].expand(-1, -1, states.shape[2]))
        losses = F.cross_entropy((before @ base.rows_out.T).flatten(0, 1), ids.flatten(), reduction="none")
        bits.append(losses.double().view(ids.shape).sum(dim=1) / lm_tiny.BIT)
    return torch.cat(bits).cpu().numpy()


def merged_to(tokens: Sequence[str], budgets: Mapping[str, float], is_valid: dt.IsValid) -> dict[str, list[str]]:
    """One prompt merged to several budgets, its merges learnt on itself.

    budgets: name -> how much shorter. A name that begins with "s" means a share of all that the boundary allows, any
    other a share of the tokens. A prompt that cannot get so short is merged as far as it goes.
    """
    lengths = dt.merge_lengths([tokens], is_valid)
    found = {}
    for name, share in budgets.items():
        wanted = share * (lengths[0] - lengths[-1]) if name.startswith("s") else share * lengths[0]
        enough = np.flatnonzero(lengths[0] - lengths >= wanted - 1e-9)
        found[name] = dt.dynamic_bpe([tokens], int(enough[0]) if len(enough) else len(lengths) - 1, is_valid)[0]
    return found
