"""swaplab, the shared harness of tokenizer transplants: put new tokens on a language model and measure bits per byte.

Every method of the family gets the same restricted vocabulary, keeps the same rows (those of shared tokens), and is
scored the same way: windows that do not overlap, each after the base model's own start row, in bits per UTF-8 byte, so
that tokenizers which cut a text differently can be compared. What differs is only how the rows of new tokens are made;
the plain ways (zero, mean, normal, pieces, neighbours, a linear map, PCA and Procrustes) are here.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from tokenarium.data.tokenizers import token_bytes
from tokenarium.measure.bootstrap import Interval, bootstrap

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Ids = NDArray[np.int64]

_FALLBACK = re.compile(r"<0x[0-9A-F]{2}>")
_WORD_STARTS = ("Ġ", "▁")


# Vocabularies


def match(
    old: Tokenizer, new: Tokenizer, by: str = "bytes", special: Mapping[str, str] | None = None
) -> tuple[Ids, Ids]:
    """Tokens that both vocabularies have: (new ids, old ids), each (m,) int64, sorted by new id.

    by: "bytes" compares what tokens decode to, one to one: where several ids of a vocabulary decode alike, the one that
    is no byte fallback (`<0x41>`), then the lowest, stands for all. "official" compares vocabulary strings with the
    word-start mark (Ġ or ▁) of either alphabet taken for the same, as mergekit-tokensurgeon does at its defaults.
    special: new token -> old token of the same role (start, end of text); those are shared in any case.
    Raises ValueError for another `by` and for a special token that its vocabulary lacks.
    """
    if by not in ("bytes", "official"):
        raise ValueError(f"by must be 'bytes' or 'official', got {by!r}")
    keys = _by_bytes if by == "bytes" else _by_official_rule
    held, wanted = keys(old), keys(new)
    pairs = {index: held[key] for key, index in wanted.items() if key in held}
    for new_token, old_token in (special or {}).items():
        new_id, old_id = new.token_to_id(new_token), old.token_to_id(old_token)
        if new_id is None or old_id is None:
            raise ValueError(f"no vocabulary has {new_token if new_id is None else old_token!r}")
        pairs[new_id] = old_id
    found = np.array(sorted(pairs.items()), dtype=np.int64).reshape(-1, 2)
    return found[:, 0].copy(), found[:, 1].copy()


def _by_bytes(tokenizer: Tokenizer) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    fallbacks = _fallback_ids(tokenizer)
    spelled = [(index in fallbacks, index, token) for index, token in enumerate(token_bytes(tokenizer)) if token]
    for _, index, token in sorted(spelled):
        found.setdefault(token, index)
    return found


def _by_official_rule(tokenizer: Tokenizer) -> dict[tuple[bool, str], int]:
    specials = {index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    found: dict[tuple[bool, str], int] = {}
    for token, index in sorted(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1]):
        if index not in specials:
            starts = token.startswith(_WORD_STARTS)
            found.setdefault((starts, token[1:] if starts else token), index)
    return found


def _fallback_ids(tokenizer: Tokenizer) -> set[int]:
    """Ids spelled `<0xHH>`, the bytes of characters that the vocabulary lacks."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    return {index for token, index in vocabulary.items() if _FALLBACK.fullmatch(token)}


def pieces(old: Tokenizer, tokens: Sequence[bytes]) -> list[list[int]]:
    """The old ids of each new token's text.

    Bytes that are no whole UTF-8 become the old tokenizer's tokens of single bytes. A byte for which it has none gives
    no piece, as when it encodes (SmolLM2 lacks some bytes that no text holds): a token may be left without any.
    """
    by_bytes: dict[bytes, int] | None = None
    found = []
    for token in tokens:
        try:
            found.append(old.encode(token.decode("utf-8"), add_special_tokens=False).ids)
        except UnicodeDecodeError:
            by_bytes = _by_bytes(old) if by_bytes is None else by_bytes
            single = (by_bytes.get(token[index : index + 1]) for index in range(len(token)))
            found.append([piece for piece in single if piece is not None])
    return found


def restricted(new: Tokenizer, texts: Iterable[str], shared_ids: Ids) -> Ids:
    """The new ids that get rows, (V',) int64 ascending: those in the texts, all shared ones, all bytes.

    A byte fallback whose byte has an ordinary token is left out: the tokenizer never writes it, and its row would only
    share the ordinary one's probability.
    """
    kept = {int(index) for index in shared_ids} | set(_by_bytes_single(new))
    for text in texts:
        kept.update(new.encode(text, add_special_tokens=False).ids)
    return np.array(sorted(kept), dtype=np.int64)


