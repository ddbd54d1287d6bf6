"""Corpora: splits by document alone, aligned languages, and each source read as a person would read it."""

import gzip
import json
import re
import struct
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenarium.data import (
    debian_reference_translated,
    king_james_bible,
    libreoffice_help,
    licences,
    man_pages,
    python_source,
    text,
    udhr,
)
from tokenarium.errors import TokenariumError
from tokenarium.study.parameters import project_root

ROOT = project_root(Path(__file__).parent)

HELP = """<html><body><header><p dir="auto">LibreOffice 7.4 Help</p></header>
<h1 id="hd_id1" dir="auto"><a name="x"></a>{title} of LibreOffice 7.4 documents</h1>
<p id="par_id2" class="paragraph" dir="auto">{first} <span class="emph">File &amp; Open</span>
 <code>=SUM(A1)</code> it.</p>
<p id="par_id3" class="code" dir="auto">print "a listing is no running text"</p>
<p id="par_id4" class="listitem" dir="auto">Short.</p>
<p id="par_id5" class="paragraph" dir="auto">{second}</p>
</body></html>"""
MAN = r""".TH SAMPLE 7 2023 "Linux"
.\" a comment
.SH NAME
sample \- a page of \fImanual\fP
.SH DESCRIPTION
The command
.BR ls (1)
lists
.I "many files"
at once.
.TS
tab;
.TE
.PP
It\(aqs \(lqfree\(rq; see \e.
.EX
$ ls \-l
.EE
"""
ENGLISH = {"title": "The title", "first": "Choose the item", "second": "Some words about many things."}
TURKISH = {"title": "Başlığı", "first": "Öğeyi seçin", "second": "Birçok şey hakkında birkaç söz."}


