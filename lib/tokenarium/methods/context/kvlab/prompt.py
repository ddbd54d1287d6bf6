"""A prompt of the harness: what is compressed, what is asked, what is scored."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """Token ids of one item. context: what is compressed, of an exact length; question: what follows it, up to the
    answer; answer: what is scored (empty in T4); spans: [start, end) of the needles in the context, the asked one
    first; source: the corpus of the text."""

    task: str
    id: str
    context: list[int]
    question: list[int]
    answer: list[int]
    spans: list[tuple[int, int]]
    source: str = ""

    @property
    def ids(self) -> list[int]:
        """Context and question."""
        return [*self.context, *self.question]
