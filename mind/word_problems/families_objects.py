"""Families about things that are counted: baked, shared, seated, read, made."""

from __future__ import annotations

from mind.word_problems.problem import Family, Given, Mistake, Step

BAKERY = Family(
    name="bakery",
    givens=(
        Given("t", "the number of trays", "", range(4, 13)),
        Given("m", "the number of {item} on a tray", "", range(6, 16)),
        Given("s", "the number of {item} sold", "", range(8, 41)),
        Given("k", "the number of {item} in a box", "", range(3, 10)),
    ),
    steps=(
        Step("b", "the number of {item} baked", "{item}", "t", "*", "m",
             "every tray holds the same number",
             "{t} trays with {m} on each fill the counter with {b} {item}"),
        Step("r", "the number of {item} left to pack", "{item}", "b", "-", "s",
             "sold {item} are gone", "customers carry off {s}, so {r} {item} stay behind"),
        Step("x", "the number of boxes", "boxes", "r", "/", "k",
             "all boxes are packed alike", "filling boxes with {k} at a time takes {x} boxes"),
    ),
    questions=(
        "{name} bakes {t} trays of {item} with {m} {item} on each tray. {s} of them are sold in the "
        "morning, and the rest are packed into boxes of {k}. How many boxes does {name} fill?",
        "At {name}'s bakery, {t} trays with {m} {item} each come out of the oven. After {s} {item} have "
        "been sold, {name} packs the others {k} to a box. How many boxes are needed?",
    ),
    gist="a baker makes {t} trays of {m} {item}, sells {s} and packs the others in boxes of {k}",
    scene="Picture the bakery counter covered with fresh {item}",
    conclusion="{name} fills {x} boxes",
    mistake=Mistake("r", "*", "k", "multiplying by the box size",
                    "boxes are far fewer than the {item} inside them"),
    settings=({"item": "muffins"}, {"item": "rolls"}, {"item": "cookies"}, {"item": "pretzels"}),
)

SHARING = Family(
    name="sharing",
    givens=(
        Given("m", "the number of {item} from {name}", "", range(14, 60)),
        Given("o", "the number of {item} from {other}", "", range(14, 60)),
        Given("g", "the number of {item} given away", "", range(5, 25)),
        Given("k", "the number of children who share", "", range(3, 9)),
    ),
    steps=(
        Step("p", "the number of {item} in the pool", "{item}", "m", "+", "o",
             "both collections go into one pool", "tipping {m} and {o} into one pile makes {p} {item}"),
        Step("r", "the number of {item} kept", "{item}", "p", "-", "g",
             "the gift leaves the pool", "handing over {g} shrinks the pile to {r}"),
        Step("x", "the number of {item} for each child", "{item}", "r", "/", "k",
             "the children get equal parts",
             "dealing the pile out to {k} children puts {x} in each pair of hands"),
    ),
    questions=(
        "{name} has {m} {item} and {other} has {o} {item}. They put them together, give {g} to {her} little "
        "cousin, and share the rest equally among {k} children. How many {item} does each child get?",
        "{name} and {other} pool their {item}: {m} from {name} and {o} from {other}. They donate {g} of "
        "them to the school fair. If {k} children divide the others equally, how many {item} are there for "
        "each child?",
    ),
    gist="two friends pool {m} and {o} {item}, give {g} away and split the others among {k} children",
    scene="Imagine one big pile of {item} on the floor",
    conclusion="each child gets {x} {item}",
    mistake=Mistake("r", "-", "k", "subtracting the number of children", "sharing equally means dividing"),
    settings=({"item": "stickers"}, {"item": "marbles"}, {"item": "trading cards"}, {"item": "beads"}),
)

