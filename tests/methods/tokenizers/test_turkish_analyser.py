import os
import subprocess
import sys

import pytest

WORDS = ("zıddı", "öd", "oyala", "yıkılış")


@pytest.mark.parametrize("seed", ["1", "5"])  # without an order of its own zeyrek loses two of the words with either
def test_no_order_of_hashes_hides_a_reading(seed):
    code = (
        "from tokenarium.methods.tokenizers.turkish.analyser import Analyser\n"
        f"analyser = Analyser()\nprint([analyser.is_word(word) for word in {WORDS}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[True, True, True, True]\n"
