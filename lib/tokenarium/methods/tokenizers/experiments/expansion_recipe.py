"""Which layers, which losses, which blocks: recipes of adaptation at equal compute on the small source model (E3)."""

from dataclasses import replace

from tokenarium.methods.tokenizers.expansion import lapt, texts
from tokenarium.methods.tokenizers.expansion.trials import Bench, open_source
from tokenarium.study.experiments import Experiment


def run(experiment: Experiment) -> None:
    """Parts: `costs`, and `<layers>-<extra heads>-<block>-<seed>`: bits (1, documents) after the steps that fit.

    The budget is what `steps` steps of all layers on the next token in the first of the blocks cost; every step sees as
    many tokens.
    """
    p, root = experiment.parameters, experiment.root
    tokenizer, model, start = open_source(root, experiment.profile)
    lines = texts.lines(p.text, p.language, root, p.text_bytes, p.text_seed)
    documents = texts.documents(p.text, p.language, root, p.documents, p.document_bytes, p.text_seed)
    bench = Bench(tokenizer, model, start, lines, documents, p.auxiliary_size)
    config = bench.expanded(p.method, p.size, 0, share=True).config
    plain = lapt.Recipe(**p.recipe)
    recipes = {
        f"{layers}-{ahead}-{block}": replace(
            plain, layers=layers, ahead=ahead, block=block, batch=p.step_tokens // block
        )
        for layers, ahead, block in ((layers, ahead, p.blocks[place]) for layers, ahead, place in p.recipes)
    }
    costs = {name: lapt.step_cost(config, recipe) for name, recipe in recipes.items()}
    budget = p.steps * costs[f"all-0-{p.blocks[0]}"]
    steps = {name: int(budget / cost) for name, cost in costs.items()}
    experiment.record("costs", lambda: {"budget": budget, "cost": costs, "steps": steps})
    for name, recipe in experiment.progress(recipes.items(), "recipes", total=len(recipes)):
        for seed in experiment.seeds:
            experiment.arrays(
                f"{name}-{seed}",
                lambda arm=(p.method, p.size, seed), recipe=recipe, count=steps[name]: {
                    "bits": bench.adapt(*arm, recipe, count, [count])
                },
            )
    experiment.record("bytes", lambda: [len(document.encode()) for document in documents])
