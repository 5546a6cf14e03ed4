"""Words and letters in any script.

Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan put no spaces between words.
"""

import re
import unicodedata

_UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao; Tibetan; Burmese; Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"  # Japanese
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese characters
)
_UNSPACED_LETTER = re.compile(f"[{_UNSPACED}]")
_WORD = re.compile(f"[{_UNSPACED}]|[^\\s{_UNSPACED}]+")
_LETTERS_A_WORD = 2  # about, in scripts without spaces


def split_words(text: str) -> list[str]:
    """The words of ``text``; in scripts without spaces, its letters."""
    return text.split() if text.isascii() else _WORD.findall(text)


def begins_unspaced(text: str) -> bool:
    """Whether ``text`` begins with a letter of a script without spaces."""
    return _UNSPACED_LETTER.match(text) is not None


def count_words(text: str) -> int:
    """The number of words of ``text``, with single spaces; in scripts without spaces, two letters are taken for one."""
    unspaced = 0 if text.isascii() else len(_UNSPACED_LETTER.findall(text))
    if not unspaced:
        return text.count(" ") + 1
    return len(_UNSPACED_LETTER.sub(" ", text).split()) + -(-unspaced // _LETTERS_A_WORD)


def count_letters(text: str) -> int:
    """The number of letters, with the marks that belong to them: in Hindi or Thai, vowels are marks."""
    letters = sum(map(str.isalpha, text))
    return letters if text.isascii() else letters + sum(unicodedata.category(other)[0] == "M" for other in text)