def fill(folder, pages):
    """Files below a folder, by the paths that packages hold them under."""
    members = {}
    for number, (name, content) in enumerate(sorted(pages.items())):
        path = folder / "members" / str(number) / Path(name).name
        path.parent.mkdir(parents=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        members[name] = path
    return members


def made(module, tmp_path, pages):
    """The root of a project where the corpus of a module was made of these pages."""
    output = tmp_path / "data" / module.DATASET.name
    output.mkdir(parents=True)
    module.DATASET.normalise(fill(tmp_path, pages), output)
    return tmp_path


@settings(deadline=None, max_examples=50)
@given(document=st.text(st.characters(exclude_characters="#", exclude_categories=["Cs"])), part=st.text("ab1#"))
def test_all_parts_of_a_document_are_in_its_split(document, part):
    assert text.split_of(f"{document}#{part}") == text.split_of(document)


def test_about_a_tenth_of_the_documents_is_held_out_for_either_use():
    counts = Counter(text.split_of(f"folder/page{number}") for number in range(2000))
    assert set(counts) == set(text.SPLITS)
    assert 150 < counts["validation"] < 250
    assert 150 < counts["test"] < 250


def test_what_was_written_is_loaded_by_split_and_counted(tmp_path):
    pairs = [(f"page{number}#1", f"ç{number}") for number in range(50)]
    text.write(tmp_path / "data" / "sample", {"xx": pairs})
    assert [(row["id"], row["text"]) for row in text.load(tmp_path, "sample", "xx")] == pairs
    parts = [text.load(tmp_path, "sample", "xx", split) for split in text.SPLITS]
    assert sorted(row["id"] for rows in parts for row in rows) == sorted(name for name, _ in pairs)
    held = text.manifest(tmp_path, "sample")["xx"]
    assert held["paragraphs"] == 50
    assert held["bytes"] == sum(len(word.encode()) for _, word in pairs)
    assert held["bytes_by_split"] == {
        split: sum(len(row["text"].encode()) for row in rows) for split, rows in zip(text.SPLITS, parts, strict=True)
    }


def test_parallel_texts_are_those_that_all_languages_have(tmp_path):
    written = {"aa": [("p#1", "a1"), ("p#2", "a2"), ("q#1", "a3")], "bb": [("q#1", "b3"), ("p#1", "b1")]}
    text.write(tmp_path / "data" / "sample", written)
    assert text.parallel(tmp_path, "sample", ["aa", "bb"]) == {"aa": ["a1", "a3"], "bb": ["b1", "b3"]}


def test_mistakes_are_named(tmp_path):
    with pytest.raises(TokenariumError, match="tokenarium data sample"):
        text.load(tmp_path, "sample", "aa")
    text.write(tmp_path / "data" / "sample", {"aa": []})
    with pytest.raises(TokenariumError, match="no language 'bb': there are aa"):
        text.load(tmp_path, "sample", "bb")
    with pytest.raises(ValueError, match="split must be one of train"):
        text.load(tmp_path, "sample", "aa", "dev")


def test_help_paragraphs_have_neither_tags_nor_code_nor_product():
    assert list(libreoffice_help.paragraphs(HELP.format(**ENGLISH))) == [
        ("hd_id1", "The title of documents"),
        ("par_id2", "Choose the item File & Open it."),
        ("par_id4", "Short."),
        ("par_id5", "Some words about many things."),
    ]


def test_help_keeps_translated_paragraphs_of_pages_that_say_something_new(tmp_path):
    folder = "usr/share/libreoffice/help"
    pages = {
        f"{folder}/en-US/text/swriter/a.html": HELP.format(**ENGLISH),
        f"{folder}/en-US/text/swriter/b.html": HELP.format(**ENGLISH | {"second": "Quite another paragraph."}),
        f"{folder}/tr/text/swriter/a.html": HELP.format(**TURKISH),
        f"{folder}/tr/text/swriter/b.html": HELP.format(**TURKISH | {"second": "Quite another paragraph."}),
        f"{folder}/hi/text/swriter/a.html": HELP.format(**ENGLISH | {"second": "कई चीज़ों के बारे में", "first": "Use"}),
        f"{folder}/hi/text/swriter/b.html": HELP.format(**ENGLISH),
    }
    root = made(libreoffice_help, tmp_path, pages)
    ids = {language: [row["id"] for row in libreoffice_help.load(root, language)] for language in ("en-US", "tr", "hi")}
    first = ["swriter/a#hd_id1", "swriter/a#par_id2", "swriter/a#par_id5"]
    assert ids == {"en-US": [*first, "swriter/b#par_id5"], "tr": first, "hi": ["swriter/a#par_id5"]}
    assert libreoffice_help.parallel(root, ["tr", "hi"])["tr"] == ["Birçok şey hakkında birkaç söz."]


def test_help_has_one_variant_where_systems_differ():
    keys = (
        '<span class="switchinline"><span hidden="true" id="m" class="MAC"><span class="keycode">Command</span></span>'
        '<span hidden="true" id="d"><span class="keycode">Ctrl</span></span></span><span class="keycode">+F</span>'
    )
    page = f'<p id="par_id1" class="paragraph">Press {keys} to find.</p>'
    assert list(libreoffice_help.paragraphs(page)) == [("par_id1", "Press Ctrl+F to find.")]


@pytest.mark.parametrize(
    ("paragraph", "language", "untranslated"),
    [
        ("Choose the file that you want.", "tr", True),
        ("Choose the FILE that you want now.", "tr", True),
        ("İstediğiniz dosyayı seçin.", "tr", False),
        ("Kies the file die je wilt.", "nl", False),
        ("Dosya the file", "tr", False),  # too few words to say
        ("Αρχείο", "el", False),
        ("A file: αβ", "el", False),
        ("Some other words.", "el", True),
    ],
)
def test_untranslated_help_is_told_from_translated_help(paragraph, language, untranslated):
    english = "Choose the file that you want."
    assert libreoffice_help.is_untranslated(paragraph, english, language) == untranslated


def test_help_whose_letters_are_ascii_is_told_from_translated_help():
    assert libreoffice_help.ascii_share("1.25 %") == 1
    assert libreoffice_help.ascii_share("αβ ab") == 0.5


def declaration(code, articles):
    body = "".join(
        f'<article data-number="{number}"><h2>Article {number}</h2><p>Everyone  {number}\n&amp; all.</p></article>'
        for number in range(1, articles + 1)
    )
    return (
        f'<html data-code="{code}" data-iso6393="{code}" dir="ltr" lang="x"><title>Name</title><h1>T</h1>'
        f"<header><h2>Preamble</h2><p>Whereas</p><p>now</p></header>{body}</html>"
    )


def test_declarations_are_aligned_by_article_and_incomplete_ones_left_out(tmp_path):
    pages = {f"package/declaration/{code}.html": declaration(code, count) for code, count in (("aaa", 30), ("bbb", 29))}
    root = made(udhr, tmp_path, pages)
    assert udhr.manifest(root).keys() == {"aaa"}
    rows = udhr.load(root, "aaa")
    assert rows[0] == {"id": "preamble#1", "text": "Whereas\nnow"}
    assert rows[7] == {"id": "article07#1", "text": "Everyone 7 & all."}
    assert len(rows) == 31
    assert sum(len(udhr.load(root, "aaa", split)) for split in text.SPLITS) == 31
    assert udhr.manifest(root)["aaa"]["bytes"] == sum(len(row["text"]) for row in rows)
    with pytest.raises(TokenariumError, match="no language 'bbb'"):
        udhr.load(root, "bbb")


def literals(data):
    """What compress(1) makes of a few bytes if it finds nothing to compress: codes of 9 bits, the lowest bits first."""
    bits = sum(byte << (9 * index) for index, byte in enumerate(data))
    return bits.to_bytes((9 * len(data) + 7) // 8, "little")


def test_verses_are_read_from_windows_of_compress(tmp_path):
    parts = b"Ge1:1 In the beginning\nGe1:2 And", b" the earth\nnot a verse\n1Jo2:3 And hereby\n"
    packed = [literals(part) for part in parts]
    table = king_james_bible._TABLE + 4 * (king_james_bible._COUNT + 1)
    starts = [table, table + len(packed[0])] + [table + len(packed[0] + packed[1])] * (king_james_bible._COUNT - 1)
    data = bytes(king_james_bible._TABLE) + struct.pack(f">{len(starts)}I", *starts) + b"".join(packed)
    root = made(king_james_bible, tmp_path, {"usr/lib/bible.data": data})
    assert [(row["id"], row["text"]) for row in king_james_bible.load(root)] == [
        ("Ge1#1", "In the beginning"),
        ("Ge1#2", "And the earth"),
        ("1Jo2#3", "And hereby"),
    ]


def test_verses_are_lines_with_a_reference():
    assert list(king_james_bible.verses("Title.\nGe1:1 In the beginning.\nRev22:21 Amen.\n")) == [
        ("Ge1#1", "In the beginning."),
        ("Rev22#21", "Amen."),
    ]


def test_man_pages_become_running_text():
    assert man_pages.plain(MAN) == (
        "NAME\n\nsample - a page of manual\n\nDESCRIPTION\n\n"
        'The command ls(1) lists many files at once.\n\nIt\'s "free"; see \\.'
    )


def test_short_man_pages_are_left_out(tmp_path):
    long = MAN + "Words and more words. " * 20
    pages = {f"usr/share/man/man7/{n}.7.gz": gzip.compress(page.encode()) for n, page in (("a", long), ("b", MAN))}
    assert [row["id"] for row in man_pages.load(made(man_pages, tmp_path, pages))] == ["a.7"]


def test_python_files_are_kept_as_they_are(tmp_path):
    source = "def f():\n\treturn 'ç'\n"
    folder = "usr/lib/python3.11"
    root = made(python_source, tmp_path, {f"{folder}/a/b.py": source, f"{folder}/empty.py": ""})
    assert python_source.load(root) == [{"id": "a/b.py", "text": source}]


@pytest.mark.parametrize(
    ("name", "licence"),
    [
        ("gpl-2.0.LICENSE", "gpl-2.0"),
        ("gpl-2.0_17.RULE", "gpl-2.0"),
        ("gpl-2.0_or_mit_3.RULE", "gpl-2.0"),
        ("MIT_with_modification_1.RULE", "mit"),
    ],
)
def test_a_rule_is_on_the_licence_that_it_begins_with(name, licence):
    assert licences.licence_of(name) == licence


def test_licences_lose_header_and_doubles(tmp_path):
    words = "Permission is hereby granted. " * 10
    pages = {
        "licensedcode/data/licenses/mit.LICENSE": f"---\nkey: mit\n---\n\n{words}",
        "licensedcode/data/rules/mit_1.RULE": f"---\nlicense: mit\n---\n{words.replace(' ', chr(10))}",
        "licensedcode/data/rules/mit_2.RULE": "---\nlicense: mit\n---\nMIT",
        "usr/share/common-licenses/Artistic": f"The Artistic Licence. {words}",
    }
    rows = licences.load(made(licences, tmp_path, pages))
    assert [row["id"] for row in rows] == ["artistic#Artistic", "mit#mit.LICENSE"]
    assert rows[1]["text"] == words.strip()


def test_translated_reference_leaves_out_what_is_english(tmp_path):
    title = '<div class="titlepage"><h2>1.7. Titel</h2></div>'
    page = f'<html xmlns="http://www.w3.org/1999/xhtml"><body><p>{{}}</p>{title}<p>Same in both.</p></body></html>'
    folder = "usr/share/debian-reference"
    pages = {f"{folder}/ch01.en.html": page.format("One."), f"{folder}/ch01.de.html": page.format("Eins.")}
    root = made(debian_reference_translated, tmp_path, pages)
    assert debian_reference_translated.load(root, "de") == [{"id": "ch01.0#1", "text": "Eins."}]
    assert [row["id"] for row in debian_reference_translated.load(root)] == ["ch01.0#1", "ch01.7#2"]


# The corpora themselves, where they were fetched


def held(module):
    try:
        return text.manifest(ROOT, module.DATASET.name)
    except TokenariumError as error:
        pytest.skip(str(error))


def test_the_help_is_parallel_and_translated():
    languages = held(libreoffice_help)
    assert len(languages) >= 30
    both = libreoffice_help.parallel(ROOT, ["en-US", "de", "tr", "ja"], "test")
    assert len(both["de"]) > 500
    assert all(left != right for left, right in zip(both["en-US"], both["tr"], strict=True))
    assert all(libreoffice_help.ascii_share(line) <= 0.9 for line in both["ja"])
    numbers = [[set(re.findall(r"\d{2,}", line)) for line in both[language]] for language in ("en-US", "de")]
    told = [left == right for left, right in zip(*numbers, strict=True) if left | right]
    assert len(told) > 50
    assert sum(told) > 0.9 * len(told)  # the same numbers stand in the same paragraphs


def test_the_declaration_is_there_in_hundreds_of_languages():
    assert len(held(udhr)) > 400
    both = udhr.parallel(ROOT, ["eng", "tur", "ell_monotonic"])
    assert [len(lines) for lines in both.values()] == [31, 31, 31]
    assert both["eng"][1].startswith("All human beings are born free")


def test_the_bible_has_all_its_verses():
    assert held(king_james_bible)["en"]["paragraphs"] == 31102  # the number that concordances give
    assert king_james_bible.load(ROOT)[0]["text"] == "In the beginning God created the heaven and the earth."


@pytest.mark.parametrize("module", [man_pages, python_source, licences, debian_reference_translated])
def test_manifests_count_what_is_there(module):
    for language, entry in held(module).items():
        path = ROOT / "data" / module.DATASET.name / entry["file"]
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").strip().split("\n")]
        assert len(rows) == entry["paragraphs"] > 100, language
        assert sum(len(row["text"].encode()) for row in rows) == entry["bytes"]
        assert len({row["id"] for row in rows}) == len(rows)


def test_man_pages_hold_no_markup():
    held(man_pages)
    markup = re.compile(r"\\f[BIRP]|^\.[A-Z]{2}\b", re.MULTILINE)
    found = {page["id"] for page in man_pages.load(ROOT) if markup.search(page["text"])}
    assert found <= {"man.7", "man-pages.7"}  # they are about it
