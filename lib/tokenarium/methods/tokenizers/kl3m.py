"""KL3M's tokenizers: byte-level BPE of one domain with custom tokens, and BPE of short tokens for noisy text.

A custom token is matched before the merges, wherever its characters stand, inside words too. Vocabularies count
specials, custom tokens, the 256 bytes and merges. Left out: the padding to a power of two with runs of blanks, which
changes no count at the sizes here, already powers of two.

Source: Bommarito, Katz, Bommarito 2025, arXiv 2503.17247, and the facts of its published code.
"""

import random
import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from tokenarium.methods.tokenizers.bpe import Bpe, gpt2_words, merges_of

_ROLES = ("system", "/system", "user", "/user", "instruction", "/instruction")
SPECIALS = tuple(f"<|{name}|>" for name in ("start", "end", "pad", "unk", "sep", "cls", "mask", *_ROLES))

_TAGS = (
    "a abbr address area article aside audio b base bdi bdo blockquote body br button canvas caption cite code col "
    "colgroup data datalist dd del details dfn dialog div dl dt em embed fieldset figcaption figure footer form h1 h2 "
    "h3 h4 h5 h6 head header hr html i iframe img input ins kbd label legend li link main map mark meta meter nav "
    "noscript object ol optgroup option output p param picture pre progress q rp rt ruby s samp script section select "
    "small source span strong style sub summary sup table tbody td template textarea tfoot th thead time title tr "
    "track u ul var video wbr"
)
_ATTRIBUTES = (
    "action align alt border cellpadding cellspacing charset class color cols colspan content data dir disabled for "
    "height href id lang max maxlength media method min name placeholder rel rows rowspan scope size src style target "
    "title type valign value width"
)
_JSON = ('{"', '"}', '["', '"]', '":', '","', '":"')
_XML = ("<?xml", "?>", "<!--", "-->", "<![CDATA[", "]]>", "<!DOCTYPE", "/>")
_MARKS = ("**", "__", "~~", "``", "```", "![", "](", "[^", "]:", "- [ ]", "- [x]", *("#" * n for n in range(2, 7)))
_ROMAN = ("ii", "iii", "iv", "vi", "vii", "viii", "ix")
_RUNS = range(2, 9)

# Recalled from memory, and spelled so that they give every published mean of GPT-2 and GPT-4o: of the paper's table
# only the means were at hand. Those of LLaMA-3 come out with its start symbol.
LEGAL_TERMS = (
    "11 U.S.C. § 362(a)",
    "res judicata",
    "stare decisis",
    "habeas corpus",
    "certiorari",
    "de novo review",
    "28 C.F.R. § 14.2(a)",
    "42 U.S.C. § 1983",
    "Fed. R. Civ. P. 12(b)(6)",
    "prima facie",
)
FINANCIAL_TERMS = (
    "EBITDA",
    "P/E ratio",
    "10-K filing",
    "SEC Form 8-K",
    "quarterly dividend",
    "year-over-year growth",
    "Basel III compliance",
    "GAAP accounting",
    "ROI analysis",
    "market capitalization",
)
LICENCE_TERMS = (
    *("copyright notice", "derivative works", "limitation of liability", "disclaimer of warranty", "redistribution"),
    *("merchantability", "fitness for a particular purpose", "non-infringement", "consequential damages", "licensor"),
    *(
        "licensee",
        "sublicense",
        "royalty-free",
        "perpetual",
        "irrevocable",
        "non-exclusive",
        "worldwide",
        "patent claims",
    ),
    *("contributory patent", "source code form", "object code", "executable form", "covered work", "propagate"),
    *("conspicuously", "appropriate legal notices", "governing law", "jurisdiction", "venue", "severability"),
    *("indemnify and hold harmless", "termination", "reinstated", "breach of contract", "tort", "strict liability"),
    *("punitive damages", "trademark rights", "endorse or promote", "prior written permission", "as is", "implied"),
    *("warranties", "export control", "restricted rights", "government end users", "third party", "hereby granted"),
    *("subject to the following conditions", "all rights reserved"),
)


def tokens_per_char(encode: Callable[[str], list[int]], texts: list[str]) -> float:
    """Sum of tokens over sum of Python characters; `encode` must add no special tokens.

    Raises ValueError where the texts have no characters.
    """
    characters = sum(map(len, texts))
    if not characters:
        raise ValueError("tokens per character needs texts that are not empty")
    return sum(len(encode(text)) for text in texts) / characters


