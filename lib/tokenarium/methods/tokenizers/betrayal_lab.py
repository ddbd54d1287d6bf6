"""What the phantom-edit experiments share: models, target words in sentences, prompts, injected segmentations."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from tokenarium.data import debian_reference, king_james_bible
from tokenarium.data.tokenizers import token_bytes
from tokenarium.methods.tokenizers import bpe
from tokenarium.methods.tokenizers import tokenizer_betrayal as betrayal
from tokenarium.methods.tokenizers.tree_logits import TreeLogits
from tokenarium.models import language

INSTRUCTIONS = {
    "copy": "Repeat the sentence below exactly, with the word {word} in its place. Answer with the sentence only.",
    "replace": (
        "In the sentence below, replace the word {word} with a different word. Change nothing else. Answer with the "
        "sentence only."
    ),
}
FORMS = ("canonical", "two pieces", "three pieces", "blank detached")
SAME_IDS, OTHER_IDS, OTHER_TEXT = range(3)
# A word and one that can stand in its place in many sentences; no word of the instructions.
SYNONYMS = {
    **{"house": "home", "king": "ruler", "city": "town", "stone": "rock", "servant": "slave", "child": "baby"},
    **{"father": "parent", "voice": "sound", "bread": "food", "field": "meadow", "strength": "power", "road": "path"},
    **{"people": "folk", "prison": "jail", "battle": "fight", "spirit": "soul", "friend": "companion", "enemy": "foe"},
    **{"speak": "talk", "answer": "reply", "build": "construct", "destroy": "ruin", "great": "large", "wicked": "evil"},
    **{"small": "little", "quick": "fast", "command": "order", "method": "technique", "package": "bundle"},
    **{"system": "machine", "problem": "issue", "error": "fault", "remove": "delete", "create": "make"},
    **{"change": "modify", "update": "upgrade", "server": "host", "directory": "folder", "screen": "display"},
    **{"simple": "easy", "important": "essential", "several": "many", "useful": "helpful"},
    **{"example": "instance", "original": "initial", "current": "present", "entire": "whole", "choose": "select"},
    **{"provide": "supply", "require": "need", "support": "assist", "security": "safety", "language": "tongue"},
    **{"document": "paper", "message": "note", "software": "program", "version": "edition", "section": "part"},
    **{"reason": "cause", "journey": "trip", "wisdom": "knowledge", "kingdom": "realm", "treasure": "riches"},
}
_RANDOM = re.compile(r"random-(\d+)")
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Speaker:
    """A model that follows instructions, with the plain tokenizer behind it.

    turn, reply: what stands before the instruction and before the answer, special tokens spelled out.
    """

    model: torch.nn.Module
    tokenizer: Tokenizer
    token_bytes: list[bytes | None]
    turn: str
    reply: str
    stop: int | None

    @property
    def vocabulary(self) -> dict[bytes, int]:
        """Bytes -> id; of several ids with the same bytes the lowest."""
        return {each: index for index, each in reversed(list(enumerate(self.token_bytes))) if each}

    def encode(self, text: str) -> list[int]:
        """The canonical ids of a text, special tokens read as such, none added."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids


def open_speaker(name: str, root: Path, device: str = "cpu") -> Speaker:
    """A model of the suite (models/<name>), of the hub, or "random-<n>": an untrained Llama with a BPE of n tokens.

    The random one learns its merges from the sentences; it stands in where only the wiring is tried.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    if match := _RANDOM.fullmatch(name):
        trained = bpe.train(list(plain_sentences(root))[:1500], int(match[1]))
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(trained.vocabulary),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=None,
            eos_token_id=None,
        )
        model = LlamaForCausalLM(config).eval()
        return Speaker(model, trained.tokenizer(), list(trained.vocabulary), "", "\nAnswer:\n", None)
    place = root / "models" / name
    if place.is_dir():
        tokenizer, model = language.load(place, device)
    else:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).to(device).eval()
    messages = [{"role": "user", "content": "\0"}]
    whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    turn, reply = whole.split("\0")
    backend = tokenizer.backend_tokenizer
    return Speaker(model, backend, token_bytes(backend), turn, reply, tokenizer.eos_token_id)


# Words and sentences


@dataclass(frozen=True)
class Target:
    """A word in a sentence: one token of the sentence's ids, at `place`; `number` counts words and marks."""

    word: str
    synonym: str
    sentence: str
    number: int
    ids: tuple[int, ...]
    place: int
    segmentations: tuple[tuple[int, ...], ...]

    @property
    def canonical(self) -> tuple[int]:
        return (self.ids[self.place],)


