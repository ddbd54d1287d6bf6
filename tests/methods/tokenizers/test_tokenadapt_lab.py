"""The bench of TokenAdapt: targets, features and arms on two small tokenizers that are trained here."""

from collections import Counter

import numpy as np
import pytest
import torch

from tokenarium.data.tokenizers import token_bytes
from tokenarium.errors import TokenariumError
from tokenarium.methods.tokenizers import bpe, swaplab, tokenadapt
from tokenarium.methods.tokenizers import tokenadapt_lab as lab

ENGLISH = ["the cat sat on the mat", "the dog sat on the log", "a cat and a dog on a mat"] * 4
OTHER = ["the cathedral on the matter", "a dogma and a logbook", "the cat and the dog and the café"] * 4


@pytest.fixture(scope="module")
def old():
    return bpe.train(ENGLISH, 275).tokenizer()


@pytest.fixture(scope="module")
def new():
    return bpe.train(OTHER, 290).tokenizer()


@pytest.fixture(scope="module")
def target(old, new):
    return lab.Target.of(old, new, OTHER)


@pytest.fixture(scope="module")
def old_rows(old):
    return torch.randn(old.get_vocab_size(), 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def rows(old, target):
    strings = lab.decoded(old)
    return lab.Rows(target, old, strings, lab.spelling(strings), lab.spelling(target.strings), OTHER)


# Targets


def test_what_has_no_old_row_is_new_and_its_pieces_spell_it(old, new, target):
    held, spelled = set(token_bytes(old)), token_bytes(new)
    used = {index for text in OTHER for index in new.encode(text).ids}
    assert set(target.fresh) == {index for index in used if spelled[index] not in held}
    assert len(target.fresh) > 5
    for string, parts in zip(target.strings, target.pieces, strict=True):
        assert old.decode(parts) == string
        assert len(parts) > 1


def test_a_part_of_a_character_is_a_replacement_sign():
    tokenizer = bpe.train(["ß" * 4, "ä" * 4], 256).tokenizer()
    texts = lab.decoded(tokenizer)
    assert texts[token_bytes(tokenizer).index(b"\xc3")] == "\ufffd"
    assert texts[token_bytes(tokenizer).index(b"a")] == "a"


# Features


def test_spelling_counts_runs_of_three_letters():
    features = lab.spelling(["banana", "banana", "bandana", "", "x"])
    assert features.shape == (5, lab.SPELLING_DIM)
    np.testing.assert_array_equal(features[0], features[1])
    assert features.sum(axis=1).tolist() == [6, 6, 7, 1, 1]
    alike, unlike = tokenadapt.cosine(features[0], features[[2, 4]])
    assert alike > unlike


def test_shuffled_features_stay_the_same_for_equal_strings(tmp_path):
    encoder = lab.Encoder(lab.SPELLING, tmp_path)
    distinct, places = encoder.distinct(["a", "b", "a", "c", "b"])
    assert distinct == ["a", "b", "c"]
    assert places.tolist() == [0, 1, 0, 2, 1]
    features = lab.Features({}, np.arange(300.0).reshape(100, 3), {"old": places, "T": np.arange(100)})
    shuffled = features.shuffled(0)
    assert not np.array_equal(shuffled.of("T"), features.of("T"))
    np.testing.assert_array_equal(np.sort(shuffled.of("T"), axis=0), features.of("T"))
    np.testing.assert_array_equal(shuffled.of("old")[0], shuffled.of("old")[2])


def test_features_keep_the_order_of_the_strings(tmp_path):
    strings = ["a long string", "b", "middle"]
    np.testing.assert_array_equal(lab.Encoder(lab.SPELLING, tmp_path)(strings), lab.spelling(strings))


# Arms


def test_adapted_rows_are_those_of_the_hook(rows, target, old_rows):
    made = rows.make({"kind": "adapt", "tau": 0.3, "lam": 0.4, "k": 2}, old_rows)
    for token in range(0, len(target.fresh), 3):
        parts = target.pieces[token]
        cosines = tokenadapt.cosine(rows.phi_new[token], rows.phi_old)
        near = np.argsort(-cosines, kind="stable")[:2]
        one = tokenadapt.tokenadapt_row(
            rows.phi_new[token],
            rows.phi_old[parts],
            [len(rows.old_strings[part]) for part in parts],
            len(target.strings[token]),
            old_rows[parts].numpy(),
            cosines[near],
            old_rows[near].numpy(),
            tau=0.3,
            lam=0.4,
        )
        np.testing.assert_allclose(made[token].numpy(), one, rtol=1e-4, atol=1e-5)


def test_a_great_temperature_without_the_global_part_is_retok(rows, old_rows):
    local = rows.make({"kind": "adapt", "tau": 1e9, "lam": 0.0, "k": 1}, old_rows)
    torch.testing.assert_close(local, rows.make({"kind": "retok"}, old_rows), rtol=1e-4, atol=1e-5)


def test_align_weighs_the_readings_by_how_often_they_occur(old, new, target, old_rows):
    made = lab.align(old_rows, old, target, OTHER)
    spelled_old, spelled_new = token_bytes(old), token_bytes(new)

    def spans(tokenizer, spelled, text):
        place, found = 0, []
        for index in tokenizer.encode(text).ids:
            found.append((index, place, place + len(spelled[index])))
            place += len(spelled[index])
        return found

    readings = {index: Counter() for index in target.fresh.tolist()}
    for text in OTHER:
        old_spans = spans(old, spelled_old, text)
        for index, begin, end in spans(new, spelled_new, text):
            if index in readings:
                inside = tuple(i for i, a, b in old_spans if begin <= a and b <= end)
                around = tuple(i for i, a, b in old_spans if a <= begin and end <= b)
                if inside or around:
                    readings[index][inside or around] += 1
    assert any(readings.values())
    plain = swaplab.piece_mean(old_rows, target.pieces)
    for row, fallback, counts in zip(made, plain, readings.values(), strict=True):
        expected = fallback
        if counts:
            expected = sum(n * old_rows[list(r)].mean(dim=0) for r, n in counts.items()) / sum(counts.values())
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)


