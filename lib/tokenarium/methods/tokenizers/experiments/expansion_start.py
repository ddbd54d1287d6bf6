"""Where each initialisation starts: bits per byte of a real model right after its vocabulary was expanded (E1).

A short adaptation of the same model follows, one run for each method.
"""

from tokenarium.methods.tokenizers import vocab_expansion as expansion
from tokenarium.methods.tokenizers.expansion import lapt, texts
from tokenarium.methods.tokenizers.expansion.trials import Bench, readable
from tokenarium.study.experiments import Experiment

DRAWN = ("random",)  # methods whose rows depend on a seed


def run(experiment: Experiment) -> None:
    """Parts: `<language>` counts, `<language>-0-source-0` and `<language>-<size>-<method>-<seed>` bits by document.

    For the focus: `rows-<method>` (size, d), `alignment`, `neighbours`, and `adapted-<method>` (looks, documents).
    """
    p, root = experiment.parameters, experiment.root
    tokenizer, model, start = texts.open_model(p.model, root)
    for language in p.languages:
        lines = texts.lines(p.text, language, root, p.text_bytes, p.text_seed)
        documents = texts.documents(p.text, language, root, p.documents, p.document_bytes, p.text_seed)
        bench = Bench(tokenizer, model, start, lines, documents, p.auxiliary_size)
        experiment.record(language, lambda bench=bench: _counts(bench, p.sizes))
        arms = [("source", 0, 0)]
        for size in p.sizes:
            for method in p.methods:
                arms += [(method, size, seed) for seed in (experiment.seeds if method in DRAWN else [0])]
        for method, size, seed in experiment.progress(arms, language):
            name = f"{language}-{size}-{method}-{seed}"
            experiment.arrays(name, lambda bench=bench, arm=(method, size, seed): {"bits": bench.score(*arm)})
        if language == p.focus_language:
            _focus(experiment, bench)


def _counts(bench: Bench, sizes: list[int]) -> dict:
    return {
        "lines": len(bench.lines),
        "line_bytes": sum(len(line.encode()) for line in bench.lines),
        "bytes": [len(document.encode()) for document in bench.documents],
        "tokens": {str(size): bench.tokens(size).tolist() for size in (0, *sizes)},
    }


def _focus(experiment: Experiment, bench: Bench) -> None:
    p, size = experiment.parameters, experiment.parameters.focus_size
    for method in p.methods:
        experiment.arrays(f"rows-{method}", lambda method=method: {"rows": bench.rows(method, size).astype("float32")})
    experiment.record("alignment", lambda: _alignment(bench, size))
    experiment.record("neighbours", lambda: _neighbours(bench, size, p.shown_tokens, p.methods))
    recipe = lapt.Recipe(**p.recipe)
    looks = range(0, p.steps + 1, p.look_every) if p.steps else ()
    for method in p.adapted if looks else ():
        count = 0 if method == "source" else size
        experiment.arrays(
            f"adapted-{method}",
            lambda method=method, count=count: {"bits": bench.adapt(method, count, 0, recipe, p.steps, looks)},
        )


def _alignment(bench: Bench, size: int) -> dict[str, list]:
    """Each new token with how often it stood for which tuples of source tokens, the most frequent first."""
    target = bench.target(size)
    counted = expansion.align_map(bench.tokenizer, target, bench.lines)
    return {
        str(index): [readable(target, index), [[list(ids), count] for ids, count in counts.most_common()]]
        for index, counts in sorted(counted.items())
    }


def _neighbours(bench: Bench, size: int, shown: int, methods: list[str]) -> list[dict]:
    first, target = bench.tokenizer.get_vocab_size(), bench.target(size)
    names = {index: readable(bench.tokenizer, index) for index in range(first)}
    longest = sorted(range(size), key=lambda index: -len(target.id_to_token(first + index)))[:shown]
    rows = []
    for index in longest:
        near = {m: expansion.nearest_tokens(bench.rows(m, size)[index], bench.matrix, names) for m in methods}
        rows.append({"token": readable(target, first + index), **near})
    return rows
