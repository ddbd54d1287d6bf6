"""The help of LibreOffice 7.4 in 32 languages, aligned by paragraph: real parallel text of one genre.

Source: The Document Foundation, LibreOffice Help (MPL-2.0), Debian packages `libreoffice-help-*`. A paragraph or
heading carries the same identifier in every language; the ids here are "<page>#<identifier>".

What is left out, by the English paragraph and so alike in all languages: listings of code, all pages on Basic and
Python, paragraphs that occurred before (pages include one another), and those of fewer than 20 characters. In a
language: paragraphs that are the English ones, that have more than 60 % of their words from those, or, where the script
is not Latin, whose letters are more than 90 % ASCII, because the help is only partly translated. In a paragraph: tags,
code, the name and version of the product, and what only Mac users see.
"""

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tokenarium.data import text
from tokenarium.data.sources import Archive, Asset

SHORTEST = 20
MOST_ASCII = 0.9
MOST_ENGLISH = 0.6
FEWEST_WORDS = 4  # so that the share of English words says something
ENGLISH = "en-US"
NOT_LATIN = ("dz", "el", "hi", "ja", "km", "ko", "ru", "zh-CN", "zh-TW")

_FOLDER = "usr/share/libreoffice/help/"
_PAGES = r"usr/share/libreoffice/help/{language}/text/(?!sbasic/)[^.]+\.html"
_PARAGRAPH = re.compile(r'<(p|h[1-6]) id="((?:par|hd)_id[^"]*)"([^>]*)>(.*?)</\1>', re.DOTALL)
_CODE_CLASS = re.compile(r'class="[^"]*code[^"]*"')
_CODE = re.compile(r'<(code|pre)\b[^>]*>.*?</\1>|<span class="(?:literal|input|acronym)">[^<]*</span>', re.DOTALL)
_MAC = re.compile(r'<span hidden="true"[^>]*class="MAC">(?:[^<]|<(?!/?span\b)[^>]*>|<span[^>]*>[^<]*</span>)*</span>')
_WORD = re.compile(r"[^\W\d_]{2,}")
_TAG = re.compile(r"<[^>]+>")
_PRODUCT = re.compile(r"%PRODUCT\w+|LibreOffice(?:Dev)?(?:\s7\.4)?")


def load(root: Path | str, language: str = ENGLISH, split: str | None = None) -> list[dict[str, str]]:
    """Paragraphs {"id", "text"} in one language, "train", "validation", "test" or all; see `text.load`."""
    return text.load(root, DATASET.name, language, split)


def parallel(root: Path | str, languages: Sequence[str], split: str | None = None) -> dict[str, list[str]]:
    """Language -> its paragraphs, of those that all the languages have; see `text.parallel`."""
    return text.parallel(root, DATASET.name, languages, split)


def paragraphs(page: str) -> Iterator[tuple[str, str]]:
    """(identifier, text) of each heading and paragraph of running text in a page of the help."""
    for _, identifier, attributes, content in _PARAGRAPH.findall(page):
        if _CODE_CLASS.search(attributes):
            continue
        shown = _MAC.sub("", content).replace('<span hidden="true"', ' <span hidden="true"')  # one of several variants
        plain = html.unescape(_TAG.sub("", _CODE.sub(" ", shown)))
        yield identifier, " ".join(_PRODUCT.sub(" ", plain).split())


def ascii_share(string: str) -> float:
    """Share of ASCII among the letters; 1 if there are none."""
    letters = [sign for sign in string if sign.isalpha()]
    return sum(sign.isascii() for sign in letters) / len(letters) if letters else 1.0


def is_untranslated(paragraph: str, english: str, language: str) -> bool:
    """Whether a paragraph of the help in a language is, or mostly is, the English one."""
    words = [word.lower() for word in _WORD.findall(paragraph)]
    known = {word.lower() for word in _WORD.findall(english)}
    share = sum(word in known for word in words) / max(len(words), 1)
    return (
        paragraph == english
        or (len(words) >= FEWEST_WORDS and share > MOST_ENGLISH)
        or (language in NOT_LATIN and ascii_share(paragraph) > MOST_ASCII)
    )


def _pages(members: Mapping[str, Path], language: str) -> Iterator[tuple[str, str]]:
    prefix = f"{_FOLDER}{language}/text/"
    for name, path in members.items():
        if name.startswith(prefix):
            page = name.removeprefix(prefix).removesuffix(".html")
            for identifier, found in paragraphs(path.read_text(encoding="utf-8")):
                yield f"{page}#{identifier}", found


def _english(members: Mapping[str, Path]) -> dict[str, str]:
    kept, seen = {}, set()
    for identifier, found in _pages(members, ENGLISH):
        if identifier not in kept and found not in seen and len(found) >= SHORTEST:
            kept[identifier] = found
        seen.add(found)
    return kept


