"""A score for every word of a text: FrugalPrompt's attributions and what they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer
from torch import Tensor, nn

from tokenarium.methods.context import frugal_prompt as method
from tokenarium.methods.context.frugal.tasks import sentences
from tokenarium.models import minilm

if TYPE_CHECKING:
    from transformers import BertModel, PreTrainedTokenizerBase

LONGEST = 62  # sub-words of a sentence, without its two special tokens: what DecompX takes grows with the square


@dataclass(frozen=True)
class Encoder:
    """An encoder of post-LayerNorm BERT layers, and a head on its first position: tanh pooler, linear classifier.

    known: DecompX's parts of the sentences that were asked for, which are dear.
    """

    tokenizer: PreTrainedTokenizerBase
    model: BertModel
    pooler: nn.Linear
    classifier: nn.Linear
    known: dict[tuple[int, ...], tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def parts(self, text: str) -> list[Part]:
        """The text's sentences, each ready to be encoded alone; what is too long is cut between words."""
        words = text.split()
        lengths = [len(found) for found in self.tokenizer(words, add_special_tokens=False)["input_ids"]]
        found = []
        for sentence in sentences(words):
            begin, room = sentence.start, LONGEST
            for place in sentence:
                if lengths[place] > room and place > begin:
                    found.append(range(begin, place))
                    begin, room = place, LONGEST
                room -= lengths[place]
            found.append(range(begin, sentence.stop))
        return [self._part(words, places) for places in found]

    def _part(self, words: Sequence[str], places: range) -> Part:
        inputs = self.tokenizer(
            [words[place] for place in places], is_split_into_words=True, truncation=True, max_length=LONGEST + 2
        )
        owners = [None if owner is None else places[owner] for owner in inputs.word_ids()]
        return Part(places, torch.tensor(inputs["input_ids"]), owners)

    def pieces(self, part: Part) -> tuple[list[str], list[int]]:
        """The sub-words of a part and the word that each is in, special tokens left out."""
        names = self.tokenizer.convert_ids_to_tokens(part.input_ids)
        kept = [(name, owner) for name, owner in zip(names, part.owners, strict=True) if owner is not None]
        return [name for name, _ in kept], [owner for _, owner in kept]

    def logits(self, state: Tensor) -> Tensor:
        """(labels,) of the first position's last state (d,)."""
        return self.classifier(self.pooler(state).tanh())


@dataclass(frozen=True)
class Part:
    """places: the words of one sentence. input_ids: (s,) int64. owners: the word of each of them, None if special."""

    places: range
    input_ids: Tensor
    owners: list[int | None]


