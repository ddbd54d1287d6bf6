"""swaplab: vocabularies matched and restricted, models with swapped rows, bits per byte, and plain initial rows."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from tokenarium.data.tokenizers import byte_symbols, token_bytes
from tokenarium.methods.tokenizers import bpe, swaplab

TEXT = "the cat sat on the mat and the other cat sat on the hat " * 3
OTHER = "das Wetter in Österreich ist schön, the weather is fine"


def byte_level(text=TEXT, size=290):
    return bpe.train([text], size).tokenizer()


def with_fallback(words=("▁the", "▁cat", "ö", "é")):
    """A tokenizer in SentencePiece's way: ▁ for blanks, characters, and single bytes for all else."""
    characters = sorted({character for word in words for character in word} | set("acehnost "))
    vocabulary = ["<bos>", *(f"<0x{byte:02X}>" for byte in range(256)), *characters]
    merges = []
    for word in words:
        for end in range(2, len(word) + 1):
            if (word[: end - 1], word[end - 1]) not in merges:
                merges.append((word[: end - 1], word[end - 1]))
                vocabulary.append(word[:end])
    ids = {token: index for index, token in enumerate(dict.fromkeys(vocabulary))}
    tokenizer = Tokenizer(models.BPE(ids, merges, byte_fallback=True, fuse_unk=True, unk_token=None))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<bos>"])
    return tokenizer


def llama(vocab=300, dim=16, tied=True, seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=dim, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    config.tie_word_embeddings = tied
    return LlamaForCausalLM(config).eval()


def gemma(vocab=300, dim=16):
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=vocab,
        hidden_size=dim,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=64,
    )
    return Gemma3ForCausalLM(config).eval()


# Vocabularies


def test_matched_tokens_decode_to_the_same_bytes_and_none_is_missed():
    old, new = byte_level(), byte_level(OTHER * 3)
    new_ids, old_ids = swaplab.match(old, new)
    held, wanted = token_bytes(old), token_bytes(new)
    assert [wanted[index] for index in new_ids] == [held[index] for index in old_ids]
    assert {wanted[index] for index in new_ids} == set(held) & set(wanted)
    assert (np.diff(new_ids) > 0).all()
    assert new_ids.dtype == old_ids.dtype == np.int64


def test_matching_by_bytes_sees_through_spellings_and_is_one_to_one():
    old, new = byte_level(), with_fallback()
    new_ids, old_ids = swaplab.match(old, new)
    assert len(set(old_ids)) == len(old_ids)
    pairs = {new.id_to_token(int(a)): old.id_to_token(int(b)) for a, b in zip(new_ids, old_ids, strict=True)}
    assert pairs["▁the"] == "Ġthe"
    assert pairs["a"] == "a"
    assert "<0x61>" not in pairs  # the ordinary token stands for this byte
    assert pairs["<0xC3>"] == byte_symbols()[0xC3]
    assert "ö" not in pairs  # two bytes, of which the old vocabulary has no token


def test_the_official_rule_compares_strings_and_word_starts_only():
    old, new = byte_level(), with_fallback()
    new_ids, old_ids = swaplab.match(old, new, by="official")
    pairs = {new.id_to_token(int(a)): old.id_to_token(int(b)) for a, b in zip(new_ids, old_ids, strict=True)}
    assert pairs["▁the"] == "Ġthe"
    assert "<0xC3>" not in pairs
    assert pairs["é"] == "é"  # the old one is the symbol of the byte 0xE9: the rule does not see that


def test_special_tokens_are_matched_by_role_alone():
    old, new = byte_level(), with_fallback()
    old.add_special_tokens(["<s>"])
    assert new.token_to_id("<bos>") not in swaplab.match(old, new)[0]
    new_ids, old_ids = swaplab.match(old, new, special={"<bos>": "<s>"})
    assert dict(zip(new_ids, old_ids, strict=True))[new.token_to_id("<bos>")] == old.token_to_id("<s>")
    with pytest.raises(ValueError, match="'</s>'"):
        swaplab.match(old, new, special={"<bos>": "</s>"})


