"""ZeTT: surface forms, sampled vocabularies and the hypernetwork, against slow and independent references."""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaModel

from tokenarium.methods.tokenizers import zett

PAD = 1
words = st.lists(st.text("abĠĊ", min_size=1, max_size=20), min_size=1, max_size=8)


def params_of(rows, width=6, maxlen=4, hidden=128, layers=2, seed=0):
    """A hypernetwork of two heads with nothing at its initial zero or one, so that every number matters."""
    generator = torch.Generator().manual_seed(seed)
    params = zett.initial_params(rows, width, maxlen, hidden, 32, layers, PAD, generator)
    for name, value in params.items():
        if "word_embeddings" not in name:
            value += 0.1 * torch.randn(value.shape, generator=generator)
    return params


def rows_of(count=30, width=12, seed=1):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


# Surface forms


def test_surface_forms_are_cut_off_padded_and_special_tokens_stand_alone():
    spelt = {"ab": [5, 6], "abcd": [5, 6, 7, 8], "x": [9]}
    matrix = zett.surface_form_matrix(["ab", "<s>", "abcd", "x"], 3, spelt.__getitem__, 0, {"<s>": 2})
    assert matrix.dtype == np.int32
    assert matrix.tolist() == [[5, 6, 0], [2, 0, 0], [5, 6, 7], [9, 0, 0]]


