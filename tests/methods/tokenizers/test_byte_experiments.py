"""What the byte-probability experiments stand on: shared logits, passages, gaps and the fill-in-the-middle model."""

import itertools

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tokenarium.methods.tokenizers import bpe, byte_gaps, byte_harness, byte_results, byte_toys, fim
from tokenarium.methods.tokenizers import byte_probabilities as bp
from tokenarium.methods.tokenizers.tree_logits import LanguageModel, TreeLogits
from tokenarium.methods.tokenizers.valid_encodings import Codec, inside_token

LINES = ["def outer(value):\n    inner = value + 1\n    return inner\n", "for item in items:\n    print(item, value)\n"]
MERGES = bpe.train(LINES * 3, 300)
FORM = fim.Format(MERGES)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def test_a_tree_of_contexts_gives_what_each_context_gives_alone(model):
    logits = TreeLogits(model, (3, 4), 23)
    contexts = [
        (3, 4, *rest) for n in range(4) for rest in itertools.islice(itertools.product(range(5, 9), repeat=n), 9)
    ]
    logits.prefetch(contexts)
    assert logits.runs == 2
    for context in contexts:
        with torch.inference_mode():
            expected = model(torch.tensor([context])).logits[0, -1].log_softmax(dim=-1)
        assert torch.allclose(logits(context)[:20], expected, atol=1e-5)
        assert logits(context)[20:].isinf().all()
    assert logits.runs == 2
    logits((3, 4, 19, 18))
    assert logits.runs == 3


def test_contexts_must_begin_with_the_prefix(model):
    with pytest.raises(ValueError, match="does not begin"):
        TreeLogits(model, (3, 4), 20)((3, 5))
    with pytest.raises(ValueError, match="at least one"):
        TreeLogits(model, (), 20)


def test_forgetting_costs_another_run(model):
    logits = TreeLogits(model, (3,), 20)
    first = logits((3, 4))
    logits.clear()
    assert torch.equal(logits((3, 4)), first)
    assert logits.runs == 3


def test_a_chain_is_learnt_well_enough_to_see_the_bias():
    chain = byte_toys.Chain(0.6, 0.7, 0.5)
    logp_next = byte_toys.train_on_chain(chain, seed=0, steps=60, letters=16)
    generator = np.random.default_rng(0)
    exact, naive = byte_toys.letter_errors(chain, [chain.draw(9, generator) for _ in range(40)], logp_next)
    assert exact.mean() < naive.mean() / 2


def test_passages_are_of_different_texts_and_begin_after_a_blank():
    texts = [f"text{n} " + "word " * 30 for n in range(6)]
    found = byte_harness.passages(texts, 5, given=20, scored=10, seed=1)
    assert all(len(each.data) == 30 and each.start == 20 for each in found)
    assert found == byte_harness.passages(texts, 5, given=20, scored=10, seed=1)
    with pytest.raises(ValueError, match="only 6 texts"):
        byte_harness.passages(texts, 7, given=20, scored=10, seed=1)


def test_a_tokenizer_is_freed_of_the_blank_that_it_puts_in_front():
    from tokenarium.data.tokenizers import load_tokenizer, token_bytes
    from tokenarium.errors import TokenariumError
    from tokenarium.study.parameters import project_root

    try:
        tokenizer = load_tokenizer("llama2", project_root())
    except TokenariumError:
        pytest.skip("the tokenizers were not fetched")
    spelled = token_bytes(tokenizer)
    with pytest.raises(ValueError, match="changes its texts"):
        Codec(tokenizer, spelled).encode(b"two words")
    codec = Codec(byte_harness._plain(tokenizer), spelled, probes=("",))
    assert codec.decode(codec.encode(b"two words\n  more")) == b"two words\n  more"


def test_words_are_cut_inside_with_two_bytes_left():
    texts = [f"An opening of some length, number {n}, and theatrical words thereafter, be it so." for n in range(30)]
    for each in byte_harness.word_cuts(texts, 30, given=20, seed=2):
        before, after = each.data[: each.start].decode(), each.data[each.start :].decode()
        assert before[-1].isalpha()
        assert len(after) >= 2
        assert after.isalpha()


def test_a_cut_is_inside_a_token_or_between_two():
    codec = Codec(FORM.tokenizer, FORM.token_bytes)
    data = b"def outer(value)"
    edges = np.cumsum([0, *(len(codec.token_bytes[index]) for index in codec.encode(data))])
    for cut in range(1, len(data)):
        distance, tokens = inside_token(codec, data, cut)
        begun = max(edge for edge in edges if edge <= cut)
        assert distance == cut - begun
        assert (tokens > 0) == (cut not in edges)


