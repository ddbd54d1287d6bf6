"""`tokenarium tokenizer-report`: what the user's own text costs with real tokenizers, counted as in the papers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokenarium.errors import TokenariumError
from tokenarium.files import write_whole
from tokenarium.words import nearest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENGLISH = ("en", "en-US", "en-GB", "eng", "english", "English")
KINDS = (".png", ".svg", ".pdf")
SAMPLE = 160  # characters
SHADES = ("black on bright_cyan", "black on bright_yellow")


@dataclass(frozen=True)
class Measured:
    """Every text with every tokenizer. tokens: tokenizer -> text -> count. pieces: tokenizer -> the sample, split."""

    texts: Mapping[str, Sequence[str]]
    vocabulary: dict[str, int]
    tokens: dict[str, dict[str, int]]
    reference: str | None
    sample: str
    pieces: dict[str, list[str]]

    @property
    def bytes(self) -> dict[str, int]:
        return {name: sum(len(line.encode()) for line in lines) for name, lines in self.texts.items()}

    def tokens_per_byte(self, tokenizer: str, text: str) -> float:
        return self.tokens[tokenizer][text] / self.bytes[text]

    def premium(self, tokenizer: str, text: str) -> float:
        """Tokens for one token of the reference. There must be one."""
        return self.tokens[tokenizer][text] / self.tokens[tokenizer][self.reference]


def report(
    root: Path,
    paths: Sequence[Path],
    tokenizers: Sequence[str],
    reference: str | None = None,
    figure: Path | None = None,
    sample: str | None = None,
    console: Console | None = None,
) -> Measured:
    """Print tokens, tokens per byte, premiums and the split of a sample, and draw them into the file `figure`.

    paths: files, each a text named by its stem, or folders, whose files and folders are texts. reference: the text that
    premiums compare with, by default the one that is named like English. sample: by default the first text's beginning.
    Raises TokenariumError for a path, file, tokenizer, reference or kind of figure that it cannot use.
    """
    if figure is not None and figure.suffix not in KINDS:
        raise TokenariumError(f"cannot draw {figure}: name it with {', '.join(KINDS)}")
    texts = read_texts(paths)
    measured = measure(root, texts, tokenizers, reference, sample)
    show(measured, console or Console())
    if figure is not None:
        save(draw(measured), figure)
        (console or Console()).print(f"figure: {figure}", markup=False, soft_wrap=True)
    return measured


# Texts


def read_texts(paths: Sequence[Path]) -> dict[str, list[str]]:
    """Name -> the lines of each text that are not blank."""
    found: dict[str, list[str]] = {}
    for path in paths:
        if not path.exists():
            raise TokenariumError(f"{path} does not exist: name a text file, or a folder of them")
        for name, files in _files(path):
            if name in found:
                raise TokenariumError(f"two texts are named {name!r}: rename one, the names tell them apart")
            lines = [line for file in files for line in _lines(file)]
            if not lines:
                raise TokenariumError(f"{path if path.is_file() else path / name} holds no text: it is empty")
            found[name] = lines
    return found


def _files(path: Path) -> list[tuple[str, list[Path]]]:
    if path.is_file():
        return [(path.stem, [path])]
    children = sorted(child for child in path.iterdir() if not child.name.startswith("."))
    inside = {
        child: sorted(file for file in child.rglob("*") if file.is_file() and not file.name.startswith("."))
        for child in children
        if child.is_dir()
    }
    found = [(child.stem, [child]) for child in children if child.is_file()]
    found += [(child.name, files) for child, files in inside.items() if files]
    if not found:
        raise TokenariumError(f"{path} holds no files: put a text file for each language there")
    return sorted(found)


def _lines(path: Path) -> list[str]:
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TokenariumError(f"{path} is not UTF-8 text (byte {error.start}): convert it, or leave it out") from None
    except OSError as error:
        raise TokenariumError(f"cannot read {path}: {error.strerror}") from None
    if "\0" in content:
        raise TokenariumError(f"{path} is binary, not text: leave it out")
    return [line for line in content.splitlines() if line.strip()]


# Counting


def measure(
    root: Path,
    texts: Mapping[str, Sequence[str]],
    tokenizers: Sequence[str],
    reference: str | None = None,
    sample: str | None = None,
) -> Measured:
    """Encode every text, line by line, with every tokenizer."""
    from tokenarium.data.tokenizers import load_tokenizer, vocabulary_size
    from tokenarium.methods.tokenizers.premiums import corpus_token_count
    from tokenarium.methods.tokenizers.side_by_side import pieces

    if reference is None:
        reference = next((name for name in ENGLISH if name in texts), None) if len(texts) > 1 else None
    elif reference not in texts:
        raise TokenariumError(f"no text is named {reference!r}; {nearest(reference, texts)}")
    if sample is None:
        sample = next(iter(texts.values()))[0][:SAMPLE]
    elif not sample.strip():
        raise TokenariumError("the sample is empty: give it some text")
    loaded = {name: load_tokenizer(name, root) for name in dict.fromkeys(tokenizers)}
    return Measured(
        texts,
        {name: vocabulary_size(each) for name, each in loaded.items()},
        {
            name: {text: corpus_token_count(each, list(lines)) for text, lines in texts.items()}
            for name, each in loaded.items()
        },
        reference,
        sample,
        {name: pieces(each, sample) for name, each in loaded.items()},
    )


# Showing


def show(measured: Measured, console: Console) -> None:
    """Print the tables and the split of the sample."""
    sizes = measured.bytes
    table = _table("Tokens per byte, and tokens", ["text", "bytes"], measured)
    for text in measured.texts:
        cells = [
            f"{measured.tokens_per_byte(tokenizer, text):.3f}\n{tokens[text]:,}"
            for tokenizer, tokens in measured.tokens.items()
        ]
        table.add_row(Text(text), f"{sizes[text]:,}", *cells)
    console.print(table)
    if measured.reference is not None:
        title = f"Tokens for one token of {measured.reference}, if the texts say the same"
        table = _table(title, ["text", "in bytes"], measured)
        for text in measured.texts:
            premiums = [f"{measured.premium(each, text):.2f}" for each in measured.tokens]
            table.add_row(Text(text), f"{sizes[text] / sizes[measured.reference]:.2f}", *premiums)
        console.print(table)
    for tokenizer, pieces in measured.pieces.items():
        console.print(Text(f"{tokenizer}: {len(pieces)} tokens", style="bold"))
        split = Text()
        for number, piece in enumerate(pieces):
            split.append("|" if number else "")
            split.append(piece, style=SHADES[number % 2])
        console.print(split)


def _table(title: str, first: Sequence[str], measured: Measured) -> Table:
    table = Table(title=Text(title))
    table.add_column(first[0])
    for name in (*first[1:], *measured.tokens):
        size = measured.vocabulary.get(name)
        table.add_column(Text(f"{name}\n{size / 1000:.0f}k" if size else name), justify="right")
    return table


def draw(measured: Measured) -> Figure:
    """Tokens per byte by text, and beside them premiums where there is a reference."""
    import numpy as np
    from matplotlib.figure import Figure

    from tokenarium.study.style import PALETTE, use_style

    use_style()
    panels = {"tokens per byte": measured.tokens_per_byte}
    if measured.reference is not None:
        panels[f"tokens for one of {measured.reference}"] = measured.premium
    texts, tokenizers = list(measured.texts), list(measured.tokens)
    height = 1.4 + 0.16 * len(texts) * (len(tokenizers) + 1)
    figure = Figure(figsize=(5.5 * len(panels), max(2.5, height)), layout="constrained")
    places = np.arange(len(texts))
    width = 0.85 / len(tokenizers)
    for axes, (label, value) in zip(
        figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels.items(), strict=True
    ):
        for number, tokenizer in enumerate(tokenizers):
            bars = [value(tokenizer, text) for text in texts]
            shift = (number - (len(tokenizers) - 1) / 2) * width
            shade = PALETTE[number % len(PALETTE)]
            axes.barh(places + shift, bars, width, color=shade, hatch="//" * (number // len(PALETTE)), label=tokenizer)
        axes.set(xlabel=label)
        axes.set_yticks(places, texts)
        if label != "tokens per byte":
            axes.axvline(1, color="0.5", linewidth=1)
    axes.invert_yaxis()
    figure.axes[-1].legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure whole or not at all; its kind is the suffix."""
    with write_whole(path, "wb") as file:
        figure.savefig(file, format=path.suffix[1:], dpi=150, bbox_inches="tight")
