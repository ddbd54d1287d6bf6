"""Tokenizers to train models of Turkish on, by name: the hybrid one, its controls, and ones trained on a text."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tokenarium.methods.tokenizers import bpe
from tokenarium.methods.tokenizers.turkish.hybrid import BLANK, UNKNOWN, UPPERCASE, Hybrid
from tokenarium.methods.tokenizers.turkish.letters import lower

HYBRID, UNSHARED, CHARACTERS = "hybrid", "hybrid-no-sharing", "characters"
MARKERS = (UPPERCASE, UNKNOWN, BLANK, "\n", "\t")

Dictionaries = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Encoder:
    """A tokenizer for a model: text -> ids below `rows`, the rows that an embedding matrix needs."""

    name: str
    rows: int
    encode: Callable[[str], list[int]]


def open_encoder(name: str, texts: Sequence[str], dictionaries: Dictionaries) -> Encoder:
    """The tokenizer `name`, trained on the texts where it is one to be trained.

    name: "hybrid", "hybrid-no-sharing", "characters", or a kind and the size of its vocabulary, "bpe-8192" and
    "unigram-8192". dictionaries: "roots", "suffixes" and "bpe" of the hybrid tokenizer, surface -> id. Raises
    ValueError for another name.
    """
    if name in (HYBRID, UNSHARED):
        hybrid = Hybrid(dictionaries["roots"], dictionaries["suffixes"], dictionaries["bpe"])
        hybrid = unshared(hybrid) if name == UNSHARED else hybrid
        rows = 1 + max(max(table.values(), default=0) for table in (hybrid.roots, hybrid.suffixes, hybrid.bpe))
        return Encoder(name, rows, lambda text: [piece.id for piece in hybrid.pieces(text)])
    if name == CHARACTERS:
        index = {character: place for place, character in enumerate(sorted(set("".join(texts))), start=1)}
        return Encoder(name, len(index) + 1, lambda text: [index.get(character, 0) for character in text])
    tokenizer = trained(name, texts)
    return Encoder(name, tokenizer.get_vocab_size(), lambda text: tokenizer.encode(text, add_special_tokens=False).ids)


def unshared(hybrid: Hybrid) -> Hybrid:
    """The same surfaces in the same dictionaries, each with an id of its own; the markers come first."""
    surfaces = [*hybrid.roots, *hybrid.suffixes, *hybrid.bpe]
    index = {surface: place for place, surface in enumerate(surfaces)}
    return Hybrid(*({surface: index[surface] for surface in table} for table in _tables(hybrid)))


def random_dictionaries(hybrid: Hybrid, words: Iterable[str], seed: int) -> Hybrid:
    """Dictionaries with as many surfaces of each length as the hybrid tokenizer's, drawn from the parts of words.

    Each surface has an id of its own; the markers are kept. Where the words have too few parts of a length, all are
    taken. Nothing but the lengths is left of what the dictionaries know of Turkish.
    """
    longest = max(len(surface) for table in _tables(hybrid) for surface in table)
    parts: dict[int, dict[str, None]] = defaultdict(dict)
    for word in sorted({lower(word) for word in words}):
        for start in range(len(word)):
            for end in range(start + 1, min(len(word), start + longest) + 1):
                parts[end - start][word[start:end]] = None
    generator = random.Random(seed)
    pools = {length: generator.sample(list(found), len(found)) for length, found in sorted(parts.items())}
    tables: list[dict[str, int]] = [{marker: place for place, marker in enumerate(MARKERS)}, {}, {}]
    rows = len(MARKERS)
    for table, original in zip(tables, _tables(hybrid), strict=True):
        for surface in original:
            if surface not in MARKERS and pools.get(len(surface)):
                table[pools[len(surface)].pop()] = rows
                rows += 1
    return Hybrid(*tables)


def trained(name: str, texts: Sequence[str]) -> Tokenizer:
    """A tokenizer "bpe-<size>" or "unigram-<size>", the size of its vocabulary, trained on texts.

    BPE works on bytes in GPT-2's words, Unigram on characters in words with a blank's mark in front, with "<unk>". The
    vocabulary is smaller where the texts do not have so many parts. Raises ValueError for another name.
    """
    kind, _, size = name.rpartition("-")
    if kind not in ("bpe", "unigram") or not size.isdigit():
        raise ValueError(f"no tokenizer is named {name!r}: those with a size are bpe and unigram")
    if kind == "bpe":
        return bpe.train(texts, int(size)).tokenizer()
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=int(size), unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _tables(hybrid: Hybrid) -> tuple[Mapping[str, int], Mapping[str, int], Mapping[str, int]]:
    return hybrid.roots, hybrid.suffixes, hybrid.bpe
