"""The BPE engine against slow, obvious references: counting all pairs anew at every merge, and `tokenizers`."""

import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from tokenarium.data.tokenizers import load_tokenizer
from tokenarium.errors import TokenariumError
from tokenarium.methods.tokenizers import bpe
from tokenarium.study.parameters import project_root

TEXT = """\
The quick brown fox jumps over the lazy dog; the dog sleeps, and the fox keeps running: 12345 times, 1000000 steps!
Die Katze läuft über die Straße, während der Hund schläft. Größere Bäume wachsen höher, größere Häuser seltener.
def merge(pairs, counts): return [a + b for a, b in pairs if counts[a, b] > 0]  # aaa aaaa aaaaa aaaaaa
if __name__ == "__main__":\n    print("aaaa", 'bbbb', "abababab")\n\n\n    raise SystemExit(0)
語彙の大きさは言語によって異なる。語彙が大きいほど、文は短くなる。
"""
WORDS = st.lists(
    st.sampled_from([b"a", b"b", b"ab", b"ba", b"aaa", b"aaaa", b"abab", b"aabaab", b"c", b"cab", b"aaaaa"])
)


def recount(words):
    counts = Counter()
    for symbols, times in words:
        for pair in pairwise(symbols):
            counts[pair] += times
    return counts


def merged(symbols, pair):
    out = []
    for symbol in symbols:
        # Left to right: a symbol that has been merged itself cannot be merged again.
        if out and (out[-1], symbol) == (*pair,) and not isinstance(out[-1], Done):
            out[-1] = Done(pair[0] + pair[1])
        else:
            out.append(symbol)
    return [bytes(symbol) for symbol in out]


class Done(bytes):
    """A symbol made in this very step."""


def slow_replay(merges, word_counts):
    words = [([bytes([byte]) for byte in word], times) for word, times in word_counts.items()]
    for pair in merges:
        yield recount(words)
        words = [(merged(symbols, pair), times) for symbols, times in words]


def slow_train(word_counts, num_merges, allowed=lambda token: True):
    words = [([bytes([byte]) for byte in word], times) for word, times in word_counts.items()]
    ids = {symbol: index for index, symbol in enumerate(bpe.BYTE_ALPHABET)}
    merges = []
    while len(merges) < num_merges:
        counts = {pair: count for pair, count in recount(words).items() if allowed(pair[0] + pair[1])}
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], ids[pair[0]], ids[pair[1]]))
        merges.append(best)
        ids.setdefault(best[0] + best[1], len(ids))
        words = [(merged(symbols, best), times) for symbols, times in words]
    return merges


@pytest.fixture(scope="module")
def words():
    return bpe.count_words([TEXT], bpe.digit_words())


@pytest.fixture(scope="module")
def corpus():
    """Lines of made-up words with a long tail, so that many counts are equal."""
    draw = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    vocabulary = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(300)]
    weights = [1 / (rank + 1) for rank in range(300)]
    return [" ".join(draw.choices(vocabulary, weights, k=12)) + "." for _ in range(200)]


def test_every_byte_has_a_character_of_its_own():
    assert sorted(bpe.BYTE_ALPHABET) == [bytes([byte]) for byte in range(256)]
    assert {bpe.to_characters(symbol) for symbol in bpe.BYTE_ALPHABET} == set(pre_tokenizers.ByteLevel.alphabet())
    assert bpe.from_characters(bpe.to_characters(bytes(range(256)))) == bytes(range(256))


def test_byte_level_characters_are_the_librarys(words):
    (joined,) = (
        word for word, _ in pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(TEXT)
    )
    assert bpe.from_characters(joined) == TEXT.encode()


def test_a_character_that_stands_for_no_byte_is_refused():
    with pytest.raises(ValueError, match="stands for no byte"):
        bpe.from_characters("語")


def test_counted_words_hold_the_text(words):
    assert sum(len(word) * count for word, count in words.items()) == len(TEXT.encode())
    assert words[b" the"] == 3


# Training


def test_the_librarys_training_is_greedy_with_ties_by_lowest_ids(corpus):
    counts = bpe.count_words(corpus, bpe.gpt2_words())
    assert list(bpe.train(corpus, 256 + 150).merges) == slow_train(counts, 150)


@settings(max_examples=50, deadline=None)
@given(WORDS.filter(lambda words: any(len(word) > 1 for word in words)))
def test_our_training_recounts_nothing_and_finds_the_same_merges(words):
    counts = Counter(words)
    assert bpe.train_words(counts, 12) == slow_train(counts, 12)


