"""From the parts of the experiment to correlations: bits add up, and signs and intervals are those of numpy."""

import json

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from tokenarium.methods.tokenizers import turkish_downstream_results as downstream
from tokenarium.methods.tokenizers import turkish_standards as standards
from tokenarium.study.experiments import Results
from tokenarium.study.parameters import load_params, project_root, study_parameters

SEEDS = [0, 1, 2]


@pytest.fixture
def results(tmp_path):
    for name, lost in (("one", 0), ("two", 3)):
        record = {
            "vocabulary": 10,
            "per_paragraph": [2, 1],
            "alone": {"ev": 2, "ler": 1},
            "boundaries": {"evler": [2]},
            "tokens": {"train": 7, "test": 3},
            "bytes": {"train": 50, "test": 20},
            "escape_bits": [0.5, 4.0 * lost],
            "lost_words": lost,
            "words": 6,
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
        for seed in SEEDS:
            bits = np.array([10.0, 20.0 + seed])
            save_file(
                {"bits": bits, "probe": np.array([0.5, 0.25 * seed])}, tmp_path / f"{name}-seed{seed}.safetensors"
            )
    return Results("turkish-downstream", tmp_path, {"tokenizers": ["one", "two"]})


def test_bits_per_byte_are_those_of_the_model_and_of_the_lost_words(results):
    assert downstream.bits_per_byte(results, "two", SEEDS) == pytest.approx({s: (42.5 + s) / 20 for s in SEEDS})
    bare = downstream.bits_per_byte(results, "two", SEEDS, escape=False)
    assert bare == pytest.approx({s: (30 + s) / 20 for s in SEEDS})


def test_a_row_of_the_table_has_means_and_intervals_over_seeds(results):
    row = downstream.downstream(results, SEEDS, width=4).set_index("tokenizer").loc["two"]
    assert row["bits/byte"] == pytest.approx(43.5 / 20)
    assert row["bits/byte_low"] < row["bits/byte"] < row["bits/byte_high"]
    assert row["without escape"] == pytest.approx(31 / 20)
    assert row["probe %"] == pytest.approx(100 * (0.5 + 0.25) / 2)
    assert (row["number %"], row["case %"]) == pytest.approx((50, 25))
    assert row["embedding parameters"] == 48
    assert row["lost words %"] == 50


def test_at_break_even_a_lossy_tokenizer_needs_the_bits_of_its_rival(results):
    even = downstream.break_even(results, "two", "one", SEEDS).value
    bare = np.mean(list(downstream.bits_per_byte(results, "two", SEEDS, escape=False).values()))
    rival = np.mean(list(downstream.bits_per_byte(results, "one", SEEDS).values()))
    assert bare + even * 3 / 20 == pytest.approx(rival)
    assert downstream.bits_per_lost_word(results, "two") == pytest.approx(12.5 / 3)


def test_a_record_is_a_usage_again(results):
    used = downstream.usage("one", results.record("one"))
    assert used.per_paragraph.sum() == 3
    assert used.lettered == {"ev": 2, "ler": 1}
    assert used.boundaries["evler"] == frozenset({2})


def test_claim_metrics_are_correlations_with_a_score_that_is_to_be_high():
    generator = np.random.default_rng(0)
    table = pd.DataFrame(generator.normal(size=(6, 3)), columns=["tr_percent", "pure_percent", "noise"])
    table["good"] = table.tr_percent + 0.1 * table.noise
    found = downstream.claim_metrics(table, "good", resamples=200)
    r_tr, r_pure = (np.corrcoef(table[each], table.good)[0, 1] for each in ("tr_percent", "pure_percent"))
    assert found["r_tr"].value == pytest.approx(r_tr)
    assert found["tr_minus_pure"].value == pytest.approx(r_tr - r_pure)
    assert found["p_tr"].value == standards.permutation_p(table.tr_percent, table.good)
    assert "6 tokenizers" in found["r_pure"].how


@pytest.mark.parametrize("profile", ["smoke", "cpu", "gpu"])
def test_the_experiment_measures_the_text_of_the_main_table(profile):
    params = load_params(project_root())
    paper = study_parameters(params, "papers", "turkish-standards", profile)
    experiment = study_parameters(params, "experiments", "turkish-downstream", profile)
    for name in ("text", "characters", "boundary_words", "least"):
        assert getattr(paper, name) == getattr(experiment, name), name
