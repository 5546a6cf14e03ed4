"""Text of Wikipedia's templates that are words of a sentence. Most others are boxes, notes and citations."""

import re

from data_prep.sources.cleaning import PLACEHOLDER

_FIRST_ARGUMENT = {
    "nowrap", "nobr", "small", "smaller", "abbr", "sic", "em", "strong", "smallcaps", "sc", "var", "linktext",
    "pron", "ill", "interlanguage link", "visible anchor", "vanchor", "quote", "blockquote", "cquote", "gloss",
    "num", "nombre", "число", "formatnum", "nts",
    "avoid wrap", "nihongo", "keypress", "key press", "tooltip", "angbr", "vr", "ipa", "flag", "big", "larger", "tq",
    "unicode", "jas", "ens", "frs", "its", "ess", "pts", "rus", "las", "grcs", "ars", "zhs", "trs", "pls",
}  # fmt: skip
_FIXED = {
    "ndash": "–", "mdash": "—", "spaced ndash": " – ", "snd": " – ", "spnd": " – ", "endash": "–", "emdash": "—",
    "mdashb": " — ", "nbsp": " ", "spaces": " ", "'": "'", "`": "'", "-'": "'", "'s": "'s", "and": "and", "times": "×",
}  # fmt: skip
_FORMULAS = {
    "math", "mvar", "frac", "sfrac", "chem", "chem2", "val", "su", "sub", "sup", "tex", "nuclide", "e", "inflation",
    "currentyear", "currentmonth", "age", "eqm", "music", "decimals", "gaps",
}  # fmt: skip
_LAST_ARGUMENT = {"transl", "translit", "transliteration"}  # {{transl|ar|ALA|Allāh}}; ALA is optional
_SECOND_ARGUMENT = {"lang", "langx", "langi", "script"}  # {{lang|de|Katze}}
_NUMBER_AND_UNIT = {"unité", "unidad", "unité/2", "unit", "einheit"}  # {{unité|12|km}}
_DATES = {"date", "date-", "date de naissance", "date de décès"}  # {{date|11|novembre|1866}}
_FRENCH_NUMBER = re.compile(r"(\d+|[ivx]+)(er|re|ère|e)( siècle)?")  # {{1re}}, {{XXe siècle}}
_NOTES = {
    "citation needed", "cn", "fact", "citation", "efn", "efn-ua", "refn", "rp", "r", "ref", "note", "clarify",
    "when", "who", "where", "which", "why", "by whom", "according to whom", "dead link", "dubious", "vague", "better",
    "better source needed", "full citation needed", "page needed", "verify source", "failed verification", "specify",
    "additional citation needed", "unreliable source?", "citation needed span", "update inline", "anchor", "clear",
    "main", "see also", "further", "details", "about", "for", "short description", "use dmy dates", "toc",
    "use mdy dates",
    "défaut de référence", "référence nécessaire", "refnec", "quand", "qui", "cita requerida", "belege fehlen",
    "источник", "нет аи", "carece de fontes", "bron?", "sfnm", "citace", "harvsp", "audio", "listen",
}  # fmt: skip
_NOTE_PREFIXES = ("cite ", "cite-", "sfn", "harv", "ipac-", "ipa-", "ref ", "note ", "citation ")
"""Notes and marks beside a sentence: leaving them out leaves it whole."""
_SHIPS = {"uss", "hms", "ss", "rms", "hmas", "hmcs", "usns", "sms"}
_MUSIC = {"flat": "-flat", "sharp": "-sharp", "natural": "-natural", "b": "-flat", "#": "-sharp"}

# {{convert|2381741|km2|sqmi}}: names of the units, singular and plural
_UNITS = {
    "km": "kilometre kilometres", "m": "metre metres", "cm": "centimetre centimetres", "mm": "millimetre millimetres",
    "mi": "mile miles", "ft": "foot feet", "in": "inch inches", "yd": "yard yards", "fathom": "fathom fathoms",
    "nmi": "nautical_mile nautical_miles", "au": "astronomical_unit astronomical_units", "ly": "light-year light-years",
    "pc": "parsec parsecs", "ha": "hectare hectares", "acre": "acre acres", "kg": "kilogram kilograms",
    "g": "gram grams", "mg": "milligram milligrams", "t": "tonne tonnes", "lb": "pound pounds", "oz": "ounce ounces",
    "st": "stone stone", "ton": "ton tons", "lt": "long_ton long_tons", "carat": "carat carats", "l": "litre litres",
    "ml": "millilitre millilitres", "usgal": "US_gallon US_gallons", "impgal": "imperial_gallon imperial_gallons",
    "gal": "gallon gallons", "oilbbl": "barrel barrels", "bbl": "barrel barrels", "kn": "knot knots",
    "mph": "mile_per_hour miles_per_hour", "c": "°C °C", "°c": "°C °C", "f": "°F °F", "°f": "°F °F",
    "k": "kelvin kelvins", "hp": "horsepower horsepower", "kw": "kilowatt kilowatts", "mw": "megawatt megawatts",
    "w": "watt watts", "j": "joule joules", "kj": "kilojoule kilojoules", "kcal": "kilocalorie kilocalories",
    "psi": "pound_per_square_inch pounds_per_square_inch", "kpa": "kilopascal kilopascals",
    "atm": "atmosphere atmospheres", "n": "newton newtons", "pd": "inhabitant inhabitants",
    "d": "day days", "h": "hour hours", "s": "second seconds", "hz": "hertz hertz", "mt": "tonne tonnes",
}  # fmt: skip
_POWERS = {"2": "square", "3": "cubic"}
_MULTIPLES = {
    "e3": "thousand", "e6": "million", "e9": "billion", "e12": "trillion",
    "k": "thousand", "M": "million", "G": "billion", "T": "trillion",
}  # fmt: skip
_RANGES = {
    "-": "–", "–": "–", "to": " to ", "to(-)": " to ", "and": " and ", "and(-)": " and ", "or": " or ",
    "by": " by ", "x": " by ", "xx": " by ", "*": " by ", "×": " by ",
    "+/-": " ± ", "±": " ± ", "to about": " to about ",
}  # fmt: skip
_NUMBER = re.compile(r"[-−+]?\d[\d,.]*(?:[+⁄/ ]\d+[/⁄]\d+)?$")
_LONG_NUMBER = re.compile(r"(?<![\d.,])\d{4,}(?![\d,])")
_PARTS = {("ft", "in"), ("lb", "oz"), ("st", "lb"), ("mi", "yd"), ("mi", "ft"), ("yd", "ft")}


