"""Prompts that end inside a word: bits of the rest, the next byte, and completions (claims C1-midword and C4)."""

from typing import Any

import numpy as np

from tokenarium.methods.tokenizers import byte_harness
from tokenarium.methods.tokenizers import byte_probabilities as bp
from tokenarium.methods.tokenizers.byte_harness import Passage
from tokenarium.methods.tokenizers.tree_logits import LanguageModel, TreeLogits
from tokenarium.methods.tokenizers.valid_encodings import inside_token
from tokenarium.study.experiments import Experiment

MOST_COVERS = 200


def run(experiment: Experiment) -> None:
    """Parts `<domain>`: a list with one mapping for each prompt, see `probe`; `example`: one prompt, see `inspect`."""
    p = experiment.parameters
    texts = {domain: byte_harness.documents(experiment.root, domain) for domain in byte_harness.DOMAINS}
    model = byte_harness.open_model(p.model, experiment.root, [each for group in texts.values() for each in group[:20]])
    experiment.arrays("example", lambda: inspect(model, p.example.encode()))
    for domain, group in texts.items():
        found = byte_harness.word_cuts(group, p.prompts, p.given, experiment.seeds[0])

        def probe_all(found: list[Passage] = found) -> list[dict[str, Any]]:
            items = enumerate(experiment.progress(found, "prompts"))
            return [probe(model, each, p.pieces, p.length, p.floor, seed) for seed, each in items]

        experiment.record(domain, probe_all)


def inspect(model: LanguageModel, prompt: bytes) -> dict[str, np.ndarray]:
    """The parts of one next-byte distribution.

    p_tok: (V,) after the prompt's own encoding; symbol: (V,) that each token begins with; p_naive, p_exact: (259,);
    cover_ids: (covers, longest) the last ids of the most probable covers, -1 in front; cover_left: bytes beyond the
    prompt; cover_logw: log weights.
    """
    codec, context = model.codec, (model.start,)
    ids = (*context, *codec.encode(prompt))
    logits = model.logits(tuple(codec.encode(prompt[: codec.head(prompt)])))
    stream = bp.ByteStream(codec, logits, prompt, context)
    covers = sorted(stream.covers, key=lambda cover: -cover.logw)[:MOST_COVERS]
    tails = [cover.ids[len(logits.prefix) - 1 :] for cover in covers]
    longest = max(map(len, tails))
    return {
        "p_tok": logits(ids).double().exp().numpy(),
        "symbol": bp.symbols_of(codec.token_bytes),
        "p_naive": bp.tokenized_next_byte_probs(ids, codec.token_bytes, logits).numpy(),
        "p_exact": stream.probabilities()[: bp.SYMBOLS],
        "cover_ids": np.array([[-1] * (longest - len(tail)) + list(tail) for tail in tails]),
        "cover_left": np.array([len(cover.bytes_left) for cover in covers]),
        "cover_logw": np.array([cover.logw for cover in covers]),
        "head": np.array(codec.encode(prompt[: codec.head(prompt)])),
    }


def probe(model: LanguageModel, passage: Passage, pieces: int, length: int, floor: float, seed: int) -> dict[str, Any]:
    """All that is measured on one prompt.

    bits: of the rest of the word by each method; next: the most probable next byte by each; made: what each greedily
    continues with, up to `length` bytes or the word's end; runs, bytes: of the exact continuation, the run for its
    first byte counted; leak: probability of the tokens (above the floor) that may not follow the prompt's own encoding.
    """
    codec, context = model.codec, (model.start,)
    prompt, rest = passage.data[: passage.start], passage.data[passage.start :]
    ids = (*context, *codec.encode(prompt))
    lefts = bp.left_sides(codec, passage.data, passage.start)
    logits = model.logits(lefts.head)
    exact_contexts = {(*context, *left) for left in lefts.contexts}
    naive_contexts = bp.continuation_contexts(codec, ids, rest, pieces)
    healed_contexts = bp.healed_contexts(codec, ids, rest, pieces + 1)
    logits.prefetch(sorted(exact_contexts | naive_contexts | healed_contexts, key=lambda key: (len(key), key)))
    marginals = bp.prefix_log_marginals(codec, lefts, logits, context, floor)
    logp = {
        "naive": bp.continuation_log_probability(codec, logits, ids, rest, pieces),
        "healing": bp.healed_log_probability(codec, logits, ids, rest, pieces + 1),
        "exact": float(marginals[-1] - marginals[0]),
    }
    distance, tokens = inside_token(codec, passage.data, passage.start)
    stream = bp.ByteStream(codec, logits, prompt, context, floor=floor, prefetch=logits.prefetch)
    following = {
        "naive": int(bp.tokenized_next_byte_probs(ids, codec.token_bytes, logits)[: bp.BYTES].argmax()),
        "healing": int(bp.healed_next_byte_probs(codec, logits, ids).argmax()),
        "exact": int(stream.probabilities()[: bp.BYTES].argmax()),
    }
    made = _complete(model, prompt, ids, logits, length, seed)
    logits.clear()
    before = logits.runs
    made["exact"] = bp.greedy_bytes(stream, length, stop=lambda made: len(_word(made)) < len(made))
    runs = 1 + logits.runs - before
    p = logits(ids).double().exp().numpy()
    likely = np.flatnonzero(p > floor)
    return {
        "prompt": prompt.decode(),
        "rest": rest.decode(),
        "distance": distance,
        "tokens": tokens,
        "bits": {name: -value / np.log(2) for name, value in logp.items()},
        "made": {name: _word(each).decode("ascii", "replace") for name, each in made.items()},
        "next": {name: chr(byte) for name, byte in following.items()},
        "leak": float(p[likely[~codec.valid_next(ids[1:], likely)]].sum()),
        "runs": runs,
        "bytes": len(made["exact"]),
    }


def _complete(
    model: LanguageModel, prompt: bytes, ids: bp.Ids, logits: TreeLogits, length: int, seed: int
) -> dict[str, bytes]:
    """Greedy continuations token by token."""
    codec, start = model.codec, model.codec.head(prompt)
    dropped = codec.token_bytes[ids[-1]] or b""
    blank = (model.start, *codec.encode(prompt[:start]))
    drawn = bp.random_healing(codec, ids, seed)
    return {
        "naive": bp.greedy_tokens(codec, logits, ids, length),
        "healing": bp.greedy_tokens(codec, logits, ids[:-1], length, forced=dropped),
        "healing to the blank": bp.greedy_tokens(codec, logits, blank, length, forced=prompt[start:], whole=False),
        "random healing": bp.greedy_tokens(codec, logits, ids[:-1], length, forced=dropped, first=drawn),
    }


def _word(made: bytes) -> bytes:
    return made[: next((place for place, byte in enumerate(made) if not chr(byte).isalpha() or byte > 127), len(made))]
