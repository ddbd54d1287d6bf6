"""What taps cost: a forward of the suite's ViT with taps on, over the same forward without them: `make bench`.

Off, taps cost nothing: hooks and wrappers exist only inside the block. The weights are random, which changes no time.
Nothing is written.
"""

from __future__ import annotations

import platform
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import ViTForImageClassification

from tokenarium.measure.bootstrap import Interval
from tokenarium.measure.latency import ratio
from tokenarium.models import vit_fmnist
from tokenarium.study.taps import TensorTaps

BATCH = 64
REPEATS = 15
LIMIT = 1.3  # times the untapped forward that all twelve layers may cost


def _off(taps: TensorTaps) -> None:
    """No tap: what is left is the block itself."""


def _hidden(taps: TensorTaps) -> None:
    taps.outputs("vit.layers.*", ["image", "token", "channel"], name="hidden")


def _attended(taps: TensorTaps) -> None:
    taps.outputs("vit.layers.*.attention", ["image", "token", "channel"], name="attended")


def _attention(taps: TensorTaps) -> None:
    taps.attention("vit.layers.*.attention", ["image", "head", "query", "key"])


CASES: dict[str, tuple[Callable[[TensorTaps], None], int | None]] = {
    "block without taps": (_off, None),
    "output of 12 layers, all images": (_hidden, None),
    "output of 12 attention modules, all images": (_attended, None),
    "attention probabilities of 12 layers, 8 images": (_attention, 8),
}


def model_and_pixels(batch: int = BATCH) -> tuple[nn.Module, Tensor]:
    """The suite's ViT with random weights, and a batch of noise, (batch, 1, 56, 56) float32."""
    torch.manual_seed(0)
    model = ViTForImageClassification(vit_fmnist.config(vit_fmnist.FINE)).eval()
    return model, torch.randn(batch, 1, vit_fmnist.FINE, vit_fmnist.FINE)


def slowdown(
    model: nn.Module, pixels: Tensor, attach: Callable[[TensorTaps], None], examples: int | None, repeats: int = REPEATS
) -> tuple[Interval, TensorTaps]:
    """Time with taps over time without, and the taps. Raises ValueError when the logits differ."""
    taps = TensorTaps(model, examples=examples)
    attach(taps)

    @torch.no_grad()
    def plain() -> Tensor:
        return model(pixel_values=pixels).logits

    def tapped() -> Tensor:
        with taps:
            return plain()

    if not torch.equal(plain(), tapped()):
        raise ValueError("taps change the logits")
    return ratio(tapped, plain, repeats=repeats), taps


def _within(cost: Interval) -> str:
    return "yes" if cost.high < LIMIT else "no" if cost.low > LIMIT else "unclear"


def main() -> None:
    """Measure every case and print one table."""
    model, pixels = model_and_pixels()
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("taps", "samples, MiB", "tapped / untapped", f"under {LIMIT}"):
        table.add_column(column, justify="left" if column == "taps" else "right")
    for name, (attach, examples) in CASES.items():
        cost, taps = slowdown(model, pixels, attach, examples)
        shown = f"{cost.value:.3f} [{cost.low:.3f}, {cost.high:.3f}]"
        table.add_row(name, f"{taps.size / 2**20:.1f}", shown, _within(cost))
    console = Console()
    console.print(table)
    console.print(
        f"\nmedians over {REPEATS} pairs with 95 % intervals, a batch of {BATCH} images, 197 tokens, 12 layers"
    )
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}")


if __name__ == "__main__":
    main()