def custom_tokens(
    reporters: Mapping[str, Any],
    laws: Mapping[str, Any],
    journals: Mapping[str, Any],
    names: Mapping[str, Any],
    lowercase: bool = False,
) -> list[str]:
    """The strings that KL3M adds to its vocabulary: sorted, unique, longer than one character.

    Runs of blanks, tabs and line ends; marks of Markdown, HTML, JSON and XML; the years 1776-2049, numbers 10-999 (the
    paper says 1-999, its code 10-999), enumerations; and every blank-separated piece of the citations (see
    `data.reporters`), of their variations and of abbreviated case names. lowercase: all of it in lower case. The lists
    of HTML elements and attributes, of marks, and the mixed line ends are ours: the published ones were not at hand.
    """
    found = [*_blanks_and_marks(), *_markup(), *_numbers(), *_citations(reporters, laws, journals, names)]
    return sorted({token.lower() if lowercase else token for token in found if len(token) > 1})


def _blanks_and_marks() -> Iterator[str]:
    for sign, length in product(" \t\r\n.-=_*~", _RUNS):
        yield sign * length
    for count in range(1, 5):
        yield "\r\n" * count
    yield from ("\n ", "\n\t", "\t ", " \n", *_MARKS)


def _markup() -> Iterator[str]:
    yield from (*_JSON, *_XML)
    for case in (str.lower, str.upper):
        for tag in map(case, _TAGS.split()):
            yield from (f"<{tag}", f"</{tag}>")
        for attribute in map(case, _ATTRIBUTES.split()):
            yield f" {attribute}="


def _numbers() -> Iterator[str]:
    yield from map(str, (*range(1776, 2050), *range(10, 1000)))
    signs = (*string.ascii_letters, *range(1, 100), *_ROMAN, *map(str.upper, _ROMAN))
    yield from (f"({sign})" for sign in signs)


def _citations(*tables: Mapping[str, Any]) -> Iterator[str]:
    for citation, entries in ((key, value) for table in tables for key, value in table.items()):
        yield from citation.split()
        for entry in entries:
            for variation in [entry] if isinstance(entry, str) else entry["variations"]:
                yield from variation.split()


# Tokenizers


