"""Adapt the small source model with every initialisation, number of new tokens, share of the text and seed (E2, C2)."""

from tokenarium.methods.tokenizers.expansion import lapt, texts
from tokenarium.methods.tokenizers.expansion.trials import Bench, open_source
from tokenarium.study.experiments import Experiment


def run(experiment: Experiment) -> None:
    """Parts: `counts`, and `<percent>-<method>-<size>-<seed>`: bits (looks, documents) after `looks` steps."""
    p, root = experiment.parameters, experiment.root
    tokenizer, model, start = open_source(root, experiment.profile)
    lines = texts.lines(p.text, p.language, root, p.text_bytes, p.text_seed)
    documents = texts.documents(p.text, p.language, root, p.documents, p.document_bytes, p.text_seed)
    recipe = lapt.Recipe(**p.recipe)
    looks = {True: list(range(0, p.steps + 1, p.look_every)), False: [0, p.steps]}
    benches = {
        percent: Bench(tokenizer, model, start, lines[: len(lines) * percent // 100], documents, p.auxiliary_size)
        for percent in (100, *p.percents)
    }
    arms = [(100, "source", 0), *((100, method, size) for size in p.sizes for method in p.methods)]
    for percent in p.percents:
        arms += [(percent, method, p.focus_size) for method in p.percent_methods]
    for percent, method, size in experiment.progress(arms, "adaptation"):
        often = percent == 100 and size in (0, p.focus_size)
        for seed in experiment.seeds:
            experiment.arrays(
                f"{percent}-{method}-{size}-{seed}",
                lambda arm=(method, size, seed), bench=benches[percent], often=often: {
                    "bits": bench.adapt(*arm, recipe, p.steps, looks[often])
                },
            )
    experiment.record("counts", lambda: _counts(benches, p.sizes))


def _counts(benches: dict[int, Bench], sizes: list[int]) -> dict:
    whole = benches[100]
    return {
        "bytes": [len(document.encode()) for document in whole.documents],
        "tokens": {str(size): whole.tokens(size).tolist() for size in (0, *sizes)},
        "line_bytes": {str(percent): sum(len(x.encode()) for x in bench.lines) for percent, bench in benches.items()},
    }