def test_our_training_equals_the_librarys(corpus):
    counts = bpe.count_words(corpus, bpe.gpt2_words())
    assert bpe.train_words(counts, 400) == list(bpe.train(corpus, 256 + 400).merges)


def test_a_refused_token_is_never_made(corpus):
    counts = bpe.count_words(corpus[:20], bpe.gpt2_words())

    def short(token):
        return len(token) <= 3

    merges = bpe.train_words(counts, 60, short)
    assert merges == slow_train(counts, 60, short)
    assert max(len(left + right) for left, right in merges) == 3


@pytest.mark.parametrize("vocab_size", [256, 257, 300, 400, 500])
def test_truncation_equals_training_at_the_smaller_size(corpus, vocab_size):
    large = bpe.train(corpus, 500)
    small = bpe.train(corpus, vocab_size)
    assert large.truncate(vocab_size).merges == small.merges
    assert len(small.vocabulary) == vocab_size


def test_training_is_deterministic(corpus):
    assert bpe.train(corpus, 500).merges == bpe.train(corpus, 500).merges


def test_wrong_sizes_are_refused(corpus):
    with pytest.raises(ValueError, match="at least 256"):
        bpe.train(corpus, 255)
    with pytest.raises(ValueError, match="between 256 and"):
        bpe.train(corpus, 300).truncate(301)
    with pytest.raises(ValueError, match="between 256 and vocab_size"):
        bpe.train_super(corpus, 300, 301)


# Encoding


def test_encoding_by_ranks_equals_the_librarys(corpus):
    trained = bpe.train([*corpus, TEXT], 600)
    tokenizer, rank = trained.tokenizer(), bpe.ranks(trained.merges)
    pieces = []
    for word, _ in trained.pre_tokenizer.pre_tokenize_str(TEXT):
        pieces += bpe.segment(bpe.from_characters(word), rank)
    encoding = tokenizer.encode(TEXT)
    assert [trained.vocabulary[index] for index in encoding.ids] == pieces
    assert tokenizer.decode(encoding.ids) == TEXT


def test_segmentation_of_trained_words_is_what_training_made():
    counts = {b"aaaaa": 3, b"abab": 2, b"aab": 1}
    merges = bpe.train_words(counts, 5)
    for word in counts:
        symbols = [bytes([byte]) for byte in word]
        for pair in merges:
            symbols = merged(symbols, pair)
        assert bpe.segment(word, bpe.ranks(merges)) == symbols


def test_a_merge_list_comes_back_from_its_tokenizer(corpus):
    trained = bpe.train([*corpus, TEXT], 500)
    again = Tokenizer.from_str(trained.tokenizer().to_str())
    assert bpe.is_byte_level(again)
    assert tuple(bpe.merges_of(again)) == trained.merges


def test_a_character_level_merge_list_is_read_as_utf8():
    vocab = {"▁": 0, "ä": 1, "▁ä": 2}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("▁", "ä")]))
    assert not bpe.is_byte_level(tokenizer)
    assert bpe.merges_of(tokenizer) == [("▁".encode(), "ä".encode())]


def test_a_model_without_merges_is_refused():
    with pytest.raises(ValueError, match="a WordLevel model has no merges"):
        bpe.merges_of(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))


# Merge lists from SentencePiece


def every_way(merges):
    """The list as a converter writes it: for each token, in order, every split into two known tokens."""
    known = {symbol for pair in merges for symbol in pair} | {left + right for left, right in merges}
    listed = []
    for token in dict.fromkeys(left + right for left, right in merges):
        cuts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        listed += [pair for pair in cuts if set(pair) <= known]
    return listed


def test_cleaning_finds_the_merges_that_were_trained(corpus):
    trained = list(bpe.train(corpus, 256 + 300).merges)
    listed = every_way(trained)
    assert len(listed) > len(trained)
    cleaned = bpe.clean_merges(listed)
    assert [left + right for left, right in cleaned] == list(dict.fromkeys(left + right for left, right in trained))
    assert cleaned == trained


def test_cleaning_prefers_the_way_through_the_earliest_tokens():
    merges = [(b"a", b"b"), (b"b", b"c"), (b"a", b"bc"), (b"ab", b"c")]
    assert bpe.clean_merges(merges) == [(b"a", b"b"), (b"b", b"c"), (b"ab", b"c")]
    merges = [(b"b", b"c"), (b"a", b"b"), (b"ab", b"c"), (b"a", b"bc")]
    assert bpe.clean_merges(merges) == [(b"b", b"c"), (b"a", b"b"), (b"a", b"bc")]


