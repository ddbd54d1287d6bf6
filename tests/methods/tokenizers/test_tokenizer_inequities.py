"""Tokenizer inequities: token counts at every vocabulary, the power law, what could explain premiums."""

import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenarium.errors import TokenariumError
from tokenarium.methods.tokenizers import bpe
from tokenarium.methods.tokenizers import tokenizer_inequities as inequities
from tokenarium.methods.tokenizers.inequities import sources

SCRIPTS = ("bdfgklmnprst", "aeiouöü"), ("語彙大数", "の小さきは"), ("កខគភស", "ាិួេ")


def words_of(seed, count):
    draw = random.Random(seed)
    syllables = [[a + b for a in first for b in second] for first, second in SCRIPTS]
    return ["".join(draw.choices(draw.choice(syllables), k=draw.randint(1, 5))) for _ in range(count)]


WORDS = [*words_of(0, 300), "aaaa", "aaa", "aaaaaaa", "12345"]


def lines_of(seed, count):
    draw = random.Random(seed)
    weights = [1 / (rank + 1) for rank in range(len(WORDS))]
    return [" ".join(draw.choices(WORDS, weights, k=draw.randint(3, 12))) + "." for _ in range(count)]


@pytest.fixture(scope="module")
def model():
    return bpe.train(lines_of(0, 300), 700)


# Counting


def test_a_corpus_is_counted_line_by_line_and_without_special_tokens(model):
    from tokenizers.processors import TemplateProcessing

    tokenizer = model.tokenizer()
    plain = [len(tokenizer.encode(line).ids) for line in lines_of(1, 20)]
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    count = inequities.corpus_token_count(tokenizer, lines_of(1, 20))
    assert type(count) is int
    assert count == sum(plain)
    assert inequities.corpus_token_count(tokenizer, []) == 0


def test_a_byte_premium_is_a_ratio_of_bytes_and_not_of_characters():
    assert inequities.byte_premium(["語", "語"], ["ab"]) == 3
    assert inequities.byte_premium(["é"], ["e", "e"]) == 1
    with pytest.raises(ValueError, match="b is empty"):
        inequities.byte_premium(["a"], [""])


def test_the_curve_counts_what_encoding_with_each_vocabulary_counts(model):
    lines = lines_of(2, 60)
    curve = inequities.count_curve(model, lines)
    assert len(curve) == len(model.vocabulary) - 255
    assert curve[0] == sum(len(line.encode()) for line in lines)
    for size in (256, 257, 258, 300, 400, 401, 555, len(model.vocabulary)):
        tokenizer = inequities.prefix(model, size).tokenizer()
        assert curve[size - 256] == inequities.corpus_token_count(tokenizer, lines), size
    assert (np.diff(curve) <= 0).all()


@given(st.lists(st.text(alphabet="ab ", min_size=1, max_size=12), min_size=1, max_size=8), st.integers(257, 280))
def test_the_curve_is_right_where_letters_repeat(lines, size):
    model = bpe.train(["aab abab aaa bbb baab aabaab", "abba abba aaaaaa"] * 3, 280)
    size = min(size, len(model.vocabulary))
    tokenizer = inequities.prefix(model, size).tokenizer()
    assert inequities.count_curve(model, lines)[size - 256] == inequities.corpus_token_count(tokenizer, lines)


@pytest.mark.parametrize("size", [256, 300, 421])
def test_a_prefix_is_what_training_with_fewer_tokens_gives(model, size):
    assert inequities.prefix(model, size).merges == bpe.train(lines_of(0, 300), size).merges


def test_a_prefix_stops_before_the_next_token_though_a_later_merge_repeats_an_early_one():
    pairs = [(b"a", b"b"), (b"ab", b"c"), (b"b", b"c"), (b"x", b"y"), (b"a", b"bc"), (b"z", b"z")]
    repeating = bpe.Bpe(tuple(pairs), bpe.gpt2_words())
    assert len(repeating.vocabulary) == 256 + 5
    assert [len(inequities.prefix(repeating, 256 + count).merges) for count in range(6)] == [0, 1, 2, 3, 4, 6]
    assert len(inequities.prefix(repeating, 258).vocabulary) == 258


def test_a_curve_follows_the_merge_that_encoding_takes_where_two_make_a_token():
    pairs = [(b"b", b"c"), (b"a", b"bc"), (b"a", b"b"), (b"ab", b"c"), (b"abc", b"d")]
    repeating = bpe.Bpe(tuple(pairs), bpe.gpt2_words())
    curve = inequities.count_curve(repeating, ["abcd", "ab"])
    assert curve.tolist() == [6, 5, 4, 3, 2]