def _translated(members: Mapping[str, Path], english: Mapping[str, str], language: str) -> Iterator[tuple[str, str]]:
    done = set()
    for identifier, found in _pages(members, language):
        if identifier not in english or identifier in done or not found:
            continue
        if not is_untranslated(found, english[identifier], language):
            done.add(identifier)
            yield identifier, found


def _normalise(members: Mapping[str, Path], output: Path) -> None:
    english = _english(members)
    others = {language: _translated(members, english, language) for language in _DIGESTS if language != ENGLISH}
    text.write(output, {ENGLISH: english.items(), **others})


_DIGESTS = {
    "ca": "272ccf773738bbca0b4ae650130f99f76455b69a6ed7dc7e9fd93d00e61bd803",
    "cs": "9bd862f429b45a3c57ec2e548e73cafe8f879ed912e939cefe4be29f6078ac50",
    "da": "958a01e95d8d56f33015cdd318a40242a83849c9525e2181c857cf8eb7d8ba8c",
    "de": "61c6a22d9e273b645ca48802c9c9db578d4bca8c2256773553cf4605ede82a11",
    "dz": "e0ca31677d9af9653270d8e31aa1104ff298f9e71da3750ceb429e8f0a58b001",
    "el": "1b3077cab11d8b3362a79ab5d3cbdc8b4d1b6042720e3663351ca5a567739863",
    "en-US": "ffb7251470ec3cc79162c7980d9046e5746a69f8f542daecf49eb3ccb3996b52",
    "es": "31cff0325a4c78aa04462419f20d1eb184935910547f70d435b919a942622e5c",
    "et": "f01eb84c8f49dcd3207ed4d5d592a811c9a95a9b5a616552a4a09d551ef56edc",
    "eu": "57ebcbf1b354dba396639ce48c803348a1a8cfa7fbd18ba871cee2e69dab6a72",
    "fi": "3e47a41630e8b24d6aecaec8027ab3e032cc5c012b803cafa70f9fb34cb66429",
    "fr": "32ddc64889fb625c34079905c0a669af4b17931841a13d7220a8940ea1286392",
    "gl": "32ca597fbd7a0ffa75f5357e976d1f30f1935d734aea8dcc9ab0848bfc207849",
    "hi": "8aab1496895f707f9c2418c7b33054d69238b22c1bd51f1fb01f30fe096dfc6f",
    "hu": "c69661d8ca25b38733a7b21936c7bf02bc91a8325918a8bb089f5bcf1c45b731",
    "id": "bb332c4d53d1e99c809f15f712a73ced07257a9f7473d26f03106470fe7f4438",
    "it": "80f66dc0a4a84d5141aaed612a482eb11712c8c5f8b027fc6f714008486cbc38",
    "ja": "71e2672f7b7207b7632c91d8081e945eff8afae9f205a1cd623fdc31b56b1070",
    "km": "928c4884d9750bed43285c20ab715d8a13ecfa0b58b5ac9dc726cb7db1999f1f",
    "ko": "cfff724fa609b3e08ac5c70dd2c267c932592281ef6f759e740123d1337d2edf",
    "nl": "99597c4dea28b24f8cb0dcec6c052a1999d142f141906dce23e710bb045c44fb",
    "om": "710c7d9f3fcd8b7cd0b02c1cac4b9e37689c420a8f1b5c0ac8cd3e00867c19f9",
    "pl": "ce3e8b60c35b161ee325d6b4a747c164b49b483b36742bfdbdf6fe817520942f",
    "pt": "e77d5e1b4b982fc8e51fc1a80d739fa51bd92f564ab7e787997f812ec1888853",
    "pt-BR": "33a852db46744c6413f83fe81b2f9e0a6dbb02aa22d7c4a1137cbcf29fe3679c",
    "ru": "761efe8b030c254e1ec0f3509f5f9c34bed277d7d00ba0657a92ffd31dd0cfeb",
    "sl": "900f4a64a9d7f43144804b89e9ba07859dd869d9464bfc83a411f946b2a3da8c",
    "sv": "02c78ad03129371e098dd6c19185428bb44eb17aa788cc11b0c3cb23f5dc37dc",
    "tr": "31313eb117a8632ebad14e9a5f3a02217dcf66be2a250008088d6c2b68e6c4ac",
    "vi": "04eb215346fb9603480579fc5e2d18c41f2186c4504473dd5782cdcacc40f383",
    "zh-CN": "c5344eb3f6f7167056d9a01375d421ae660da391eaabff28782f2289e8275420",
    "zh-TW": "4a362ce315d1eb96987bcc3647afbe3a0765f8087bc16707faab3f52db9d0aa8",
}
_FILES = {
    "ca.jsonl": "4b5fdaf6610ca6cc0db8d55b710655cb5968fe7bd2f499d5bd05f3d5021cee91",
    "cs.jsonl": "ee7d98881708077b297e73a88040b652d936a38abf5d07f91baa27edbb4f000e",
    "da.jsonl": "c6fc5a7ed181e3296c37928918f14d6f240515b5b18bfd97aa852d88fdbfecc3",
    "de.jsonl": "0753d1c2e95b5960e8f16611e0eb9c6eeed24456a39ff5556ed6ac3c2f191872",
    "dz.jsonl": "220be359135d429b57e2d3b64e39e3c9cdcdef2732f0c234088787912ec545c0",
    "el.jsonl": "b4c6228153c85a3afaf100f5e2da0d859fbb001f4410855c11b132e84dc69f0a",
    "en-US.jsonl": "4035c823c302ea3c289733107d68df5929e9ae148b660e6229a34b85c194edfd",
    "es.jsonl": "738d86752c3ff507953a5af99c8734ac48ce534d8ee3094f2e2e7db94da1fcbe",
    "et.jsonl": "95d3c613442a818a1ab34d052e3a7fc82261679dcf09022c7ad511f0308073b1",
    "eu.jsonl": "b7754d51014f33f16522469e580dce92cad317a2aeb10a991e355ece6cb9dd67",
    "fi.jsonl": "d7f3f09f7af561b2647c0aa22b5b95362d1894247a59fbc8cbca80228d546550",
    "fr.jsonl": "6edbd79d7948fa9c798699a43e5e914970224a8df8906aba1d45cde9be345e1f",
    "gl.jsonl": "4ce90d92a6af84f7abee2f6bd00475722a09f1254121e4328c1354cf94e0957c",
    "hi.jsonl": "8fba9fd7fcf7486edb68e32c14e5c76079506638964b363be34360c64dc4d950",
    "hu.jsonl": "0b6907d5a41eba307a5c1fd5328878c65507efe92f487e0b9d24d06f48290e0a",
    "id.jsonl": "a7a64032a71cc7bec0905034920e6a459b31aaa90d63762be38088ee5918197e",
    "it.jsonl": "8c9f2dbd6cd2691d0930e1a15f0afcd575277353368fa9279aa6fe3508c95f65",
    "ja.jsonl": "82249f52e5baf8fc17ce89cd7d296c0c7324400d0d217704bab37953b5edd73c",
    "km.jsonl": "3ed0e03542461041e6f6082c049b274f20cd4f848f71880b6cd7d416f32b2202",
    "ko.jsonl": "dbbf9121bab5653f48b3405fd97ab2190c07e0220b92d3b555771ed15f3c3a11",
    "nl.jsonl": "4aee97b8bf6ade1920891a09e5219df9cc60a14c0aaeef65e9fc6414fc1e2452",
    "om.jsonl": "d7c8c09b31699e3c8b0ff85722339812e8be43da2a063d747906c63a3895aeb4",
    "pl.jsonl": "e0e38818b8f50a4884a0b4cd4ed4ad5f8ddf80558a73b87f70e0e687176eb7f1",
    "pt-BR.jsonl": "cc4f0a61b616dec2e299eacb97564cb0385b9cf8dd4ccb90acd74b996d89957f",
    "pt.jsonl": "f35f89281ab167ce260f61f6e427a8fad8e3cd9994dfb72172a19e9d7f506af8",
    "ru.jsonl": "6f44db67073dabbe03d7b09a48164c01f41bf54ac897c8b73584911195701e5f",
    "sl.jsonl": "d9f90e889ae2ed51a59c30cc09580e4a11343f44552010d6a435a48343d72abc",
    "sv.jsonl": "46e9f93c11b400f18b633010c6acd2eb3ff06a82b0866b430309a2f98f5f3144",
    "tr.jsonl": "e1b2c42cdfb927967cce7e66e8fd5633ef7c1829392ab2e9bdf61f991e6d0aa9",
    "vi.jsonl": "ffa6c6de80f4dd67065002f862ae4af9a86ef937af01c53601ef03570fe3110f",
    "zh-CN.jsonl": "6abc66da65e17b6758ffffbf8657170fcbee654d8aa4d94d0f9f45f47648956e",
    "zh-TW.jsonl": "660ce9f1c5cc9b5a2364c793be1ac23b452c8366b6fa12bf980c1fbbcae53671",
    text.MANIFEST: "ba349b26034f6e8b10549b278193c206392f0d2ade427a0836f98781fa9c19a3",
}

DATASET = Asset(
    name="libreoffice-help",
    packages=tuple(
        Archive(
            "apt",
            f"libreoffice-help-{language.lower()}",
            "4:7.4.7-1+deb12u14",
            digest,
            _PAGES.format(language=language),
        )
        for language, digest in _DIGESTS.items()
    ),
    normalise=_normalise,
    files=_FILES,
)
