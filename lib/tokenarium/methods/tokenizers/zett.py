"""ZeTT: a hypernetwork that reads how a token is spelt in the old tokenizer and predicts its embedding rows.

Source: Minixhofer, Ponti and Vulić, "Zero-Shot Tokenizer Transfer", NeurIPS 2024 (arXiv 2405.07883). Tokens are strings
in GPT-2's byte alphabet, one character a byte. What the paper trains on is not its target tokenizers but a stream of
random ones: UnigramLM vocabularies whose scores are noisy counts of substrings.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F

BLANK = "Ġ"  # in GPT-2's byte alphabet
HOPELESS = -1e5  # log-probability of a piece whose noisy share is not positive
HEAD = 64  # width of an attention head
PROJECTOR_EPS, ENCODER_EPS = 1e-6, 1e-5  # of the layer norms: Flax's default and RoBERTa's
TYPICAL_NOISE, NOISE_SPREAD = math.log(1e-5), 4.0  # of the log-normal noise level

_ENCODER = "model.encoder.layer"


# Surface forms


def surface_form_matrix(
    tokens: Sequence[str],
    maxlen: int,
    model_tokenize: Callable[[str], Sequence[int]],
    pad_id: int,
    special_ids: Mapping[str, int],
) -> NDArray[np.int32]:
    """How the old tokenizer spells each new token: (tokens, maxlen) int32, cut off or padded on the right.

    tokens: in the byte alphabet. model_tokenize: the old tokenizer's model alone, without its split into words.
    special_ids: a special token -> its own id, which stands alone in its row.
    """
    matrix = np.full((len(tokens), maxlen), pad_id, dtype=np.int32)
    for row, token in enumerate(tokens):
        ids = [special_ids[token]] if token in special_ids else list(model_tokenize(token))[:maxlen]
        matrix[row, : len(ids)] = ids
    return matrix


def model_tokenize(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """The ids that a tokenizer's model gives a string of the byte alphabet, normaliser and word split left out."""
    model, known = tokenizer.model, {}

    def tokenize(token: str) -> list[int]:
        if token not in known:
            known[token] = [piece.id for piece in model.tokenize(token)]
        return known[token]

    return tokenize


# Sampling tokenizers


def substring_scores(pretokens: Iterable[str], max_len: int = 16, stride: int = 4) -> Counter[str]:
    """Score of each substring of the pretokens: its length in bytes, once for every place where it stands.

    Substrings begin at every stride-th byte of a pretoken and are 1 to max_len - 1 bytes long, in order of first sight.
    """
    scores: Counter[str] = Counter()
    for pretoken, count in Counter(pretokens).items():
        for start in range(0, len(pretoken), stride):
            for end in range(start + 1, min(start + max_len, len(pretoken) + 1)):
                scores[pretoken[start:end]] += (end - start) * count
    return scores


def noisy_pieces(
    scores: Mapping[str, int], k: int, max_len: int = 16, noise: float = 0.0, rng: np.random.Generator | None = None
) -> list[tuple[str, float]]:
    """The k best pieces of a UnigramLM with their log-probabilities, then what any text needs.

    noise: standard deviation of the normal noise on each piece's share of all scores. Equal shares: first seen, first
    taken. All 256 bytes and the runs of 2 to max_len - 1 blanks follow with score 0 where they are not among the best.
    """
    names = list(scores)
    total = max(sum(scores.values()), 1)
    extra = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(BLANK * run for run in range(2, max_len))]
    shares = np.array([scores[name] / total for name in names])
    fallback = np.zeros(len(extra))
    if noise > 0:
        if rng is None:
            raise ValueError("noise needs a random generator")
        shares = shares + rng.normal(0.0, noise, len(shares))
        fallback = rng.normal(0.0, noise, len(extra))
    best = np.argsort(-shares, kind="stable")[:k]
    pieces = {names[index]: float(shares[index]) for index in best}
    for name, share in zip(extra, fallback, strict=True):
        pieces.setdefault(name, float(share))
    return [(name, math.log(share) if share > 0 else HOPELESS) for name, share in pieces.items()]


def sample_unigram(
    pretokens: Iterable[str],
    k: int,
    max_len: int = 16,
    stride: int = 4,
    noise: float = 0.0,
    rng: np.random.Generator | None = None,
) -> list[tuple[str, float]]:
    """A random vocabulary for a UnigramLM from the pretokens of some texts; see `substring_scores`, `noisy_pieces`.

    pretokens: in the byte alphabet, as often as they occur. Deterministic at noise 0.
    """
    return noisy_pieces(substring_scores(pretokens, max_len, stride), k, max_len, noise, rng)


