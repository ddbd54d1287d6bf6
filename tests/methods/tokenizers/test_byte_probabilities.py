"""Next-byte probabilities against closed forms, exhaustive search and marginals of whole strings."""

import hashlib
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from tokenarium.methods.tokenizers import bpe, byte_toys
from tokenarium.methods.tokenizers import byte_probabilities as bp
from tokenarium.methods.tokenizers.valid_encodings import Codec, PrefixIndex, is_valid, mask_invalid, whole_characters

TEXT = """\
the cat sat on the mat;  the   cat then sat\n\non that other mat:  that is the thing
    the hat, the    rat\n\n\nat ten
"""
WORDS = bpe.train([TEXT] * 3, 290)
TOKENIZER = WORDS.tokenizer()
CODEC = Codec(TOKENIZER, WORDS.vocabulary)
PLAIN = Codec(TOKENIZER, WORDS.vocabulary, probes=("",))


def hashed(size, seed=0):
    """A language model without any sense: fixed random logits for every context."""

    def logp_next(ids):
        digest = hashlib.sha256(repr((seed, list(ids))).encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        return torch.randn(size, generator=generator, dtype=torch.float64).mul(2).log_softmax(dim=0)

    return logp_next


def canonical(codec, seed=0):
    """The same, but with all mass on valid continuations, as a model of encoded text has it."""
    plain = hashed(len(codec), seed)

    def logp_next(ids):
        valid = torch.from_numpy(codec.valid_next(ids, np.arange(len(codec))))
        return plain(ids).masked_fill(~valid, -torch.inf).log_softmax(dim=0)

    return logp_next


def text_encode(text):
    return TOKENIZER.encode(text).ids


def text_decode(ids):
    return TOKENIZER.decode(ids)


CHAINS = [byte_toys.Chain(0.5, 0.7, 0.4), byte_toys.Chain(0.2, 0.999, 0.9), byte_toys.Chain(0.9, 0.05, 0.5)]


@pytest.mark.parametrize("chain", CHAINS)
def test_covers_give_a_markov_chain_exactly_where_next_tokens_do_not(chain):
    generator = np.random.default_rng(1)
    prefixes = [chain.draw(int(generator.integers(1, 20)), generator) for _ in range(200)]
    exact, naive = byte_toys.letter_errors(chain, prefixes, chain.logp_next)
    assert exact.max() < 1e-10
    assert naive.max() == pytest.approx(chain.after_a)  # after a token A the model never gives another A


def test_the_chains_token_model_is_what_its_letters_say():
    chain = CHAINS[0]
    for length in range(1, 6):
        for letters in product(b"AB", repeat=length):
            data = bytes(letters)
            truth = np.prod([chain.next_letter(data[:i])["AB".index(chr(data[i]))] for i in range(length)])
            ids = encode_fully(data)
            logp = sum(float(chain.logp_next(ids[:k])[ids[k]]) for k in range(len(ids)))
            # A last token A also says that no A follows.
            assert np.exp(logp) == pytest.approx(truth * (1 - chain.after_a if ids[-1] == byte_toys.A else 1))


def encode_fully(data):
    text, ids = data.decode(), []
    while text:
        token = next(token for token in (b"AA", b"A", b"B") if text.startswith(token.decode()))
        ids.append(byte_toys.TOKENS.index(token))
        text = text[len(token) :]
    assert ids == byte_toys.encode(data)
    return ids


@pytest.mark.parametrize("data", [b"th", b"the", b"t t", b" at", b"a  ", b"ca,", b"e t"])
def test_covers_sum_to_what_exhaustive_search_finds(data):
    logp = hashed(len(PLAIN))
    lefts = bp.left_sides(PLAIN, data, 0)
    found = bp.prefix_log_marginals(PLAIN, lefts, logp)
    for end in range(1, len(data) + 1):
        slow = byte_toys.sum_over_encodings(data[:end], PLAIN.token_bytes, PLAIN.encode, PLAIN.decode, logp, depth=4)
        assert found[end] == pytest.approx(slow, abs=1e-9)


def test_looking_ahead_finds_covers_whose_left_side_is_no_encoding():
    data, logp = b"\n\na", hashed(len(CODEC))
    found = bp.prefix_log_marginals(CODEC, bp.left_sides(CODEC, data, 0), logp)
    slow = byte_toys.sum_over_encodings(data, CODEC.token_bytes, CODEC.encode, CODEC.decode, logp, depth=4)
    assert found[-1] == pytest.approx(slow, abs=1e-9)
    assert bp.prefix_log_marginals(PLAIN, bp.left_sides(PLAIN, data, 0), logp)[-1] < slow - 1


@pytest.mark.parametrize("text", ["the cat th", "t", "on the ma", "that  th", "a\nth", "sat on"])
def test_next_byte_is_the_ratio_of_exhaustive_sums(text):
    prompt, logp = text.encode(), canonical(PLAIN)
    p = bp.next_byte_probs(prompt, text_encode, text_decode, PLAIN.token_bytes, logp)[:128].numpy()
    sums = np.array([slow_sum(prompt + bytes([byte]), logp) for byte in range(128)])
    assert np.allclose(p / p.sum(), np.exp(sums - np.logaddexp.reduce(sums)), atol=1e-9)


def slow_sum(data, logp):
    head = PLAIN.head(data[:-1])
    begun = PLAIN.encode(data[:head])
    return byte_toys.sum_over_encodings(
        data[head:],
        PLAIN.token_bytes,
        PLAIN.encode,
        PLAIN.decode,
        lambda ids: logp([*begun, *ids]),
        depth=5,
    )


def bytes_encode(data):
    end = whole_characters(data) or 0
    return PLAIN.encode(data[:end]) + [WORDS.vocabulary.index(bytes([byte])) for byte in data[end:]]


def test_str_and_bytes_functions_give_the_same_numbers():
    logp = hashed(len(PLAIN))
    by_text = bp.next_byte_probs(b"the cat sa", text_encode, text_decode, PLAIN.token_bytes, logp)
    by_bytes = bp.next_byte_probs(b"the cat sa", bytes_encode, PLAIN.decode, PLAIN.token_bytes, logp)
    assert torch.allclose(by_text[:128], by_bytes[:128], atol=1e-12)
    assert by_text.dtype == torch.float64
    assert by_text.shape == (259,)


def test_a_start_symbol_of_the_tokenizer_changes_nothing():
    bos = len(PLAIN)
    logp = hashed(len(PLAIN))
    spelled = [*PLAIN.token_bytes, b""]

    def with_bos(ids):
        assert ids[0] == bos
        return torch.cat([logp(ids[1:]), torch.tensor([-torch.inf])])

    plain = bp.next_byte_probs(b"the cat sa", text_encode, text_decode, PLAIN.token_bytes, logp)
    found = bp.next_byte_probs(
        b"the cat sa",
        lambda s: [bos, *text_encode(s)],
        lambda ids: text_decode([i for i in ids if i != bos]),
        spelled,
        with_bos,
    )
    assert torch.allclose(found, plain, atol=1e-12)


def test_a_blank_that_the_tokenizer_puts_in_front_is_no_part_of_the_prompt():
    logp = hashed(len(PLAIN))

    def encode(text):
        return text_encode(f" {text}") if text else []

    def decode(ids):
        return text_decode(ids).removeprefix(" ")

    found = bp.next_byte_probs(b"th", encode, decode, PLAIN.token_bytes, logp)
    plain = bp.next_byte_probs(b" th", text_encode, text_decode, PLAIN.token_bytes, logp)
    # Without the covers that begin with the blank alone: no text is encoded like that.
    covers = bp.initial_cover(b"th", encode, decode, PLAIN.token_bytes, logp)
    assert {cover.ids for cover in covers} <= {
        cover.ids for cover in bp.initial_cover(b" th", text_encode, text_decode, PLAIN.token_bytes, logp)
    }
    assert found.sum() == pytest.approx(1)
    assert plain.shape == found.shape


def test_unmasked_mode_only_changes_what_follows_the_prompts_own_encoding():
    logp = hashed(len(PLAIN))
    arguments = (b"the ca", text_encode, text_decode, PLAIN.token_bytes, logp)
    masked, fast = bp.next_byte_probs(*arguments), bp.next_byte_probs(*arguments, mask=False)
    assert (masked > 0).sum() < (fast > 0).sum()
    covers = bp.initial_cover(*arguments)
    whole = covers[0]
    weights = np.exp([cover.logw for cover in covers])
    slow = np.zeros(256)
    for token, spelling in enumerate(PLAIN.token_bytes):
        slow[spelling[0]] += weights[0] * float(logp(list(whole.ids))[token].exp())
    for cover, weight in zip(covers[1:], weights[1:], strict=True):
        slow[cover.bytes_left[0]] += weight
    assert np.allclose(fast[:256].numpy(), slow / slow.sum())


def test_special_tokens_are_symbols_after_the_bytes():
    spelled = [None, b"", b"", b"ab", b"a", None]
    assert bp.symbols_of(spelled).tolist() == [256, 257, 258, 97, 97, 259]
    assert bp.symbols_of([b"x", None]).tolist() == [120, bp.EOS]
    assert bp.symbols_of([None, b"x", None]).tolist() == [bp.BOS, 120, bp.EOS]
    assert bp.symbols_of(spelled, {5: bp.EOS}).tolist() == [259, 260, 261, 97, 97, 258]


def test_a_prompt_that_ends_inside_a_character_is_refused():
    with pytest.raises(ValueError, match="inside a character"):
        bp.next_byte_probs("é".encode()[:1], text_encode, text_decode, PLAIN.token_bytes, hashed(len(PLAIN)))


@settings(max_examples=15, deadline=None)
@given(st.text("the casn,\n", min_size=1, max_size=12), st.integers(1, 6))
def test_adding_bytes_one_by_one_gives_what_a_fresh_prompt_gives(text, cut):
    data, logp = text.encode(), canonical(CODEC)
    cut = min(cut, len(data))
    stream = bp.ByteStream(CODEC, logp, data[:cut])
    for byte in data[cut:]:
        stream.add(byte)
    fresh = bp.ByteStream(CODEC, logp, data)
    assert np.allclose(stream.probabilities(), fresh.probabilities(), atol=1e-12)
    assert len(stream.covers) == len(fresh.covers)


@settings(max_examples=15, deadline=None)
@given(st.text("the casn,\n", min_size=2, max_size=10))
def test_conditionals_of_the_stream_multiply_to_the_marginals(text):
    data, logp = text.encode(), canonical(CODEC)
    marginals = bp.prefix_log_marginals(CODEC, bp.left_sides(CODEC, data, 1), logp)
    stream = bp.ByteStream(CODEC, logp, data[:1])
    total = 0.0
    for byte in data[1:]:
        total += np.log(stream.probabilities()[byte])
        stream.add(byte)
    # A model without mass on invalid continuations: only that those bytes end inside a character is not looked into.
    assert total == pytest.approx(marginals[-1] - marginals[0], abs=1e-6)


def test_without_look_ahead_the_stream_equals_the_parity_function():
    logp = hashed(len(PLAIN))
    for text in ("the cat sa", "on  the", "at ten"):
        stream = bp.ByteStream(PLAIN, logp, text.encode())
        expected = bp.next_byte_probs(text.encode(), text_encode, text_decode, PLAIN.token_bytes, logp)
        assert np.allclose(stream.probabilities(), expected.numpy(), atol=1e-12)


def test_one_run_of_the_model_for_each_byte_after_the_prompt():
    logp, asked = canonical(CODEC), []

    def counted(ids):
        asked.append(tuple(ids))
        return logp(ids)

    stream = bp.ByteStream(CODEC, counted, b"the ca")
    stream.probabilities()
    asked.clear()
    for byte in b"t sat on th":
        stream.add(byte)
        stream.probabilities()
    assert len(asked) == len(b"t sat on th")


def test_marginals_left_unchecked_bracket_the_exact_ones():
    data, logp = b"the cat sat on", hashed(len(CODEC))
    lefts = bp.left_sides(CODEC, data, 6)
    exact = bp.prefix_log_marginals(CODEC, lefts, logp)
    low = bp.prefix_log_marginals(CODEC, lefts, logp, floor=3e-3)
    high = bp.prefix_log_marginals(CODEC, lefts, logp, floor=3e-3, unchecked=True)
    assert (low <= exact + 1e-12).all()
    assert (exact <= high + 1e-12).all()
    assert (low < high).any()


def test_continuations_of_fixed_ids_sum_over_all_segmentations():
    logp, ids, rest = hashed(len(PLAIN)), tuple(PLAIN.encode(b"the c")), b"at th"
    found = bp.continuation_log_probability(PLAIN, logp, ids, rest, pieces=len(rest))
    assert np.exp(found) == pytest.approx(slow_continuation(logp, ids, rest))
    contexts = bp.continuation_contexts(PLAIN, ids, rest, len(rest))

    def known(context):
        assert tuple(context) in contexts
        return logp(context)

    bp.continuation_log_probability(PLAIN, known, ids, rest, pieces=len(rest))


def slow_continuation(logp, ids, rest):
    if not rest:
        return 1.0
    row = logp(ids).exp()
    return sum(
        float(row[token]) * slow_continuation(logp, (*ids, token), rest[len(spelling) :])
        for token, spelling in enumerate(PLAIN.token_bytes)
        if spelling.startswith(rest) or rest.startswith(spelling)
    )


def test_healing_conditions_on_the_dropped_bytes():
    logp, ids, rest = hashed(len(PLAIN)), tuple(PLAIN.encode(b"the ca")), b"t s"
    left, dropped = ids[:-1], PLAIN.token_bytes[ids[-1]]
    row = logp(left).exp()
    allowed = [token for token, spelling in enumerate(PLAIN.token_bytes) if spelling.startswith(dropped)]
    slow = 0.0
    for token in allowed:
        spelling = PLAIN.token_bytes[token][len(dropped) :]
        if spelling.startswith(rest):
            slow += float(row[token])
        elif rest.startswith(spelling):
            slow += float(row[token]) * slow_continuation(logp, (*left, token), rest[len(spelling) :])
    slow /= float(row[allowed].sum())
    assert np.exp(bp.healed_log_probability(PLAIN, logp, ids, rest, len(rest) + 1)) == pytest.approx(slow)


def test_greedy_tokens_keep_what_is_forced_and_stop_at_the_end_symbol():
    favourite = TOKENIZER.token_to_id("the")

    def eager(ids):
        row = torch.full((len(PLAIN),), -20.0)
        row[favourite if len(ids) < 4 else 0] = 0
        return row.log_softmax(dim=0)

    assert bp.greedy_tokens(PLAIN, eager, (5,), 5) == b"theth"
    healed = bp.greedy_tokens(PLAIN, eager, (5,), 3, forced=b"t")
    assert healed == b"het"
    assert bp.greedy_tokens(PLAIN, eager, (5,), 9, end=favourite) == b""
    assert bp.greedy_tokens(PLAIN, eager, (5,), 3, forced=b"th", whole=False) == b"eth"


def test_greedy_bytes_take_the_most_probable_byte():
    logp = canonical(CODEC)
    made = bp.greedy_bytes(bp.ByteStream(CODEC, logp, b"the ca"), 4)
    data = b"the ca"
    for byte in made:
        assert byte == int(bp.ByteStream(CODEC, logp, data).probabilities().argmax())
        data += bytes([byte])
    assert len(made) == 4


def test_an_average_is_of_renormalised_bytes_and_sharpening_prefers_the_likely():
    one, two = torch.zeros(262), torch.zeros(259)
    one[[65, 260]], two[[65, 66]] = 0.5, 0.5
    mean = bp.average([one, two])
    assert mean[[65, 66]].tolist() == [0.75, 0.25]
    assert bp.average([one, two], [1, 3])[66] == pytest.approx(0.375)
    assert bp.sharpen(mean, 0.5)[65] == pytest.approx(0.9, abs=1e-5)
    assert bp.sharpen(mean, 0.5).sum() == pytest.approx(1)


# Valid encodings


def slow_reachable(tokenizer, text, token_bytes):
    """All id sequences for the bytes of `text` that begin the encoding of some longer ASCII text."""
    found = set()
    for after in ("", "\x01", '"', "a", "t", " ", "\n", "1", ";", "  a", " a", "\na"):
        ids = tokenizer.encode(text + after).ids
        for count in range(len(ids) + 1):
            if b"".join(token_bytes[i] for i in ids[:count]) == text.encode():
                found.add(tuple(ids[:count]))
    return found


@settings(max_examples=60, deadline=None)
@given(st.text("the a,\n", min_size=0, max_size=9))
def test_left_sides_are_all_prefixes_of_encodings(text):
    assert set(CODEC.lefts(text.encode())) == slow_reachable(TOKENIZER, text, WORDS.vocabulary)


@settings(max_examples=25, deadline=None)
@given(st.text("the a,\n", min_size=0, max_size=7))
def test_the_mask_is_what_encodings_go_on_with(text):
    for left in CODEC.lefts(text.encode()):
        ascii_ids = [i for i, spelling in enumerate(WORDS.vocabulary) if spelling.isascii()]
        mask = CODEC.valid_next(left, ascii_ids)
        for token, valid in zip(ascii_ids, mask, strict=True):
            whole = text + WORDS.vocabulary[token].decode()
            assert valid == ((*left, token) in slow_reachable(TOKENIZER, whole, WORDS.vocabulary)), (left, token)


def test_what_is_sampled_under_the_mask_encodes_to_itself():
    logp = hashed(len(CODEC))
    ascii_only = torch.tensor([spelling.isascii() for spelling in WORDS.vocabulary])
    for seed in range(20):
        generator, ids = torch.Generator().manual_seed(seed), []
        for _ in range(8):
            p = mask_invalid(CODEC, ids, logp([seed, *ids])).exp() * ascii_only
            ids.append(int(torch.multinomial(p, 1, generator=generator)))
        assert tuple(ids) in CODEC.lefts(CODEC.decode(ids))


def test_a_prefix_of_an_encoding_may_not_be_an_encoding():
    ids = tuple(TOKENIZER.encode("mat\n\non").ids)
    place = next(k for k in range(len(ids)) if CODEC.decode(ids[:k]) == b"mat\n\n")
    assert not is_valid(ids[:place], CODEC.encode, CODEC.decode)
    assert ids[:place] in CODEC.lefts(b"mat\n\n")
    assert ids[:place] not in PLAIN.lefts(b"mat\n\n")


def test_tokens_are_found_by_their_first_bytes():
    spelled = [b"ab", b"a", None, b"b", b"abc", b"", b"\xff\xff", b"\xff"]
    index = PrefixIndex(spelled)
    for prefix in (b"", b"a", b"ab", b"abc", b"abcd", b"b", b"c", b"\xff", b"\xff\xff"):
        expected = {i for i, each in enumerate(spelled) if each and each.startswith(prefix)}
        assert set(index.starting_with(prefix).tolist()) == expected
        assert set(index.of(prefix).tolist()) == {i for i, each in enumerate(spelled) if each and each == prefix}


def test_characters_that_are_not_whole_are_seen():
    assert whole_characters("aé".encode()) == 3
    assert whole_characters("aé".encode()[:2]) == 1
    assert whole_characters(b"a\x80") is None


def test_a_break_is_no_place_that_a_token_reaches_over():
    vocabulary = {"a": 0, "b": 1, " ": 2, "b ": 3}
    codec = Codec(Tokenizer(models.BPE(vocabulary, [("b", " ")])), [b"a", b"b", b" ", b"b "], probes=("",))
    assert codec.head(b"a a b a") == 3
    assert codec.crossed == {b"b "}


def test_a_codec_refuses_a_tokenizer_that_changes_its_texts():
    from tokenizers import normalizers

    tokenizer = WORDS.tokenizer()
    tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(ValueError, match="changes its texts"):
        Codec(tokenizer, WORDS.vocabulary).encode(b"The")
