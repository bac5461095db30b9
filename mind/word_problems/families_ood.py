"""Families held out from training: a closing speed, a percentage and an unknown in the future."""

from __future__ import annotations

from mind.word_problems.problem import Family, Given, Mistake, Step

MEETING = Family(
    name="meeting",
    givens=(
        Given("d", "the distance at the start", "kilometres", range(60, 901, 5), range(10, 41)),
        Given("u", "the speed of {name}", "kilometres an hour", range(10, 80)),
        Given("v", "the speed of {other}", "kilometres an hour", range(10, 80)),
    ),
    steps=(
        Step("c", "the closing speed", "kilometres an hour", "u", "+", "v",
             "the two come towards each other", "every hour brings them {u} and {v} closer, {c} in all"),
        Step("t", "the time until they meet", "hours", "d", "/", "c",
             "the whole distance must be closed", "{d} kilometres melt away in {t} hours"),
        Step("x", "the distance that {name} covers", "kilometres", "u", "*", "t",
             "{name} moves all that time", "{t} hours at {u} put {name} {x} kilometres down the road"),
    ),
    questions=(
        "{name} and {other} are {d} kilometres apart and set out towards each other at the same moment, "
        "each by {vehicle}. {name} travels at {u} km/h and {other} at {v} km/h. How many kilometres has "
        "{name} gone when they meet?",
        "Two towns are {d} kilometres apart. At noon {name} leaves one of them by {vehicle} at {u} km/h, "
        "and {other} leaves the other at {v} km/h to meet {name} on the road. How many kilometres from "
        "{name}'s town do they meet?",
    ),
    gist="two travellers {d} kilometres apart approach each other at {u} and {v} kilometres an hour",
    scene="See two dots on a map that crawl towards each other",
    conclusion="{name} has gone {x} kilometres when they meet",
    mistake=Mistake("v", "*", "t", "following {other}", "the question is about {name}"),
    settings=({"vehicle": "train"}, {"vehicle": "car"}, {"vehicle": "motorbike"}),
)

DISCOUNT = Family(
    name="discount",
    givens=(
        Given("p", "the full price of one", "dollars", range(70, 301, 10), range(10, 21, 10)),
        Given("q", "the percentage", "", range(5, 61, 5), range(10, 51, 40)),
        Given("n", "the number of {item}", "", range(2, 10), range(2, 4)),
    ),
    steps=(
        Step("b", "the reduction in cents", "cents", "p", "*", "q",
             "{q} percent is {q} cents in each dollar", "{q} cents off each of {p} dollars make {b} cents"),
        Step("c", "the reduction in dollars", "dollars", "b", "/", 100,
             "a dollar has 100 cents", "in whole dollars the tag drops by {c}"),
        Step("s", "the sale price of one", "dollars", "p", "-", "c",
             "the reduction comes off the full price", "instead of {p} it now reads {s}"),
        Step("x", "the price of all", "dollars", "s", "*", "n",
             "all of them cost the same", "{n} tags like that make {x} dollars"),
    ),
    questions=(
        "In a sale all {item} are {q}% off. Before the sale one of them cost ${p}. {name} buys {n}. How "
        "many dollars does {she} pay?",
        "{name} needs {n} {item}. The normal price is ${p} apiece, but today the shop takes {q}% off. What "
        "is the bill in dollars?",
    ),
    gist="{n} {item} at {p} dollars each are bought with {q} percent off",
    scene="Look at the price tag with its red sale sticker",
    conclusion="{name} pays {x} dollars",
    mistake=Mistake("p", "-", "q", "taking off dollars in place of percent",
                    "{q} percent is a share of the price"),
    settings=({"item": "jackets"}, {"item": "lamps"}, {"item": "chairs"}, {"item": "backpacks"}),
)

AGES = Family(
    name="ages",
    givens=(
        Given("b", "{name}'s age now", "years", range(8, 31), range(2, 4)),
        Given("k", "the number of years to wait", "", range(3, 15), range(2, 4)),
        Given("m", "the multiple", "", range(2, 6), range(2, 3)),
    ),
    steps=(
        Step("f", "{name}'s age then", "years", "b", "+", "k",
             "{name} grows older by {k} years",
             "{name} will have {f} candles on the cake, {k} more than {b}"),
        Step("g", "the {elder}'s age then", "years", "f", "*", "m",
             "the multiple holds at that time", "the {elder} will have {m} times that, {g} candles"),
        Step("x", "the {elder}'s age now", "years", "g", "-", "k",
             "the {elder} is {k} years younger today",
             "turn the clock back {k} years and the {elder} is {x}"),
    ),
    questions=(
        "{name} is {b} years old. In {k} years {her} {elder} will be {m} times as old as {name} will be "
        "then. How old is {name}'s {elder} now?",
        "In {k} years, {name}'s {elder} will be {m} times as old as {name} is at that time. {name} is {b} "
        "today. What is the {elder}'s present age in years?",
    ),
    gist="a child of {b} has a relative who in {k} years will be {m} times as old as the child then",
    scene="Think of two birthday cakes some years from now",
    conclusion="the {elder} is {x} years old now",
    mistake=Mistake("b", "*", "m", "multiplying today's age", "the multiple holds only in {k} years"),
    settings=({"elder": "aunt"}, {"elder": "teacher"}, {"elder": "uncle"}, {"elder": "neighbour"}),
    limits={"x": 95},
)

HELD_OUT_FAMILIES = (MEETING, DISCOUNT, AGES)
