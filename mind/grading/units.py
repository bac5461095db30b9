"""Recognizes units of measure after a number, and converts between them."""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction

_SPELLINGS = {
    "mm": "millimeter millimetre mm",
    "cm": "centimeter centimetre cm",
    "dm": "decimeter decimetre dm",
    "m": "meter metre m",
    "km": "kilometer kilometre km",
    "in": "inch inche in",
    "ft": "foot feet ft",
    "yd": "yard yd",
    "mi": "mile mi",
    "mg": "milligram mg",
    "g": "gram gramme g",
    "kg": "kilogram kilo kg",
    "t": "tonne",
    "ton": "ton",
    "oz": "ounce oz",
    "lb": "pound lb",
    "cl": "centiliter centilitre cl",
    "dl": "deciliter decilitre dl",
    "qt": "quart qt",
    "pint": "pint",
    "ml": "milliliter millilitre ml mL",
    "l": "liter litre l L",
    "gal": "gallon gal",
    "s": "second sec s",
    "min": "minute min",
    "h": "hour hr h",
    "d": "day d",
    "wk": "week wk",
    "mo": "month mo",
    "yr": "year yr",
    "mi/h": "mph",
    "km/h": "kph kmh",
    "deg": "degree",
    "rad": "radian",
    "\u00b0C": "celsius \u00b0C",
    "\u00b0F": "fahrenheit \u00b0F",
    "K": "kelvin",
    "N": "newton",
    "kN": "kilonewton kN",
    "J": "joule",
    "kJ": "kilojoule kJ",
    "cal": "calorie cal",
    "kcal": "kilocalorie kcal",
    "W": "watt",
    "kW": "kilowatt kW",
    "c": "cent \u00a2",
    "$": "dollar USD buck $",
    "\u20ac": "euro EUR \u20ac",
    "\u00a3": "GBP \u00a3",
    "\u00a5": "yen JPY \u00a5",
    "\u20b9": "rupee INR \u20b9",
}
_SYMBOLS = {name: symbol for symbol, names in _SPELLINGS.items() for name in names.split()}
_SIZES = {
    "m": {
        "mm": "1/1000",
        "cm": "1/100",
        "dm": "1/10",
        "km": "1000",
        "in": "0.0254",
        "ft": "0.3048",
        "yd": "0.9144",
        "mi": "1609.344",
    },
    "g": {"mg": "1/1000", "kg": "1000", "t": "1000000", "lb": "453.59237", "oz": "28.349523125"},
    "l": {
        "ml": "1/1000",
        "cl": "1/100",
        "dl": "1/10",
        "gal": "3.785411784",
        "qt": "0.946352946",
        "pint": "0.473176473",
    },
    "s": {"min": "60", "h": "3600", "d": "86400", "wk": "604800"},
    "mo": {"yr": "12"},
    "N": {"kN": "1000"},
    "J": {"kJ": "1000"},
    "cal": {"kcal": "1000"},
    "W": {"kW": "1000"},
    "$": {"c": "1/100"},
}
"""The size of other units in base units."""
_SAME_WORD = ({"lb", "\u00a3"}, {"deg", "\u00b0C"}, {"deg", "\u00b0F"}, {"m", "min"})
"""A pound is a weight or a currency, a degree an angle or a temperature, and "90m" may be minutes."""
_LETTERS = {letter: letter for letter in ("K", "N", "J", "W")}
"""Symbols that are units beside another unit alone, since they are also variables and scales."""
_HALVES_OF_DAY = ("am", "pm")
_BASES = {symbol: (base, Fraction(size)) for base, sizes in _SIZES.items() for symbol, size in sizes.items()}
_POWERS = (
    (re.compile(r"\b(?:degrees?|deg\.?)\s(?=celsius|fahrenheit)", re.IGNORECASE), ""),
    (re.compile(r"\b(?:square|sq\.?)\s([A-Za-z]+)"), r"\1^2"),
    (re.compile(r"\b(?:cubic|cu\.?)\s([A-Za-z]+)"), r"\1^3"),
    (re.compile(r"\s?\b(?:per|an?)\b\s?|\s?/\s?"), "/"),
    (re.compile(r"\s(squared|cubed)\b"), lambda match: "^2" if match[1] == "squared" else "^3"),
    (re.compile(r"\^\{(-?[0-9])\}"), r"^\1"),
)
_NAMES = "|".join(sorted((re.escape(name) for name in _SYMBOLS), key=len, reverse=True))
UNIT_NAME = rf"(?!in\s[a-z])(?:{_NAMES})s?(?![A-Za-z])"
"""A pattern for units: "km", "hours", but not the word in "12 in all"."""
_UNIT = re.compile(
    rf"\s?((?:degrees?\s(?=celsius|fahrenheit))?(?:(?:square|cubic|sq\.?|cu\.?)\s)?{UNIT_NAME}(?:\s(?:squared|cubed)|\^\{{?-?[0-9]\}}?)?"
    rf"(?:\s?(?:/|\b(?:per|an?)\b)\s?{UNIT_NAME}(?:\^\{{?-?[0-9]\}}?)?)?)",
    re.IGNORECASE,
)
_ABBREVIATIONS = frozenset(
    [name for name in _SYMBOLS if len(name) > 1]
    + re.findall(
        r"\w+",
        "dm nm lbs cl dl qt pt mins secs hrs yrs ms rpm am pm AM PM px pts pcs deg rad ha st nd rd th mol atm bar"
        " kW MW kWh MWh Wh mW kJ MJ kcal cal Pa kPa Hz kHz MHz GHz KB MB GB TB kB Kb Mb Gb kb Mbps Gbps dB mA mV kV kN",
    )
)
_SINGLE_LETTERS = {
    "m": r"met(?:er|re)s?|minutes?",
    "g": "grams?",
    "s": "seconds?|minutes?",
    "h": "hours?|minutes?",
    "d": "days?",
    "l": "lit(?:er|re)s?",
    "L": "lit(?:er|re)s?",
    "c": "cents?",
    "p": "pence|pages?",
    "C": "degrees?|Celsius",
    "F": "degrees?|Fahrenheit",
    "V": "volts?",
    "W": "watts?",
    "J": "joules?",
    "N": "newtons?",
    "A": "amp(?:ere)?s?",
    "K": "kelvins?",
}


