"""The baselines of the family on all prompts, measured once for all its papers and its arena.

Parts: "T1-00" ... one per prompt, "T4-0" for all prompts of T4: rows as kvlab's `Row`, of the whole cache too.
"""

from __future__ import annotations

from tokenarium.methods.context import kvlab
from tokenarium.methods.context.kvlab import opening, tasks
from tokenarium.study.experiments import Experiment

POLICIES: dict[str, kvlab.Policy] = {
    "window": kvlab.Window(),
    "streaming": kvlab.StreamingLLM(),
    "random": kvlab.Random(),
    "h2o": kvlab.H2O(),
    "snapkv": kvlab.SnapKV(),
    "tova": kvlab.TOVA(),
    "knorm": kvlab.KNorm(),
    "oracle": kvlab.Oracle(),
}


def run(experiment: Experiment) -> None:
    p = experiment.parameters
    tokenizer, model = opening.open_model(experiment.root, p.checkpoint, p.device)
    held = tasks.texts(experiment.root)

    def prompts(task: str) -> list:
        return tasks.make(experiment.root, tokenizer, task, p.prompts[task], p.tokens, p.prompt_seed, held)

    items = [prompt for task in ("T1", "T2", "T3") for prompt in prompts(task)]
    for prompt in experiment.progress(items, "prompts"):
        experiment.record(
            prompt.id, lambda prompt=prompt: kvlab.evaluate(model, prompt, POLICIES, p.budgets, full=True)
        )
    experiment.record(
        "T4-0",
        lambda: kvlab.evaluate_continuations(model, prompts("T4"), POLICIES, p.continuation_budgets, p.steps)[0],
    )
