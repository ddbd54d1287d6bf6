"""A transplant ready to be measured: spaces, texts and rows fit together, for tied and for untied models."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tokenarium.data.tokenizers import token_bytes
from tokenarium.errors import TokenariumError
from tokenarium.methods.tokenizers import bpe, omp_setting, swaplab

START = "<s>"
TEXTS = {"one": "the cat sat on the mat " * 4, "two": "die Katze saß auf der Matte " * 4}


def opened(texts, vocab, dim, tied=True):
    tokenizer = bpe.train(texts, vocab).tokenizer()
    tokenizer.add_special_tokens([START])
    torch.manual_seed(dim)
    config = LlamaConfig(
        vocab_size=vocab + 1, hidden_size=dim, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    config.tie_word_embeddings = tied
    return tokenizer, LlamaForCausalLM(config).eval()


def setting(base_tied=True, donor_tied=True):
    old = opened([TEXTS["one"]], 270, 8, base_tied)
    new = opened(list(TEXTS.values()), 300, 12, donor_tied)
    return old, new, omp_setting.make_setting(*old, *new, TEXTS, START, 16)


def test_rows_of_the_donor_and_the_base_belong_to_the_same_tokens():
    (old, base), (new, donor), made = setting()
    (space,) = made.spaces
    held, wanted = token_bytes(old), token_bytes(new)
    for place, (new_id, old_id) in enumerate(zip(*made.shared, strict=True)):
        assert wanted[new_id] == held[old_id]
        assert torch.equal(space.points[place], donor.get_input_embeddings().weight[new_id])
        assert torch.equal(space.rows[place], base.get_input_embeddings().weight[old_id])
    assert torch.equal(space.targets, donor.get_input_embeddings().weight[torch.from_numpy(made.new_ids)])
    assert [b"".join(held[index] for index in piece) for piece in made.pieces] == [wanted[i] for i in made.new_ids]


def test_texts_are_whole_in_both_tokenizers():
    _, (new, _), made = setting()
    for name, text in TEXTS.items():
        places, lengths = made.encoded[name]
        assert new.decode(made.kept[places].tolist()) == text
        assert lengths.sum() == made.original[name][1].sum() == len(text.encode())


def test_a_model_has_the_base_s_rows_for_shared_and_the_made_rows_for_new_tokens():
    (_, base), _, made = setting()
    model = made.model(lambda space: torch.full((len(made.new_ids), 8), 2.0))
    weight = model.get_input_embeddings().weight
    assert (weight[torch.from_numpy(swaplab.renumber(made.kept, made.new_ids))] == 2).all()
    assert torch.equal(weight[torch.from_numpy(swaplab.renumber(made.kept, made.shared[0]))], made.spaces[0].rows)
    assert model.model.layers[0].mlp.up_proj.weight is base.model.layers[0].mlp.up_proj.weight


def test_the_base_s_own_tokenizer_is_measured_by_the_base():
    (old, base), _, made = setting()
    ids, _ = swaplab.encode(old, TEXTS["two"])
    start = base.get_input_embeddings().weight[old.token_to_id(START)].detach()
    np.testing.assert_array_equal(made.original_bits()["two"], swaplab.token_bits(base, ids, start, 16))


@pytest.mark.parametrize("donor_tied", [True, False])
def test_an_untied_base_has_two_spaces_and_takes_rows_for_both(donor_tied):
    (_, base), (_, donor), made = setting(base_tied=False, donor_tied=donor_tied)
    ways = iter([1.0, 5.0])
    model = made.model(lambda space: torch.full((len(made.new_ids), 8), next(ways)))
    places = torch.from_numpy(swaplab.renumber(made.kept, made.new_ids))
    assert (model.get_input_embeddings().weight[places] == 1).all()
    assert (model.get_output_embeddings().weight[places] == 5).all()
    head = donor.get_output_embeddings().weight
    assert torch.equal(made.spaces[1].points, head[torch.from_numpy(made.shared[0])])
    assert torch.equal(made.spaces[1].old, base.get_output_embeddings().weight)


def test_ids_without_a_row_are_no_tokens():
    old, base = opened([TEXTS["one"]], 270, 8)
    new, _ = opened(list(TEXTS.values()), 300, 12)
    _, donor = opened([TEXTS["one"]], 280, 12)  # fewer rows than the tokenizer has ids
    made = omp_setting.make_setting(old, base, new, donor, {"one": "the mat"}, START, 16)
    assert made.shared[0].max() < 281


def test_packed_layers_give_the_same_bits_also_after_a_swap():
    _, _, made = setting()

    def make(space):
        return torch.ones(len(made.new_ids), 8)

    before = made.bits(made.model(make))
    omp_setting.pack(made.base)
    assert any(isinstance(module, omp_setting.Packed) for module in made.base.modules())
    after = made.bits(made.model(make))
    for name in TEXTS:
        np.testing.assert_allclose(after[name], before[name], rtol=1e-4)


def test_a_model_that_was_not_made_is_named(tmp_path):
    with pytest.raises(TokenariumError, match=r"dvc repro model@nothing"):
        omp_setting._opened(tmp_path, "nothing")