COMPARISON = Family(
    name="comparison",
    givens=(
        Given("p", "the number of {name}'s {item}", "", range(5, 25)),
        Given("m", "the factor for {other}", "", range(2, 6), range(2, 4)),
        Given("e", "the number by which {third} trails {other}", "", range(3, 15)),
    ),
    steps=(
        Step("q", "the number of {other}'s {item}", "{item}", "p", "*", "m",
             "{other} has {m} times as many as {name}",
             "{m} piles like {name}'s give {other} {q}"),
        Step("r", "the number of {third}'s {item}", "{item}", "q", "-", "e",
             "{third} has {e} fewer than {other}", "{third} lags {e} behind that, at {r}"),
        Step("s", "the sum for {name} and {other}", "{item}", "p", "+", "q",
             "these two belong in the total", "the first two hold {p} and {q}, together {s}"),
        Step("x", "the number of {item} of all three", "{item}", "s", "+", "r",
             "{third} counts as well", "with {third}'s {r} on top, the whole haul is {x}"),
    ),
    questions=(
        "{name} {verb} {p} {item}. {other} {verb} {m} times as many as {name}, and {third} {verb} {e} fewer "
        "than {other}. How many {item} do the three have altogether?",
        "{name}, {other} and {third} went out for {item}. {name} {verb} {p}, {other} {verb} {m} times "
        "as many as {name}, and {third} {verb} {e} fewer {item} than {other}. What is their total?",
    ),
    gist="one child {verb} {p} {item}, a second {m} times as many and a third {e} fewer than the second",
    scene="Line the three children up with their {item}",
    conclusion="the three have {x} {item} altogether",
    mistake=Mistake("q", "+", "r", "adding only {other}'s and {third}'s {item}", "{name} has some too"),
    settings=({"item": "shells", "verb": "found"}, {"item": "chestnuts", "verb": "gathered"},
              {"item": "mushrooms", "verb": "picked"}, {"item": "pebbles", "verb": "collected"}),
)

THEATRE = Family(
    name="theatre",
    givens=(
        Given("r", "the number of rows", "", range(6, 20)),
        Given("s", "the number of seats in a row", "", range(8, 25)),
        Given("e", "the number of empty seats", "", range(5, 40)),
        Given("b", "the number of people {upstairs}", "", range(12, 60)),
    ),
    steps=(
        Step("h", "the number of seats in the {hall}", "seats", "r", "*", "s",
             "all rows are equally long", "{r} rows of {s} make {h} seats"),
        Step("f", "the number of people seated", "people", "h", "-", "e",
             "an empty seat holds nobody", "{e} of them stay bare, which leaves {f} people sitting"),
        Step("x", "the number of people in all", "people", "f", "+", "b",
             "the people {upstairs} came too", "add the {b} {upstairs} and the crowd is {x} strong"),
    ),
    questions=(
        "The {hall} has {r} rows of {s} seats. Tonight {e} of these seats are empty, and another {b} people "
        "are {upstairs}. How many people are watching?",
        "{name} counts the audience. There are {r} rows with {s} seats each in the {hall}, all taken except "
        "{e}, and {b} more people are {upstairs}. How large is the audience?",
    ),
    gist="a {hall} has {r} rows of {s} seats, {e} of them empty, and {b} more people are {upstairs}",
    scene="Stand at the front and look out over the {hall}",
    conclusion="there are {x} people in the audience",
    mistake=Mistake("h", "+", "b", "counting all seats as taken", "{e} of the seats are empty"),
    settings=({"hall": "theatre", "upstairs": "on the balcony"},
              {"hall": "cinema", "upstairs": "in the gallery"},
              {"hall": "concert hall", "upstairs": "standing at the back"}),
)

READING = Family(
    name="reading",
    givens=(
        Given("p", "the number of pages in the {book}", "", range(90, 320), range(20, 41)),
        Given("d", "the number of pages read on each of the first days", "", range(8, 25)),
        Given("k", "the number of days so far", "", range(3, 9)),
        Given("w", "the number of days that remain", "", range(3, 10)),
    ),
    steps=(
        Step("r", "the number of pages read so far", "pages", "d", "*", "k",
             "the daily amount is the same on {k} days", "{k} days at {d} a day turn {r} pages"),
        Step("u", "the number of pages still unread", "pages", "p", "-", "r",
             "the rest of the {book} is ahead", "out of {p} that leaves {u} to go"),
        Step("x", "the number of pages a day from now on", "pages", "u", "/", "w",
             "the rest is spread evenly over {w} days", "spread over {w} evenings, that is {x} each evening"),
    ),
    questions=(
        "{name} is reading a {book} of {p} pages. {She} has read {d} pages a day for {k} days and wants to "
        "finish the rest in {w} more days, with the same number each day. How many pages a day must {she} "
        "read now?",
        "A {book} has {p} pages. For the first {k} days {name} reads {d} pages daily. The remaining pages "
        "are to be spread evenly over {w} days. How many pages is that per day?",
    ),
    gist="a reader has {p} pages, reads {d} a day for {k} days and spreads the rest over {w} days",
    scene="Feel the thickness of the {book} on either side of the bookmark",
    conclusion="{name} must read {x} pages a day",
    mistake=Mistake("p", "-", "d", "removing the pages of one day only", "{name} read for {k} days"),
    settings=({"book": "novel"}, {"book": "history book"}, {"book": "travel guide"}, {"book": "biography"}),
)

