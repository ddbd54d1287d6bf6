"""Real tokenizers: their tokens' bytes spell the texts they encode; those made here merge as their makers' do."""

import json
import unicodedata
from functools import lru_cache
from pathlib import Path

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

from tokenarium.data import tokenizers as tk
from tokenarium.errors import TokenariumError
from tokenarium.study.parameters import project_root

ROOT = project_root(Path(__file__).parent)
TEXTS = (
    "The quick brown fox, 1234 times! don't\n\n\tdef f(x):\n        return x**2  # 3.14\r\n",
    "Über naïve Çeşme'de, İstanbul'da ağaçlar; Größe 12 345,67 €",
    "Все люди рождаются свободными. Όλοι οι άνθρωποι. כל בני אדם",
    "सभी मनुष्यों को गौरव; 人人生而自由,在尊严和权利上一律平等。すべての人間は",
    "មនុស្សទាំងអស់ 모든 인간은 😀👩‍👩‍👧 \U0001f1f9\U0001f1f7",
    "   leading and trailing   ",
)
NORMALISING = {"claude": "NFKC", "qwen3": "NFC"}
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
RANKS = [*(bytes([byte]) for byte in range(256)), b"ab", b"bc", b"abc", b"aa", b" a", b"\xc3\xa9", b"aab", b" ab"]


def merged_slowly(piece, rank_of):
    """Byte-pair merging as it is defined: again and again the leftmost pair of the lowest rank."""
    if piece in rank_of:
        return [rank_of[piece]]
    parts = [piece[index : index + 1] for index in range(len(piece))]
    while True:
        pairs = [(rank_of.get(parts[index] + parts[index + 1]), index) for index in range(len(parts) - 1)]
        pairs = [pair for pair in pairs if pair[0] is not None]
        if not pairs:
            return [rank_of[part] for part in parts]
        _, index = min(pairs)
        parts[index : index + 2] = [parts[index] + parts[index + 1]]


@lru_cache(2)
def real(name):
    try:
        return tk.load_tokenizer(name, ROOT)
    except TokenariumError as error:
        pytest.skip(str(error))


def normalised(name, text):
    """What the tokenizer encodes instead of the text."""
    return unicodedata.normalize(NORMALISING[name], text) if name in NORMALISING else text


def test_byte_symbols_are_256_visible_characters_that_keep_ascii():
    symbols = tk.byte_symbols()
    assert len(set(symbols)) == 256
    assert all(not symbol.isspace() and symbol.isprintable() for symbol in symbols)
    assert all(symbols[byte] == chr(byte) for byte in range(33, 127))
    assert (symbols[32], symbols[10]) == ("Ġ", "Ċ")  # as in GPT-2's published vocabulary


@settings(deadline=None, max_examples=50)
@given(text=st.text(alphabet="abc é 1", max_size=30), first=st.sampled_from([0, 3]))
def test_from_ranks_merges_the_lowest_rank_first(text, first):
    tokenizer = tk.from_ranks(RANKS, r" ?[a-z]+|\d|\s+|.", ["<s>", "</s>", "<x>"], first)
    pieces = regex.findall(r" ?[a-z]+|\d|\s+|.", text)
    rank_of = {token: rank for rank, token in enumerate(RANKS)}
    expected = [first + rank for piece in pieces for rank in merged_slowly(piece.encode(), rank_of)]
    assert tokenizer.encode(text, add_special_tokens=False).ids == expected


def test_special_tokens_stand_before_the_ranks_or_after_them():
    before = tk.from_ranks(RANKS, None, ["<s>", "</s>"], first=2)
    after = tk.from_ranks(RANKS, None, ["<s>", "</s>"])
    assert [before.token_to_id(token) for token in ("<s>", "</s>", "a")] == [0, 1, 2 + ord("a")]
    assert [after.token_to_id(token) for token in ("<s>", "</s>", "a")] == [len(RANKS), len(RANKS) + 1, ord("a")]
    assert tk.token_bytes(before)[:3] == [None, None, b"\0"]