def _by_bytes_single(tokenizer: Tokenizer) -> list[int]:
    return [index for token, index in _by_bytes(tokenizer).items() if len(token) == 1]


def renumber(kept: Ids, ids: Ids | Sequence[int]) -> Ids:
    """Places of the new ids in `kept`, the numbering of the restricted vocabulary: (n,) int64.

    Raises ValueError for an id that was not kept.
    """
    ids = np.asarray(ids, dtype=np.int64)
    places = np.searchsorted(kept, ids)
    missing = ids[kept[np.minimum(places, len(kept) - 1)] != ids] if len(kept) else ids
    if len(missing):
        raise ValueError(f"id {missing[0]} is not in the restricted vocabulary")
    return places.astype(np.int64)


def encode(tokenizer: Tokenizer, text: str, lengths: Sequence[bytes | None] | None = None) -> tuple[Ids, Ids]:
    """Ids of a text and how many bytes each stands for, (n,) int64 each, without special tokens.

    lengths: `token_bytes(tokenizer)`, to be made once for many texts. A token without bytes counts none.
    """
    lengths = token_bytes(tokenizer) if lengths is None else lengths
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return np.array(ids, dtype=np.int64), np.array([len(lengths[index] or b"") for index in ids], dtype=np.int64)


# Rows


def assemble(
    kept: Ids, shared: tuple[Ids, Ids], old_rows: Tensor, new_rows: Tensor, new_ids: Ids | None = None
) -> Tensor:
    """The embedding of the restricted vocabulary, (V', d): shared rows copied bit by bit, the others from `new_rows`.

    shared: (new ids, old ids) of `match`. old_rows: (V, d). new_rows: (U, d), one for each id of `fresh(kept, shared)`
    in its order, or for each of `new_ids`. Raises ValueError when their number is another.
    """
    ids = fresh(kept, shared) if new_ids is None else new_ids
    if len(new_rows) != len(ids) or len(ids) + np.isin(kept, shared[0]).sum() != len(kept):
        raise ValueError(f"{len(kept)} ids are kept, but {len(shared[0])} are shared and {len(new_rows)} rows are new")
    rows = old_rows.new_empty(len(kept), old_rows.shape[1])
    held = np.isin(shared[0], kept)
    rows[torch.from_numpy(renumber(kept, shared[0][held]))] = old_rows[torch.from_numpy(shared[1][held])]
    rows[torch.from_numpy(renumber(kept, ids))] = new_rows.to(rows)
    return rows


def fresh(kept: Ids, shared: tuple[Ids, Ids]) -> Ids:
    """The kept ids that are not shared, ascending: the new tokens, (U,) int64."""
    return kept[~np.isin(kept, shared[0])]


def swap(model: PreTrainedModel, rows_in: Tensor, rows_out: Tensor | None = None) -> PreTrainedModel:
    """A copy of the model with another vocabulary. It shares all other weights with the model, which stays as it is.

    rows_in: (V', d) input embedding. rows_out: (V', d) output embedding; None where the model ties them, and then it is
    the input's. The copy knows no special ids. Raises ValueError for rows of another shape, for an untied model without
    rows_out, and for an output with a bias.
    """
    width = model.get_input_embeddings().weight.shape[1]
    head = model.get_output_embeddings()
    tied = head.weight is model.get_input_embeddings().weight
    if rows_out is None and not tied:
        raise ValueError("the model has an output embedding of its own: give rows_out")
    if head.bias is not None:
        raise ValueError("the output embedding has a bias, which has no rows for new tokens")
    for rows, dim in ((rows_in, width), (rows_out, head.weight.shape[1])):
        if rows is not None and (rows.ndim != 2 or rows.shape[1] != dim or len(rows) != len(rows_in)):
            raise ValueError(f"rows must have shape ({len(rows_in)}, {dim}), got {tuple(rows.shape)}")
    kept_alike = {id(each): each for each in (*model.parameters(), *model.buffers())}
    swapped = copy.deepcopy(model, kept_alike)  # what is in the memo is not copied: the modules share it
    embedding, output = swapped.get_input_embeddings(), swapped.get_output_embeddings()
    like = model.get_input_embeddings().weight
    embedding.weight = nn.Parameter(rows_in.detach().to(like).clone(), requires_grad=like.requires_grad)
    output.weight = (
        embedding.weight
        if rows_out is None
        else nn.Parameter(rows_out.detach().to(like).clone(), requires_grad=head.weight.requires_grad)
    )
    embedding.num_embeddings = output.out_features = len(rows_in)
    embedding.padding_idx = None
    swapped.config.tie_word_embeddings = rows_out is None
    swapped.config.vocab_size = len(rows_in)
    for config in (swapped.config, swapped.generation_config):
        if config is not None:
            config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    return swapped.eval()


