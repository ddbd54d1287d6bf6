"""What a reduced vision transformer costs, counted and not timed, and how methods are put on one budget.

The account is the one that every comparison in the vision family uses: multiply-accumulates of the matrix
products in the blocks. A method acts between attention and MLP, so a block pays 4 N C^2 + 2 N^2 C for
attention at the N tokens that enter it and 2 M C I for the MLP at the M tokens that are left (8 M C^2 where
the hidden size I is 4 C). Patch embedding, LayerNorm, softmax and classifier are small
and left out.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar


class Reducing(Protocol):
    """What the account asks of a method. `overhead_flops(layer, tokens, kept, dim, head_dim)` is optional."""

    def lengths(self, tokens: int, num_layers: int) -> list[int]: ...


ReducerType = TypeVar("ReducerType", bound=Reducing)


def transformer_flops(lengths_in: Sequence[int], lengths_out: Sequence[int], dim: int, intermediate: int) -> int:
    """Multiply-accumulates of the blocks for one image.

    lengths_in[l], lengths_out[l]: tokens that enter block l, and tokens left for its MLP. intermediate:
    hidden size of the MLP. Raises ValueError when the two lists do not have one entry per block each.
    """
    if len(lengths_in) != len(lengths_out):
        raise ValueError(f"one length per block is needed, got {len(lengths_in)} in and {len(lengths_out)} out")
    return sum(
        4 * tokens * dim**2 + 2 * tokens**2 * dim + 2 * kept * dim * intermediate
        for tokens, kept in zip(lengths_in, lengths_out, strict=True)
    )


def flops(
    reducer: Reducing, tokens: int, num_layers: int, dim: int, intermediate: int, head_dim: int | None = None
) -> int:
    """Multiply-accumulates for one image of `tokens` tokens, class token and the method's own work included.

    The method's own work is its `overhead_flops(layer, tokens, kept, dim, head_dim)`, where it has one;
    `head_dim` is needed only then. Raises ValueError when the method's lengths are impossible or `head_dim`
    is missing.
    """
    lengths_out = reducer.lengths(tokens, num_layers)
    if len(lengths_out) != num_layers:
        raise ValueError(f"{reducer} gives {len(lengths_out)} lengths for {num_layers} blocks")
    lengths_in = [tokens, *lengths_out[:-1]]
    if any(not 1 <= kept <= before for before, kept in zip(lengths_in, lengths_out, strict=True)):
        raise ValueError(f"{reducer} must keep between 1 and all tokens in every block, got {lengths_out}")
    total = transformer_flops(lengths_in, lengths_out, dim, intermediate)
    overhead = getattr(reducer, "overhead_flops", None)
    if overhead is None:
        return total
    if head_dim is None:
        raise ValueError(f"head_dim is needed to count the overhead of {reducer}")
    return total + sum(
        overhead(layer, before, kept, dim, head_dim)
        for layer, (before, kept) in enumerate(zip(lengths_in, lengths_out, strict=True))
    )


def fraction(
    reducer: Reducing, tokens: int, num_layers: int, dim: int, intermediate: int, head_dim: int | None = None
) -> float:
    """Cost of the model with `reducer` as a share of the cost of the same model without any reduction."""
    full = transformer_flops([tokens] * num_layers, [tokens] * num_layers, dim, intermediate)
    return flops(reducer, tokens, num_layers, dim, intermediate, head_dim) / full


def match_budget(
    make: Callable[[float], ReducerType],
    target: float,
    low: float,
    high: float,
    *,
    tokens: int,
    num_layers: int,
    dim: int,
    intermediate: int,
    head_dim: int | None = None,
    tolerance: float = 0.01,
) -> ReducerType:
    """The method at the knob value between `low` and `high` whose cost comes closest to `target`.

    `make(knob)` builds the method; its cost must be a monotone (step) function of the knob, rising or
    falling. A whole number as knob: `make=lambda r: ToMe(r=round(r))`. Of all knob values with the same cost
    the shortest decimal found is taken, so that the method's repr stays readable. target, tolerance:
    fractions of the full model's cost, the tolerance absolute (.60 +- .01). Raises ValueError when nothing
    between `low` and `high` comes that close.
    """
    seen: dict[float, float] = {}

    def cost(knob: float) -> float:
        if knob not in seen:
            seen[knob] = fraction(make(knob), tokens, num_layers, dim, intermediate, head_dim)
        return seen[knob]

    cheap, dear = sorted((float(low), float(high)), key=cost)
    for _ in range(60):
        middle = (cheap + dear) / 2
        if cost(middle) < target:
            cheap = middle
        else:
            dear = middle
    knob = min(seen, key=lambda k: (abs(seen[k] - target), seen[k]))
    reached = seen[knob]
    if abs(reached - target) > tolerance:
        raise ValueError(
            f"no setting costs {target:g} of the full model to within {tolerance:g}: "
            f"the closest reached is {reached:.4f}, by {make(knob)}"
        )
    for digits in range(12):
        shorter = round(knob, digits)
        if min(low, high) <= shorter <= max(low, high) and cost(shorter) == reached:
            return make(shorter)
    return make(knob)
