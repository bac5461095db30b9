"""Units of measure: which letters behind a number are one, and whether two of them are the same in two spellings."""

from __future__ import annotations

import re

_SPELLINGS = {
    "mm": "millimeter millimetre mm",
    "cm": "centimeter centimetre cm",
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
    "oz": "ounce oz",
    "lb": "pound lb",
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
    "c": "cent",
    "$": "dollar USD",
    "\u20ac": "euro EUR \u20ac",
}
_SYMBOLS = {name: symbol for symbol, names in _SPELLINGS.items() for name in names.split()}
_POWERS = (
    (re.compile(r"\b(?:square|sq\.?)\s([A-Za-z]+)"), r"\1^2"),
    (re.compile(r"\b(?:cubic|cu\.?)\s([A-Za-z]+)"), r"\1^3"),
    (re.compile(r"\s?\bper\b\s?|\s?/\s?"), "/"),
    (re.compile(r"\s(squared|cubed)\b"), lambda match: "^2" if match[1] == "squared" else "^3"),
    (re.compile(r"\^\{(-?[0-9])\}"), r"^\1"),
)
_ABBREVIATIONS = frozenset(
    [name for name in _SYMBOLS if len(name) > 1]
    + re.findall(
        r"\w+",
        "dm nm lbs cl dl qt pt mins secs hrs yrs ms rpm am pm AM PM px pts pcs deg rad ha st nd rd th mol atm bar GBP"
        " kW MW kWh MWh Wh mW kJ MJ kcal cal Pa kPa Hz kHz MHz GHz KB MB GB TB kB Kb Mb Gb kb Mbps Gbps dB mA mV kV kN",
    )
)
_SINGLE_LETTERS = {
    "m": r"met(?:er|re)s?|minutes?",
    "g": "grams?",
    "s": "seconds?",
    "h": "hours?",
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
    """Whether `letters`, right behind a number, are a unit and not variables: a single one only if it is asked for."""
    if len(letters) == 1:
        return asks_for(letters, question)
    known = letters in _ABBREVIATIONS or (len(letters) >= 4 and letters.lower() != "sqrt")
    return known or re.search(rf"(?<![A-Za-z]){letters}(?![A-Za-z])", question) is not None


def asks_for(letter: str, question: str) -> bool:
    """Whether `question` names a unit that `letter` stands for, or has it behind a number itself."""
    unit = _SINGLE_LETTERS.get(letter, "(?!)")
    used = rf"\b(?i:{unit})\b|(?<![\w.])[0-9.,]+\s?{letter}(?![\w^])"
    return re.search(used, question) is not None and letter in _SINGLE_LETTERS


def agree(one: str, other: str) -> bool:
    """Whether two units can be the same: False for two that are known and differ, as "km/h" and "mph"."""
    if not one or not other or one == other:
        return True
    first, second = _symbols(one), _symbols(other)
    return first is None or second is None or first == second


def _symbols(unit: str) -> str | None:
    """`unit` in symbols; None if a part of it is unknown."""
    for pattern, replacement in _POWERS:
        unit = pattern.sub(replacement, unit)
    parts = []
    for part in re.split(r"(/)", unit.strip()):
        name, power, digits = part.partition("^")
        name = name.strip(" .")
        symbol = _SYMBOLS.get(name) or _SYMBOLS.get(name.lower().removesuffix("s")) if part != "/" else "/"
        if symbol is None:
            return None
        parts.append(symbol + power + digits)
    return "".join(parts)