def test_cleaning_goes_by_what_encoding_does_in_a_run():
    # "xaaa": the first "aa" is the left one, so that the last merge joins "xaa" and "a".
    merges = [(b"a", b"a"), (b"x", b"a"), (b"x", b"aa"), (b"xa", b"a"), (b"xa", b"aa"), (b"xaa", b"a")]
    assert bpe.clean_merges(merges) == [(b"a", b"a"), (b"x", b"a"), (b"x", b"aa"), (b"xaa", b"a")]


def test_cleaning_works_on_characters_too():
    bar, a = "▁".encode(), "ä".encode()
    merges = [(bar, a), (a, a), (bar + a, a), (bar, a + a)]
    assert bpe.clean_merges(merges) == [(bar, a), (a, a), (bar + a, a)]


def test_llama_3_goes_on_from_the_merges_of_gpt_3_5():
    folder = project_root(Path(__file__).parent)
    try:
        short, long = (load_tokenizer(name, folder) for name in ("gpt35turbo", "llama3"))
    except TokenariumError:
        pytest.skip("data/tokenizers is not there")
    listed, expected = bpe.merges_of(long), bpe.merges_of(short)
    assert len(listed) > 2 * len(expected)
    assert bpe.clean_merges(listed)[: len(expected)] == expected


def test_cleaning_a_clean_list_changes_nothing(corpus):
    trained = list(bpe.train(corpus, 256 + 200).merges)
    assert bpe.clean_merges(trained) == trained


def test_runs_of_blanks_are_dropped_on_demand():
    bar = "▁".encode()
    merges = [(b"\n", b"\n"), (bar, bar), (bar, b"a"), (b"a", b"a")]
    assert bpe.clean_merges(merges, drop_runs=True) == [(bar, b"a"), (b"a", b"a")]
    assert bpe.clean_merges(merges) == merges


# Replay


def as_counter(pairs, column):
    return Counter({pair: count for pair, count in zip(pairs, column.tolist(), strict=True) if count})


def test_replayed_counts_are_what_recounting_finds(words):
    merges = list(bpe.train([TEXT], 256 + 120, bpe.digit_words()).merges)
    other = bpe.count_words(["aaaa aaa the dog aaaaaaa"], bpe.digit_words())
    replayed = bpe.replay(merges, [words, other])
    assert replayed.num_steps == len(merges)
    slow = [slow_replay(merges, counts) for counts in (words, other)]
    for step, counts in enumerate(replayed.counts()):
        for category, expected in enumerate(slow):
            assert as_counter(replayed.pairs, counts[:, category]) == next(expected)
        pair = replayed.merge_pair[step]
        assert replayed.pairs[pair] == merges[step]
    assert step == len(merges) - 1


@settings(max_examples=100, deadline=None)
@given(
    st.lists(WORDS.filter(lambda words: any(len(word) > 1 for word in words)), min_size=1, max_size=3),
    st.lists(
        st.tuples(st.sampled_from([b"a", b"b", b"ab", b"aa", b"aab"]), st.sampled_from([b"a", b"b", b"ab", b"aa"]))
    ),
)
def test_any_merge_list_replays_as_recounting_does(categories, merges):
    counts = [Counter(words) for words in categories]
    replayed = bpe.replay(merges, counts)
    slow = [slow_replay(merges, each) for each in counts]
    for step, found in enumerate(replayed.counts()):
        for category, expected in enumerate(slow):
            assert as_counter(replayed.pairs, found[:, category]) == next(expected)
        if replayed.merge_pair[step] < 0:
            assert replayed.start[step] == replayed.start[step + 1]


def test_a_merge_inside_a_run_goes_from_left_to_right():
    replayed = bpe.replay([(b"a", b"a"), (b"aa", b"a"), (b"aa", b"aa")], [{b"aaaaa": 1}])
    before = [as_counter(replayed.pairs, counts[:, 0]) for counts in replayed.counts()]
    assert before == [{(b"a", b"a"): 4}, {(b"aa", b"aa"): 1, (b"aa", b"a"): 1}, {(b"aa", b"aaa"): 1}]