# Measuring


def token_bits(
    model: PreTrainedModel, ids: Ids | Tensor, start_row: Tensor | None, window: int = 256
) -> NDArray[np.float64]:
    """The surprise at every token of a text, bits, (n,) float64, in windows of `window` tokens that do not overlap.

    ids: (n,) int64, row numbers of the model's embedding. start_row: (d,) float, put before each window as it stands in
    the base model's embedding; the same in all arms. Raises ValueError for an empty text, and without a start row.
    """
    ids = torch.as_tensor(ids, dtype=torch.int64, device=model.device)
    if not len(ids):
        raise ValueError("an empty text has no bits")
    if start_row is None:
        raise ValueError("windows need a start row: the base model's embedding of its start symbol")
    embedding = model.get_input_embeddings()
    # Gemma multiplies its embeddings by a constant inside the module.
    start = start_row.to(embedding.weight) * getattr(embedding, "embed_scale", 1.0)
    found = []
    with torch.inference_mode():
        for part in ids.split(window):
            inputs = torch.cat([start[None], embedding(part[:-1])])
            logits = model(inputs_embeds=inputs[None], use_cache=False).logits[0].float()
            chosen = logits.gather(1, part[:, None])[:, 0]
            found.append((logits.logsumexp(dim=1) - chosen).double())
    return (torch.cat(found) / math.log(2)).cpu().numpy()


def bits_per_byte(
    model: PreTrainedModel, ids: Ids | Tensor, num_bytes: Ids, start_row: Tensor | None, window: int = 256
) -> tuple[NDArray[np.float64], Ids]:
    """(bits, bytes) of every window, (windows,) float64 and int64; their sums' ratio is the text's bits per byte.

    num_bytes: (n,) int64, the bytes of each token. The other arguments and errors are those of `token_bits`.
    """
    return windows(token_bits(model, ids, start_row, window), num_bytes, window)


def windows(bits: NDArray[np.float64], num_bytes: Ids, window: int = 256) -> tuple[NDArray[np.float64], Ids]:
    """(bits, bytes) of every window of `window` tokens, from those of each token, (n,) each."""
    if len(bits) != len(num_bytes):
        raise ValueError(f"{len(bits)} tokens have bits, {len(num_bytes)} have bytes")
    starts = np.arange(0, len(bits), window)
    return np.add.reduceat(bits, starts), np.add.reduceat(np.asarray(num_bytes, dtype=np.int64), starts)


def blocks(bits: NDArray[np.float64], num_bytes: Ids, block: int = 256) -> tuple[NDArray[np.float64], Ids]:
    """(bits, bytes) of every `block` bytes of the text, so that different tokenizers can be compared pair by pair.

    A token's bits are spread evenly over its bytes. Raises ValueError for a token without bytes.
    """
    if (np.asarray(num_bytes) <= 0).any():
        raise ValueError("every token needs at least one byte")
    per_byte = np.repeat(bits / num_bytes, num_bytes)
    starts = np.arange(0, len(per_byte), block)
    return np.add.reduceat(per_byte, starts), np.diff(np.append(starts, len(per_byte))).astype(np.int64)


def ratio_interval(
    bits: NDArray[np.float64], num_bytes: NDArray, resamples: int, seed: int = 0, over: str = "windows"
) -> Interval:
    """Bits per byte, sum over sum, with its bootstrap interval over windows (or blocks, documents).

    bits may be the difference of two arms with the same tokens: then it is the paired difference in bits per byte.
    """
    columns = np.stack([np.asarray(bits, dtype=np.float64), np.asarray(num_bytes, dtype=np.float64)], axis=1)
    return bootstrap(columns, lambda s: s[..., 0].sum(1) / s[..., 1].sum(1), resamples=resamples, seed=seed, over=over)


# Initial rows of new tokens


def zero(rows: Tensor, count: int) -> Tensor:
    """(count, d) zeros."""
    return rows.new_zeros(count, rows.shape[1])