def open_encoder(path: Path, texts: Sequence[str], labels: Sequence[int], steps: int, seed: int) -> Encoder:
    """MiniLM with a head trained on these texts, whose body is not touched (full batch, Adam)."""
    tokenizer, model = minilm.load(path)
    model.requires_grad_(False)
    states = torch.cat(
        [_first_states(tokenizer, model, texts[begin : begin + 50]) for begin in range(0, len(texts), 50)]
    )
    target = torch.tensor(labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dim = states.shape[1]
        pooler, classifier = nn.Linear(dim, dim), nn.Linear(dim, int(target.max()) + 1)
    optimiser = torch.optim.Adam([*pooler.parameters(), *classifier.parameters()], lr=1e-3, weight_decay=1e-4)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(classifier(pooler(states).tanh()), target).backward()
        optimiser.step()
    for module in (pooler, classifier):
        module.requires_grad_(False)
    return Encoder(tokenizer, model, pooler, classifier)


def head_accuracy(encoder: Encoder, texts: Sequence[str], labels: Sequence[int]) -> list[bool]:
    """Whether the head names the right domain, for every text."""
    states = _first_states(encoder.tokenizer, encoder.model, texts)
    return (encoder.logits(states).argmax(dim=1) == torch.tensor(labels)).tolist()


def _first_states(tokenizer: PreTrainedTokenizerBase, model: BertModel, texts: Sequence[str]) -> Tensor:
    batch = tokenizer(list(texts), padding=True, truncation=True, max_length=LONGEST + 2, return_tensors="pt")
    with torch.no_grad():
        return model(**batch).last_hidden_state[:, 0]


# Scores of sub-words, one sentence at a time: (encoder, trace) -> (s,)

Score = Callable[[Encoder, method.Trace], Tensor]


def globenc(encoder: Encoder, trace: method.Trace) -> Tensor:
    return method.globenc_rollout(method.globenc_norms(trace))


def decompx_parts(encoder: Encoder, trace: method.Trace) -> tuple[Tensor, Tensor]:
    """DecompX's parts (s, labels), and the head's logits (labels,), which they should add up to."""
    key = tuple(trace.input_ids.tolist())
    if key not in encoder.known:
        parts = method.decompx(trace, encoder.pooler, encoder.classifier)
        encoder.known[key] = parts, encoder.logits(trace.hidden[-1][0])
    return encoder.known[key]


def decompx(encoder: Encoder, trace: method.Trace) -> Tensor:
    """Contributions to the logit of the label that the head predicts."""
    parts, logits = decompx_parts(encoder, trace)
    return parts[:, int(logits.argmax())]


def decompx_label0(encoder: Encoder, trace: method.Trace) -> Tensor:
    """Contributions to the first label's logit whatever is predicted, as in the released notebook."""
    return decompx_parts(encoder, trace)[0][:, 0]


def last_attention(encoder: Encoder, trace: method.Trace) -> Tensor:
    """What the first position attends to in the last layer, mean of the heads."""
    return trace.attention[-1].mean(dim=0)[0]


def attention_rollout(encoder: Encoder, trace: method.Trace) -> Tensor:
    """Abnar and Zuidema 2020: mean of the heads, half of it identity, multiplied through the layers."""
    mixed = [(each.mean(dim=0) + torch.eye(each.shape[-1])) / 2 for each in trace.attention]
    return method.rollout_matrix(torch.stack(mixed))[0]


def gradient_input(encoder: Encoder, trace: method.Trace) -> Tensor:
    """|gradient . embedding| of the predicted label's logit."""
    embedded = trace.hidden[0].detach().requires_grad_(True)
    with torch.enable_grad():
        state = embedded[None]
        for layer in encoder.model.encoder.layer:
            state = layer(state)
            state = state[0] if isinstance(state, tuple) else state
        encoder.logits(state[0, 0]).max().backward()
    return (embedded.grad * embedded.detach()).sum(dim=-1).abs()


SENTENCE_SCORES: dict[str, Score] = {
    "globenc": globenc,
    "decompx": decompx,
    "decompx-label0": decompx_label0,
    "attention": last_attention,
    "rollout": attention_rollout,
    "gradient": gradient_input,
}


@torch.no_grad()
def sentence_scores(encoder: Encoder, text: str, score: Score, within: str = "sentence", weigh: bool = False) -> Tensor:
    """Word scores (words,) of a text whose sentences are encoded alone.

    within: scores are scaled to [0, 1] in every "sentence", as published, or over the whole "text". weigh: by the
    sentences' LexRank, as published for GlobEnc.
    """
    parts = encoder.parts(text)
    raw = [score(encoder, method.Trace(encoder.model, part.input_ids)) for part in parts]
    if within == "sentence":
        raw = [method.min_max(each) for each in raw]
    else:
        raw = list(method.min_max(torch.cat(raw)).split([len(each) for each in raw]))
    words = text.split()
    weights = sentence_weights([" ".join(words[part.places.start : part.places.stop]) for part in parts])
    found = torch.zeros(len(words))
    for part, scores, weight in zip(parts, raw, weights, strict=True):
        found += method.sum_words(scores, part.owners, len(words)) * (weight if weigh else 1.0)
    return found


def sentence_weights(texts: Sequence[str]) -> Tensor:
    """LexRank (n,) of the sentences of one text, by the cosines of their TF-IDF vectors."""
    try:
        vectors = TfidfVectorizer(token_pattern=r"\w+").fit_transform(texts)
    except ValueError:  # no sentence has a letter
        return torch.ones(len(texts))
    similarity = torch.from_numpy((vectors @ vectors.T).toarray()).float()
    return method.lexrank(similarity.fill_diagonal_(1.0))


# Scores that need no encoder


def tfidf(texts: Sequence[str]) -> list[Tensor]:
    """Word scores of every text: what a word's terms weigh in the text's TF-IDF vector, over these texts."""
    vectoriser = TfidfVectorizer(token_pattern=r"\w+")
    rows = vectoriser.fit_transform(texts)
    split, place = vectoriser.build_analyzer(), vectoriser.vocabulary_
    return [
        torch.tensor([sum(float(row[0, place[term]]) for term in split(word)) for word in text.split()])
        for row, text in zip(rows, texts, strict=True)
    ]


def content_words(words: Sequence[str]) -> list[int]:
    """Places of the words that are no stop words (scikit-learn's English list)."""
    return [place for place, word in enumerate(words) if word.strip(".,;:!?'\"()[]").lower() not in ENGLISH_STOP_WORDS]


def joined_words(encoder: Encoder, text: str, official_truncation: bool) -> list[str]:
    """The text's words joined from the encoder's sub-words, in lower case; see `frugal_prompt.join_pieces`."""
    found = []
    for part in encoder.parts(text):
        found += method.join_pieces(*encoder.pieces(part), official_truncation=official_truncation)
    return found
