"""Paragraph retrieval: which paragraphs take part, and embeddings that do not depend on their company."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from tokenarium.methods.vision.harness.text import embed_by_length, first_sentence_retrieval
from tokenarium.methods.vision.pitome import encode_text

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "sat", "on", "the", "mat", "##s", "."]
CLS, SEP, S = 2, 3, 10


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """WordPieces of a few words: "cats" is two of them."""
    made = Tokenizer(models.WordPiece({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", CLS), ("[SEP]", SEP)])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]")


@pytest.fixture(scope="module")
def encoder() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    return BertModel(config).eval()


def split(paragraph: str) -> tuple[str, str]:
    query, _, document = paragraph.partition(". ")
    return query, document


def retrieval(paragraphs, tokenizer, shortest=1, longest=100, count=2):
    return first_sentence_retrieval(paragraphs, split, tokenizer, shortest, longest, count)


def test_a_query_belongs_to_the_rest_of_its_own_paragraph(tokenizer):
    found = retrieval(["the cat. sat on", "a mat. on the cat. sat"], tokenizer)
    assert found.queries == ["the cat", "a mat"]
    assert found.documents == ["sat on", "on the cat. sat"]


def test_the_first_paragraphs_are_taken_and_no_more_are_read(tokenizer):
    def paragraphs():
        yield "the cat. sat"
        yield "a mat. sat"
        raise AssertionError("read on")

    assert retrieval(paragraphs(), tokenizer).queries == ["the cat", "a mat"]


def test_a_paragraph_of_one_sentence_is_passed_over(tokenizer):
    assert retrieval(["the mat", "the cat. sat", "a mat. sat"], tokenizer).queries == ["the cat", "a mat"]


def test_a_first_sentence_that_occurred_before_is_passed_over(tokenizer):
    found = retrieval(["the cat. sat", "the cat. on a mat", "a mat. sat"], tokenizer)
    assert found.queries == ["the cat", "a mat"]
    assert found.documents == ["sat", "sat"]


@pytest.mark.parametrize(
    ("shortest", "longest", "taken"),
    [
        (4, 6, ["a", "the cat", "cats on a"]),
        (5, 6, ["the cat", "cats on a"]),
        (4, 5, ["a", "the cat"]),
        (5, 5, ["the cat"]),
    ],
)
def test_lengths_are_counted_in_wordpieces_of_the_whole_paragraph_both_ends_included(
    tokenizer, shortest, longest, taken
):
    paragraphs = ["a. on mat", "the cat. sat on", "cats on a. mat", "the mat. the cat sat on a mat"]
    lengths = [len(tokenizer.convert_ids_to_tokens(tokenizer(p)["input_ids"])) - 2 for p in paragraphs]
    assert lengths == [4, 5, 6, 9]
    assert retrieval(paragraphs, tokenizer, shortest, longest, len(taken)).queries == taken


def test_too_few_paragraphs_are_refused_with_their_number(tokenizer):
    with pytest.raises(ValueError, match="only 1 of 2 paragraphs have 1 to 100 WordPieces"):
        retrieval(["the cat. sat"], tokenizer)


def one_by_one(texts, tokenizer, model) -> list[torch.Tensor]:
    """The plain mean over a text's hidden states, scaled to length one."""
    found = []
    for text in texts:
        with torch.no_grad():
            hidden = model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0].double()
        mean = sum(hidden) / len(hidden)
        found.append(mean / sum(float(value) ** 2 for value in mean) ** 0.5)
    return found


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 7), max_size=9),
    batch_size=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_batching_by_length_equals_encoding_one_by_one_in_the_same_order(tokenizer, encoder, lengths, batch_size, seed):
    generator = torch.Generator().manual_seed(seed)
    texts = [
        " ".join(WORDS[int(word)] for word in torch.randint(4, 10, (length,), generator=generator))
        for length in lengths
    ]
    shapes = []

    def encode(ids):
        shapes.append(tuple(ids.shape))
        hidden = encoder(ids).last_hidden_state
        return hidden, torch.ones(hidden.shape[:2])

    found = embed_by_length(texts, tokenizer, encoder, encode, batch_size)
    assert found.shape == (len(texts), 16)
    assert found.dtype == torch.float32
    for row, expected in zip(found, one_by_one(texts, tokenizer, encoder), strict=True):
        torch.testing.assert_close(row.double(), expected, atol=1e-5, rtol=0)
    assert sum(count for count, _ in shapes) == len(texts)
    assert all(count <= batch_size for count, _ in shapes)
    assert sorted(length for count, length in shapes for _ in range(count)) == sorted(n + 2 for n in lengths)


def test_a_token_that_stands_for_several_weighs_as_many(tokenizer, encoder):
    def encode(ids):
        hidden = torch.zeros(len(ids), 3, 16)
        hidden[:, 0, 0], hidden[:, 1, 1], hidden[:, 2, 2] = 1, 1, 1
        return hidden, torch.tensor([1.0, 2, 2]).expand(len(ids), -1)

    found = embed_by_length(["a cat", "the"], tokenizer, encoder, encode)
    for row in found:  # a mean in proportion 1 : 2 : 2, whose length is 3
        assert row[:3].tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3])


def test_long_texts_are_cut(tokenizer, encoder):
    lengths = []

    def encode(ids):
        lengths.append(ids.shape[1])
        hidden = encoder(ids).last_hidden_state
        return hidden, torch.ones(hidden.shape[:2])

    one, other = embed_by_length(["the cat sat on", "the cat sat a mat"], tokenizer, encoder, encode, max_length=5)
    assert lengths == [5]
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("method", ["none", "pitome", "tome"])
def test_a_merging_encoder_embeds_each_text_as_if_alone(tokenizer, encoder, method):
    texts = ["the cat sat on the mat", "a cat", "a mat sat on the cats", "the mat", "on a mat the cat sat"]

    def encode(ids):
        encoding = encode_text(encoder, ids, ratio=0.7, method=method)
        return encoding.last_hidden_state, encoding.size

    together = embed_by_length(texts, tokenizer, encoder, encode)
    alone = torch.cat([embed_by_length([text], tokenizer, encoder, encode) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    unmerged = torch.stack(one_by_one(texts, tokenizer, encoder)).float()
    assert torch.allclose(together, unmerged, atol=1e-5) == (method == "none")