def mean(rows: Tensor, count: int) -> Tensor:
    """(count, d): the mean of the old rows (V, d), for every new token."""
    return rows.mean(dim=0).expand(count, -1).clone()


def normal(rows: Tensor, count: int, seed: int) -> Tensor:
    """(count, d): normal, with the mean and standard deviation of each dimension of the old rows (V, d)."""
    noise = torch.randn(count, rows.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    exact = rows.double()
    return (exact.mean(0) + noise.to(rows.device) * exact.std(0, correction=0)).to(rows.dtype)


def multivariate_normal(rows: Tensor, count: int, seed: int, scale: float = 1.0) -> Tensor:
    """(count, d): normal, with the mean and `scale` times the covariance of the old rows (V, d) (Hewitt 2021)."""
    exact = rows.double()
    centred = exact - exact.mean(0)
    covariance = centred.T @ centred / len(exact)
    values, vectors = torch.linalg.eigh(covariance)  # unlike Cholesky, it takes a singular covariance
    noise = torch.randn(count, rows.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    spread = noise.to(rows.device) * (scale * values.clamp(min=0)).sqrt()
    return (exact.mean(0) + spread @ vectors.T).to(rows.dtype)


def piece_mean(rows: Tensor, pieces: Sequence[Sequence[int]]) -> Tensor:
    """(U, d): the mean of the old rows (V, d) of each new token's pieces (ReTok, FVT); without pieces, of all rows."""
    everything = rows.mean(dim=0)
    made = [rows[torch.as_tensor(each)].mean(dim=0) if len(each) else everything for each in pieces]
    return torch.stack(made) if made else zero(rows, 0)


def nearest(targets: Tensor, points: Tensor, rows: Tensor, k: int = 8, chunk: int = 512) -> Tensor:
    """(U, d): mean of the base rows of the k shared tokens nearest in the donor's space, weighted by 1 / distance.

    targets: (U, D) donor rows of the new tokens. points: (N, D) donor rows of the shared tokens; rows: (N, d) the
    base's rows of the same. Distance is Euclid's; at distance 0 that token's row decides.
    Raises ValueError unless 1 <= k <= N.
    """
    if not 1 <= k <= len(points):
        raise ValueError(f"k must be between 1 and {len(points)}, got {k}")
    made = [zero(rows, 0)]
    for part in targets.split(chunk):
        distance, index = torch.cdist(part, points).topk(k, dim=1, largest=False)
        weight = 1 / distance.clamp(min=1e-8)
        weight = (weight / weight.sum(dim=1, keepdim=True)).to(rows.dtype)
        made.append(torch.einsum("uk,ukd->ud", weight, rows[index]))
    return torch.cat(made)


def least_squares(targets: Tensor, points: Tensor, rows: Tensor) -> Tensor:
    """(U, d): the targets (U, D) under the linear map that best takes the donor's shared rows (N, D) to the base's."""
    exact = torch.linalg.lstsq(points.double(), rows.double(), driver="gelsd" if points.device.type == "cpu" else None)
    return (targets.double() @ exact.solution).to(rows.dtype)


def pca_procrustes(targets: Tensor, points: Tensor, rows: Tensor) -> Tensor:
    """(U, d): the targets (U, D) turned from the donor's space into the base's (landmark PCA and Procrustes).

    Both clouds of shared rows, (N, D) and (N, d), are centred and written in their own principal components, as many as
    the smaller space has; a rotation with one scale takes the one's coordinates to the other's.
    """
    donor_mean, base_mean = points.double().mean(0), rows.double().mean(0)
    donor, base = points.double() - donor_mean, rows.double() - base_mean
    components = min(donor.shape[1], base.shape[1])
    donor_axes = torch.linalg.eigh(donor.T @ donor).eigenvectors.flip(1)[:, :components]
    base_axes = torch.linalg.eigh(base.T @ base).eigenvectors.flip(1)[:, :components]
    x, y = donor @ donor_axes, base @ base_axes
    left, singular, right = torch.linalg.svd(x.T @ y)
    scale = singular.sum() / x.square().sum()
    turned = scale * (targets.double() - donor_mean) @ donor_axes @ left @ right @ base_axes.T
    return (turned + base_mean).to(rows.dtype)


def permuted(rows: Tensor, seed: int) -> Tensor:
    """The same new rows (U, d), dealt out at random among the new tokens: the control for "any good-looking rows"."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows[order.to(rows.device)]
