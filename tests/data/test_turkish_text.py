"""The Turkish text: running text of the help, what is Turkish of it, each once."""

import pytest

from tokenarium.data import turkish_text
from tokenarium.errors import TokenariumError

LONG = "Yazdırma seçeneklerini değiştirmek için bu düğmeye tıklayın ve bir sayfa seçin"
PAGE = f"""<p id="par_id1" class="paragraph" dir="auto">LibreOffice 7.4 <b>{LONG}</b></p>
<p id="par_id2" class="codebody" dir="auto">{LONG} kod</p>
<p id="par_id3" class="paragraph" dir="auto">Kısa bir çizgi.</p>
<p id="par_id4" class="paragraph" dir="auto">A paragraph that nobody has translated so far, although it is long.</p>"""


def test_help_keeps_long_turkish_paragraphs_once_in_order_of_the_pages():
    pages = {"b": PAGE, "a": PAGE.replace("tıklayın", "basın")}
    kept = [("a#par_id1", LONG.replace("tıklayın", "basın")), ("b#par_id1", LONG)]
    assert list(turkish_text.help_paragraphs(pages)) == kept
    assert list(turkish_text.help_paragraphs({"a": PAGE, "b": PAGE})) == [("a#par_id1", LONG)]


@pytest.mark.parametrize(
    ("text", "turkish"),
    [("şişe", True), ("İ" + "n" * 30, True), ("ı" + "n" * 40, False), ("plain English", False), ("123", False)],
)
def test_three_percent_of_the_letters_decide(text, turkish):
    assert turkish_text.is_turkish(text) is turkish


def test_text_that_was_not_fetched_says_how_to(tmp_path):
    with pytest.raises(TokenariumError, match="tokenarium data turkish-text"):
        turkish_text.load(tmp_path)