def test_align_without_text_is_the_plain_mean(old, target, old_rows):
    torch.testing.assert_close(lab.align(old_rows, old, target, []), swaplab.piece_mean(old_rows, target.pieces))


def test_random_rows_have_the_spread_of_all_numbers_whatever_their_dimension():
    held = torch.tensor([[0.0, 10.0], [0.0, 14.0]]).repeat(50, 1)
    drawn = lab.scalar_normal(held, 20_000, seed=0)
    torch.testing.assert_close(drawn.mean(dim=0), torch.full((2,), held.mean().item()), atol=0.2, rtol=0)
    torch.testing.assert_close(drawn.std(dim=0), torch.full((2,), held.std().item()), atol=0.2, rtol=0)
    assert not torch.equal(drawn, lab.scalar_normal(held, 20_000, seed=1))


def test_an_unknown_arm_is_named(rows, old_rows):
    with pytest.raises(TokenariumError, match="'magic'"):
        rows.make({"kind": "magic"}, old_rows)


# Opening


def test_the_tiny_model_is_the_same_for_a_seed_and_takes_new_rows(tmp_path, target, rows):
    first, again = (lab.open_model(lab.TINY, tmp_path, 275, seed, "float32") for seed in (1, 1))
    held = first.get_input_embeddings().weight.detach()
    torch.testing.assert_close(held, again.get_input_embeddings().weight.detach())
    fresh = rows.make({"kind": "retok"}, held)
    embedding = swaplab.assemble(target.kept, target.shared, held, fresh)
    swapped = swaplab.swap(first, embedding)
    ids = swaplab.renumber(target.kept, target.fresh[:5])
    assert np.isfinite(swaplab.token_bits(swapped, ids, held[0])).all()