def test_the_merged_pair_is_the_most_frequent_one_on_its_own_training_words(corpus):
    counts = bpe.count_words(corpus, bpe.gpt2_words())
    replayed = bpe.replay(bpe.train_words(counts, 300), [counts])
    for step, found in enumerate(replayed.counts()):
        assert found[replayed.merge_pair[step], 0] == found.max()


def test_the_first_steps_of_a_replay_are_the_replay_of_the_first_merges(words):
    merges = list(bpe.train([TEXT], 256 + 60, bpe.digit_words()).merges)
    cut, short = bpe.replay(merges, [words]).first(25), bpe.replay(merges[:25], [words])
    for name in ("initial", "merge_pair", "start", "changed", "delta"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(short, name))
    assert cut.pairs == short.pairs


@pytest.mark.parametrize("step", [0, 1, 25, 59])
def test_the_rest_of_a_replay_goes_on_with_the_same_counts(words, step):
    merges = list(bpe.train([TEXT], 256 + 60, bpe.digit_words()).merges)
    whole = bpe.replay(merges, [words])
    rest = whole.rest(step)
    assert rest.num_steps == 60 - step
    expected = [counts.copy() for counts in whole.counts()][step:]
    for counts, one in zip(rest.counts(), expected, strict=True):
        np.testing.assert_array_equal(counts, one)
    assert rest.merge_pair.tolist() == whole.merge_pair[step:].tolist()


def test_a_replay_has_no_rest_beyond_its_end(words):
    with pytest.raises(ValueError, match="step must be below 1"):
        bpe.replay([(b"a", b"b")], [words]).rest(1)


def test_words_are_counted_after_normalisation():
    words = bpe.count_words(["ﬁne ①"], bpe.gpt2_words(), normalizers.NFKC())
    assert words == {b"fine": 1, b" 1": 1}


def test_selected_categories_are_those_replayed_alone(words):
    merges = list(bpe.train([TEXT], 256 + 40, bpe.digit_words()).merges)
    others = [bpe.count_words([line], bpe.digit_words()) for line in TEXT.splitlines()[:2]]
    chosen = bpe.replay(merges, [words, *others]).select([2, 1])
    alone = bpe.replay(merges, [others[1], others[0]])
    for one, other in zip(chosen.counts(), alone.counts(), strict=True):
        for category in range(2):
            assert as_counter(chosen.pairs, one[:, category]) == as_counter(alone.pairs, other[:, category])
    assert chosen.num_pairs_at_start.tolist() == alone.num_pairs_at_start.tolist()


def test_a_category_without_pairs_is_refused():
    with pytest.raises(ValueError, match="category 1 has no pair"):
        bpe.replay([(b"a", b"b")], [{b"ab": 1}, {b"a": 5}])
    with pytest.raises(ValueError, match="at least one category"):
        bpe.replay([(b"a", b"b")], [])


# SuperBPE


def test_super_tokens_bridge_blanks_and_hold_few_words(corpus):
    text = [*corpus, *["in the end of the day we go on and on"] * 50]
    trained = bpe.train_super(text, 500, 400, max_words=3)
    second = [left + right for left, right in trained.merges[144:]]
    bridging = [token for token in second if b" " in token.strip()]
    assert bridging
    assert max(len(token.split()) for token in second) == 3
    assert len(trained.vocabulary) == 500


def test_the_first_stage_of_super_training_is_ordinary_training(corpus):
    assert bpe.train_super(corpus, 400, 350).merges[:94] == bpe.train(corpus, 350).merges
    assert bpe.train_super(corpus, 350, 350).merges == bpe.train(corpus, 350).merges


def test_super_tokens_encode_and_decode_without_loss(corpus):
    text = [*corpus, TEXT]
    trained = bpe.train_super(text, 500, 400)
    tokenizer = trained.tokenizer()
    for line in text:
        assert tokenizer.decode(tokenizer.encode(line).ids) == line


def test_super_training_shortens_its_own_text_at_equal_vocabulary(corpus):
    def tokens(trained):
        return sum(len(encoding.ids) for encoding in trained.tokenizer().encode_batch(corpus))

    assert tokens(bpe.train_super(corpus, 700, 500)) < tokens(bpe.train(corpus, 700))


def test_no_super_token_holds_a_colon_inside(corpus):
    lines = [f"note: see the {word}" for line in corpus for word in line.split()[:2]]
    trained = bpe.train_super(lines, 450, 350)
    assert not [pair for pair in trained.merges[94:] if b":" in (pair[0] + pair[1])[:-1]]