_KNOWN = {
    *_FIXED, *_FORMULAS, *_SHIPS, *_FIRST_ARGUMENT, *_LAST_ARGUMENT, *_SECOND_ARGUMENT, *_NUMBER_AND_UNIT, *_DATES,
    "coord", "convert", "cvt", "as of", "circa", "c.",
}  # fmt: skip


def is_known(name: str) -> bool:
    """Whether :func:`template_text` knows a template. ``name`` in lower case."""
    return name in _KNOWN or name.startswith("lang-") or _FRENCH_NUMBER.fullmatch(name) is not None


def is_note(name: str) -> bool:
    """Whether a template adds nothing to the sentence that it stands in. ``name`` in lower case."""
    return name in _NOTES or name.startswith(_NOTE_PREFIXES)


def template_text(name: str, arguments: list[str], named: dict[str, str]) -> str:
    """The words of a template, "", or ``PLACEHOLDER`` if it has no reading as words. ``name`` in lower case."""
    first = arguments[0] if arguments else ""
    if name in _FIXED:
        return _FIXED[name]
    if name == "music" and first in _MUSIC:
        return _MUSIC[first]
    if name in _FORMULAS or (name == "coord" and "title" not in named.get("display", "")):
        return PLACEHOLDER
    if name in ("convert", "cvt"):
        return _conversion(arguments, named) or PLACEHOLDER
    if name in _SECOND_ARGUMENT and len(arguments) >= 2:
        return arguments[1]
    if name in _NUMBER_AND_UNIT:
        return " ".join(filter(None, arguments[:2]))
    if name in _DATES:
        return " ".join(filter(None, arguments))
    if number := _FRENCH_NUMBER.fullmatch(name):
        return number.group(1).upper() + name[number.end(1) :]
    if name in _LAST_ARGUMENT:
        return arguments[-1] if len(arguments) >= 2 else ""
    if name in _SHIPS:
        return f"{name.upper()} {first}"
    if name in ("as of", "circa", "c."):
        return f"{'As of' if name == 'as of' else 'c.'} {first}" if first else ""
    return first if name in _FIRST_ARGUMENT or name.startswith("lang-") else ""


def _conversion(arguments: list[str], named: dict[str, str]) -> str | None:
    """The value in its original unit, without the converted one; None if it cannot be read."""
    if len(arguments) < 2 or not _NUMBER.match(arguments[0]):
        return None
    text, place = _number(arguments[0]), 1
    while place + 1 < len(arguments) and arguments[place] in _RANGES and _NUMBER.match(arguments[place + 1]):
        text += _RANGES[arguments[place]] + _number(arguments[place + 1])
        place += 2
    unit = arguments[place] if place < len(arguments) else ""
    is_one = arguments[0] == "1" and place == 1
    name = unit_name(unit, is_one or named.get("adj") == "on")
    if name is None:
        return None
    if place + 2 < len(arguments) and (unit, arguments[place + 2]) in _PARTS and _NUMBER.match(arguments[place + 1]):
        rest = unit_name(arguments[place + 2], arguments[place + 1] == "1")
        return f"{text} {name} {arguments[place + 1]} {rest}"
    return f"{text}-{name.replace(' ', '-')}" if named.get("adj") == "on" and "°" not in name else f"{text} {name}"


def _number(text: str) -> str:
    """A number with thousands separators, as the template shows it."""
    return _LONG_NUMBER.sub(lambda match: f"{int(match.group()):,}", text.replace("+", " ").strip())


def unit_name(code: str, is_one: bool) -> str | None:
    """The name of a unit of the template ``convert``, such as km2, PD/sqmi, e6acre or Moilbbl/d; None if unknown."""
    code = code.strip().removesuffix("-change")
    found = re.match(r"e(?:3|6|9|12)(?=[A-Za-z])|[kMGT](?=(?:oilbbl|bbl|cuft|USgal))", code)
    multiple = _MULTIPLES[found.group()] if found else ""
    above, _, below = code[found.end() if found else 0 :].partition("/")
    names = [_simple_unit(above, is_one), _simple_unit(below, True) if below else ""]
    if names[0] is None or names[1] is None:
        return None
    return " ".join(part for part in (multiple, names[0], "per" if below else "", names[1]) if part)


def _simple_unit(code: str, is_one: bool) -> str | None:
    power = ""
    squared = re.match(r"(sq|cu)(?=[a-z])", code)
    if squared:
        power = {"sq": "square", "cu": "cubic"}[squared.group()]
        code = code[2:]
    elif code[-1:] in _POWERS:
        power, code = _POWERS[code[-1]], code[:-1]
    names = _UNITS.get(code.lower())
    if names is None:
        return None
    name = names.split()[0 if is_one else 1].replace("_", " ")
    return f"{power} {name}".strip()
