"""A question as the harness reads it: ids around the image, the answer's ids, the patches that matter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Question:
    """One question about one image.

    index: place in the list of questions. image: place in the list of images. before, after: ids of the prompt before
    and after the visual tokens. cue: how many of the last ids of `after` belong to the answer's cue. answer: ids of the
    answer. relevant: (N,) bool, the patches that the answer depends on; all False where no patch does or none is known.
    """

    index: int
    image: int
    family: str
    text: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    answer: tuple[int, ...]
    relevant: NDArray[np.bool_]
    cue: int = 0

    @property
    def layout(self) -> tuple[int, int, int, int]:
        """Lengths of what surrounds the image: questions of one layout fit in a batch."""
        return len(self.before), len(self.after), self.cue, len(self.answer)
