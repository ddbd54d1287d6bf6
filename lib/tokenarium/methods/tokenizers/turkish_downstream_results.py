"""What the small models of the experiment `turkish-downstream` say: bits per byte, the probe, and correlations."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tokenarium.measure.bootstrap import RESAMPLES, Interval, across_seeds
from tokenarium.methods.tokenizers import turkish_standards as standards
from tokenarium.study.experiments import Results

PREDICTORS = {
    "tr_percent": "%TR official",
    "pure_percent": "%Pure official",
    "tr_independent": "%TR independent",
    "pure_independent": "%Pure independent",
    "tokens_per_character": "tokens/char",
    "vocabulary": "vocabulary",
}


def usage(name: str, record: Mapping[str, Any]) -> standards.Usage:
    """The record of a tokenizer as what it made of the main table's text."""
    inside = {word: frozenset(places) for word, places in record["boundaries"].items()}
    counts = record["alone"]
    return standards.Usage(name, record["vocabulary"], np.array(record["per_paragraph"]), counts, counts, inside)


def bits_per_byte(results: Results, name: str, seeds: Sequence[int], escape: bool = True) -> dict[int, float]:
    """Seed -> bits per UTF-8 byte of the held-out lines, with or without those that spell lost words."""
    record = results.record(name)
    besides = sum(record["escape_bits"]) if escape else 0.0
    bits = {seed: results.arrays(f"{name}-seed{seed}")["bits"].sum() for seed in seeds}
    return {seed: float(found + besides) / record["bytes"]["test"] for seed, found in bits.items()}


def probe(results: Results, name: str, seeds: Sequence[int]) -> dict[int, float]:
    """Seed -> accuracy of the probes in percent, the mean of number and case."""
    return {seed: 100 * float(results.arrays(f"{name}-seed{seed}")["probe"].mean()) for seed in seeds}


def bits_per_lost_word(results: Results, name: str) -> float:
    """What the escape code takes in all, for each word of the held-out lines that the tokenizer loses."""
    record = results.record(name)
    return sum(record["escape_bits"]) / record["lost_words"]


def break_even(results: Results, name: str, rival: str, seeds: Sequence[int]) -> Interval:
    """Bits that each lost word of a tokenizer may cost in all before its models need as many as the rival's."""
    record = results.record(name)
    bare, others = bits_per_byte(results, name, seeds, escape=False), bits_per_byte(results, rival, seeds)
    scale = record["bytes"]["test"] / record["lost_words"]
    return across_seeds({seed: scale * (others[seed] - bare[seed]) for seed in seeds})


def downstream(results: Results, seeds: Sequence[int], width: int) -> pd.DataFrame:
    """A tokenizer a row: its rows and tokens, bits per byte and the probe with intervals over seeds.

    width: of the models, for the parameters of the embedding.
    """
    rows = []
    for name in results.parameters["tokenizers"]:
        record = results.record(name)
        bits, known = bits_per_byte(results, name, seeds), probe(results, name, seeds)
        numbers = np.stack([results.arrays(f"{name}-seed{seed}")["probe"] for seed in seeds]).mean(axis=0)
        row = {"tokenizer": name, "vocabulary": record["vocabulary"]}
        row |= {
            "embedding parameters": width * (record["vocabulary"] + 2),
            "training tokens": record["tokens"]["train"],
        }
        row |= {"lost words %": 100 * record["lost_words"] / record["words"]}
        row |= _interval("bits/byte", across_seeds(bits))
        row["without escape"] = float(np.mean(list(bits_per_byte(results, name, seeds, escape=False).values())))
        row |= _interval("probe %", across_seeds(known))
        rows.append(row | {"number %": 100 * numbers[0], "case %": 100 * numbers[1]})
    return pd.DataFrame(rows)


def _interval(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def predictors(scores: Mapping[str, standards.Score], names: Sequence[str], characters: int) -> pd.DataFrame:
    """What is known of each tokenizer before a model is trained; columns are keys of PREDICTORS, shares in percent."""
    rows = [scores[name].row(characters) for name in names]
    return pd.DataFrame([{key: row[column] for key, column in PREDICTORS.items()} for row in rows])


def claim_metrics(
    table: pd.DataFrame, score: str, oracle: str = "percent", resamples: int = RESAMPLES
) -> dict[str, Interval]:
    """r_tr, r_pure, tr_minus_pure (bootstraps over tokenizers), p_tr, p_pure (exact) for a column that is to be high.

    oracle: "percent" for the official measures, "independent" for the others.
    """
    tr, pure, y = (table[column].to_numpy() for column in (f"tr_{oracle}", f"pure_{oracle}", score))
    exact = {name: standards.permutation_p(x, y) for name, x in (("p_tr", tr), ("p_pure", pure))}
    found = {
        "r_tr": standards.correlation_interval(tr, y, resamples=resamples),
        "r_pure": standards.correlation_interval(pure, y, resamples=resamples),
        "tr_minus_pure": standards.correlation_interval(tr, y, minus=pure, resamples=resamples),
    }
    found = {name: _of_tokenizers(interval) for name, interval in found.items()}
    return found | {name: Interval.exact(value, "exact permutation test") for name, value in exact.items()}


def _of_tokenizers(interval: Interval) -> Interval:
    how = interval.how.replace("models", "tokenizers")
    return Interval(interval.value, interval.low, interval.high, how, interval.level)
