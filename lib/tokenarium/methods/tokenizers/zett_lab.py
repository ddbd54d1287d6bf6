"""The bench of ZeTT: target tokenizers, the rows that each method gives them, bits per byte of held-out documents.

Every target has the same shape: tokens in GPT-2's byte alphabet and a function from text to their numbers. A row for
the start symbol, always the old model's own, stands in front, so that token i has row i + 1. The old tokenizer is such
a target, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from numpy.typing import NDArray
from safetensors.torch import load_file
from scipy import sparse
from scipy.sparse.linalg import svds
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tokenarium.data.tokenizers import load_tokenizer
from tokenarium.methods.tokenizers import bpe, zett
from tokenarium.models import hypernet_tiny, lm_tiny

Encode = Callable[[str], list[int]]
Rows = tuple[Tensor, Tensor]  # input and output rows, (tokens, d) each
MAXLEN = 7  # pieces of a surface form, where the hypernetwork has places for more


# Target tokenizers


@dataclass(frozen=True)
class Target:
    """A vocabulary in the byte alphabet, and how it splits a text."""

    name: str
    tokens: list[str]
    encode: Encode


def bpe_target(name: str, trained: bpe.Bpe) -> Target:
    """A byte-level BPE as a target."""
    tokenizer = trained.tokenizer()
    return Target(
        name, [bpe.to_characters(token) for token in trained.vocabulary], lambda text: tokenizer.encode(text).ids
    )


def restricted_target(name: str, tokenizer: Tokenizer, texts: Iterable[str]) -> Target:
    """The merges of a byte-level BPE that make the tokens of these texts, in their order; the texts split as before."""
    merges = bpe.merges_of(tokenizer)
    made_of = {left + right: (left, right) for left, right in reversed(merges)}
    ids = {index for text in texts for index in tokenizer.encode(text, add_special_tokens=False).ids}
    waiting = [bpe.from_characters(tokenizer.id_to_token(index)) for index in sorted(ids)]
    kept: set[bytes] = set()
    while waiting:
        token = waiting.pop()
        if token not in kept and token in made_of:
            kept.add(token)
            waiting += made_of[token]
    return bpe_target(name, bpe.Bpe(tuple(pair for pair in merges if pair[0] + pair[1] in kept), bpe.gpt2_words()))


def word_target(name: str, texts: Iterable[str], vocab_size: int) -> Target:
    """The most frequent words with all bytes; another word is split into the longest tokens from its front on."""
    counts = Counter(word for text in texts for word in zett.byte_words(text))
    alphabet = [bpe.to_characters(symbol) for symbol in bpe.BYTE_ALPHABET]
    frequent = [word for word, _ in counts.most_common(vocab_size)]
    tokens = list(dict.fromkeys([*alphabet, *frequent]))[:vocab_size]
    known = {token: index for index, token in enumerate(tokens)}

    def encode(text: str) -> list[int]:
        ids = []
        for word in zett.byte_words(text):
            while word:
                end = next(end for end in range(len(word), 0, -1) if word[:end] in known)
                ids.append(known[word[:end]])
                word = word[end:]
        return ids

    return Target(name, tokens, encode)


def targets(root: Path, parameters: Any) -> dict[str, Target]:
    """The targets by name, made from texts of the split "validation", which nothing here was trained on."""
    fresh = lm_tiny.documents(root, parameters.target_bytes.to_dict(), "validation")
    python = lm_tiny.documents(root, {"python": parameters.target_bytes["python"]}, "validation")
    small, large, words = (parameters.sizes[name] for name in ("small", "large", "words"))
    trained = bpe.train(fresh, large)
    return {
        "a-small": bpe_target("a-small", trained.truncate(small)),
        "a": bpe_target("a", trained),
        "b": restricted_target("b", load_tokenizer("gpt2", root), fresh),
        "c": bpe_target("c", bpe.train(python, parameters.sizes["python"])),
        "d": word_target("d", fresh, words),
    }


def passages(root: Path, numbers: Mapping[str, int], characters: int, split: str = "test") -> list[str]:
    """One passage from the middle of each of so many documents of a kind, cut at line starts where that is possible."""
    found = []
    for kind, number in numbers.items():
        whole = [text for text in lm_tiny.documents(root, {kind: 10**12}, split) if len(text) >= characters // 2]
        for text in whole[:number]:
            start = max((len(text) - characters) // 2, 0)
            start = text.rfind("\n", 0, start) + 1 if start else 0
            found.append(text[start : start + characters])
    return found


# A model and its hypernetwork


class Lab:
    """A model with its hypernetwork, and the rows that each method makes for a target.

    model, hypernet: folders below root that hold one directory a seed, or names on the Hugging Face hub. There the
    hypernetwork's repository has the tokenizer that it was trained with.
    """

    def __init__(
        self,
        root: Path,
        seed: int,
        model: str = "models/lm-tiny",
        hypernet: str = "models/hypernet-tiny",
        device: torch.device | str = "cpu",
    ):
        self.seed = seed
        ours = (root / model).is_dir()
        place = root / model / f"seed{seed}" if ours else model
        self.model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, use_safetensors=True)
        self.model.requires_grad_(False).eval().to(device)
        self.hypernet_folder = root / hypernet / f"seed{seed}"
        if ours:
            self.tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
            self.snapshots = hypernet_tiny.snapshots(self.hypernet_folder)
            self.hypernet = hypernet_tiny.load(self.hypernet_folder)
        else:
            self.tokenizer = Tokenizer.from_pretrained(hypernet)
            self.snapshots = {}
            self.hypernet = zett.Hypernet(load_file(hf_hub_download(hypernet, hypernet_tiny.WEIGHTS))).eval()
        self.hypernet.to(device)
        params = self.hypernet.params
        self.maxlen = min(MAXLEN, len(params["model.embeddings.position_embeddings.weight"]))
        self.pad_id = len(params["model.embeddings.word_embeddings.weight"]) - 1
        self.source = hypernet_tiny.source_rows(self.model)
        self.tokenize = zett.model_tokenize(self.tokenizer)
        self.start = self.model.config.bos_token_id
        names = {index: token for token, index in self.tokenizer.get_vocab().items() if index < len(self.source)}
        self.ids = [index for index in sorted(names) if index != self.start]
        place_of = {index: number for number, index in enumerate(self.ids)}
        self.original = Target(
            "original",
            [names[index] for index in self.ids],
            lambda text: [place_of[index] for index in self.tokenizer.encode(text, add_special_tokens=False).ids],
        )

    @property
    def rows(self) -> Rows:
        """The model's own embeddings, (V, d) each, by id."""
        return self.model.get_input_embeddings().weight, self.model.get_output_embeddings().weight

    def with_start(self, rows: Rows, own: Rows | None = None) -> Rows:
        """New rows behind the start symbol's old ones. own: embeddings of a variant of the model, by id."""
        kept = slice(self.start, self.start + 1)
        return tuple(torch.cat([old[kept], new]) for old, new in zip(own or self.rows, rows, strict=True))

    def original_rows(self, own: Rows | None = None) -> Rows:
        """The rows of the original as a target."""
        return self.with_start(tuple(each[self.ids] for each in own or self.rows), own)

    def by_id(self, rows: Rows) -> Rows:
        """Embeddings by id from rows of the original as a target; ids without a token keep the model's own."""
        places = torch.tensor([self.start, *self.ids], device=self.source.device)
        return tuple(old.index_copy(0, places, new) for old, new in zip(self.rows, rows, strict=True))

    def pieces(self, target: Target) -> list[list[int]]:
        """The old ids of each token of a target."""
        return [self.tokenize(token) for token in target.tokens]

    def forms(self, target: Target) -> NDArray[np.int32]:
        """Surface forms of a target, (tokens, length)."""
        return zett.surface_form_matrix(target.tokens, self.maxlen, self.tokenize, self.pad_id, {})

    @torch.no_grad()
    def predicted(self, forms: NDArray[np.int32], snapshot: str | None = None) -> Rows:
        """The hypernetwork's rows for surface forms; snapshot: a file of earlier weights."""
        hypernet = hypernet_tiny.load(self.hypernet_folder, snapshot) if snapshot else self.hypernet
        made_in, made_out, _ = hypernet.to(self.source.device)(torch.from_numpy(forms), self.source)
        return made_in, made_out

    def arms(self, target: Target, texts: Sequence[str]) -> dict[str, Rows]:
        """Rows for a target by method; texts: what the vectors of the FOCUS-like method are counted on."""
        pieces, forms = self.pieces(target), self.forms(target)
        shuffled = forms[np.random.default_rng(self.seed).permutation(len(forms))]
        width = self.model.config.hidden_size

        def both(make: Callable[[Tensor], Tensor]) -> Rows:
            return tuple(make(self.source).split(width, dim=1))

        return {
            "hypernet": self.predicted(forms),
            "FVT": both(lambda rows: zett.mean_of_pieces(pieces, rows)),
            "FOCUS-like": both(lambda rows: focus_rows(target, texts, pieces, rows, self.seed)),
            "copy + random": both(lambda rows: zett.copies_and_noise(pieces, rows, self.seed)),
            "global mean": both(lambda rows: rows.mean(dim=0).expand(len(pieces), -1)),
            "shuffled forms": self.predicted(shuffled),
        }


