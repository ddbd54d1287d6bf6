"""KL3M's recipe on licence texts: BPEs by domain, their tokens on unseen text, their boundaries under OCR errors.

All sampling is by document; a held-out document is no near-duplicate of a training one or of another held-out one.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tokenarium.data import (
    debian_reference,
    king_james_bible,
    libreoffice_help,
    licences,
    man_pages,
    python_source,
    reporters,
    text,
)
from tokenarium.data.tokenizers import load_tokenizer
from tokenarium.methods.tokenizers import bpe, kl3m
from tokenarium.study.experiments import Experiment

DOMAINS = ("legal", "general", "mix")
CORPORA = ("legal", "general", "code")
TERMS = {"legal": kl3m.LEGAL_TERMS, "financial": kl3m.FINANCIAL_TERMS, "licence": kl3m.LICENCE_TERMS}
COLUMNS = ("matched", "missing", "added", "matched_edges", "missing_edges", "added_edges", "changed", "errors")
HELD = ("test", "validation")


def run(experiment: Experiment) -> None:
    """Make every part: corpora, merges, token counts, terms, lengths, boundaries."""
    p = experiment.parameters
    training, held = corpora(experiment.root, p)
    sizes = {
        part: {name: {"documents": len(found), "characters": sum(map(len, found))} for name, found in texts.items()}
        for part, texts in {"training": training, "held": held}.items()
    }
    experiment.record("corpora", lambda: sizes)
    experiment.arrays("characters", lambda: {name: np.array([len(t) for t in held[name]]) for name in CORPORA})
    custom = kl3m.custom_tokens(*_citations(experiment.root))
    experiment.record("custom", lambda: {"count": len(custom), "sample": custom[:: max(1, len(custom) // 60)]})
    _real(experiment, held)
    for seed in experiment.progress(experiment.seeds, "seeds"):
        samples = {domain: sample(training, domain, p.training_bytes, seed) for domain in DOMAINS}
        trained = {domain: _trained(experiment, domain, seed, samples[domain]) for domain in DOMAINS}
        for domain in DOMAINS:
            _counts(experiment, domain, seed, trained[domain], custom, held)
        _boundaries(experiment, seed, trained["legal"], samples["legal"], held["legal"])


# Texts


def corpora(root: Path, p: Any) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Training documents of "legal" and "general", and held-out ones of these and "code", normalised.

    Only every p.stride-th document is looked at. Held-out documents are shuffled (the same way for every seed of the
    study), at most p.documents of a corpus, each cut to p.longest characters.
    """
    sources = {
        "legal": [licences.load(root)],
        "general": [
            _documents(king_james_bible.load(root), "\n"),
            _documents(libreoffice_help.load(root), "\n"),
            man_pages.load(root),
            debian_reference.load(root),
        ],
        "code": [python_source.load(root)],
    }
    training: dict[str, list[str]] = {}
    held: dict[str, list[str]] = {}
    for name, parts in sources.items():
        rows = [row for part in parts for row in part if len(row["text"]) >= licences.SHORTEST][:: p.stride]
        train = [kl3m.nfkc(row["text"]) for row in rows if text.split_of(row["id"]) not in HELD]
        other = [kl3m.nfkc(row["text"]) for row in rows if text.split_of(row["id"]) in HELD]
        random.Random(0).shuffle(other)
        held[name] = [other[place][: p.longest] for place in kl3m.unseen(other, train)][: p.documents]
        if name != "code":
            training[name] = train
    return training, held


def _documents(rows: Sequence[Mapping[str, str]], between: str) -> list[dict[str, str]]:
    """The parts of a document, such as the verses of a chapter, put together."""
    parts: dict[str, list[str]] = {}
    for row in rows:
        parts.setdefault(row["id"].partition("#")[0], []).append(row["text"])
    return [{"id": document, "text": between.join(found)} for document, found in parts.items()]


