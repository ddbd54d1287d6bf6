"""The Debian Reference's prose: nothing of the text lost, no tables or listings, paragraphs long enough."""

import json
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenarium.data import debian_reference as reference
from tokenarium.errors import TokenariumError

PAGE = """<html xmlns="http://www.w3.org/1999/xhtml"><head><title>Chapter 7</title></head><body>
<div class="navheader"><table><tr><th>Chapter 7</th></tr></table></div>
<div class="chapter">
  <div class="titlepage"><div><h1 class="title"><a id="seven"/>Chapter\N{NO-BREAK SPACE}7.  Windows</h1></div></div>
  <div class="toc"><p><strong>Table of Contents</strong></p><dl class="toc"><dt>7.1. Doors</dt></dl></div>
  <p> The opening   words,
      with <code class="literal">code</code> in them. </p>
  <div class="section">
    <div class="titlepage"><div><h2 class="title">7.1. Doors</h2></div></div>
    <div class="note"><h3 class="title">Note</h3><p>A note.</p></div>
    <div class="itemizedlist"><ul class="itemizedlist">
      <li class="listitem"><p>First item</p></li><li class="listitem"><p>Second item</p></li></ul></div>
    <pre class="screen">$ listing</pre>
    <div class="table"><p class="title"><strong>Table 7.1. Keys</strong></p>
      <table class="table"><tr><td><p>cell</p></td></tr></table></div>
    <p> </p>
    <div class="section"><div class="titlepage"><h3 class="title">7.1.1. Handles</h3></div><p>Last.</p></div>
  </div>
</div><div class="navfooter"><p>Next</p></div></body></html>"""

words = st.lists(st.sampled_from(["Apt", "the", "tree(1)", '"/etc"', "a,", "b"]), min_size=1, max_size=30)
sentences = words.map(" ".join).flatmap(lambda text: st.sampled_from([".", "?", "!", ""]).map(text.__add__))
blocks = st.lists(
    st.tuples(st.sampled_from(["1.1. One", "1.1.1. Two"]), st.lists(sentences, min_size=1, max_size=5).map(" ".join)),
    max_size=12,
)


def words_and_marks(text):
    """An independent count: letters, digits and underscores run together, every other visible sign counts alone."""
    count, inside = 0, False
    for sign in text:
        in_word = sign.isalnum() or sign == "_"
        count += (in_word and not inside) or not (in_word or sign.isspace())
        inside = in_word
    return count


def test_prose_is_paragraphs_items_and_notes_under_their_titles():
    assert list(reference.prose(ElementTree.fromstring(PAGE))) == [
        ("Chapter 7. Windows", "The opening words, with code in them."),
        ("7.1. Doors", "A note."),
        ("7.1. Doors", "First item"),
        ("7.1. Doors", "Second item"),
        ("7.1.1. Handles", "Last."),
    ]


@given(blocks=blocks, least=st.integers(1, 60), start=st.integers(1, 8))
def test_paragraphs_keep_every_word_in_order(blocks, least, start):
    made = list(reference.paragraphs(blocks, least, start))
    assert " ".join(text for _, text in made).split() == " ".join(text for _, text in blocks).split()


@given(blocks=blocks, least=st.integers(1, 60), start=st.integers(1, 8))
def test_paragraphs_are_long_enough_and_start_with_long_enough_sentences(blocks, least, start):
    made = [text for _, text in reference.paragraphs(blocks, least, start)]
    assert all(words_and_marks(text) >= least for text in made[:-1])
    assert all(len(reference.split_first_sentence(text)[0].split()) >= start for text in made[1:])


@given(blocks=blocks, least=st.integers(1, 60))
def test_a_paragraph_is_complete_without_its_last_sentence_never(blocks, least):
    for _, text in reference.paragraphs(blocks, least, least_start=1):
        parts = [part for block in text.split("\n") for part in reference.sentences(block)]
        assert words_and_marks(" ".join(parts[:-1])) < least


@given(blocks=blocks)
def test_a_newline_stands_where_a_block_ended_and_nowhere_else(blocks):
    longest = [text for _, text in reference.paragraphs(blocks, least_words=10**9)]
    assert longest == (["\n".join(text for _, text in blocks)] if blocks else [])


@given(blocks=blocks, least=st.integers(1, 60))
def test_a_paragraph_is_under_the_title_of_its_first_sentence(blocks, least):
    titles = [title for title, block in blocks for _ in reference.sentences(block)]
    position = 0
    for title, text in reference.paragraphs(blocks, least):
        assert title == titles[position]
        position += sum(len(reference.sentences(block)) for block in text.split("\n"))


@given(text=st.lists(st.lists(sentences, min_size=1, max_size=4).map(" ".join), min_size=1, max_size=4).map("\n".join))
def test_the_first_sentence_and_the_rest_make_the_whole(text):
    first, rest = reference.split_first_sentence(text)
    assert first
    assert "\n" not in first
    assert f"{first} {rest}".split() == text.split()


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("Run it. Then stop.", ["Run it.", "Then stop."]),
        ("Is it up? Yes! Good.", ["Is it up?", "Yes!", "Good."]),
        ('Say "stop." Then go.', ['Say "stop."', "Then go."]),
        ("(All of it.) Then go.", ["(All of it.)", "Then go."]),
        ('Type it. "/etc" is next.', ["Type it.", '"/etc" is next.']),
        ("See e.g. Debian and i.e. Ubuntu.", ["See e.g. Debian and i.e. Ubuntu."]),
        ("apt vs. Aptitude", ["apt vs. Aptitude"]),
        ("Version 2.6 of etc. files", ["Version 2.6 of etc. files"]),
        ("one", ["one"]),
    ],
)
def test_sentences_end_where_a_reader_would_end_them(block, expected):
    assert reference.sentences(block) == expected


@pytest.fixture
def members(tmp_path):
    """Every page of the book, each with the same few lines, one page with more."""
    found = {}
    for number, name in enumerate(reference.DATASET.packages[0].members):
        path = tmp_path / f"{number}.html"
        path.write_text(PAGE, encoding="utf-8")
        found[name] = path
    long = PAGE.replace("<p>Last.</p>", "<p>" + "The same seven words make a sentence. " * 30 + "</p>")
    next(iter(found.values())).write_text(long, encoding="utf-8")
    return found


def test_normalising_writes_one_line_a_paragraph(members, tmp_path):
    folder = tmp_path / "data" / "debian-reference"
    folder.mkdir(parents=True)
    reference.DATASET.normalise(members, folder)
    loaded = reference.load(tmp_path)
    lines = (folder / "paragraphs.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == loaded
    assert len({paragraph["id"] for paragraph in loaded}) == len(loaded)
    assert loaded[0] == {
        "id": "pr01-001",
        "section": "Chapter 7. Windows",
        "text": "The opening words, with code in them.",
    }
    assert loaded[1]["section"] == "7.1. Doors"
    assert loaded[1]["text"].startswith("A note.\nFirst item\nSecond item\nThe same seven words")
    assert [paragraph["id"][:4] for paragraph in loaded[-2:]] == ["apa-", "apa-"]


def test_a_paragraph_never_runs_from_one_numbered_section_into_the_next(members, tmp_path):
    reference.DATASET.normalise(members, tmp_path)
    text = (tmp_path / "paragraphs.jsonl").read_text(encoding="utf-8")
    assert not re.search(r"opening words.*A note", text)


def test_loading_before_fetching_names_the_mend(tmp_path):
    with pytest.raises(TokenariumError, match="tokenarium data debian-reference"):
        reference.load(tmp_path)
