"""Claim C2: a tiny model that adds takes over two tokenizers that differ in how they cut numbers, and in nothing else.

Parts for each seed: "weights-<arm>-<seed>" (base: all weights; same, chunk: the donor's embedding), "bits-<seed>"
(<arm> and <arm>.bytes: the text in each arm's tokens), "sums-<seed>" (arm -> what was written, and the sums).
"""

from __future__ import annotations

import torch

from tokenarium.methods.tokenizers import omp_numbers as numbers
from tokenarium.methods.tokenizers import omp_transplant, swaplab, swaplab_texts
from tokenarium.study.experiments import Experiment


def run(experiment: Experiment) -> None:
    p = experiment.parameters
    texts = swaplab_texts.texts(experiment.root, p.bytes_per_text, p.pool_bytes, names=["kjv", "manual"])
    bible, manual = (numbers.without_digits("\n".join(texts.pool[name])) for name in ("kjv", "manual"))
    held_out = numbers.without_digits("\n".join(texts.evaluation.values()))
    mix = f"{bible}\n{manual}"
    tokenizers = {
        "base": numbers.digit_tokenizer([bible], p.vocabulary),
        "same": numbers.digit_tokenizer([manual], p.vocabulary),
        "chunk": numbers.number_tokenizer([manual], p.vocabulary),
    }
    for seed in experiment.progress(experiment.seeds, "seeds"):
        unseen = numbers.held_out_sums(p.sums, p.digits, seed + 1_000)

        def trained(arm: str, seed: int = seed, unseen: list[str] = unseen) -> dict:
            steps = p.steps if arm == "base" else p.donor_steps
            model = numbers.train(tokenizers[arm], mix, {**p.to_dict(), "steps": steps}, seed, unseen)
            weights = model.state_dict() if arm == "base" else {"rows": model.get_input_embeddings().weight.detach()}
            return {name: weight.contiguous().numpy() for name, weight in weights.items() if "lm_head" not in name}

        held = {arm: experiment.arrays(f"weights-{arm}-{seed}", lambda arm=arm: trained(arm)) for arm in tokenizers}
        base = numbers.untrained(tokenizers["base"], p, seed)
        weights = {name: torch.from_numpy(values) for name, values in held["base"].items()}
        base.load_state_dict(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]})
        models = {"base": base}
        for arm in ("same", "chunk"):
            donor = torch.from_numpy(held[arm]["rows"])
            models[arm] = transplanted(base, tokenizers["base"], tokenizers[arm], donor, p.k)
        start = base.get_input_embeddings().weight[tokenizers["base"].token_to_id(numbers.START)].detach()

        def bits(models: dict = models, start: torch.Tensor = start) -> dict:
            found = {}
            for arm, model in models.items():
                ids, found[f"{arm}.bytes"] = swaplab.encode(tokenizers[arm], held_out)
                found[arm] = swaplab.token_bits(model, ids, start, p.window)
            return found

        def sums(models: dict = models, start: torch.Tensor = start, unseen: list[str] = unseen) -> dict:
            written = {arm: numbers.answers(model, tokenizers[arm], start, unseen) for arm, model in models.items()}
            return {"sums": unseen, **written}

        experiment.arrays(f"bits-{seed}", bits)
        experiment.record(f"sums-{seed}", sums)


def transplanted(base, old, new, donor: torch.Tensor, k: int):
    """The base with the whole of another vocabulary: shared rows copied, START by its role, all others by OMP."""
    shared = swaplab.match(old, new, special={numbers.START: numbers.START})
    kept = torch.arange(new.get_vocab_size()).numpy()
    fresh = torch.from_numpy(swaplab.fresh(kept, shared))
    old_rows = base.get_input_embeddings().weight.detach()
    points, rows = donor[torch.from_numpy(shared[0])], old_rows[torch.from_numpy(shared[1])]
    indices, coefficients = omp_transplant.batch_omp(donor[fresh], points, k)
    made = omp_transplant.combine(indices, coefficients, rows)
    return swaplab.swap(base, swaplab.assemble(kept, shared, old_rows, made))
