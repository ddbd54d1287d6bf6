"""A number and its interval are one cell; nothing else of a table is lost."""

import pandas as pd

from tokenarium.study.tables import with_intervals


def test_a_number_and_its_interval_are_one_cell_in_the_numbers_place():
    frame = pd.DataFrame(
        {"method": ["ToMe", "full"], "kl": [0.0212345, 2.0], "kl_low": [0.01, 1.0], "kl_high": [0.03, 3.0], "n": [1, 2]}
    )
    shown = with_intervals(frame)
    assert shown.to_dict("list") == {
        "method": ["ToMe", "full"],
        "kl": ["0.02123 [0.01, 0.03]", "2 [1, 3]"],
        "n": [1, 2],
    }
    assert list(frame.columns) == ["method", "kl", "kl_low", "kl_high", "n"]


def test_a_column_that_only_sounds_like_an_end_stays():
    frame = pd.DataFrame({"kl": [1.0], "kl_low": [0.5], "budget_high": [0.7]})
    assert with_intervals(frame).to_dict("list") == {"kl": ["1"], "kl_low": ["0.5"], "budget_high": ["0.7"]}


def test_what_is_missing_is_left_empty():
    nan = float("nan")
    frame = pd.DataFrame({"kl": [nan], "kl_low": [nan], "kl_high": [nan], "top1": [nan]})
    assert with_intervals(frame).to_dict("list") == {"kl": [""], "top1": [""]}


def test_digits_are_significant_digits():
    assert with_intervals(pd.DataFrame({"kl": [0.00123456, 123456.0]}), digits=2).kl.tolist() == ["0.0012", "1.2e+05"]