def character_bpe(texts: Iterable[str], vocab_size: int, max_chars: int) -> Bpe:
    """A BPE whose tokens have at most `max_chars` byte symbols, the blank before a word among them.

    The trainer's limit is max_chars + 1, as published: tokens stay below it. All pairs count, however rare; vocab_size
    includes the specials. Raises ValueError unless 269 <= vocab_size and 2 <= max_chars.
    """
    if max_chars < 2:
        raise ValueError(f"max_chars must be at least 2, got {max_chars}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = gpt2_words()
    trainer = trainers.BpeTrainer(
        vocab_size=_room(vocab_size, ()),
        min_frequency=1,
        max_token_length=max_chars + 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(nfkc, texts), trainer)
    return Bpe(tuple(merges_of(tokenizer)), gpt2_words())


def domain_tokenizer(bpe: Bpe, vocab_size: int, custom: Sequence[str] = ()) -> Tokenizer:
    """A tokenizer of `vocab_size` entries: specials, custom tokens, bytes, and as many of the merges as there is room.

    Texts are normalised (NFKC). The BPE of fewer merges is a prefix of the longer one, so that one training serves all
    sizes, with and without custom tokens. Raises ValueError where the specials, bytes and custom tokens leave no room,
    or where the BPE has too few merges.
    """
    tokenizer = bpe.truncate(_room(vocab_size, custom)).tokenizer()
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.add_tokens(list(custom))
    return tokenizer


def _room(vocab_size: int, custom: Sequence[str]) -> int:
    room = vocab_size - len(SPECIALS) - len(custom)
    if room < 256:
        raise ValueError(
            f"a vocabulary of {vocab_size} has no room for {len(SPECIALS)} specials, {len(custom)} custom tokens "
            "and 256 bytes"
        )
    return room


def nfkc(text: str) -> str:
    """A text as the tokenizers see it."""
    return unicodedata.normalize("NFKC", text)


# Documents that say something new


def word_grams(text: str, length: int = 13) -> set[int]:
    """Hashes of all runs of `length` lower-case words; of the whole text where it is shorter.

    Python's string hash is salted by process: compare hashes of one process alone.
    """
    words = re.findall(r"\w+", text.lower())
    return {hash(tuple(words[start : start + length])) for start in range(max(1, len(words) - length + 1))}


def unseen(texts: Iterable[str], seen: Iterable[str], share: float = 0.5, length: int = 13) -> list[int]:
    """Positions of the texts of which at most `share` of the word n-grams occur in `seen` or in a text kept before.

    So near-duplicates of a training document are on the training side alone, and kept texts are not near-duplicates
    of one another.
    """
    held = [word_grams(text, length) for text in texts]
    asked = set().union(*held)
    known: set[int] = set()
    for text in seen:
        known |= word_grams(text, length) & asked
    kept = []
    for position, grams in enumerate(held):
        if len(grams & known) <= share * len(grams):
            kept.append(position)
            known |= grams
    return kept


# Errors of character recognition


@dataclass(frozen=True)
class Edit:
    """clean[start:end] became noisy[noisy_start:noisy_end]; what lies between edits is unchanged."""

    start: int
    end: int
    noisy_start: int
    noisy_end: int


_CONFUSED = {"c": "e", "e": "c", "5": "S", "S": "5", "0": "o", "o": "0", "l": "1", "1": "l", "§": "S", "m": "rn"}
_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def _neighbours() -> dict[str, str]:
    found = {}
    for row, keys in enumerate(_KEYS):
        for place, key in enumerate(keys):
            beside = keys[max(0, place - 1) : place] + keys[place + 1 : place + 2]
            above = _KEYS[row - 1][place : place + 2] if row else ""
            below = _KEYS[row + 1][max(0, place - 1) : place + 1] if row + 1 < len(_KEYS) else ""
            found[key] = beside + above + below
    return found


_NEIGHBOURS = _neighbours()


def corrupt(text: str, rate: float, generator: random.Random) -> tuple[str, list[Edit]]:
    """A text with the paper's kinds of errors, each character being hit with probability `rate`.

    Kinds, equally likely among those that apply: confusion of look-alikes (c/e, 5/S, 0/o, l/1, rn/m, section sign to
    S), a blank put in or taken out, two characters exchanged, a neighbouring key, a character doubled. Returns the
    noisy text and its edits in order, which never overlap. Raises ValueError unless 0 <= rate <= 1.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be between 0 and 1, got {rate}")
    noisy: list[str] = []
    edits: list[Edit] = []
    place = length = 0
    while place < len(text):
        options = _errors(text, place) if generator.random() < rate else []
        before, taken, given = generator.choice(options)(generator) if options else (1, 0, "")
        noisy.append(text[place : place + before] + given)
        place, length = place + before, length + before
        if options:
            edits.append(Edit(place, place + taken, length, length + len(given)))
        place, length = place + taken, length + len(given)
    return "".join(noisy), edits


_Error = Callable[[random.Random], tuple[int, int, str]]


def _errors(text: str, place: int) -> list[_Error]:
    """The errors that may happen at a place: each gives how many characters stay, how many go, and what comes."""
    sign, following = text[place], text[place + 1 : place + 2]
    if sign.isspace():
        return [lambda _: (0, 1, "")] if sign == " " else []
    options: list[_Error] = [lambda _: (1, 0, sign)]
    if text[place : place + 2] == "rn":
        options.append(lambda _: (0, 2, "m"))
    elif sign in _CONFUSED:
        options.append(lambda _: (0, 1, _CONFUSED[sign]))
    if following and not following.isspace():
        options.append(lambda _: (1, 0, " "))
        if following != sign:
            options.append(lambda _: (0, 2, following + sign))
    if sign.lower() in _NEIGHBOURS:
        options.append(lambda generator: (0, 1, _beside(sign, generator)))
    return options


def _beside(sign: str, generator: random.Random) -> str:
    key = generator.choice(_NEIGHBOURS[sign.lower()])
    return key.upper() if sign.isupper() else key


# Boundaries


def boundaries(tokenizer: Tokenizer, text: str) -> list[int]:
    """Positions in the text, between 0 and its end, where a token starts; sorted.

    A character of several tokens (a rare one, of several bytes) counts its start alone. The text must be normalised
    already.
    """
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets
    return sorted({start for start, _ in offsets} - {0})


def random_boundaries(text: str, probability: float, generator: random.Random) -> list[int]:
    """A control: a boundary before every blank, and inside words at each place with the given probability."""
    inside = set(_inside_words(text))
    return [
        place
        for place in range(1, len(text))
        if (generator.random() < probability if place in inside else text[place].isspace())
    ]


def fixed_boundaries(text: str, length: int) -> list[int]:
    """A control: a boundary before every blank, and after every `length` characters of a word."""
    found = {place for place in range(1, len(text)) if text[place].isspace()}
    for start, end in words_of(text):
        found |= set(range(start + length, end, length))
    return sorted(found)


def words_of(text: str) -> list[tuple[int, int]]:
    """(start, end) of every run of characters between blanks."""
    return [match.span() for match in re.finditer(r"\S+", text)]


def _inside_words(text: str) -> Iterator[int]:
    for start, end in words_of(text):
        yield from range(start + 1, end)


@dataclass(frozen=True)
class Comparison:
    """Boundaries of a clean and a noisy text over the words hit by an error; see `compare`.

    matched, missing, added: boundaries that both have, that only the clean text has, that only the noisy one has.
    changed: token edits of the whole text. errors: edits of the text. positions: for each word hit (start, end, its
    clean boundaries, the clean places of its noisy boundaries, -1 for a boundary that has none).
    """

    matched: int
    missing: int
    added: int
    changed: int
    errors: int
    positions: list[tuple[int, int, list[int], list[int]]]


def compare(
    clean: str, noisy: str, edits: Sequence[Edit], clean_cuts: Sequence[int], noisy_cuts: Sequence[int], edges: bool
) -> Comparison:
    """Carry the noisy boundaries over to the clean text by the edits, and count within the words hit by an edit.

    A word has the blank before it, and only places inside count; with `edges` also its two ends, which the split at
    blanks makes alike for most tokenizers. A noisy place that stands for several clean ones (a character was lost)
    joins the first of them that is a boundary and still free; inside a replacement of another length no place has a
    counterpart. changed: substituted, inserted and deleted tokens between those that both texts have at the same place.
    """
    places = _clean_places(len(clean), edits)
    offset = 0 if edges else 1
    matched = missing = added = 0
    positions = []
    for start, end in words_of(clean):
        if not any(edit.start <= end and edit.end >= start for edit in edits):
            continue
        start = max(0, start - 1)
        wanted = [cut for cut in clean_cuts if start + offset <= cut <= end - offset]
        low, high = _noisy_span(start, end, edits)
        free, carried = set(wanted), []
        for cut in noisy_cuts:
            if not low + offset <= cut <= high - offset:
                continue
            options = places.get(cut, [])
            match = next((place for place in options if place in free), None)
            free.discard(match)
            matched += match is not None
            added += match is None
            carried.append(match if match is not None else (options or [-1])[0])
        missing += len(free)
        positions.append((start, end, wanted, carried))
    changed = _changed_tokens(clean, noisy, edits, clean_cuts, noisy_cuts)
    return Comparison(matched, missing, added, changed, len(edits), positions)


def _clean_places(length: int, edits: Sequence[Edit]) -> dict[int, list[int]]:
    """Noisy place -> the clean places that it stands for, in order."""
    places: dict[int, list[int]] = {}
    clean = shift = 0
    for edit in (*edits, Edit(length, length, -1, -1)):
        for place in range(clean, edit.start + 1):
            places.setdefault(place + shift, []).append(place)
        if edit.noisy_end < 0:
            break
        same = edit.end - edit.start == edit.noisy_end - edit.noisy_start
        for step in range(1, edit.end - edit.start if same else 0):
            places.setdefault(edit.noisy_start + step, []).append(edit.start + step)
        clean, shift = edit.end, edit.noisy_end - edit.end
    return {noisy: sorted(set(found)) for noisy, found in places.items()}


def _noisy_span(start: int, end: int, edits: Sequence[Edit]) -> tuple[int, int]:
    """Where a word's start and end lie in the noisy text; what was put in at its end belongs to it."""
    growth = [(edit, (edit.noisy_end - edit.noisy_start) - (edit.end - edit.start)) for edit in edits]
    low = start + sum(size for edit, size in growth if edit.start < start)
    return low, end + sum(size for edit, size in growth if edit.end <= end)


def _changed_tokens(
    clean: str, noisy: str, edits: Sequence[Edit], clean_cuts: Sequence[int], noisy_cuts: Sequence[int]
) -> int:
    # Noisy place of each clean place outside the edits: of an end before, of a start after what was put in there.
    ends, starts = {}, {}
    place = shift = 0
    for edit in (*edits, Edit(len(clean), len(clean), len(noisy), len(noisy))):
        for each in range(place, edit.start + 1):
            ends.setdefault(each, each + shift)
            starts[each] = each + shift
        place, shift = edit.end, edit.noisy_end - edit.end
        starts[place] = place + shift
    old = list(zip([0, *clean_cuts], [*clean_cuts, len(clean)], strict=True))
    new = list(zip([0, *noisy_cuts], [*noisy_cuts, len(noisy)], strict=True))
    index = {span: number for number, span in enumerate(new)}
    changed = last_old = last_new = 0
    for number, (start, end) in enumerate(old):
        same = index.get((starts.get(start, -1), ends.get(end, -1)))
        if same is not None and clean[start:end] == noisy[new[same][0] : new[same][1]]:
            changed += max(number - last_old, same - last_new)
            last_old, last_new = number + 1, same + 1
    return changed + max(len(old) - last_old, len(new) - last_new)