def plain_sentences(root: Path) -> Iterator[str]:
    """Sentences of 6 to 16 words in ASCII, capital to full stop, from two sources by turns while both last."""
    manual = (
        sentence
        for row in debian_reference.load(root)
        for block in row["text"].split("\n")
        for sentence in debian_reference.sentences(block)
    )
    bible = (row["text"] for row in king_james_bible.load(root))
    sources = [[each for each in source if _is_plain(each)] for source in (manual, bible)]
    for pair in zip(*sources, strict=False):
        yield from pair


def _is_plain(sentence: str) -> bool:
    words = sentence.split(" ")
    return (
        6 <= len(words) <= 16
        and sentence.isascii()
        and sentence[0].isupper()
        and sentence.endswith(".")
        and all(re.fullmatch(r"[A-Za-z]+[,;:.]?", word) for word in words)
    )


def targets(speaker: Speaker, root: Path, count: int, least: int = 10) -> list[Target]:
    """The first `count` sentences with a word of SYNONYMS that is not their first and stands there once.

    The word and its blank are one token in the sentence and in the instruction, with at least `least` other
    segmentations of up to four pieces, among them every form of FORMS. One sentence for each word.
    """
    found: dict[str, Target] = {}
    vocabulary = speaker.vocabulary
    for sentence in plain_sentences(root):
        words = _WORD.findall(sentence)
        for number, word in enumerate(words):
            if number == 0 or word not in SYNONYMS or word in found or words.count(word) != 1:
                continue
            ids = speaker.encode(sentence)
            spelled = f" {word}".encode()
            places = [place for place, index in enumerate(ids) if speaker.token_bytes[index] == spelled]
            segmentations = betrayal.enumerate_segmentations(spelled, vocabulary)
            target = Target(
                word,
                SYNONYMS[word],
                sentence,
                number,
                tuple(ids),
                places[0] if places else -1,
                tuple(map(tuple, segmentations)),
            )
            if len(places) == 1 and len(segmentations) > least and all(forms(target, speaker).values()):
                found[word] = target
        if len(found) >= count:
            break
    return list(found.values())[:count]


def forms(target: Target, speaker: Speaker, seed: int = 0) -> dict[str, tuple[int, ...]]:
    """The target in every form of FORMS; empty where its vocabulary has none. Two and three pieces: drawn by seed."""
    draw = random.Random(f"{seed} {target.word}")
    blank = speaker.vocabulary.get(b" ")
    inside = [each for each in target.segmentations if each[0] != blank]
    pieces = {size: [each for each in inside if len(each) == size] for size in (2, 3)}
    detached = [each for each in target.segmentations if each[0] == blank]
    return {
        "canonical": target.canonical,
        "two pieces": draw.choice(pieces[2]) if pieces[2] else (),
        "three pieces": draw.choice(pieces[3]) if pieces[3] else (),
        "blank detached": min(detached, key=len) if detached else (),
    }


# Prompts


