"""The ways to shorten a passage that are compared, by name, and the shortened passages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenarium.methods.context import frugal_prompt as method

WORDS, TOKENS = "words", "tokens"
SPREAD = 100_003  # a prime: seed and item give each draw a number of its own
OTHERS = ("decompx", "selfinfo", "tfidf")
VARIANTS = ("globenc-text", "decompx-label0", "attention", "rollout", "gradient")


@dataclass(frozen=True)
class Arm:
    """Keep `pct` percent of a passage's words, or of its tokens, by the word scores of that name.

    mode: top, bottom or random (by `seed`; scores is then "random").
    """

    scores: str
    mode: str
    pct: int
    unit: str = WORDS
    seed: int = 0

    @property
    def name(self) -> str:
        if self.mode == "random":
            return f"random-{self.pct}-{self.unit}-{self.seed}"
        return f"{self.scores}-{self.mode}-{self.pct}-{self.unit}"

    def kept(self, values: Sequence[float], costs: Sequence[int], item: int) -> list[int]:
        """Places of the words that stay.

        values: a score for every word; costs: its tokens. item: the passage's number, for random draws.
        """
        seed = self.seed * SPREAD + item
        if self.unit == WORDS:
            return method.keep_indices(values, self.pct, self.mode, seed)
        return method.keep_within(values, costs, round(sum(costs) * self.pct / 100), self.mode, seed)


def random_arms(pct: int, unit: str, seeds: Sequence[int]) -> list[Arm]:
    return [Arm("random", "random", pct, unit, seed) for seed in seeds]


def headline(seeds: Sequence[int]) -> list[Arm]:
    """What the claims rest on: measured on every item."""
    return [
        Arm("globenc", "top", 80),
        Arm("globenc", "top", 60),
        Arm("globenc", "bottom", 60),
        Arm("globenc", "top", 60, TOKENS),
        Arm("globenc", "bottom", 60, TOKENS),
        *random_arms(60, WORDS, seeds),
        *random_arms(60, TOKENS, seeds),
    ]


def grid(seeds: Sequence[int]) -> list[Arm]:
    """The rest of the table: measured on the first items alone."""
    return [
        Arm("globenc", "top", 50),
        Arm("globenc", "bottom", 80),
        Arm("globenc", "bottom", 50),
        *random_arms(80, WORDS, seeds),
        *random_arms(50, WORDS, seeds[:1]),
        *(Arm(scores, "top", pct) for scores in OTHERS for pct in (80, 60)),
        *(Arm(scores, "top", 60, TOKENS) for scores in OTHERS),
        *(Arm(scores, "top", 60) for scores in VARIANTS),
    ]