def device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def encode(target: Target, texts: Iterable[str]) -> list[list[int]]:
    """Numbers of rows, the start symbol's left out."""
    return [[index + 1 for index in target.encode(text)] for text in texts]


@torch.no_grad()
def document_bits(
    body: nn.Module, rows: Rows, documents: Sequence[Sequence[int]], window: int = 256, batch_size: int = 8
) -> NDArray[np.float64]:
    """Bits that each document costs, (documents,): windows without overlap, each after the start symbol.

    body: the model without its head. rows: with the start symbol's row in front. documents: as from `encode`. window:
    tokens, the start included.
    """
    cut = [
        (owner, [0, *ids[start : start + window - 1]])
        for owner, ids in enumerate(documents)
        for start in range(0, len(ids), window - 1)
    ]
    cut.sort(key=lambda pair: len(pair[1]))
    bits = np.zeros(len(documents))
    for first in range(0, len(cut), batch_size):
        owners, parts = zip(*cut[first : first + batch_size], strict=True)
        ids = torch.zeros(len(parts), max(map(len, parts)), dtype=torch.long)
        used = torch.zeros_like(ids, dtype=torch.bool)
        for row, part in enumerate(parts):
            ids[row, : len(part)] = torch.tensor(part)
            used[row, : len(part)] = True
        ids, used = ids.to(rows[0].device), used.to(rows[0].device)
        losses = zett.token_losses(body, *rows, ids, used).double().split([len(part) - 1 for part in parts])
        for owner, each in zip(owners, losses, strict=True):
            bits[owner] += float(each.sum()) / lm_tiny.BIT
    return bits


