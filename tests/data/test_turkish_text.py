"""The Turkish help: running text only, and what is Turkish of it."""

import pytest

from tokenarium.data import turkish_text
from tokenarium.errors import TokenariumError

PAGE = """<body><h1 id="hd_id1">Seçenekler</h1>
<p id="par_id2" class="paragraph" dir="auto">LibreOffice 7.4 <span class="emph">yazdırma</span>
   &amp; <code>=TOPLA(A1)</code> kaydetme</p>
<p id="par_id3" class="paragraph codebody">Sub Main</p><p class="x">no identifier</p></body>"""


def test_paragraphs_lose_tags_code_and_the_product_and_headings_are_left_out():
    assert list(turkish_text.paragraphs(PAGE)) == [("par_id2", "yazdırma & kaydetme")]


@pytest.mark.parametrize(
    ("text", "turkish"),
    [("şişe", True), ("İ" + "n" * 30, True), ("ı" + "n" * 40, False), ("plain English", False), ("123", False)],
)
def test_three_percent_of_the_letters_decide(text, turkish):
    assert turkish_text.is_turkish(text) is turkish


def test_text_that_was_not_fetched_says_how_to(tmp_path):
    with pytest.raises(TokenariumError, match="tokenarium data turkish-text"):
        turkish_text.load(tmp_path)
