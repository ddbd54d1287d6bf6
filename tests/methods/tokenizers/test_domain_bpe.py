"""KL3M's experiment: samples, passages, and the BPE whose tokens are as short as others."""

import pytest

from tokenarium.methods.tokenizers import bpe, kl3m
from tokenarium.methods.tokenizers.experiments import domain_bpe

TRAINING = {"legal": [f"licence {n} " * 9 for n in range(40)], "general": [f"verse {n} ü " * 9 for n in range(40)]}


@pytest.mark.parametrize("domain", domain_bpe.DOMAINS)
def test_a_sample_has_the_bytes_that_were_asked_for(domain):
    found = domain_bpe.sample(TRAINING, domain, 1001, seed=0)
    assert 997 <= sum(len(each.encode()) for each in found) <= 1001


def test_samples_of_other_seeds_hold_other_documents():
    samples = [domain_bpe.sample(TRAINING, "legal", 1000, seed) for seed in (0, 1)]
    assert samples[0] != samples[1]
    assert samples[0] == domain_bpe.sample(TRAINING, "legal", 1000, 0)
    assert set(samples[0][:-1]) <= set(TRAINING["legal"])


def test_a_mix_is_half_legal():
    found = domain_bpe.sample(TRAINING, "mix", 1000, 0)
    legal = sum(len(each.encode()) for each in found if each.startswith("lic"))
    assert legal == 500


def test_passages_are_single_lines_of_plain_text_cut_at_a_blank():
    texts = ["one two\nthree four five", "short", "é one two three four", "§ 5 one\t two three four"]
    assert domain_bpe.passages(texts, 5, 12) == ["one two", "§ 5 one two"]
    assert len(domain_bpe.passages(texts, 1, 12)) == 1


def test_a_short_bpe_needs_about_as_many_tokens_as_asked():
    trained = bpe.train(TRAINING["legal"], 320)
    lines = ["licence licence 12", "license 9"]
    sizes = range(256 + len(kl3m.SPECIALS), len(trained.vocabulary) + len(kl3m.SPECIALS))

    def tokens(size):
        tokenizer = kl3m.domain_tokenizer(trained, size)
        return sum(len(tokenizer.encode(line, add_special_tokens=False).ids) for line in lines)

    target = (tokens(sizes[0]) + tokens(sizes[-1])) // 2
    found = domain_bpe.as_long(trained, lines, target, sizes[-1])
    assert found == min(size for size in sizes if tokens(size) <= target)