def is_unit(letters: str, question: str) -> bool:
    """Whether `letters`, directly after a number, are a unit and not variables; a single letter only if the question
    asks for it."""
    if len(letters) == 1:
        return asks_for(letters, question)
    known = letters in _ABBREVIATIONS or (len(letters) >= 4 and letters.lower() != "sqrt")
    return known or re.search(rf"(?<![A-Za-z]){letters}(?![A-Za-z])", question) is not None


def asks_for(letter: str, question: str) -> bool:
    """Whether `question` names a unit that `letter` abbreviates, or has the letter after a number itself."""
    unit = _SINGLE_LETTERS.get(letter, "(?!)")
    used = rf"\b(?i:{unit})\b|(?<![\w.])[0-9.,]+\s?{letter}(?![\w^])"
    if question.endswith(f"\n{letter}"):  # the unit of the gold answer
        return True
    return re.search(used, question) is not None and letter in _SINGLE_LETTERS


def unit_at(text: str, position: int) -> str:
    """The unit of measure that begins at `position` of `text`, after a number; empty if there is none."""
    unit = _UNIT.match(text, position)
    return unit[1] if unit else ""


def is_known(unit: str) -> bool:
    """Whether `conversion` knows `unit`."""
    return _symbols(unit) is not None


def is_symbol(unit: str) -> bool:
    """Whether `unit` is a symbol or an abbreviation, which has one meaning: "kN", "pm", "AD"; not a word such as
    "boxes"."""
    return unit in _ABBREVIATIONS or unit in _SYMBOLS or re.fullmatch("[A-Z]{1,3}", unit) is not None


def is_quotient(unit: str) -> bool:
    """Whether `unit` is a quotient or a power of known units: "hours a week", "kg/m^3"."""
    return not {*"/^"}.isdisjoint(_symbols(unit) or "")


def conversion(one: str, other: str) -> Fraction | None:
    """How many of the unit `other` one of the unit `one` is: 60 for "hours" and "minutes".

    1 if one of them is unknown or empty; None if they measure different things, such as "km" and "km/h", or if both are
    symbols and one is unknown, such as "V" and "mV".
    """
    first, second = (_symbols(unit) or _LETTERS.get(unit) for unit in (one, other))
    if one.lower() in _HALVES_OF_DAY and one.lower() != other.lower() != "":  # "2 pm" is not 2 hours
        return None
    if {first, second} in _SAME_WORD:
        return Fraction(1)
    if first is None or second is None:
        are_symbols = is_symbol(one) and is_symbol(other)
        return None if are_symbols and one.strip("\u00b0") != other.strip("\u00b0") else Fraction(1)
    size, powers = _in_base_units(first)
    other_size, other_powers = _in_base_units(second)
    return size / other_size if powers == other_powers else None


def _in_base_units(symbols: str) -> tuple[Fraction, dict[str, int]]:
    """The size of a unit, and its base units with their powers: 5/18 and {"m": 1, "s": -1} for "km/h"."""
    size, powers = Fraction(1), Counter[str]()
    for place, part in enumerate(symbols.split("/")):
        symbol, _, digits = part.partition("^")
        base, factor = _BASES.get(symbol, (symbol, Fraction(1)))
        power = int(digits or 1) * (1 if place == 0 else -1)
        size *= factor**power
        powers[base] += power
    return size, {base: power for base, power in powers.items() if power}


def _symbols(unit: str) -> str | None:
    """`unit` in symbols; None if a part of it is unknown."""
    for pattern, replacement in _POWERS:
        unit = pattern.sub(replacement, unit)
    parts = []
    for part in re.split(r"(/)", unit.strip()):
        name, power, digits = part.partition("^")
        name = name.strip(" .")
        symbol = _SYMBOLS.get(name) or _SYMBOLS.get(name.lower().removesuffix("s")) if part != "/" else "/"
        if symbol is None or (power and not re.fullmatch("-?[0-9]", digits)):
            return None
        parts.append(symbol + power + digits)
    return "".join(parts)