def test_the_model_spells_a_token_across_the_borders_of_words():
    vocabulary = {"a": 0, "Ġ": 1, "aĠ": 2, "aĠa": 3}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "Ġ"), ("aĠ", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert tokenizer.encode("a a", add_special_tokens=False).ids == [
        0,
        1,
        0,
    ]  # in a text the word ends before the blank
    assert zett.model_tokenize(tokenizer)("aĠa") == [3]


# Sampling


def slow_scores(pretokens, max_len, stride):
    scores = defaultdict(int)
    for pretoken in pretokens:
        for start in range(len(pretoken)):
            for length in range(1, max_len):
                if start % stride == 0 and start + length <= len(pretoken):
                    scores[pretoken[start : start + length]] += length
    return dict(scores)


@given(pretokens=words, max_len=st.integers(2, 16), stride=st.integers(1, 5))
def test_scores_count_the_bytes_of_every_substring_that_begins_on_the_stride(pretokens, max_len, stride):
    assert dict(zett.substring_scores(pretokens, max_len, stride)) == slow_scores(pretokens, max_len, stride)


def test_pieces_are_at_most_fifteen_bytes_long_and_begin_at_the_first_byte():
    pieces = set(zett.substring_scores(["abcdefghijklmnopqrst"]))
    assert max(map(len, pieces)) == 15
    assert {piece[0] for piece in pieces} == set("aeimq")


@given(pretokens=words, k=st.integers(0, 12))
def test_without_noise_the_best_pieces_come_first_with_the_logarithm_of_their_share(pretokens, k):
    scores = slow_scores(pretokens, 16, 4)
    pieces = zett.sample_unigram(pretokens, k)
    best = pieces[: min(k, len(scores))]
    assert [scores[name] for name, _ in best] == sorted(scores.values(), reverse=True)[:k]
    for name, log_probability in best:
        assert log_probability == pytest.approx(math.log(scores[name] / sum(scores.values())))
    rest = pieces[len(best) :]
    assert all(log_probability == -1e5 for _, log_probability in rest)
    names = [name for name, _ in pieces]
    assert len(set(names)) == len(names)
    assert set(names) == {name for name, _ in best} | set(pre_tokenizers.ByteLevel.alphabet()) | {
        "Ġ" * run for run in range(1, 16)
    }


def test_of_equal_pieces_the_first_seen_is_taken():
    assert [name for name, _ in zett.sample_unigram(["b", "a", "c"], 2)][:2] == ["b", "a"]


def test_noise_is_drawn_from_the_generator_alone_and_needs_one():
    drawn = [zett.sample_unigram(["abab", "ba"], 4, noise=0.1, rng=np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(ValueError, match="generator"):
        zett.sample_unigram(["abab"], 4, noise=0.1)


def test_the_noise_level_is_log_normal_around_its_typical_value():
    rng = np.random.default_rng(0)
    levels = np.log([zett.noise_level(rng) for _ in range(4000)])
    assert levels.mean() == pytest.approx(math.log(1e-5), abs=0.3)
    assert levels.std() == pytest.approx(4, rel=0.05)


def best_split(word, log_probability):
    """The best log-probability of any split of a word, by trying all."""
    if not word:
        return 0.0
    ends = (end for end in range(1, len(word) + 1) if word[:end] in log_probability)
    return max(log_probability[word[:end]] + best_split(word[end:], log_probability) for end in ends)


@settings(max_examples=25, deadline=None)
@given(text=st.text("ab é\n", min_size=1, max_size=12))
def test_a_sampled_tokenizer_splits_every_text_at_its_best(text):
    pieces = zett.sample_unigram(zett.byte_words("ab ba abab  b\n" * 3), 12)
    tokenizer, log_probability = zett.unigram_tokenizer(pieces), dict(pieces)
    ids = tokenizer.encode(text).ids
    assert "".join(pieces[index][0] for index in ids) == "".join(zett.byte_words(text))
    found = sum(pieces[index][1] for index in ids)
    assert found == pytest.approx(sum(best_split(word, log_probability) for word in zett.byte_words(text)), abs=1e-4)


# The hypernetwork


def reference(forms, rows, params, width):
    """The forward pass with transformers' RoBERTa, one token at a time, float64, its padding left away."""
    params = {name: value.double() for name, value in params.items()}
    layers = 1 + max(int(name.split(".")[3]) for name in params if ".layer." in name)
    config = RobertaConfig(
        vocab_size=PAD + 1,
        hidden_size=128,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=len(params["model.embeddings.position_embeddings.weight"]),
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        attn_implementation="eager",
    )
    encoder = RobertaModel(config, add_pooling_layer=False).double().eval()
    inner = {name.removeprefix("model."): value for name, value in params.items() if name.startswith("model.")}
    encoder.load_state_dict(inner)

    def linear(x, name):
        return x @ params[f"{name}.weight"].T + params[f"{name}.bias"]

    def block(x, name):
        y = F.gelu(
            linear(F.gelu(linear(x, f"{name}.dense1"), approximate="tanh"), f"{name}.dense2"), approximate="tanh"
        )
        return F.layer_norm(x + y, x.shape[-1:], params[f"{name}.ln.weight"], params[f"{name}.ln.bias"], 1e-6)

    made_in, made_out = [], []
    for form in forms.tolist():
        pieces = []
        for index in (index for index in form if index != PAD):
            if index < len(rows):
                pieces.append(rows[index].double() * params["in_scaler.w"][0] + params["in_scaler.b"][0])
            else:
                pieces.append(params["fallback_embeddings.weight"][index - len(rows)])
        x = block(linear(torch.stack(pieces), "input_projection.0"), "input_projection.1")
        with torch.no_grad():
            state = encoder(inputs_embeds=x[None], position_ids=torch.arange(len(x))[None]).last_hidden_state[0, 0]
        for made, name, scaler in (
            (made_in, "output_projection", "scaler"),
            (made_out, "output_projection_out", "out_scaler"),
        ):
            made.append(
                linear(block(state, f"{name}.0"), f"{name}.1") * params[f"{scaler}.w"][0] + params[f"{scaler}.b"][0]
            )
    return torch.stack(made_in), torch.stack(made_out)


def some_forms():
    return torch.tensor([[4, 7, 9, 2], [5, PAD, PAD, PAD], [8, 30, PAD, PAD], [4, 4, 4, PAD], [7, 4, 9, 2]])


def test_the_forward_pass_is_roberta_with_projectors_and_scalers():
    rows, forms = rows_of(), some_forms()
    params = params_of(rows)
    expected = reference(forms, rows, params, 6)
    for made in (zett.hypernet_forward(forms.numpy(), rows, params), zett.Hypernet(params)(forms, rows)):
        for found, wanted in zip(made[:2], expected, strict=True):
            torch.testing.assert_close(found.detach().double(), wanted, atol=2e-5, rtol=0)
        assert torch.equal(made[2], torch.zeros(len(forms)))


def test_tied_embeddings_have_one_head_and_a_bias_head_is_used_where_there_is_one():
    rows = rows_of(width=6)
    params = params_of(rows)
    made_in, made_out, _ = zett.hypernet_forward(some_forms(), rows, params)
    assert made_out is None
    assert made_in.shape == (5, 6)
    params |= {"bias_projection.weight": torch.zeros(1, 128), "bias_projection.bias": torch.tensor([2.5])}
    assert torch.equal(zett.hypernet_forward(some_forms(), rows, params)[2], torch.full((5,), 2.5))


def test_a_token_does_not_depend_on_its_neighbours_in_the_vocabulary():
    rows, forms = rows_of(), some_forms()
    params = params_of(rows)
    together = zett.hypernet_forward(forms, rows, params)[0]
    for place in range(len(forms)):
        torch.testing.assert_close(
            zett.hypernet_forward(forms[place : place + 1], rows, params)[0][0], together[place], atol=1e-5, rtol=1e-4
        )


def test_the_order_of_the_pieces_matters_and_padding_does_not():
    rows = rows_of()
    params = params_of(rows)
    forms = torch.tensor([[4, 7, PAD, PAD], [7, 4, PAD, PAD]])
    made = zett.hypernet_forward(forms, rows, params)[0]
    assert not torch.allclose(made[0], made[1], atol=1e-3)
    mixed = zett.hypernet_forward(torch.cat([forms, torch.tensor([[2, 3, 4, 5]])]), rows, params)[0][:2]
    torch.testing.assert_close(mixed, made, atol=1e-5, rtol=1e-4)


def test_a_language_changes_every_row_and_none_changes_nothing():
    rows = rows_of()
    params = params_of(rows) | {
        "lang_embeddings.weight": torch.randn(3, 128, generator=torch.Generator().manual_seed(3))
    }
    plain = zett.hypernet_forward(some_forms(), rows, params)[0]
    spoken = [zett.hypernet_forward(some_forms(), rows, params, language=index)[0] for index in (0, 2)]
    assert not torch.allclose(spoken[0], plain, atol=1e-3)
    assert not torch.allclose(spoken[0], spoken[1], atol=1e-3)


@pytest.mark.parametrize("width", [6, 12])
def test_fresh_scalers_give_inputs_and_predictions_the_moments_that_they_should_have(width):
    rows = 3 + 2 * rows_of(count=40)
    params = zett.initial_params(rows, width, 4, 64, 32, 1, PAD, torch.Generator().manual_seed(0))
    scaled = params["in_scaler.w"] * rows + params["in_scaler.b"]
    torch.testing.assert_close(scaled.mean(0), torch.zeros(12), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std(0, correction=0), torch.full((12,), 0.02), atol=1e-5, rtol=0)
    made = zett.hypernet_forward(torch.arange(40)[:, None], rows, params, pad_id=99)
    for found, true in zip((each for each in made[:2] if each is not None), rows.split(width, dim=1), strict=True):
        torch.testing.assert_close(found.mean(0), true.mean(0), atol=1e-3, rtol=0)
        torch.testing.assert_close(found.std(0), true.std(0), atol=1e-3, rtol=1e-3)


def test_scalers_and_the_table_of_padding_are_not_trained():
    hypernet = zett.Hypernet(params_of(rows_of()))
    still = {name.replace("/", ".") for name, value in hypernet.table.items() if not value.requires_grad}
    assert still == {
        "in_scaler.w",
        "in_scaler.b",
        "scaler.w",
        "scaler.b",
        "out_scaler.w",
        "out_scaler.b",
        "model.embeddings.word_embeddings.weight",
    }


# Losses and baselines


def test_losses_are_what_loops_make_of_them():
    generator = torch.Generator().manual_seed(0)
    made, true = (tuple(torch.randn(4, 3, generator=generator) for _ in range(2)) for _ in range(2))
    squares = [
        sum(float((a[i, j] - b[i, j]) ** 2) for i in range(4) for j in range(3)) / 4
        for a, b in zip(made, true, strict=True)
    ]
    assert float(zett.identity_loss(made, true)) == pytest.approx(sum(squares) / 2, rel=1e-5)
    first, single = torch.tensor([2, 0, 1, 3]), torch.tensor([True, False, True, False])
    found = []
    for a, b in zip(made, true, strict=True):
        pairs = [(a[i], b[first[i]]) for i in (0, 2)]
        distance = sum(float(((x - y) ** 2).sum()) for x, y in pairs) / 2
        found.append(distance / (sum(math.sqrt(float((y**2).sum())) for _, y in pairs) / 2))
    assert float(zett.lexical_loss(made, *true, first, single)) == pytest.approx(sum(found) / 2, rel=1e-5)
    assert float(zett.lexical_loss(made, *true, first, torch.zeros(4, dtype=torch.bool))) == 0


def test_with_its_own_rows_the_token_losses_are_the_models_own():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 20, (2, 7))
    used = torch.ones(2, 7, dtype=torch.bool)
    used[1, 4:] = False
    rows_in, rows_out = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    with torch.no_grad():
        found = zett.token_losses(model.model, rows_in, rows_out, ids, used)
        expected = []
        for row, length in ((0, 7), (1, 4)):
            log_probabilities = model(ids[row : row + 1, :length]).logits[0].log_softmax(-1)
            expected += [-float(log_probabilities[place, ids[row, place + 1]]) for place in range(length - 1)]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)


def test_the_mean_of_pieces_is_their_mean_and_a_shared_token_keeps_its_row():
    rows = rows_of(10, 4)
    pieces = [[3], [1, 2, 2], [0, 9]]
    for row, ids in zip(zett.mean_of_pieces(pieces, rows), pieces, strict=True):
        torch.testing.assert_close(row, sum(rows[index] for index in ids) / len(ids))
    copied = zett.copies_and_noise(pieces, rows, seed=0)
    assert torch.equal(copied[0], rows[3])
    assert not torch.equal(copied[1], zett.copies_and_noise(pieces, rows, seed=1)[1])


def test_rows_drawn_at_random_have_the_moments_of_the_old_ones():
    rows = 5 + 3 * rows_of(200, 4)
    made = zett.copies_and_noise([[0]] + [[1, 2]] * 5000, rows, seed=0)[1:]
    torch.testing.assert_close(made.mean(0), rows.mean(0), atol=0.2, rtol=0)
    torch.testing.assert_close(made.std(0), rows.std(0), rtol=0.05, atol=0)