# The FOCUS-like baseline


def focus_rows(
    target: Target,
    texts: Sequence[str],
    pieces: Sequence[Sequence[int]],
    rows: Tensor,
    seed: int,
    dimensions: int = 100,
) -> Tensor:
    """Each new row is a sparse mean of shared tokens' old rows, weighted by how alike they are used in a text.

    After Dobler and de Melo 2023 (FOCUS); here the auxiliary vectors are PPMI counts reduced by SVD in place of
    fastText's, and weights are the sparsemax of cosines. Shared tokens keep their rows; tokens that do not occur in the
    texts take normal ones, as in `zett.copies_and_noise`.
    """
    vectors, seen = ppmi_vectors([target.encode(text) for text in texts], len(target.tokens), dimensions)
    shared = np.array([row for row, ids in enumerate(pieces) if len(ids) == 1 and seen[row]])
    new = np.array([row for row, ids in enumerate(pieces) if len(ids) > 1 and seen[row]])
    made = zett.copies_and_noise(pieces, rows, seed)
    if len(new) and len(shared):
        weights = torch.from_numpy(sparsemax(vectors[new] @ vectors[shared].T)).to(rows)
        made[torch.from_numpy(new)] = weights @ rows[[pieces[row][0] for row in shared]]
    return made


def ppmi_vectors(
    texts: Sequence[Sequence[int]], size: int, dimensions: int = 100, window: int = 5
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Unit vectors of tokens from the company that they keep: (size, dimensions), and (size,) which tokens occur.

    Positive pointwise mutual information of pairs at most `window` apart, either order, in its first singular
    directions, each times the root of its singular value. Tokens that do not occur have zeros.
    """
    counts = sparse.csr_matrix((size, size))
    for ids in map(np.asarray, texts):
        for apart in range(1, min(window, len(ids) - 1) + 1):
            pair = (np.ones(len(ids) - apart), (ids[:-apart], ids[apart:]))
            counts = counts + sparse.csr_matrix(pair, shape=(size, size))
    counts = (counts + counts.T).tocoo()
    totals = np.asarray(counts.sum(axis=1)).ravel()
    information = np.log(counts.data * totals.sum() / (totals[counts.row] * totals[counts.col]))
    positive = information > 0
    matrix = sparse.csr_matrix(
        (information[positive], (counts.row[positive], counts.col[positive])), shape=(size, size)
    )
    dimensions = min(dimensions, size - 1)
    left, values, _ = svds(matrix, k=dimensions, v0=np.ones(size))
    vectors = left * np.sqrt(values)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(norms, 1e-12), totals > 0


def sparsemax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest probability vector to each row of scores, (n, k) -> (n, k) (Martins and Astudillo 2016)."""
    falling = -np.sort(-scores, axis=1)
    sums = np.cumsum(falling, axis=1)
    ranks = np.arange(1, scores.shape[1] + 1)
    support = (1 + ranks * falling > sums).sum(axis=1)
    threshold = (sums[np.arange(len(scores)), support - 1] - 1) / support
    return np.maximum(scores - threshold[:, None], 0)