def noise_level(rng: np.random.Generator) -> float:
    """A standard deviation for `sample_unigram`, log-normal as in the paper's training."""
    return float(rng.lognormal(TYPICAL_NOISE, NOISE_SPREAD))


def byte_words(text: str) -> list[str]:
    """GPT-2's words of a text in the byte alphabet, blanks at their front."""
    return [word for word, _ in _WORDS.pre_tokenize_str(text)]


def unigram_tokenizer(pieces: Sequence[tuple[str, float]]) -> Tokenizer:
    """A byte-level UnigramLM tokenizer; ids are places in `pieces`."""
    tokenizer = Tokenizer(models.Unigram(list(pieces), None, False))
    tokenizer.pre_tokenizer = _WORDS
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


_WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


# The hypernetwork


def initial_params(
    rows: Tensor,
    width: int,
    maxlen: int,
    hidden: int,
    feed_forward: int,
    layers: int,
    pad_id: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Parameters of a fresh hypernetwork, named as in the published PyTorch checkpoints.

    rows: (V, width) tied or (V, 2 * width) [input ; output] embeddings of the model, which fix both scalers: in_scaler
    brings them to mean 0 and deviation 0.02 per dimension, and the scalers of the prediction are set from one forward
    pass over the old tokens, so that predicted rows have the mean and deviation of the true ones. Neither is trained.
    """
    source_width, tied = rows.shape[1], rows.shape[1] == width
    params: dict[str, Tensor] = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        params[f"{name}.weight"] = torch.randn(outputs, inputs, generator=generator) / math.sqrt(inputs)
        params[f"{name}.bias"] = torch.zeros(outputs)

    def norm(name: str) -> None:
        params[f"{name}.weight"], params[f"{name}.bias"] = torch.ones(hidden), torch.zeros(hidden)

    def projector(name: str) -> None:
        linear(f"{name}.dense1", hidden, feed_forward)
        linear(f"{name}.dense2", feed_forward, hidden)
        norm(f"{name}.ln")

    std, mean = torch.std_mean(rows, dim=0, correction=0)
    params["in_scaler.w"], params["in_scaler.b"] = 0.02 / std[None], -0.02 * (mean / std)[None]
    params["fallback_embeddings.weight"] = 0.02 * torch.randn(1, source_width, generator=generator)
    linear("input_projection.0", source_width, hidden)
    projector("input_projection.1")
    params["model.embeddings.word_embeddings.weight"] = torch.zeros(pad_id + 1, hidden)
    for name, count in (("position_embeddings", maxlen), ("token_type_embeddings", 1)):
        params[f"model.embeddings.{name}.weight"] = 0.02 * torch.randn(count, hidden, generator=generator)
    norm("model.embeddings.LayerNorm")
    for layer in range(layers):
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            linear(f"{_ENCODER}.{layer}.attention.{name}", hidden, hidden)
        norm(f"{_ENCODER}.{layer}.attention.output.LayerNorm")
        linear(f"{_ENCODER}.{layer}.intermediate.dense", hidden, feed_forward)
        linear(f"{_ENCODER}.{layer}.output.dense", feed_forward, hidden)
        norm(f"{_ENCODER}.{layer}.output.LayerNorm")
    heads = [("output_projection", "scaler")]
    if not tied:
        heads.append(("output_projection_out", "out_scaler"))
    for projection, scaler in heads:
        projector(f"{projection}.0")
        linear(f"{projection}.1", hidden, width)
        params[f"{scaler}.w"], params[f"{scaler}.b"] = torch.ones(1, width), torch.zeros(1, width)
    with torch.no_grad():
        identity = torch.arange(len(rows))[:, None]
        predicted = [made for made in hypernet_forward(identity, rows, params)[:2] if made is not None]
    for (_, scaler), made, true in zip(heads, predicted, rows.split(width, dim=1), strict=True):
        (std, mean), (made_std, made_mean) = (torch.std_mean(each, dim=0, correction=0) for each in (true, made))
        weight = std / made_std.clamp(min=1e-6)
        params[f"{scaler}.w"], params[f"{scaler}.b"] = weight[None], (mean - weight * made_mean)[None]
    return params


def is_trained(name: str) -> bool:
    """Whether a parameter of the hypernetwork is trained; the scalers and the table that only holds padding are not."""
    return "scaler." not in name and not name.endswith("word_embeddings.weight")


def hypernet_forward(
    S: Tensor | NDArray[np.integer],
    E_src: Tensor,
    params: Mapping[str, Tensor],
    *,
    pad_id: int | None = None,
    language: int | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Embedding rows of tokens from their surface forms.

    S: (tokens, length) ids of the old tokenizer; ids from len(E_src) on take the learned fallback rows. E_src: (V, d)
    for tied embeddings, else (V, 2 d), [input ; output]. params: named as in the published PyTorch checkpoints.
    pad_id: None takes the last row of the checkpoint's own (otherwise unused) word table. language: row of
    "lang_embeddings.weight" that stands as one more position behind the pieces.
    Returns input rows (tokens, d), output rows (tokens, d) or None where they are tied, and the output bias (tokens,),
    zeros where the hypernetwork predicts none.
    """
    forms = torch.as_tensor(S, device=E_src.device).long()
    if pad_id is None:
        pad_id = params["model.embeddings.word_embeddings.weight"].shape[0] - 1
    used = forms != pad_id
    # Columns of nothing but padding change nothing, unless a form is empty: then it attends to all places alike.
    length = max(int(used.sum(dim=1).max()), 1) if len(forms) and bool(used[:, 0].all()) else forms.shape[1]
    forms, used = forms[:, :length], used[:, :length]
    known = forms < len(E_src)
    x = params["in_scaler.w"] * F.embedding(forms.clamp(max=len(E_src) - 1), E_src) + params["in_scaler.b"]
    extra = (forms - len(E_src)).clamp(min=0, max=len(params["fallback_embeddings.weight"]) - 1)
    x = torch.where(known[..., None], x, F.embedding(extra, params["fallback_embeddings.weight"]))
    x = _projector(_linear(x, params, "input_projection.0"), params, "input_projection.1")
    x = x + params["model.embeddings.position_embeddings.weight"][:length]
    x = x + params["model.embeddings.token_type_embeddings.weight"][0]
    if language is not None:
        x = torch.cat([x, params["lang_embeddings.weight"][language].expand(len(x), 1, -1)], dim=1)
        used = torch.cat([used, used.new_ones(len(used), 1)], dim=1)
    x = _norm(x, params, "model.embeddings.LayerNorm", ENCODER_EPS)
    layers = 1 + max(int(name.split(".")[3]) for name in params if name.startswith(_ENCODER))
    for layer in range(layers):
        # Only the first place of the last layer is read.
        x = _encoder_layer(x, used, params, f"{_ENCODER}.{layer}", first_only=layer == layers - 1)
    state = x[:, 0]
    rows = [
        params[f"{scaler}.w"] * _linear(_projector(state, params, f"{name}.0"), params, f"{name}.1")
        + params[f"{scaler}.b"]
        for name, scaler in (("output_projection", "scaler"), ("output_projection_out", "out_scaler"))
        if f"{name}.1.weight" in params
    ]
    bias = state.new_zeros(len(state))
    if "bias_projection.weight" in params:
        bias = _linear(state, params, "bias_projection")[:, 0]
    return rows[0], rows[1] if len(rows) > 1 else None, bias


def _linear(x: Tensor, params: Mapping[str, Tensor], name: str) -> Tensor:
    return F.linear(x, params[f"{name}.weight"], params[f"{name}.bias"])


def _norm(x: Tensor, params: Mapping[str, Tensor], name: str, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], params[f"{name}.weight"], params[f"{name}.bias"], eps)