@settings(deadline=None, max_examples=50)
@given(text=st.text(max_size=40))
def test_bytes_of_byte_level_tokens_spell_any_text(text):
    tokenizer = tk.from_ranks(RANKS, None, ["<s>"])
    tokenizer.add_tokens(["é \n"])  # an added token that is not special stands for itself
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert b"".join(tk.token_bytes(tokenizer)[index] for index in ids) == text.encode()


@settings(deadline=None, max_examples=50)
@given(text=st.text(alphabet=st.characters(exclude_characters="▁", exclude_categories=["Cs"]), max_size=40))
def test_bytes_of_sentencepiece_tokens_spell_any_text(text):
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "é", "ab", "▁a"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "b"), ("▁", "a")], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>"])
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert b"".join(tk.token_bytes(tokenizer)[index] for index in ids) == text.encode()


def test_ids_that_no_token_has_are_none():
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 3}, []))
    tokenizer.decoder = decoders.ByteLevel()
    assert tk.vocabulary_size(tokenizer) == 4
    assert tk.token_bytes(tokenizer) == [b"a", None, None, b"b"]


def test_gguf_fields_make_a_tokenizer_whose_digits_stand_alone():
    tokens = ["<|end|>", "1", "2", "Ġ", "Ġ1", "12", "a", "Ġa"]
    fields = {"tokens": tokens, "token_type": [3, *[1] * 7], "merges": ["Ġ 1", "1 2", "Ġ a"]}
    tokenizer = tk.from_gguf(fields)
    assert tokenizer.encode(" 12 a<|end|>").tokens == ["Ġ", "1", "2", "Ġa", "<|end|>"]
    assert tk.token_bytes(tokenizer)[0] is None


@pytest.mark.parametrize(("name", "mend"), [("llama3", "tokenarium data tokenizers"), ("lama3", "did you mean 'llama")])
def test_a_tokenizer_that_is_not_there_is_named(tmp_path, name, mend):
    with pytest.raises(TokenariumError, match=mend):
        tk.load_tokenizer(name, tmp_path)


@pytest.mark.parametrize("name", tk.NAMES)
def test_real_tokenizers_decode_what_they_encode_and_their_bytes_spell_it(name):
    tokenizer = real(name)
    spelled = tk.token_bytes(tokenizer)
    assert len(spelled) == tk.vocabulary_size(tokenizer)
    blank = b" " if name == "llama2" else b""
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == normalised(name, text)
        assert b"".join(spelled[index] for index in ids) == blank + normalised(name, text).encode()


@pytest.mark.parametrize("name", ["tekken", "whisper", "gpt4o", "gpt35turbo", "gpt2"])
def test_real_tokenizers_merge_as_tiktoken_does(name):
    tokenizer = real(name)
    spelled = tk.token_bytes(tokenizer)
    first = 1000 if name == "tekken" else 0
    rank_of = {token: index for index, token in enumerate(spelled) if token is not None and index >= first}
    pieces = json.loads(tokenizer.pre_tokenizer.__getstate__())
    split = pieces["pretokenizers"][0]["pattern"]["Regex"] if "pretokenizers" in pieces else GPT2
    for text in TEXTS:
        expected = [r for piece in regex.findall(split, text) for r in merged_slowly(piece.encode(), rank_of)]
        assert tokenizer.encode(text, add_special_tokens=False).ids == expected


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("gpt2", 50257),
        ("llama3", 128256),
        ("tekken", 131072),
        ("smollm2", 49152),
        ("whisper", 50258),
        ("claude", 65000),
    ],
)
def test_real_vocabularies_have_the_published_sizes(name, size):
    assert tk.vocabulary_size(real(name)) == size


def test_turkish_dictionaries_have_the_published_sizes():
    try:
        found = tk.load_turkish(ROOT)
    except TokenariumError as error:
        pytest.skip(str(error))
    assert {key: (len(table), len(set(table.values()))) for key, table in found.items()} == {
        "roots": (22231, 20000),
        "suffixes": (361, 256),
        "bpe": (12512, 12512),
    }
