"""Families of one step with small numbers; the last two are held out from training."""

from __future__ import annotations

from mind.word_problems.problem import Family, Given, Mistake, Step

GAIN = Family(
    name="gain",
    givens=(
        Given("a", "the number of {item} at first", "", range(4, 16), range(2, 4)),
        Given("b", "the number of new {item}", "", range(2, 10), range(2, 4)),
    ),
    steps=(
        Step("x", "the number of {item} now", "{item}", "a", "+", "b",
             "the new {item} join the others", "{b} on top of {a} {item} make {x}"),
    ),
    questions=(
        "{name} has {a} {item} and {gets} {b} more. How many {item} does {name} have now?",
        "{name} had {a} {item}. Then {she} {got} {b} more {item}. How many {item} does {she} have in all?",
    ),
    gist="{a} {item} and {b} more",
    scene="Picture a growing pile of {item}",
    conclusion="{name} has {x} {item}",
    mistake=Mistake("a", "-", "b", "taking away", "the {item} become more"),
    settings=({"item": "apples", "gets": "picks", "got": "picked"}, {"item": "pens", "gets": "buys", "got": "bought"},
              {"item": "shells", "gets": "finds", "got": "found"}, {"item": "cards", "gets": "wins", "got": "won"}),
)

LOSS = Family(
    name="loss",
    givens=(
        Given("a", "the number of {item} at first", "", range(5, 16), range(4, 6)),
        Given("b", "the number of {item} that go", "", range(2, 10), range(2, 3)),
    ),
    steps=(
        Step("x", "the number of {item} left", "{item}", "a", "-", "b",
             "these {item} are gone", "{b} of {a} {item} go and {x} stay"),
    ),
    questions=(
        "{name} has {a} {item} and {loses} {b} of them. How many {item} are left?",
        "{name} had {a} {item}, but {she} {lost} {b}. How many {item} does {name} still have?",
    ),
    gist="{a} {item} of which {b} go",
    scene="Picture a shrinking pile of {item}",
    conclusion="{x} {item} are left",
    mistake=Mistake("a", "+", "b", "adding", "the {item} become fewer"),
    settings=({"item": "cookies", "loses": "eats", "lost": "ate"},
              {"item": "stickers", "loses": "gives away", "lost": "gave away"},
              {"item": "balloons", "loses": "sells", "lost": "sold"},
              {"item": "marbles", "loses": "loses", "lost": "lost"}),
)

BOXES = Family(
    name="boxes",
    givens=(
        Given("a", "the number of {box}", "", range(3, 8), range(2, 3)),
        Given("b", "the number of {item} in each", "", range(3, 10), range(2, 4)),
    ),
    steps=(
        Step("x", "the number of {item} in all", "{item}", "a", "*", "b",
             "all {box} hold the same number", "{a} times {b} {item} make {x}"),
    ),
    questions=(
        "There are {a} {box} with {b} {item} in each. How many {item} are there in all?",
        "{name} fills {a} {box} and puts {b} {item} into each of them. How many {item} does {she} need?",
    ),
    gist="{a} {box} of {b} {item}",
    scene="Picture the {box} side by side",
    conclusion="there are {x} {item}",
    mistake=Mistake("a", "+", "b", "adding", "every one of the {box} holds {b}"),
    settings=({"item": "eggs", "box": "baskets"}, {"item": "candles", "box": "boxes"},
              {"item": "books", "box": "crates"}, {"item": "oranges", "box": "bags"}),
)

SHARES = Family(
    name="shares",
    givens=(
        Given("a", "the number of {item}", "", range(6, 55), range(4, 7, 2)),
        Given("b", "the number of {people}", "", range(3, 7), range(2, 3)),
    ),
    steps=(
        Step("x", "the number of {item} for each", "{item}", "a", "/", "b",
             "all get the same number", "{a} {item} dealt out to {b} {people} are {x} for each"),
    ),
    questions=(
        "{name} shares {a} {item} equally among {b} {people}. How many {item} does each of them get?",
        "{b} {people} divide {a} {item} equally. How many {item} are there for each?",
    ),
    gist="{a} {item} for {b} {people}",
    scene="Picture the {people} around the table",
    conclusion="each gets {x} {item}",
    mistake=Mistake("a", "-", "b", "subtracting", "the {item} are shared"),
    settings=({"item": "grapes", "people": "friends"}, {"item": "coins", "people": "pirates"},
              {"item": "pencils", "people": "pupils"}, {"item": "sweets", "people": "children"}),
    limits={"x": 9},
)