def test_match_names_its_two_rules():
    with pytest.raises(ValueError, match="official"):
        swaplab.match(byte_level(), byte_level(), by="prefix")


def test_the_pieces_of_a_token_spell_it():
    old, new = byte_level(), byte_level(OTHER * 3)
    held = token_bytes(old)
    tokens = token_bytes(new)
    for token, ids in zip(tokens, swaplab.pieces(old, tokens), strict=True):
        assert b"".join(held[index] for index in ids) == token


def test_bytes_without_a_token_give_no_piece():
    tokenizer = Tokenizer(models.BPE({"a": 0, byte_symbols()[0xC3]: 1}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    assert swaplab.pieces(tokenizer, [b"\xff", b"\xc3\xff", b"a"]) == [[], [1], [0]]


def test_the_restricted_vocabulary_writes_the_texts_and_every_byte():
    new = with_fallback()
    shared, _ = swaplab.match(byte_level(), new)
    kept = swaplab.restricted(new, [TEXT], shared)
    assert (np.diff(kept) > 0).all()
    assert set(shared) <= set(kept)
    spelled = {new.id_to_token(int(index)) for index in kept}
    assert "▁cat" in spelled
    assert "<0xFF>" in spelled
    assert "<0x61>" not in spelled
    assert {token_bytes(new)[index] for index in kept} >= {bytes([byte]) for byte in range(256)}
    swaplab.renumber(kept, new.encode(TEXT, add_special_tokens=False).ids)


@given(st.sets(st.integers(0, 500), min_size=1, max_size=40), st.data())
def test_renumbering_is_the_place_in_the_list(kept, data):
    kept = np.array(sorted(kept))
    ids = data.draw(st.lists(st.sampled_from(kept.tolist())))
    assert swaplab.renumber(kept, ids).tolist() == [kept.tolist().index(index) for index in ids]


@pytest.mark.parametrize("index", [0, 5, 99])
def test_an_id_that_was_not_kept_is_named(index):
    with pytest.raises(ValueError, match=f"id {index} "):
        swaplab.renumber(np.array([1, 4, 7]), [4, index])


def test_encoding_counts_every_byte_once():
    ids, lengths = swaplab.encode(byte_level(), OTHER)
    assert lengths.sum() == len(OTHER.encode())
    assert len(ids) == len(lengths)


# Rows and models


def test_shared_rows_are_copied_bit_by_bit_and_new_rows_take_their_places():
    old, new = byte_level(), byte_level(OTHER * 3)
    shared = swaplab.match(old, new)
    kept = swaplab.restricted(new, [OTHER], shared[0])
    rows = torch.randn(290, 4)
    made = torch.randn(len(swaplab.fresh(kept, shared)), 4)
    whole = swaplab.assemble(kept, shared, rows, made)
    place = {index: row for row, index in enumerate(kept.tolist())}
    for new_id, old_id in zip(*shared, strict=True):
        assert torch.equal(whole[place[new_id]], rows[old_id])
    for index, row in zip(swaplab.fresh(kept, shared).tolist(), made, strict=True):
        assert torch.equal(whole[place[index]], row)
    with pytest.raises(ValueError, match="rows are new"):
        swaplab.assemble(kept, shared, rows, made[1:])


@pytest.mark.parametrize("make", [llama, gemma])
def test_the_same_rows_give_the_same_logits(make):
    model = make()
    ids = torch.arange(20)[None]
    same = swaplab.swap(model, model.get_input_embeddings().weight)
    assert torch.equal(same(ids).logits, model(ids).logits)


@pytest.mark.parametrize("make", [llama, gemma])
def test_a_swap_permutes_the_logits_with_the_rows_and_leaves_the_model_alone(make):
    model = make()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    order = torch.randperm(300)[:40]
    swapped = swaplab.swap(model, model.get_input_embeddings().weight[order])
    assert swapped.config.vocab_size == 40
    ids = torch.arange(40)[None]
    torch.testing.assert_close(swapped(ids).logits, model(order[ids]).logits[..., order])
    assert model.config.vocab_size == 300
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_swapped_model_shares_the_body_and_not_the_embedding():
    model = llama()
    swapped = swaplab.swap(model, torch.zeros(7, 16))
    assert swapped.model.layers[0].mlp.up_proj.weight is model.model.layers[0].mlp.up_proj.weight
    assert swapped.lm_head.weight is swapped.get_input_embeddings().weight
    assert len(model.lm_head.weight) == 300


def test_an_untied_model_needs_both_matrices():
    model = llama(tied=False)
    with pytest.raises(ValueError, match="rows_out"):
        swaplab.swap(model, torch.zeros(7, 16))
    rows_in, rows_out = torch.randn(7, 16), torch.randn(7, 16)
    swapped = swaplab.swap(model, rows_in, rows_out)
    assert torch.equal(swapped.get_input_embeddings().weight, rows_in)
    assert torch.equal(swapped.lm_head.weight, rows_out)


@pytest.mark.parametrize("rows", [(torch.zeros(7, 15), None), (torch.zeros(7, 16), torch.zeros(6, 16))])
def test_rows_of_another_shape_are_refused(rows):
    with pytest.raises(ValueError, match="shape"):
        swaplab.swap(llama(), *rows)


# Measuring


@pytest.mark.parametrize("make", [llama, gemma])
def test_bits_are_those_of_one_window_and_one_token_at_a_time(make):
    model = make()
    ids = np.random.default_rng(0).integers(300, size=23)
    start = model.get_input_embeddings().weight[5].detach()
    found = swaplab.token_bits(model, ids, start, window=10)
    for index, bits in enumerate(found):
        first = index // 10 * 10
        prefix = torch.tensor([[5, *ids[first:index]]])  # the start row is that of id 5
        with torch.inference_mode():
            probability = model(prefix).logits[0, -1].double().softmax(0)[ids[index]]
        assert bits == pytest.approx(-math.log2(probability), rel=1e-4)


def test_windows_add_up_to_the_text():
    rng = np.random.default_rng(0)
    bits, lengths = rng.random(23), rng.integers(1, 5, size=23)
    sums, sizes = swaplab.windows(bits, lengths, 10)
    assert len(sums) == 3
    assert sums[1] == pytest.approx(sum(bits[10:20]))
    assert sizes.tolist() == [sum(lengths[:10]), sum(lengths[10:20]), sum(lengths[20:])]
    with pytest.raises(ValueError, match="23 tokens"):
        swaplab.windows(bits, lengths[1:], 10)


@given(st.lists(st.integers(1, 7), min_size=1, max_size=30), st.integers(1, 9))
def test_blocks_hold_all_bits_and_cut_at_bytes(lengths, block):
    bits = np.arange(1.0, len(lengths) + 1)
    sums, sizes = swaplab.blocks(bits, np.array(lengths), block)
    spread = [value / length for value, length in zip(bits, lengths, strict=True) for _ in range(length)]
    expected = [sum(spread[start : start + block]) for start in range(0, len(spread), block)]
    np.testing.assert_allclose(sums, expected)
    assert sizes.sum() == sum(lengths)
    assert set(sizes[:-1]) <= {block}


def test_a_token_without_bytes_has_no_block():
    with pytest.raises(ValueError, match="at least one byte"):
        swaplab.blocks(np.ones(2), np.array([1, 0]))


def test_nothing_is_measured_without_tokens_or_a_start():
    model = llama()
    with pytest.raises(ValueError, match="empty"):
        swaplab.bits_per_byte(model, [], np.array([]), torch.zeros(16))
    with pytest.raises(ValueError, match="start row"):
        swaplab.bits_per_byte(model, [1], np.array([1]), None)


def test_the_interval_is_about_the_ratio_of_sums():
    bits, sizes = np.array([10.0, 20.0, 60.0]), np.array([10, 10, 40])
    interval = swaplab.ratio_interval(bits, sizes, resamples=500)
    assert interval.value == pytest.approx(1.5)
    assert 1 <= interval.low < interval.value < interval.high <= 2
    assert swaplab.ratio_interval(bits - bits, sizes, resamples=50).high == 0


# Initial rows


def test_normal_rows_have_the_moments_of_the_old_ones():
    old = torch.randn(500, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 5.0, 0.1]) + 7
    for make in (swaplab.normal, swaplab.multivariate_normal):
        rows = make(old, 20000, seed=0)
        torch.testing.assert_close(rows.mean(0), old.mean(0), rtol=0.02, atol=0)
        torch.testing.assert_close(rows.std(0), old.std(0), rtol=0.03, atol=0)
        assert torch.equal(rows, make(old, 20000, seed=0))
        assert not torch.equal(rows, make(old, 20000, seed=1))


def test_multivariate_rows_keep_the_correlations_and_normal_rows_do_not():
    x = torch.randn(500, 1, generator=torch.Generator().manual_seed(1))
    old = torch.cat([x, -x, x + 1], dim=1)  # of rank one
    rows = swaplab.multivariate_normal(old, 2000, seed=0)
    torch.testing.assert_close(torch.corrcoef(rows.T)[0], torch.tensor([1.0, -1.0, 1.0]), atol=1e-3, rtol=0)
    assert abs(torch.corrcoef(swaplab.normal(old, 2000, seed=0).T)[0, 1]) < 0.1


def test_pieces_are_averaged_and_no_pieces_give_the_mean_of_all():
    old = torch.arange(12.0).reshape(4, 3)
    rows = swaplab.piece_mean(old, [[1], [0, 3, 3], []])
    assert torch.equal(rows[0], old[1])
    torch.testing.assert_close(rows[1], (old[0] + 2 * old[3]) / 3)
    torch.testing.assert_close(rows[2], old.mean(0))
    assert swaplab.piece_mean(old, []).shape == (0, 3)
    assert torch.equal(swaplab.mean(old, 2), old.mean(0).repeat(2, 1))
    assert torch.equal(swaplab.zero(old, 2), torch.zeros(2, 3))


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(0, 1000))
def test_neighbours_are_those_of_a_loop(k, seed):
    generator = torch.Generator().manual_seed(seed)
    targets, points = torch.randn(5, 4, generator=generator), torch.randn(9, 4, generator=generator)
    rows = torch.randn(9, 3, generator=generator)
    found = swaplab.nearest(targets, points, rows, k, chunk=2)
    for target, row in zip(targets.double(), found, strict=True):
        distances = [float((point - target).norm()) for point in points.double()]
        near = sorted(range(9), key=distances.__getitem__)[:k]
        total = sum(1 / distances[index] for index in near)
        expected = sum(rows[index].double() / distances[index] for index in near) / total
        torch.testing.assert_close(row.double(), expected, rtol=1e-3, atol=1e-4)