def prompt(speaker: Speaker, target: Target, instruction: str, form: Sequence[int]) -> list[int]:
    """The ids up to the answer, encoded as one text; then the target's token is replaced by `form` wherever it stands.

    So nothing in them is not canonical but the target. Raises ValueError where the target is not a token of its own.
    """
    asked = INSTRUCTIONS[instruction].format(word=target.word)
    ids = speaker.encode(f"{speaker.turn}{asked}\n{target.sentence}{speaker.reply}")
    (canonical,) = target.canonical
    if ids.count(canonical) != 2:
        raise ValueError(f"{target.word!r} is not one token in the instruction and one in the sentence")
    return [piece for index in ids for piece in (form if index == canonical else (index,))]


def answer_so_far(target: Target) -> list[int]:
    """The answer up to the slot, as the sentence has it."""
    return list(target.ids[: target.place])


def injected_masses(
    speaker: Speaker, target: Target, instruction: str, form: Sequence[int], ends: NDArray[np.bool_], floor: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """The slot's probability of [same ids, other ids and same text, other text], that of each segmentation, the error.

    (3,) and (S,) float64. The error is the most that unlikely beginnings, which are not followed, could add.
    """
    context = [*prompt(speaker, target, instruction, form), *answer_so_far(target)]
    logits = TreeLogits(speaker.model, context, len(speaker.token_bytes))
    masses, missed = betrayal.slot_masses(logits, target.segmentations, ends, floor)
    same = float(masses[target.segmentations.index(tuple(form))])
    other = float(masses.sum()) - same
    return np.array([same, other, 1 - same - other]), masses, missed


# Natural answers


@torch.inference_mode()
def answers(speaker: Speaker, prompts: Sequence[Sequence[int]], most: int, sample: bool, seed: int) -> list[list[int]]:
    """What the model answers each prompt, up to its stop token or `most` tokens; greedy, or drawn at temperature 1."""
    stop, longest = speaker.stop, max(map(len, prompts))
    fill = stop if stop is not None else 0
    ids = torch.full((len(prompts), longest), fill)
    attend = torch.zeros_like(ids)
    for row, each in enumerate(prompts):
        ids[row, longest - len(each) :] = torch.tensor(list(each))
        attend[row, longest - len(each) :] = 1
    torch.manual_seed(seed)
    drawing = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {"do_sample": False}
    device = speaker.model.device
    made = speaker.model.generate(
        ids.to(device),
        attention_mask=attend.to(device),
        max_new_tokens=most,
        pad_token_id=fill,
        eos_token_id=stop,
        repetition_penalty=1.0,
        **drawing,
    )[:, longest:].tolist()
    return [row[: row.index(stop)] if stop in row else row for row in made]


# How a segmentation is read


@torch.inference_mode()
def read(speaker: Speaker, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """After the last of the ids: the states of all layers (layers + 1, d) and next-token log probabilities (V,)."""
    out = speaker.model(torch.tensor([list(ids)], device=speaker.model.device), output_hidden_states=True)
    states = torch.stack([layer[0, -1] for layer in out.hidden_states]).float().cpu()
    return states, out.logits[0, -1].double().log_softmax(-1).cpu()


def reading_gap(
    speaker: Speaker, target: Target, others: Mapping[str, Sequence[int]]
) -> dict[str, NDArray[np.float64]]:
    """The sentence up to and with the word, canonical against each of `others` in the word's place.

    Returns "kl" (others,), in bits, of the canonical next-token distribution from the other; "cosine" (others,
    layers + 1) and "hidden" (others + 1, d), the last layer with the canonical one first.
    """
    before = answer_so_far(target)
    states, logp = read(speaker, [*before, *target.canonical])
    kl, cosine, hidden = [], [], [states[-1].numpy()]
    for ids in others.values():
        other_states, other_logp = read(speaker, [*before, *ids])
        kl.append(float((logp.exp() * (logp - other_logp)).sum()) / np.log(2))
        cosine.append(torch.cosine_similarity(states, other_states, dim=-1).double().numpy())
        hidden.append(other_states[-1].numpy())
    return {"kl": np.array(kl), "cosine": np.array(cosine), "hidden": np.array(hidden)}
