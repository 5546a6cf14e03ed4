"""Abbreviations and ordinal numbers after which ``sentencex`` ends a sentence though none ends there.

Found by reading its output. Lower-case, without the last full stop.
"""

import re

_ALWAYS = {
    "bg": "т.е т.н сл.хр пр.хр напр проф акад",
    "cs": "např tj tzv sv ing prof",
    "es": "sr sra dr dra ud uds núm dª d.ª",
    "fi": "esim mm ts nro",
    "fr": "m mm mme mlle dr pr mgr av apr cf env",
    "gl": "sr sra dr dra d dna dª núm",
    "it": "sig dott prof",
    "nl": "dhr mevr bijv o.a d.w.z",
    "pl": "ok np tj m.in prof św ul ur zm",
    "pt": "sr sra dr dra núm",
    "ru": "т.е т.к т.н им ул проф акад",
    "sv": "t.ex bl.a d.v.s ca",
}
_BEFORE_A_NUMBER = {
    "bg": "стр с г чл",
    "cs": "č str čl",
    "de": "nr abs art s bd kap abb",
    "en": "eq eqs vol vols ch chs par art fig figs no nos pp p sec secs tab app temp sat wt ht",
    "ca": "s p pàg",
    "es": "pág págs p art vol cap s",
    "fi": "s klo luku",
    "fr": "p pp vol art chap fig n s",
    "gl": "s p páx",
    "it": "p pp art vol cap",
    "nl": "nr blz art",
    "pl": "nr str art t",
    "pt": "pág págs p art vol cap n s séc",
    "ru": "стр с ст т гл рис",
    "sv": "nr s kl",
}
_ORDINAL = {  # "des 66. Festivals": a number behind an article
    "da": re.compile(r"(?:^|\s)(?:den|det|de)\s\d{1,3}\.$", re.IGNORECASE),
    "de": re.compile(
        r"(?:^|\s)(?:de[rnms]|die|das|zu[mr]|[ai]m|vom|beim|[dms]?ein\w*|ihr\w*)\s\d{1,3}\.$", re.IGNORECASE
    ),
}
_ORDINAL |= dict.fromkeys(("nb", "nn", "no"), _ORDINAL["da"])


def is_ordinal(text: str, language: str) -> bool:
    """Whether ``text`` ends with an ordinal number, which ends no sentence."""
    return language in _ORDINAL and _ORDINAL[language].search(text) is not None


_NUMBER = re.compile(r"\d|(?:[IVXLC]{2,}|[VX])\b")  # "10", "XVIII"


def is_abbreviation(word: str, language: str, following: str) -> bool:
    """Whether ``word``, with its full stop, ends no sentence before the text ``following``."""
    known = _ALWAYS.get(language, "").split()
    if _NUMBER.match(following):
        known += _BEFORE_A_NUMBER.get(language, "").split()
    return word.endswith(".") and word[:-1].lower() in known