@pytest.mark.parametrize("size", [255, 5000])
def test_a_prefix_outside_of_the_vocabulary_is_refused(model, size):
    with pytest.raises(ValueError, match="vocab_size must be between 256"):
        inequities.prefix(model, size)


def test_used_once_is_the_share_of_merged_tokens_that_occur_at_most_once(model):
    texts = lines_of(0, 300)
    uses = Counter(index for line in texts for index in model.tokenizer().encode(line).ids)
    rare = [index for index in range(256, len(model.vocabulary)) if uses[index] <= 1]
    assert inequities.used_once(model, texts) == pytest.approx(len(rare) / (len(model.vocabulary) - 256))


def test_unigram_knows_every_byte_and_gives_back_the_text():
    tokenizer = inequities.train_unigram(lines_of(0, 200), 400)
    unknown = tokenizer.token_to_id(inequities.UNKNOWN)
    for text in ("größer ភាសា \x00\x7f", "🙂 never seen", "語彙"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert unknown not in ids
        assert tokenizer.decode(ids) == text
    assert 256 < tokenizer.get_vocab_size() <= 401


# Training text


def documents(language, pages=12, parts=5):
    return [
        {"id": f"p{page}#{part}", "text": f"{language} {page} {part} " * 4}
        for page in range(pages)
        for part in range(parts)
    ]


def test_languages_draw_the_same_documents_and_seeds_draw_others():
    def pages(language, seed):
        texts = inequities.sample_documents(documents(language), 600, seed)
        return list(dict.fromkeys(text.split()[1] for text in texts))

    assert pages("a", 0) == pages("b", 0)
    assert pages("a", 0) != pages("a", 1)


@given(st.integers(1, 1400), st.integers(0, 5))
def test_a_sample_is_as_long_as_asked_but_for_its_last_paragraph(num_bytes, seed):
    texts = inequities.sample_documents(documents("a"), num_bytes, seed)
    sizes = [len(text.encode()) for text in texts]
    assert sum(sizes[:-1]) < num_bytes <= sum(sizes)
    assert len(set(texts)) == len(texts)


def test_more_text_than_there_is_cannot_be_drawn():
    with pytest.raises(ValueError, match="bytes of text were asked for"):
        inequities.sample_documents(documents("a"), 100_000, 0)


# The power law


@given(st.floats(10, 1e6), st.floats(0.05, 2), st.floats(0, 1e4), st.integers(256, 100_000))
def test_inverting_gives_the_size_back(a, b, c, size):
    law = inequities.PowerLaw(a, b, c)
    part = a * size**-b
    if part > 1e-6 * max(c, 1):  # else the part that depends on the size drowns in rounding
        assert inequities.invert_powerlaw(a, b, c, float(law(size))) == pytest.approx(size, rel=1e-3)


@pytest.mark.parametrize("target", [5.0, 4.9, -1.0])
def test_a_target_below_the_floor_is_never_reached(target):
    assert inequities.invert_powerlaw(10.0, 0.5, 5.0, target) == math.inf


def test_a_known_inverse():
    assert inequities.invert_powerlaw(100.0, 0.5, 10.0, 11.0) == pytest.approx(10_000)


@given(st.floats(1e3, 1e7), st.floats(0.1, 1.5), st.floats(0, 5e4))
def test_a_fit_finds_the_law_that_made_the_points(a, b, c):
    sizes = np.array([1024, 2048, 4096, 8192, 16384])
    counts = inequities.PowerLaw(a, b, c)(sizes)
    assert inequities.fit_powerlaw(sizes, counts)(sizes) == pytest.approx(counts, rel=1e-3)


def test_a_fit_to_rising_counts_is_flat():
    law = inequities.fit_powerlaw([1, 2, 4], [10.0, 11.0, 12.0])
    assert (law.a, law.c) >= (0, 0)
    assert law(1) == pytest.approx(law(4), rel=0.2)


@pytest.mark.parametrize(("sizes", "counts"), [([1, 2], [3, 2]), ([1, 2, 3], [3, 2]), ([0, 1, 2], [3, 2, 1])])
def test_a_fit_needs_three_positive_points(sizes, counts):
    with pytest.raises(ValueError, match=r"at least 3 points|must be positive"):
        inequities.fit_powerlaw(sizes, counts)


def test_optimal_sizes_are_rounded_and_clipped():
    laws = [inequities.PowerLaw(100, 0.5, 0), inequities.PowerLaw(100, 0.5, 99), inequities.PowerLaw(1, 0.5, 0)]
    assert inequities.optimal_sizes(laws, 1.0, 512, 32768).tolist() == [10_000, 32_768, 512]


# What could explain premiums


def test_whitespace_and_words_are_counted_in_characters():
    lines = ["ab cd", "語彙\u3000x"]
    assert inequities.whitespace_share(lines) == pytest.approx(2 / 9)
    assert inequities.mean_word_length(lines) == pytest.approx((2 + 2 + 2 + 1) / 4)


def test_trigrams_do_not_cross_lines():
    assert inequities.trigrams(["abcd", "ab", "abc"]) == {"abc": 2, "bcd": 1}


@given(*[st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 50), min_size=1)] * 2)
def test_similarity_is_one_less_the_divergence_that_scipy_finds(a, b):
    from scipy.spatial.distance import jensenshannon

    keys = sorted(a.keys() | b.keys())
    p, q = ([each.get(key, 0) for key in keys] for each in (a, b))
    assert inequities.similarity(a, b) == pytest.approx(1 - jensenshannon(p, q, base=2) ** 2, abs=1e-9)


