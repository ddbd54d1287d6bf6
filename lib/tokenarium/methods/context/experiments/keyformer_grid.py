"""Keyformer on the prompts of kv-baselines, its noise and its positions on T3, and what it keeps on some prompts of T2.

Parts: "T1-00" ... one per prompt, "T4-0" for all prompts of T4: rows as kvlab's `Row`. "kept-<n>": of a prompt of T2,
scores, kept tokens and attention mass captured at every budget, by method.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tokenarium.methods.context import kvlab
from tokenarium.methods.context.keyformer import Keyformer
from tokenarium.methods.context.kvlab import opening, tasks
from tokenarium.study.experiments import Experiment

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from tokenarium.methods.context.kvlab.prompt import Prompt
    from tokenarium.study.parameters import Parameters


def arms(seeds: list[int], steps: int) -> dict[str, kvlab.Policy]:
    """The noises on every seed, the arms without chance, noise drawn once per key, and renumbered positions."""
    first = seeds[0]
    made: dict[str, kvlab.Policy] = {f"keyformer-{seed}": Keyformer(seed=seed, steps=steps) for seed in seeds}
    made |= {f"keyformer-gaussian-{seed}": Keyformer(noise="gaussian", seed=seed, steps=steps) for seed in seeds}
    made |= {f"keyformer-{kind}": Keyformer(noise=kind, steps=steps) for kind in ("none", "constant")}
    made["keyformer-token"] = Keyformer(per_token=True, seed=first, steps=steps)
    made["keyformer-renumbered"] = Keyformer(renumber=True, seed=first, steps=steps)
    made["streaming-renumbered"] = kvlab.StreamingLLM(renumber=True)
    return made


def text_rows(model: PreTrainedModel, prompt: Prompt, p: Parameters, seeds: list[int]) -> list[dict[str, Any]]:
    """Keyformer in both protocols, its arms in protocol B, and with H2O at the budgets of the paper's line."""
    done = kvlab.prefill(model, torch.tensor([prompt.ids]))
    main = {"keyformer": Keyformer(seed=seeds[0], steps=p.temperature_steps)}
    rows = kvlab.evaluate(model, prompt, main, p.budgets, ("A",), done=done)
    others = [budget for budget in p.budgets if budget not in p.noise_budgets]
    rows += kvlab.evaluate(model, prompt, main, [*others, *p.line_budgets], ("B",), done=done)
    rows += kvlab.evaluate(model, prompt, {"h2o": kvlab.H2O()}, p.line_budgets, ("B",), done=done)
    found = kvlab.evaluate(model, prompt, arms(seeds, p.temperature_steps), p.noise_budgets, ("B",), done=done)
    same = [row | {"method": "keyformer"} for row in found if row["method"] == f"keyformer-{seeds[0]}"]
    return rows + found + same


def continuation_rows(
    model: PreTrainedModel, prompts: list[Prompt], policies: dict[str, kvlab.Policy], p: Parameters
) -> list[dict[str, Any]]:
    """Keyformer in both protocols, and H2O at the budgets of the paper's line, which kv-baselines does not have."""
    rows, reference = kvlab.evaluate_continuations(model, prompts, policies, p.continuation_budgets, p.steps)
    lines = {"h2o": kvlab.H2O()}
    return rows + kvlab.evaluate_continuations(model, prompts, lines, p.line_budgets, p.steps, ("B",), reference)[0]


@torch.inference_mode()
def kept(
    model: PreTrainedModel, prompt: Prompt, policies: dict[str, kvlab.Policy], budgets: list[int], shown: int
) -> dict[str, NDArray[Any]]:
    """Protocol A. score-<method>: (layers, Hkv, n); keep-<method>: (layers, Hkv, shown) int32, of the context;
    mass-<method>: (budgets, layers), share of the attention that the question's last token pays to the context, over
    heads, which falls on what is kept; mass-oracle: the most that any choice per head could hold."""
    done, tokens = kvlab.prefill(model, torch.tensor([prompt.ids])), len(prompt.context)
    scores = done.scores(policies, tokens)
    found: dict[str, list] = {}
    for place, layer in enumerate(done.layers):
        seen = done.observe(layer)
        paid = seen.probabilities(slice(-1, None))[0, :, 0, :tokens]
        paid = paid / paid.sum(dim=-1, keepdim=True)
        best = paid.sort(dim=-1, descending=True).values.cumsum(dim=-1).mean(dim=0)
        found.setdefault("mass-oracle", []).append([float(best[budget - 1]) for budget in budgets])
        positions = torch.arange(tokens).expand(1, seen.key.shape[1], -1).to(paid.device)
        for name, policy in policies.items():
            score = scores[name][place].scores
            keeps = {each: policy.keep(score, positions, tokens, each)[0] for each in {*budgets, shown}}
            mass = [
                float(paid.gather(-1, keeps[each].repeat_interleave(seen.groups, dim=0)).sum(dim=-1).mean())
                for each in budgets
            ]
            found.setdefault(f"mass-{name}", []).append(mass)
            found.setdefault(f"score-{name}", []).append(score[0].cpu().numpy())
            found.setdefault(f"keep-{name}", []).append(keeps[shown].cpu().numpy().astype(np.int32))
    arrays = {name: np.array(values) for name, values in found.items()}
    return {name: values.T.copy() if name.startswith("mass-") else values for name, values in arrays.items()}


def run(experiment: Experiment) -> None:
    p, seeds = experiment.parameters, experiment.seeds
    tokenizer, model = opening.open_model(experiment.root, p.checkpoint, p.device)
    held = tasks.texts(experiment.root)
    policies = {"keyformer": Keyformer(seed=seeds[0], steps=p.temperature_steps)}

    def prompts(task: str) -> list[Prompt]:
        return tasks.make(experiment.root, tokenizer, task, p.prompts[task], p.tokens, p.prompt_seed, held)

    for prompt in experiment.progress(prompts("T3"), "texts"):
        experiment.record(prompt.id, lambda prompt=prompt: text_rows(model, prompt, p, seeds))
    for prompt in experiment.progress([*prompts("T1"), *prompts("T2")], "prompts"):
        experiment.record(prompt.id, lambda prompt=prompt: kvlab.evaluate(model, prompt, policies, p.budgets))
    mapped = policies | {"keyformer-none": Keyformer(noise="none"), "h2o": kvlab.H2O(), "snapkv": kvlab.SnapKV()}
    mapped |= {"tova": kvlab.TOVA(), "streaming": kvlab.StreamingLLM()}
    budgets, shown = [max(1, int(share * p.tokens)) for share in p.mass_budgets], int(p.shown_budget * p.tokens)
    for number, prompt in enumerate(prompts("T2")[: p.shown_prompts]):
        experiment.arrays(f"kept-{number}", lambda prompt=prompt: kept(model, prompt, mapped, budgets, shown))
        experiment.record(f"needles-{number}", lambda prompt=prompt: {"spans": prompt.spans})
    experiment.record("T4-0", lambda: continuation_rows(model, prompts("T4"), policies, p))