def sample(training: Mapping[str, Sequence[str]], domain: str, size: int, seed: int) -> list[str]:
    """Documents of a domain drawn without replacement up to `size` bytes, the last cut; "mix" is half and half."""
    if domain == "mix":
        return [found for name in ("legal", "general") for found in sample(training, name, size // 2, seed)]
    texts = list(training[domain])
    random.Random(seed).shuffle(texts)
    taken, left = [], size
    for found in texts:
        content = found.encode()
        taken.append(content[:left].decode(errors="ignore"))
        left -= len(content)
        if left <= 0:
            break
    return taken


def _citations(root: Path) -> tuple[Mapping[str, Any], ...]:
    held = reporters.load(root)
    return tuple(held[name] for name in ("reporters", "laws", "journals", "case_name_abbreviations"))


# Tokenizers


def _trained(experiment: Experiment, domain: str, seed: int, texts: Sequence[str]) -> bpe.Bpe:
    size = max(experiment.parameters.vocab_sizes)
    found = experiment.record(f"merges-{domain}-{seed}", lambda: _written(bpe.train(texts, size)))
    return _read(found)


def _written(trained: bpe.Bpe) -> list[list[str]]:
    return [[bpe.to_characters(left), bpe.to_characters(right)] for left, right in trained.merges]


def _read(merges: Sequence[Sequence[str]]) -> bpe.Bpe:
    pairs = tuple((bpe.from_characters(left), bpe.from_characters(right)) for left, right in merges)
    return bpe.Bpe(pairs, bpe.gpt2_words())


def _count(tokenizer: Tokenizer, texts: Sequence[str], specials: bool = False) -> list[int]:
    return [len(found.ids) for found in tokenizer.encode_batch(list(texts), add_special_tokens=specials)]


def _real(experiment: Experiment, held: Mapping[str, Sequence[str]]) -> None:
    for name in experiment.progress(experiment.parameters.tokenizers, "real tokenizers"):

        def counted(name: str = name) -> dict[str, Any]:
            tokenizer = Tokenizer.from_pretrained(name) if "/" in name else load_tokenizer(name, experiment.root)
            terms = {
                "plain" if not specials else "specials": {g: _count(tokenizer, t, specials) for g, t in TERMS.items()}
                for specials in (False, True)
            }
            documents = {corpus: _count(tokenizer, held[corpus]) for corpus in CORPORA}
            size = tokenizer.get_vocab_size(with_added_tokens=True)
            return {"vocabulary": size, "documents": documents, "terms": terms}

        experiment.record(f"real-{name.replace('/', '--')}", counted)


def _counts(
    experiment: Experiment,
    domain: str,
    seed: int,
    trained: bpe.Bpe,
    custom: Sequence[str],
    held: Mapping[str, Sequence[str]],
) -> None:
    p = experiment.parameters
    variants = {"plain": [], "custom": custom}

    def counted() -> dict[str, NDArray[np.int64]]:
        found = {}
        for size in p.vocab_sizes:
            for variant, added in variants.items():
                if size - len(added) < p.least_merges:
                    continue
                tokenizer = kl3m.domain_tokenizer(trained, size, added)
                for corpus in CORPORA:
                    found[f"{size}.{variant}.{corpus}"] = np.array(_count(tokenizer, held[corpus]))
                for group, terms in TERMS.items():
                    found[f"{size}.{variant}.terms-{group}"] = np.array(_count(tokenizer, terms))
        return found

    experiment.arrays(f"tokens-{domain}-{seed}", counted)


# Boundaries


def passages(texts: Sequence[str], number: int, length: int) -> list[str]:
    """The first `length` characters of each text on one line, cut at a blank; of texts in ASCII and section signs."""
    found = []
    for each in texts:
        line = " ".join(each.split())
        if len(line) > length and all(ord(sign) < 128 or sign == "§" for sign in line[:length]):
            found.append(line[:length].rpartition(" ")[0])
    return found[:number]


def _boundaries(experiment: Experiment, seed: int, legal: bpe.Bpe, sampled: Sequence[str], held: Sequence[str]) -> None:
    p = experiment.parameters
    lines = passages(held, p.passages, p.passage_length)
    tokenizers: dict[str, Tokenizer] = {}
    for size, max_chars in zip(p.character_sizes, p.max_chars, strict=True):
        merges = experiment.record(
            f"characters-{size}-{seed}",
            lambda size=size, most=max_chars: _written(kl3m.character_bpe(sampled, size, most)),
        )
        short_tokens = _read(merges)  # there may be fewer than `size` short tokens in the text
        filled = min(size, len(short_tokens.vocabulary) + len(kl3m.SPECIALS))
        tokenizers[f"char-{size}"] = kl3m.domain_tokenizer(short_tokens, filled)
        tokenizers[f"BPE-{size}"] = kl3m.domain_tokenizer(legal, size)
    first = f"char-{p.character_sizes[0]}"
    target = sum(_count(tokenizers[first], lines))
    short = as_long(legal, lines, target, p.character_sizes[0])
    tokenizers["BPE-short"] = kl3m.domain_tokenizer(legal, short)
    tokenizers["bytes"] = kl3m.domain_tokenizer(legal, 256 + len(kl3m.SPECIALS))
    spread = {
        "vocabularies": {name: each.get_vocab_size(with_added_tokens=True) for name, each in tokenizers.items()},
        "passages": len(lines),
        "characters": sum(map(len, lines)),
        "tokens": {name: sum(_count(tokenizer, lines)) for name, tokenizer in tokenizers.items()},
        "lengths": {name: _lengths(tokenizer, lines) for name, tokenizer in tokenizers.items()},
    }
    experiment.record(f"passages-{seed}", lambda: spread)
    words = sum(len(kl3m.words_of(line)) for line in lines)
    blanks = words - len(lines)  # where random boundaries are certain
    probability = (target - len(lines) - blanks) / (spread["characters"] - words - blanks)
    for rate in experiment.progress(p.rates, f"noise, seed {seed}"):
        experiment.arrays(
            f"boundaries-{round(1000 * rate)}-{seed}",
            lambda rate=rate: _noisy(lines, rate, seed, tokenizers, probability),
        )
    if seed == experiment.seeds[0]:
        experiment.arrays("words", lambda: _words(lines, p.traced_rate, seed, tokenizers, p.traced_words))


def as_long(trained: bpe.Bpe, lines: Sequence[str], target: int, largest: int) -> int:
    """The vocabulary below `largest` at which a BPE needs as many tokens as `target`, by bisection."""
    low, high = 256 + len(kl3m.SPECIALS), largest
    while high - low > 1:
        middle = (low + high) // 2
        if sum(_count(kl3m.domain_tokenizer(trained, middle), lines)) > target:
            low = middle
        else:
            high = middle
    return high


def _lengths(tokenizer: Tokenizer, lines: Sequence[str]) -> list[int]:
    """How many tokens have 1, 2, ... 16 or more byte symbols."""
    found = Counter(
        min(16, len(token))
        for each in tokenizer.encode_batch(list(lines), add_special_tokens=False)
        for token in each.tokens
    )
    return [found[length] for length in range(1, 17)]


def _noisy(
    lines: Sequence[str], rate: float, seed: int, tokenizers: Mapping[str, Tokenizer], probability: float
) -> dict[str, NDArray[np.int64]]:
    """Tokenizer or control -> (passages, COLUMNS) counts, on the same errors."""
    generator = random.Random(f"{seed} {rate}")
    texts = [(line, *kl3m.corrupt(line, rate, generator)) for line in lines]
    cuts = {
        name: lambda each, tokenizer=tokenizer: kl3m.boundaries(tokenizer, each)
        for name, tokenizer in tokenizers.items()
    }
    cuts["random"] = lambda each: kl3m.random_boundaries(each, probability, generator)
    cuts["every 2"] = lambda each: kl3m.fixed_boundaries(each, 2)
    found = {}
    for name, cut in cuts.items():
        rows = []
        for clean, noisy, edits in texts:
            places = cut(clean), cut(noisy)
            inside = kl3m.compare(clean, noisy, edits, *places, edges=False)
            ends = kl3m.compare(clean, noisy, edits, *places, edges=True)
            counts = [(each.matched, each.missing, each.added) for each in (inside, ends)]
            rows.append([*counts[0], *counts[1], inside.changed, inside.errors])
        found[name] = np.array(rows)
    return found


def _words(
    lines: Sequence[str], rate: float, seed: int, tokenizers: Mapping[str, Tokenizer], number: int
) -> dict[str, NDArray[np.int8]]:
    """For the first words hit: (words, 24) 1 where a boundary lies, of the clean and of the noisy word carried over.

    Column 0 is the place before the first letter of a word at the start of a passage, elsewhere before its blank.
    """
    generator = random.Random(f"{seed} {rate}")
    texts = [(line, *kl3m.corrupt(line, rate, generator)) for line in lines]
    found = {}
    for name, tokenizer in tokenizers.items():
        hit = []
        for clean, noisy, edits in texts:
            cuts = kl3m.boundaries(tokenizer, clean), kl3m.boundaries(tokenizer, noisy)
            hit += kl3m.compare(clean, noisy, edits, *cuts, edges=False).positions
        for part, column in (("clean", 2), ("noisy", 3)):
            grid = np.zeros((number, 24), dtype=np.int8)
            for row, word in enumerate(hit[:number]):
                places = [place - word[0] for place in word[column] if place >= 0]
                grid[row, [place for place in places if place < 24]] = 1
            found[f"{part}.{name}"] = grid
    return found
