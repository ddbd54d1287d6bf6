"""Token Transforming: pruning and merging as one token matrix, and a many-to-many matrix without training.

Source: Zeng, Yu, Kong, Tang, "Token Transforming", arXiv 2506.05709 (2025). The frame Y = W X, with one W
(M, N) per reducing block, is the paper's. How the paper fills W is in no source that could be opened: the
many-to-many filling here, R0, is a reconstruction from the abstract, so a verdict on it is a verdict on R0.

Two matrices describe a reduction of N tokens to M:
- the assignment P (M, N): P[i, j] is the share of token j's mass that goes to output i (the harness's
  transport matrix). Its columns sum to 1, or to 0 where a token is dropped.
- the token matrix W (M, N) = rows of P, weighted by what each token brings, scaled to sum to 1: Y = W X.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenarium.methods.vision.harness import Reducer, Reduction
from tokenarium.methods.vision.pitome import energy, removed_tokens, seeded_generator
from tokenarium.methods.vision.tome import Assignment, normalised

ASSIGNMENTS = ("soft", "hard", "prune")
WEIGHTINGS = ("size", "imp")
IMPORTANCES = ("cls", "recv", "unique", "rand")


def importance(
    attention: Tensor | None,
    metric: Tensor,
    kind: str = "cls",
    *,
    margin: float = 0.5,
    generator: torch.Generator | None = None,
    class_token: bool = True,
) -> Tensor:
    """How much each patch matters: the order from which R0 takes its anchors.

    attention: (batch, heads, tokens, tokens) float probabilities, not read by `unique` and `rand`. metric:
    (batch, tokens, head_dim) float. Both hold the class token at position 0 if `class_token`, which gets no
    importance. Returns (batch, patches) float, not negative, summing to 1 over patches. Kinds:
    - `cls`: attention from the class token, mean over heads.
    - `recv`: attention received, mean over heads and all query rows (for models without a class token).
    - `unique`: minus the PiToMe energy of the patches at `margin`. Energies have either sign, so this is the
      softmax of minus the energy: positive, and in the same order.
    - `rand`: uniform draws from the CPU `generator`, each row of the batch its own.
    Raises ValueError for an unknown kind, or if what the kind reads is missing.
    """
    _check("importance", kind, IMPORTANCES)
    first = int(class_token)
    if kind == "unique":
        return (-energy(normalised(metric[:, first:]), margin)).softmax(dim=-1)
    if kind == "rand":
        if generator is None:
            raise ValueError("importance 'rand' draws from a generator: pass one")
        scores = torch.rand(metric.shape[0], metric.shape[1] - first, generator=generator).to(metric.device)
    elif attention is None:
        raise ValueError(f"importance {kind!r} reads the attention probabilities, got None")
    elif kind == "recv":
        scores = attention.mean(dim=(1, 2))[:, first:]
    elif class_token:
        scores = attention[:, :, 0, 1:].mean(dim=1)
    else:
        raise ValueError("importance 'cls' needs a class token: use 'recv' without one")
    return scores / scores.sum(dim=-1, keepdim=True)


def transform_matrix(
    metric: Tensor,
    importance: Tensor,
    size: Tensor,
    m: int,
    tau: float = 0.03,
    weighting: str = "size",
    *,
    assignment: str = "soft",
    selfkeep: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """The many-to-many token matrix R0 of one reduction, and its two limits.

    metric: (..., tokens, head_dim) float. importance: (..., tokens) float, positive. size: (..., tokens)
    float, positive. The class token is left out of all three. Returns anchors (..., m) int64, P (..., m,
    tokens) and W (..., m, tokens) in the metric's dtype, float32 at least:
    - anchors: the m tokens of largest importance, ties to the lower index, in raster order.
    - P[:, j]: `soft` is the softmax over anchors of cos(k_i, k_j) / tau; `hard` is its limit tau -> 0, all
      mass to the nearest anchor, the first one on ties; `prune` drops every token but the anchors. An
      anchor's own column is one-hot, except with `soft` and `selfkeep=False`, where anchors are mixed like
      the others.
    - W = `as_matrix(P, w)` with w_j = size_j (`size`) or size_j * importance_j (`imp`).
    Raises ValueError unless 1 <= m <= tokens, tau > 0, and both names are known.
    """
    tokens = metric.shape[-2]
    if not 1 <= m <= tokens:
        raise ValueError(f"m must be between 1 and {tokens}, got {m}")
    _check_tau(tau)
    _check("assignment", assignment, ASSIGNMENTS)
    _check("weighting", weighting, WEIGHTINGS)
    unit = normalised(metric)
    anchors = importance.sort(dim=-1, descending=True, stable=True).indices[..., :m].sort(dim=-1).values
    own = F.one_hot(anchors, tokens).to(unit.dtype)
    if assignment == "prune":
        P = own
    else:
        similarity = torch.take_along_dim(unit, anchors[..., None], dim=-2) @ unit.transpose(-1, -2)
        if assignment == "hard":
            P = F.one_hot(similarity.argmax(dim=-2), m).transpose(-1, -2).to(unit.dtype)
        else:
            P = (similarity / tau).softmax(dim=-2)
        if selfkeep or assignment == "hard":
            P = torch.where(own.sum(dim=-2, keepdim=True) > 0, own, P)
    # The floor keeps a row of tokens that all have vanishing importance a mean instead of 0 / 0.
    weight = size if weighting == "size" else size * importance.clamp(min=1e-12)
    return anchors, P, as_matrix(P, weight)


def as_matrix(method_assignment: Assignment | Tensor, size: Tensor) -> Tensor:
    """The token matrix W of any reduction: W_ij = P_ij s_j / sum_j P_ij s_j.

    method_assignment: P (..., kept, tokens) float, such as the `source` of a Reduction; or the Assignment
    that a matching gives (ToMe's `bsm_assignment`, PiToMe's `pitome_assignment`; for pruning, `anchor`
    alone). size: (..., tokens) float, what each token brings to the mean of its group: its size for merging
    and pooling, the class token's attention for the fused row of EViT. A row that holds one token is one-hot
    whatever its positive weight. Returns (..., kept, tokens) with rows that sum to 1; a row without any mass
    is NaN.
    """
    if isinstance(method_assignment, Assignment):
        method_assignment = transport_matrix(method_assignment, size.shape[-1], size.dtype)
    weighted = method_assignment * size[..., None, :]
    return weighted / weighted.sum(dim=-1, keepdim=True)


def transport_matrix(assignment: Assignment, tokens: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """P (batch, kept, tokens) of an assignment: 1 where a token stays or joins; dropped columns are 0."""
    anchor, src, dst = assignment
    rows = torch.arange(anchor.shape[1], device=anchor.device)
    row = anchor.new_full((anchor.shape[0], tokens), -1)
    row = row.scatter(1, anchor, rows.expand_as(anchor)).scatter(1, src, dst)
    return (row[:, None] == rows[:, None]).to(dtype)


def restore(P_total: Tensor, y: Tensor) -> Tensor:
    """Give each original token the mixture of the outputs it went to: x_hat_j = sum_i P_ij y_i.

    P_total: (..., kept, tokens) float, the product of the assignments of all reductions so far. y: (...,
    kept, dim). Returns (..., tokens, dim) for dense tasks; a dropped token gets zeros.
    """
    return P_total.transpose(-1, -2) @ y


def reconstruction_error(x: Tensor, P: Tensor, y: Tensor) -> Tensor:
    """Relative error ||X - P^T Y||_F / ||X||_F of each image.

    x: (..., tokens, dim) float before the reduction. P: (..., kept, tokens). y: (..., kept, dim). Returns
    (...) float.
    """
    return torch.linalg.matrix_norm(x - restore(P, y)) / torch.linalg.matrix_norm(x)


def matrix_structure(W: Tensor, threshold: float = 1e-3) -> dict[str, float]:
    """What kind of reduction a token matrix W (kept, tokens) is.

    - `max_nonzeros`, `mean_nonzeros`: entries above `threshold` in a column; at most 1 for pruning and
      merging, more for many-to-many.
    - `row_sum_error`: largest |row sum - 1|.
    - `rank`; `effective_rank`: exp of the entropy of the singular values scaled to sum 1 (Roy and Vetterli
      2007); `condition`: largest over smallest singular value that counts for the rank.
    Raises ValueError unless W is one matrix.
    """
    if W.ndim != 2:
        raise ValueError(f"W must be one (kept, tokens) matrix, got shape {tuple(W.shape)}")
    nonzeros = (W.abs() > threshold).sum(dim=0)
    sigma = torch.linalg.svdvals(W.double())
    # Entries carry the rounding of W's own dtype, so smaller singular values are noise.
    nonzero = sigma[sigma > max(W.shape) * torch.finfo(W.dtype).eps * sigma[0]]
    spectrum = nonzero / nonzero.sum()
    return {
        "max_nonzeros": int(nonzeros.max()),
        "mean_nonzeros": float(nonzeros.double().mean()),
        "row_sum_error": float((W.double().sum(dim=1) - 1).abs().max()),
        "rank": len(nonzero),
        "effective_rank": float(torch.special.entr(spectrum).sum().exp()),
        "condition": float(nonzero[0] / nonzero[-1]),
    }


def extra_flops(n: int, m: int, dim: int, head_dim: int) -> int:
    """Cost of one R0 reduction of n tokens to m, class token left out, in the family's account.

    The similarities S count 2 m n head_dim, generous by a factor of 2 in multiply-accumulates, W X m n dim.
    """
    return 2 * m * n * head_dim + m * n * dim


def schedule_s3(num_layers: int) -> tuple[int, ...]:
    """Three reductions, at EViT's places: zero-based blocks 3, 6, 9 of 12, in proportion for other depths."""
    return tuple(sorted({num_layers // 4, num_layers // 2, 3 * num_layers // 4}))


def schedule_s12(num_layers: int) -> tuple[int, ...]:
    """A reduction in every block, like ToMe."""
    return tuple(range(num_layers))


@dataclass(frozen=True)
class TokenTransforming(Reducer):
    """R0 between attention and MLP: each of the blocks `layers` (None: all) keeps `ratio` of its patches.

    The class token is kept aside, and first. A block that has nothing to remove is left alone. Controls:
    `assignment` "hard" and "prune" with the same anchors, `importance` "rand" for random anchors (the
    survivors of `RandomPrune` with the same seed). `margin`, the same in all blocks, is read by `importance`
    "unique" only. The other fields are those of `transform_matrix` and `importance`. Raises ValueError for a
    value that these refuse.
    """

    ratio: float = 0.75
    layers: tuple[int, ...] | None = (3, 6, 9)
    tau: float = 0.03
    weighting: str = "size"
    importance: str = "cls"
    assignment: str = "soft"
    selfkeep: bool = True
    margin: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        removed_tokens(1, self.ratio)  # raises for a ratio out of range
        _check("importance", self.importance, IMPORTANCES)
        _check("assignment", self.assignment, ASSIGNMENTS)
        _check("weighting", self.weighting, WEIGHTINGS)
        _check_tau(self.tau)

    @property
    def needs_attention(self) -> bool:
        """Whether the anchor rule reads the attention probabilities."""
        return self.importance in ("cls", "recv")

    def kept(self, layer: int, tokens: int) -> int:
        """Token count after block `layer` for `tokens` before it, class token included in both."""
        patches = tokens - 1
        if patches == 0 or (self.layers is not None and layer not in self.layers):
            return tokens
        return tokens - min(removed_tokens(patches, self.ratio), patches - 1)

    def lengths(self, tokens: int, num_layers: int) -> list[int]:
        """Token count after each block, for an input of `tokens`, class token included."""
        lengths = []
        for layer in range(num_layers):
            tokens = self.kept(layer, tokens)
            lengths.append(tokens)
        return lengths

    def transform(
        self, layer: int, metric: Tensor, size: Tensor, attention: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """anchors, P and W over the patches of block `layer`; arguments as in `Reducer.reduce`."""
        generator = seeded_generator(self.seed, layer)
        scores = importance(attention, metric, self.importance, margin=self.margin, generator=generator)
        return transform_matrix(
            metric[:, 1:],
            scores,
            size[:, 1:, 0],
            self.kept(layer, metric.shape[1]) - 1,
            self.tau,
            self.weighting,
            assignment=self.assignment,
            selfkeep=self.selfkeep,
        )

    def reduce(self, layer: int, x: Tensor, metric: Tensor, size: Tensor, attention: Tensor | None) -> Reduction:
        """Transform the tokens of block `layer`; shapes as in `Reducer.reduce`."""
        if self.kept(layer, x.shape[1]) == x.shape[1]:
            return super().reduce(layer, x, metric, size, attention)
        _, P, W = self.transform(layer, metric, size, attention)
        return Reduction(
            torch.cat([x[:, :1], W.to(x.dtype) @ x[:, 1:]], dim=1),
            torch.cat([size[:, :1], P.to(size.dtype) @ size[:, 1:]], dim=1),
            lambda: _with_class_token(P),
        )

    def overhead_flops(self, layer: int, tokens: int, kept: int, dim: int, head_dim: int) -> int:
        """`extra_flops` of block `layer`; `tokens` before and `kept` after it include the class token.

        Pruning computes neither S nor W X. The anchor rule costs nothing here, as the family's account
        charges no method for its matching.
        """
        if tokens == kept or self.assignment == "prune":
            return 0
        return extra_flops(tokens - 1, kept - 1, dim, head_dim)


def _with_class_token(P: Tensor) -> Tensor:
    """Put the class token first: (batch, kept, patches) -> (batch, 1 + kept, 1 + patches)."""
    full = F.pad(P, (1, 0, 1, 0))
    full[:, 0, 0] = 1
    return full


def _check(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def _check_tau(tau: float) -> None:
    if not tau > 0:
        raise ValueError(f"tau must be positive, got {tau}: assignment 'hard' is the limit of tau to 0")
