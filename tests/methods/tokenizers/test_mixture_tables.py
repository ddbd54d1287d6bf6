"""Tables of mixtures: every row of every record, and intervals over mixtures and seeds."""

import numpy as np
import pandas as pd
import pytest

from tokenarium.files import write_json
from tokenarium.methods.tokenizers import mixture_tables
from tokenarium.study.experiments import Results


@pytest.fixture
def results(tmp_path):
    """What an experiment left: records by name, and its parameters."""

    def results(parameters, **records):
        for name, record in records.items():
            write_json(tmp_path / f"{name.replace('__', '-')}.json", record)
        return Results("grid", tmp_path, parameters)

    return results


def test_every_row_of_the_grid_knows_its_mixture(results, tmp_path):
    rows = [{"method": "LP", "log_mse": -4.0}, {"method": "TC", "log_mse": -2.0}]
    (tmp_path / "library-languages-0.safetensors").write_bytes(b"")
    found = results(
        {},
        a={"set": "languages", "seed": 0, "mixture": 1, "truth": [0.4, 0.6], "rows": rows},
        b={"set": "languages", "seed": 2, "mixture": 0, "truth": [0.1, 0.9], "rows": rows[:1]},
    )
    frame = mixture_tables.grid_rows(found)
    assert frame[["seed", "mixture", "method", "log_mse"]].to_numpy().tolist() == [
        [0, 1, "LP", -4.0],
        [0, 1, "TC", -2.0],
        [2, 0, "LP", -4.0],
    ]
    assert frame.truth[2] == [0.1, 0.9]


def test_intervals_are_over_all_mixtures_and_over_those_of_each_seed():
    index = pd.MultiIndex.from_product([[0, 1, 2], range(4)], names=["seed", "mixture"])
    values = pd.Series(np.arange(12.0), index=index)
    interval, seeds = mixture_tables.over_mixtures(values, resamples=500)
    assert interval.value == 5.5
    assert interval.low < 5.5 < interval.high
    assert interval.how == "bootstrap over 12 mixtures, 500 resamples"
    assert {seed: each.value for seed, each in seeds.items()} == {0: 1.5, 1: 5.5, 2: 9.5}
    assert seeds[0].low >= 0
    assert seeds[0].high <= 3


def test_a_seed_with_a_single_mixture_has_no_interval_of_its_own():
    index = pd.MultiIndex.from_tuples([(0, 0), (1, 0), (1, 1)], names=["seed", "mixture"])
    interval, seeds = mixture_tables.over_mixtures(pd.Series([1.0, 2.0, 6.0], index=index), resamples=100)
    assert interval.value == 3
    assert list(seeds) == [1]
    assert seeds[1].value == 4


def test_another_statistic_than_the_mean_can_be_asked_for():
    index = pd.MultiIndex.from_product([[0], range(5)], names=["seed", "mixture"])
    values = pd.Series([0.0, 0.0, 1.0, 50.0, 99.0], index=index)
    interval, _ = mixture_tables.over_mixtures(values, 200, lambda sample: np.median(sample, axis=1))
    assert interval.value == 1.0


def test_shares_of_real_tokenizers_are_labelled_by_group_and_place(results):
    record = {"categories": ["kjv", "help:de"], "never_seen": 3, "constraints": 70}
    found = results(
        {"groups": {"English": ["kjv"], "other": ["help:de"]}},
        llama3__0__1=record | {"shares": [0.75, 0.25]},
        llama3__100000__1=record | {"shares": [0.5, 0.5]},
        shared__merges={"same": 7},
    )
    frame = mixture_tables.real_shares(found)
    assert len(frame) == 4
    first = frame[(frame.tokenizer == "llama3") & (frame.group == "English")].iloc[0]
    assert (first.seed, first.share, first.never_seen, first.inequalities) == (1, 0.75, 3, 70)
    assert set(frame.tokenizer) == {"llama3", "llama3 from 100,000"}


@pytest.mark.parametrize(
    ("symbol", "shown"), [(b" the", "␣the"), ("ä\n".encode(), "ä↵"), (b"\xe3\x81", "E3 81"), (b"\t", "→")]
)
def test_symbols_are_readable(symbol, shown):
    assert mixture_tables.readable(symbol) == shown