# The regression


@pytest.fixture(scope="module")
def rows():
    generator = np.random.default_rng(0)
    language, within = generator.normal(size=(24, 1)), generator.normal(size=(1, 6))
    noise = generator.normal(size=(24, 6))
    y = 2 * within + language + 0.3 * noise + 0.5 * generator.normal(size=(24, 1))
    return inequities.design(y, {"within": within, "language": language, "idle": generator.normal(size=(24, 6))})


def slow_sse(y, x):
    beta = np.linalg.lstsq(x, y, rcond=None)[0]
    return ((y - x @ beta) ** 2).sum()


@pytest.mark.parametrize("names", [["within"], ["language"], ["idle"], ["language", "idle"]])
def test_partial_r2_is_the_drop_of_the_squared_error(rows, names):
    y, x = rows.y.ravel(), rows.x.reshape(-1, 4)
    others = [place for place, name in enumerate(rows.names) if name not in names]
    assert inequities.partial_r2(rows, names)[0] == pytest.approx(1 - slow_sse(y, x) / slow_sse(y, x[:, others]))


def test_weights_count_languages_as_copies_do(rows):
    weights = inequities.language_draws(24, 3, seed=1)
    assert weights.sum(axis=1).tolist() == [24, 24, 24]
    for draw in weights:
        copies = np.repeat(np.arange(24), draw)
        y, x = rows.y[copies].ravel(), rows.x[copies].reshape(-1, 4)
        wanted = 1 - slow_sse(y, x) / slow_sse(y, np.delete(x, 2, axis=1))
        assert inequities.partial_r2(rows, ["language"], draw[None])[0] == pytest.approx(wanted)


def test_an_interval_holds_its_value_and_a_lead_is_a_difference(rows):
    one = inequities.partial_r2_interval(rows, ["within"], resamples=200)
    lead = inequities.partial_r2_interval(rows, ["within"], ["idle"], resamples=200)
    assert one.low <= one.value <= one.high
    assert lead.value == pytest.approx(one.value - inequities.partial_r2(rows, ["idle"])[0])


def test_the_cluster_test_finds_what_is_there_and_not_what_is_idle(rows):
    assert inequities.cluster_p(rows, ["within"]) < 1e-6
    assert inequities.cluster_p(rows, ["language"]) < 0.01
    assert inequities.cluster_p(rows, ["idle"]) > 0.01


def test_the_cluster_test_is_not_misled_by_rows_of_one_language():
    """A column that differs by language alone, under noise by language alone: tests by row reject nearly always."""
    generator = np.random.default_rng(3)
    p = []
    for _ in range(200):
        y = np.repeat(generator.normal(size=(30, 1)), 10, axis=1) + 0.01 * generator.normal(size=(30, 10))
        p.append(inequities.cluster_p(inequities.design(y, {"idle": generator.normal(size=(30, 1))}), ["idle"]))
    assert np.mean(np.array(p) < 0.05) < 0.12


# Sources


def test_an_unknown_text_is_named(tmp_path):
    with pytest.raises(TokenariumError, match="no parallel text is named 'bible': there are udhr"):
        sources.open_outside("bible", tmp_path, {})


def test_scripts_of_the_help():
    assert [sources.script(each) for each in ("en-US", "dz", "zh-TW")] == ["Latin", "Tibetan", "Han"]