LEAD = Family(
    name="lead",
    givens=(
        Given("a", "the number of {name}'s {item}", "", range(6, 16), range(4, 6)),
        Given("b", "the number of {other}'s {item}", "", range(2, 10), range(2, 3)),
    ),
    steps=(
        Step("x", "the difference", "{item}", "a", "-", "b",
             "{name} has more", "from {b} up to {a} {item} it takes {x} more"),
    ),
    questions=(
        "{name} has {a} {item} and {other} has {b}. How many more {item} does {name} have than {other}?",
        "{other} has {b} {item}, {name} has {a}. How many fewer {item} does {other} have than {name}?",
    ),
    gist="{a} {item} against {b}",
    scene="Picture two rows of {item} side by side",
    conclusion="the difference is {x} {item}",
    mistake=Mistake("a", "+", "b", "adding", "the two are compared"),
    settings=({"item": "medals"}, {"item": "stamps"}, {"item": "comics"}, {"item": "plants"}),
)

PRICE = Family(
    name="price",
    givens=(
        Given("a", "the number of {item}", "", range(2, 8), range(2, 3)),
        Given("b", "the price of each", "dollars", range(3, 11), range(2, 4)),
    ),
    steps=(
        Step("x", "the price of all", "dollars", "a", "*", "b",
             "all cost the same", "{a} times {b} dollars make {x}"),
    ),
    questions=(
        "{name} buys {a} {item} for {b} dollars each. How many dollars does {she} pay?",
        "At {b} dollars each, how many dollars do {a} {item} cost?",
    ),
    gist="{a} {item} at {b} dollars",
    scene="Picture a stack of {b} dollars on each of them",
    conclusion="the price is {x} dollars",
    mistake=Mistake("a", "+", "b", "adding", "each one costs {b} dollars"),
    settings=({"item": "tickets"}, {"item": "caps"}, {"item": "lamps"}, {"item": "mugs"}),
)

BAGS = Family(
    name="bags",
    givens=(
        Given("a", "the number of {item}", "", range(6, 55), range(4, 7, 2)),
        Given("b", "the number in each of the {box}", "", range(3, 7), range(2, 3)),
    ),
    steps=(
        Step("x", "the number of {box}", "{box}", "a", "/", "b",
             "all are filled alike", "{a} {item} go into {x} {box} of {b}"),
    ),
    questions=(
        "{name} puts {a} {item} into {box} of {b}. How many {box} does {she} fill?",
        "There are {a} {item}, and {b} fit into each of the {box}. How many {box} are needed?",
    ),
    gist="{a} {item} in {box} of {b}",
    scene="Picture the {box} filling up",
    conclusion="it takes {x} {box}",
    mistake=Mistake("a", "-", "b", "subtracting", "each of the {box} holds {b}"),
    settings=({"item": "buns", "box": "bags"}, {"item": "photos", "box": "albums"},
              {"item": "tulips", "box": "vases"}, {"item": "toys", "box": "drawers"}),
    limits={"x": 9},
)

MISSING = Family(
    name="missing",
    givens=(
        Given("a", "the number of {item} needed", "", range(6, 16), range(4, 6)),
        Given("b", "the number of {item} so far", "", range(2, 10), range(2, 3)),
    ),
    steps=(
        Step("x", "the number of {item} missing", "{item}", "a", "-", "b",
             "{b} are there already", "from {b} up to {a} {item} it takes {x} more"),
    ),
    questions=(
        "{name} needs {a} {item} and has {b} so far. How many {item} are missing?",
        "With some more {item} {name} would have {a}. Now {she} has {b}. How many more does {she} need?",
    ),
    gist="{b} {item} where {a} are needed",
    scene="Picture the empty places",
    conclusion="{x} {item} are missing",
    mistake=Mistake("a", "+", "b", "adding", "{b} of the {a} are there"),
    settings=({"item": "points"}, {"item": "chairs"}, {"item": "tiles"}, {"item": "signatures"}),
)

TIMES = Family(
    name="times",
    givens=(
        Given("a", "the number of {name}'s {item}", "", range(3, 11), range(2, 4)),
        Given("b", "the factor", "", range(2, 7), range(2, 3)),
    ),
    steps=(
        Step("x", "the number of {other}'s {item}", "{item}", "a", "*", "b",
             "{other} has {b} times as many", "{b} piles of {a} {item} make {x}"),
    ),
    questions=(
        "{name} has {a} {item}. {other} has {b} times as many. How many {item} does {other} have?",
        "{other} has {b} times as many {item} as {name}, who has {a}. How many {item} does {other} have?",
    ),
    gist="{b} times as many as {a} {item}",
    scene="Picture {other}'s piles, each like {name}'s",
    conclusion="{other} has {x} {item}",
    mistake=Mistake("a", "+", "b", "adding", "{b} is a factor"),
    settings=({"item": "beads"}, {"item": "dolls"}, {"item": "fish"}, {"item": "songs"}),
)

ONE_STEP_FAMILIES = (GAIN, LOSS, BOXES, SHARES, LEAD, PRICE, BAGS)
ONE_STEP_HELD_OUT = (MISSING, TIMES)