WORKSHOP = Family(
    name="workshop",
    givens=(
        Given("n", "the number of {tool}", "", range(3, 10)),
        Given("r", "the number of {item} a machine makes in an hour", "", range(5, 21)),
        Given("h", "the number of hours", "", range(3, 9)),
        Given("d", "the number of faulty {item}", "", range(6, 40)),
    ),
    steps=(
        Step("q", "the number of {item} made in an hour", "{item}", "n", "*", "r",
             "the machines run side by side", "with {n} machines humming, each hour brings {q} {item}"),
        Step("m", "the number of {item} made in all", "{item}", "q", "*", "h",
             "every hour brings as many", "after {h} such hours {m} have piled up"),
        Step("x", "the number of good {item}", "{item}", "m", "-", "d",
             "faulty {item} do not count", "toss the {d} duds and {x} are fit to ship"),
    ),
    questions=(
        "A workshop runs {n} {tool}. Each of them makes {r} {item} an hour. After {h} hours, {d} {item} "
        "turn out to be faulty and are thrown away. How many good {item} are there?",
        "{name} looks after {n} {tool}, each making {r} {item} per hour. They run for {h} hours, and {d} of "
        "the {item} are faulty. How many {item} are without fault?",
    ),
    gist="{n} machines make {r} {item} an hour each for {h} hours, and {d} {item} are faulty",
    scene="Listen to the workshop: every machine drops {item} at a steady beat",
    conclusion="there are {x} good {item}",
    mistake=Mistake("r", "*", "h", "counting one machine only", "{n} machines are running"),
    settings=({"item": "bolts", "tool": "lathes"}, {"item": "buttons", "tool": "presses"},
              {"item": "toy cars", "tool": "printers"}, {"item": "bricks", "tool": "moulding machines"}),
)

LIBRARY = Family(
    name="library",
    givens=(
        Given("s", "the number of {rack}", "", range(5, 16)),
        Given("c", "the number of {item} on each of the {rack}", "", range(12, 31)),
        Given("o", "the number of {item} lent out", "", range(15, 60)),
        Given("b", "the number of {item} bought", "", range(10, 50)),
    ),
    steps=(
        Step("a", "the number of {item} at first", "{item}", "s", "*", "c",
             "the {rack} are equally full", "{s} {rack} of {c} start us off with {a} {item}"),
        Step("r", "the number of {item} after lending", "{item}", "a", "-", "o",
             "lent {item} leave the room", "{o} walk out of the door, and {r} remain"),
        Step("x", "the number of {item} now", "{item}", "r", "+", "b",
             "bought {item} join the others", "a delivery of {b} lifts that to {x}"),
    ),
    questions=(
        "A library has {s} {rack} with {c} {item} on each. {name} lends out {o} {item}, and then {b} new "
        "ones are bought. How many {item} are in the library now?",
        "There are {s} {rack} in {name}'s library, and each holds {c} {item}. {o} {item} are lent out and "
        "{b} new {item} arrive. How many {item} does the library hold after that?",
    ),
    gist="a library has {s} {rack} of {c} {item}, lends {o} and buys {b}",
    scene="Walk along the {rack} of a small library",
    conclusion="the library has {x} {item} now",
    mistake=Mistake("a", "+", "b", "passing over the loans", "{o} {item} are out of the library"),
    settings=({"item": "books", "rack": "shelves"}, {"item": "magazines", "rack": "racks"},
              {"item": "comics", "rack": "stands"}),
)

OBJECT_FAMILIES = (BAKERY, SHARING, COMPARISON, THEATRE, READING, WORKSHOP, LIBRARY)