def test_a_shared_token_is_its_own_nearest_neighbour():
    points, rows = torch.randn(9, 4), torch.randn(9, 3)
    torch.testing.assert_close(swaplab.nearest(points[:3], points, rows, k=4), rows[:3], rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="between 1 and 9"):
        swaplab.nearest(points, points, rows, k=10)


def test_a_linear_relation_is_found_by_least_squares_and_a_rotation_by_procrustes():
    generator = torch.Generator().manual_seed(0)
    points, targets = (torch.randn(count, 6, generator=generator, dtype=torch.float64) for count in (80, 5))
    linear = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(swaplab.least_squares(targets, points, points @ linear), targets @ linear)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    torch.testing.assert_close(
        swaplab.pca_procrustes(targets, points, 0.3 * points @ turn + 2), 0.3 * targets @ turn + 2
    )


def test_permuted_rows_are_the_same_rows():
    rows = torch.randn(9, 4)
    dealt = swaplab.permuted(rows, seed=0)
    assert not torch.equal(dealt, rows)
    assert sorted(map(tuple, dealt.tolist())) == sorted(map(tuple, rows.tolist()))


def test_pre_tokenizers_do_not_change_what_a_token_is():
    tokenizer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), tokenizer.pre_tokenizer])
    new_ids, old_ids = swaplab.match(byte_level(), tokenizer)
    assert new_ids.tolist() == old_ids.tolist()
