"""One BPE per language, draw of text and size rule, and its token counts at every size of the vocabulary (E1 to E4).

Parts: `features` (record) describes the texts. `<rule>-<language>-<seed>` holds for each evaluation text the curve
`<text>` (sizes,) of token counts at 256, 257, ... tokens and `similarity_<text>`, its likeness to the text trained on.
With the first draw of the same content also: `used_once`, the share of the vocabulary of `sizes[-1]` that encoding the
training text uses at most once, and `cross` (languages,), the counts on the outside text in all languages.
"""

import numpy as np
from numpy.typing import NDArray

from tokenarium.methods.tokenizers import bpe
from tokenarium.methods.tokenizers import tokenizer_inequities as inequities
from tokenarium.methods.tokenizers.inequities import sources
from tokenarium.methods.tokenizers.premiums import line_bytes
from tokenarium.study.experiments import Experiment


def run(experiment: Experiment) -> None:
    p = experiment.parameters
    texts = sources.open_evaluations(experiment.root, p)
    premiums = sources.byte_premiums(texts[sources.TEST])
    languages, first = list(premiums), experiment.seeds[0]
    experiment.record(
        "features",
        lambda: {text: {each: _features(lines) for each, lines in found.items()} for text, found in texts.items()},
    )
    trigrams = {(text, each): inequities.trigrams(texts[text][each]) for text in texts for each in languages}

    def make(rule: str, language: str, seed: int) -> dict[str, NDArray]:
        size = sources.training_bytes(rule, premiums[language], p.train_bytes)
        training = sources.open_training(experiment.root, language, size, seed)
        model = bpe.train(training, p.largest)
        seen = inequities.trigrams(training)
        curve = inequities.CountCurve(model)
        found = {text: curve(texts[text][language]).astype(np.int32) for text in texts}
        for text in texts:
            found[f"similarity_{text}"] = np.array(inequities.similarity(seen, trigrams[text, language]))
        if (rule, seed) == (sources.SCALED, first):
            found["used_once"] = np.array(inequities.used_once(_prefix(model, p.sizes[-1]), training))
            tokenizer = _prefix(model, p.focus).tokenizer()
            outside = texts[sources.OUTSIDE].values()
            found["cross"] = np.array([inequities.corpus_token_count(tokenizer, lines) for lines in outside])
        return found

    jobs = [(sources.SCALED, language, seed) for seed in experiment.seeds for language in languages]
    jobs += [(sources.UNSCALED, language, first) for language in languages]
    for job in experiment.progress(jobs, "tokenizers"):
        experiment.arrays("-".join(map(str, job)), lambda job=job: make(*job))


def _prefix(model: bpe.Bpe, size: int) -> bpe.Bpe:
    return inequities.prefix(model, min(size, len(model.vocabulary)))


def _features(lines: list[str]) -> dict[str, float]:
    return {
        "lines": len(lines),
        "bytes": int(line_bytes(lines).sum()),
        "characters": sum(map(len, lines)),
        "whitespace_share": inequities.whitespace_share(lines),
        "word_length": inequities.mean_word_length(lines),
    }