def test_gaps_put_together_are_the_window():
    texts = [f"{line}# number {n} of some\n" for n, line in enumerate(LINES * 3)]
    found = byte_gaps.gaps(FORM, texts, 4, (3, 8), seed=0)
    assert len(found) == 4
    codec = Codec(FORM.tokenizer, FORM.token_bytes)
    for gap in found:
        assert gap.prefix + gap.middle + gap.suffix in texts
        assert 3 <= len(gap.middle) <= 8
        assert inside_token(codec, (gap.prefix + gap.middle + gap.suffix).encode(), len(gap.prefix))[0] > 0


def test_windows_are_runs_of_whole_ascii_lines():
    text = "".join(f"line {n}\n" for n in range(20)) + "ünïcode\n" + "last line\n" * 5
    found = fim.windows([text], 40)
    assert found
    for window in found:
        assert 20 <= len(window) + 1 <= 40
        assert window in text
        assert window.isascii()


def test_examples_hold_prefix_and_middle_as_one_text():
    ids = FORM.example("def ou", "ter(val", "ue)")
    prefix, suffix, middle, end = (FORM.sentinel(name) for name in fim.SENTINELS)
    assert ids[:2] == [prefix, suffix]
    assert ids[-1] == end
    at = ids.index(middle)
    assert FORM.tokenizer.decode(ids[2:at]) == "ue)"
    assert ids[at + 1 : -1] == FORM.encode("def outer(val")
    assert FORM.plain("def") == [prefix, suffix, middle, *FORM.encode("def"), end]


def test_training_lowers_the_loss_and_weights_come_back():
    shape = {"width": 16, "layers": 1, "heads": 2, "positions": 64}
    model = fim.build(len(FORM.token_bytes), shape, seed=0)
    data = fim.batches(fim.examples(FORM, LINES, 0.5, seed=0), 8, 48)
    losses = fim.train(model, data, 30, {"muon": 0.01, "adamw": 0.01})
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.5
    weights = {name: weight.detach().numpy() for name, weight in model.named_parameters()}
    again = byte_gaps.seeded(weights, FORM, shape)
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(again.model(ids).logits, model(ids).logits)


def test_a_byte_stream_over_a_real_model_is_its_own_marginals():
    shape = {"width": 16, "layers": 1, "heads": 2, "positions": 64}
    model = LanguageModel(
        fim.build(len(FORM.token_bytes), shape, seed=1).eval(),
        Codec(FORM.tokenizer, FORM.token_bytes),
        FORM.sentinel("prefix"),
    )
    data, start = b"for item in ite", 13
    lefts = bp.left_sides(model.codec, data, start)
    logits = model.logits(lefts.head)
    logits.prefetch((model.start, *ids) for ids in lefts.contexts)
    runs = logits.runs
    marginals = bp.prefix_log_marginals(model.codec, lefts, logits, (model.start,))
    assert logits.runs == runs  # `contexts` names all that is needed
    assert (np.diff(marginals) <= 1e-9).all()
    stream = bp.ByteStream(model.codec, logits, data[:start], context=(model.start,))
    # Normalisation gives back the mass that an untrained model has on invalid encodings.
    for byte, lost in zip(data[start:], np.diff(marginals), strict=True):
        assert np.log(stream.probabilities()[byte]) >= lost - 1e-6
        stream.add(byte)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [(b"", b"", 1), (b"abc", b"abc", 1), (b"abc", b"axc", 2 / 3), (b"ab", b"", 0), (b"kitten", b"sitting", 4 / 7)],
)
def test_similarity_is_one_minus_the_relative_edit_distance(one, other, expected):
    assert byte_results.similarity(one, other) == pytest.approx(expected)


def test_a_mixture_of_probabilities_and_its_gain():
    first, second = np.log([[0.5, 0.1]]), np.log([[0.1, 0.5]])
    mixed = byte_results.mixture_logp([first, second], [0.5, 0.5])
    assert np.allclose(np.exp(mixed), 0.3)
    bits = [byte_results.bits_per_byte(np.repeat(each, 3, axis=0)) for each in (first, second, mixed)]
    gain = byte_results.gain_over_best(bits[:2], bits[2], resamples=50)
    assert gain.value == pytest.approx(-0.5 * np.log2(0.05) + np.log2(0.3))
    assert gain.low == pytest.approx(gain.high)


def test_records_of_gaps_become_rows():
    gaps = [{"prefix": "a", "middle": "bc", "suffix": ""}]
    made = {7: [{"made": {"naive": "bd", "exact": "bc"}, "distance": 1, "tokens": 2}]}
    frame = byte_results.fim_frame(gaps, made).set_index("method")
    assert frame["exact match"].to_dict() == {"naive": 0, "exact": 100}
    assert frame["edit similarity"].to_dict() == {"naive": 50, "exact": 100}
    assert byte_results.per_gap(frame.reset_index(), "exact match").loc[0, "exact"] == 100
