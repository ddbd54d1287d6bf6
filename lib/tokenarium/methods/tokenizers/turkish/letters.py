"""Upper and lower case in Turkish, where I is the capital of ı, and İ of i."""


def lower(text: str) -> str:
    """`text` in lower case, a character for a character where Python's `str.lower` has one too."""
    return text.replace("İ", "i").replace("I", "ı").lower()


def capitalised(word: str) -> str:
    """`word` with its first letter in upper case."""
    return word[:1].replace("i", "İ").replace("ı", "I").upper() + word[1:]


def has_letter(text: str) -> bool:
    """Whether a letter of any alphabet is in `text`."""
    return any(character.isalpha() for character in text)
