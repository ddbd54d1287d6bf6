"""Middles of source lines whose prefix ends inside a token, filled in by every method (claims C2 and C4)."""

from typing import Any

from safetensors.numpy import load_file

from tokenarium.data import python_source
from tokenarium.methods.tokenizers import bpe, byte_gaps, fim
from tokenarium.methods.tokenizers import byte_probabilities as bp
from tokenarium.methods.tokenizers.byte_gaps import Gap
from tokenarium.methods.tokenizers.tree_logits import LanguageModel, TreeLogits
from tokenarium.methods.tokenizers.valid_encodings import inside_token
from tokenarium.study.experiments import Experiment


def run(experiment: Experiment) -> None:
    """Parts `seed<n>`: for each gap what every method made and what it cost, see `fill`; `gaps`: the questions."""
    p = experiment.parameters
    source = {split: _windows(experiment, split) for split in ("train", "test")}
    form = fim.Format(bpe.train(source["train"][: p.windows], p.vocabulary))
    found = byte_gaps.gaps(form, source["test"], p.gaps, p.lengths, experiment.seeds[0])
    experiment.record("gaps", lambda: [vars(gap) for gap in found])
    for seed in experiment.seeds:
        folder = experiment.root / "experiments" / "byte-probabilities" / f"byte-lm-seed{seed}"
        model = byte_gaps.seeded(load_file(folder / "weights.safetensors"), form, p.shape)

        def fill_all(model: LanguageModel = model) -> list[dict[str, Any]]:
            items = enumerate(experiment.progress(found, "gaps"))
            return [fill(model, form, gap, p.floor, number) for number, gap in items]

        experiment.record(f"seed{seed}", fill_all)


def _windows(experiment: Experiment, split: str) -> list[str]:
    rows = python_source.load(experiment.root, split)
    return fim.windows([row["text"] for row in rows], experiment.parameters.characters)


def fill(model: LanguageModel, form: fim.Format, gap: Gap, floor: float, number: int) -> dict[str, Any]:
    """Greedy middles by every method, as long as the true one unless the model ends before.

    made: by method; runs and bytes: of the exact method, the run for its first byte counted.
    """
    codec, end = model.codec, form.sentinel("end")
    prompt, length = gap.prefix.encode(), len(gap.middle)
    opening = tuple(form.opening(gap.suffix))
    head = codec.head(prompt)
    blank = (*opening, *codec.encode(prompt[:head]))
    logits = TreeLogits(model.model, blank, len(codec))
    ids = (*opening, *codec.encode(prompt))
    dropped = codec.token_bytes[ids[-1]] or b""
    drawn = bp.random_healing(codec, ids, number)
    made = {
        "naive": bp.greedy_tokens(codec, logits, ids, length, end=end),
        "healing": bp.greedy_tokens(codec, logits, ids[:-1], length, forced=dropped, end=end),
        "healing to the blank": bp.greedy_tokens(codec, logits, blank, length, prompt[head:], whole=False, end=end),
        "random healing": bp.greedy_tokens(codec, logits, ids[:-1], length, dropped, end=end, first=drawn),
    }
    logits.clear()
    options = {"context": opening, "specials": {end: bp.EOS}, "floor": floor, "prefetch": logits.prefetch}
    stream = bp.ByteStream(codec, logits, prompt, **options)
    stream.probabilities()
    before = logits.runs
    made["exact"] = bp.greedy_bytes(stream, length)
    runs = 1 + logits.runs - before
    fast = bp.ByteStream(codec, logits, prompt, mask=False, **options)
    made["exact without mask"] = bp.greedy_bytes(fast, length)
    distance, tokens = inside_token(codec, prompt + gap.middle.encode(), len(prompt))
    return {
        "made": {name: each.decode("latin-1") for name, each in made.items()},
        "runs": runs,
        "bytes": max(1, len(made["exact"])),
        "distance": distance,
        "tokens": tokens,
    }