def _projector(x: Tensor, params: Mapping[str, Tensor], name: str) -> Tensor:
    inner = F.gelu(_linear(x, params, f"{name}.dense1"), approximate="tanh")
    inner = F.gelu(_linear(inner, params, f"{name}.dense2"), approximate="tanh")
    return _norm(x + inner, params, f"{name}.ln", PROJECTOR_EPS)


def _encoder_layer(x: Tensor, used: Tensor, params: Mapping[str, Tensor], name: str, first_only: bool) -> Tensor:
    """One layer of RoBERTa. x: (tokens, length, hidden). used: (tokens, length) bool, what may be attended to."""
    heads = max(x.shape[-1] // HEAD, 1)

    def split(kind: str, states: Tensor) -> Tensor:
        return _linear(states, params, f"{name}.attention.self.{kind}").unflatten(-1, (heads, -1)).transpose(1, 2)

    asking = x[:, :1] if first_only else x
    mask = torch.where(used, 0.0, torch.finfo(x.dtype).min)[:, None, None, :].to(x.dtype)
    mixed = F.scaled_dot_product_attention(split("query", asking), split("key", x), split("value", x), attn_mask=mask)
    mixed = _linear(mixed.transpose(1, 2).flatten(2), params, f"{name}.attention.output.dense")
    x = _norm(asking + mixed, params, f"{name}.attention.output.LayerNorm", ENCODER_EPS)
    inner = F.gelu(_linear(x, params, f"{name}.intermediate.dense"))
    inner = _linear(inner, params, f"{name}.output.dense")
    return _norm(x + inner, params, f"{name}.output.LayerNorm", ENCODER_EPS)


class Hypernet(nn.Module):
    """The parameters of a hypernetwork as a module, those that are not trained as constants."""

    def __init__(self, params: Mapping[str, Tensor]):
        super().__init__()
        self.table = nn.ParameterDict(
            {name.replace(".", "/"): nn.Parameter(value, is_trained(name)) for name, value in params.items()}
        )

    @property
    def params(self) -> dict[str, Tensor]:
        return {name.replace("/", "."): value for name, value in self.table.items()}

    def forward(
        self, S: Tensor | NDArray[np.integer], E_src: Tensor, pad_id: int | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """`hypernet_forward`, tokens of as many pieces together, so that no time goes into padding."""
        params = self.params
        if pad_id is None:
            pad_id = params["model.embeddings.word_embeddings.weight"].shape[0] - 1
        forms = torch.as_tensor(S, device=E_src.device).long()
        lengths = (forms != pad_id).sum(dim=1)
        groups = [(int(length), (lengths == length).nonzero()[:, 0]) for length in lengths.unique()]
        made = [hypernet_forward(forms[rows, : max(n, 1)], E_src, params, pad_id=pad_id) for n, rows in groups]
        place = torch.cat([rows for _, rows in groups]).argsort()
        rows_in, rows_out, bias = zip(*made, strict=True)
        return (
            torch.cat(rows_in)[place],
            None if rows_out[0] is None else torch.cat(rows_out)[place],
            torch.cat(bias)[place],
        )


# Losses


def identity_loss(predicted: tuple[Tensor, Tensor | None], true: tuple[Tensor, Tensor | None]) -> Tensor:
    """Squared error summed over dimensions, mean over tokens, averaged over input and output rows."""
    pairs = [(made, row) for made, row in zip(predicted, true, strict=True) if made is not None]
    return torch.stack([(made - row).square().sum(dim=1).mean() for made, row in pairs]).mean()


def lexical_loss(
    predicted: tuple[Tensor, Tensor | None],
    E_in: Tensor,
    E_out: Tensor | None,
    first: Tensor,
    single: Tensor,
) -> Tensor:
    """How far the rows of tokens that the old tokenizer has too are from its own.

    predicted: rows (tokens, d). first: (tokens,) the first id of each surface form. single: (tokens,) bool, whether it
    is the only one. Mean squared distance of these tokens by the mean norm of their true rows, averaged over input and
    output; 0 where there is none.
    """
    if not bool(single.any()):
        return predicted[0].new_zeros(())
    losses = []
    for made, source in zip(predicted, (E_in, E_out), strict=True):
        if made is not None:
            true = source[first[single]]
            losses.append((made[single] - true).square().sum(dim=1).mean() / true.norm(dim=1).mean())
    return torch.stack(losses).mean()


def token_losses(body: nn.Module, rows_in: Tensor, rows_out: Tensor, ids: Tensor, used: Tensor) -> Tensor:
    """Cross-entropy in nats of each next token under a model's layers with other embeddings.

    body: the model without its head (`LlamaForCausalLM.model`). rows_in, rows_out: (V', d). ids: (batch, tokens).
    used: (batch, tokens) bool, padding is False and stands on the right. Returns one number for each used token but the
    first of each text, in reading order.
    """
    states = body(inputs_embeds=F.embedding(ids[:, :-1], rows_in), use_cache=False).last_hidden_state
    follows = used[:, 1:]
    logits = states[follows] @ rows_out.T
    return F.cross_entropy(logits, ids[:, 1:][follows], reduction="none")


# What the hypernetwork is compared with


def mean_of_pieces(pieces: Sequence[Sequence[int]], rows: Tensor) -> Tensor:
    """FVT: each new row is the mean of its pieces' old rows. pieces: old ids of each token, none of them empty."""
    lengths = torch.tensor([len(ids) for ids in pieces], device=rows.device)
    flat = torch.tensor([index for ids in pieces for index in ids], device=rows.device)
    owner = torch.repeat_interleave(torch.arange(len(pieces), device=rows.device), lengths)
    return rows.new_zeros(len(pieces), rows.shape[1]).index_add_(0, owner, rows[flat]) / lengths[:, None]


def copies_and_noise(pieces: Sequence[Sequence[int]], rows: Tensor, seed: int) -> Tensor:
    """Shared tokens keep their rows, all others are normal with the old rows' mean and deviation per dimension."""
    std, mean = torch.std_mean(rows, dim=0, correction=0)
    noise = torch.randn(len(pieces), rows.shape[1], generator=torch.Generator().manual_seed(seed)).to(rows)
    made = mean + std * noise
    shared = [(row, ids[0]) for row, ids in enumerate(pieces) if len(ids) == 1]
    places, old = (torch.tensor(each, dtype=torch.long) for each in zip(*shared, strict=True))
    made[places] = rows[old]
    return made
