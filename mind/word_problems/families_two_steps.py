"""Families of two steps with small numbers; the last two are held out from training."""

from __future__ import annotations

from mind.word_problems.problem import Family, Given, Mistake, Step

PACKS = Family(
    name="packs",
    givens=(
        Given("a", "the number of {pack}", "", range(2, 6), range(2, 3)),
        Given("b", "the number of {item} in each", "", range(3, 7), range(2, 4)),
        Given("c", "the number of single {item}", "", range(2, 10), range(2, 3)),
    ),
    steps=(
        Step("p", "the number in the {pack}", "{item}", "a", "*", "b",
             "all {pack} hold the same number", "{a} {pack} of {b} {item} make {p}"),
        Step("x", "the number of {item} in all", "{item}", "p", "+", "c",
             "the single ones count too", "the {c} single ones bring that to {x}"),
    ),
    questions=(
        "{name} buys {a} {pack} of {b} {item} each and {c} single {item}. How many {item} does {she} have in all?",
        "There are {a} {pack} with {b} {item} in each, and {c} more {item} lie beside them. How many {item} are there?",
    ),
    gist="{a} {pack} of {b} {item} and {c} more",
    scene="Picture the {pack} on a table",
    conclusion="there are {x} {item}",
    mistake=Mistake("a", "+", "b", "adding {a} and {b}", "all {pack} hold {b}"),
    settings=({"item": "eggs", "pack": "cartons"}, {"item": "pens", "pack": "packs"},
              {"item": "batteries", "pack": "boxes"}, {"item": "roses", "pack": "bunches"}),
)

TWICE = Family(
    name="twice",
    givens=(
        Given("a", "the number of {item} at first", "", range(9, 21), range(6, 8)),
        Given("b", "the first number", "", range(2, 8), range(2, 3)),
        Given("c", "the second number", "", range(2, 8), range(2, 3)),
    ),
    steps=(
        Step("p", "the number after the first time", "{item}", "a", "-", "b",
             "{b} {item} go first", "{b} of {a} {item} go and {p} stay"),
        Step("x", "the number of {item} left", "{item}", "p", "-", "c",
             "then {c} go as well", "{c} more go and {x} stay"),
    ),
    questions=(
        "{name} has {a} {item}. {She} {gives} {b} to {other} and {c} to {third}. How many {item} are left?",
        "Of {a} {item} {name} {gives} {b} to {other}, and after that {c} to {third}. How many {item} does {name} keep?",
    ),
    gist="{a} {item} without {b} and without {c}",
    scene="Picture a shrinking pile of {item}",
    conclusion="{x} {item} are left",
    mistake=Mistake("a", "-", "c", "subtracting {c} alone", "{b} go too"),
    settings=({"item": "cherries", "gives": "gives"}, {"item": "tickets", "gives": "sells"},
              {"item": "games", "gives": "lends"}, {"item": "letters", "gives": "sends"}),
)

CHANGE = Family(
    name="change",
    givens=(
        Given("a", "the number of {item}", "", range(2, 6), range(2, 3)),
        Given("b", "the price of each", "dollars", range(2, 6), range(2, 3)),
        Given("c", "the money", "dollars", range(10, 31, 5), range(6, 10)),
    ),
    steps=(
        Step("p", "the price of all", "dollars", "a", "*", "b",
             "all cost the same", "{a} times {b} dollars make {p}"),
        Step("x", "the change", "dollars", "c", "-", "p",
             "the price is paid", "of {c} dollars that leaves {x}"),
    ),
    questions=(
        "{name} has {c} dollars and buys {a} {item} for {b} dollars each. How many dollars are left?",
        "{name} pays for {a} {item} at {b} dollars each with {c} dollars. How many dollars does {she} get back?",
    ),
    gist="{c} dollars for {a} {item} at {b}",
    scene="Picture the purse in {name}'s hand",
    conclusion="{x} dollars are left",
    mistake=Mistake("c", "-", "b", "paying for one", "there are {a} {item}"),
    settings=({"item": "books"}, {"item": "plates"}, {"item": "scarves"}, {"item": "brushes"}),
)

POOL = Family(
    name="pool",
    givens=(
        Given("a", "the number of {name}'s {item}", "", range(3, 13), range(2, 5)),
        Given("b", "the number of {other}'s {item}", "", range(3, 13), range(2, 5)),
        Given("c", "the number of {people}", "", range(3, 7), range(2, 3)),
    ),
    steps=(
        Step("p", "the number of both", "{item}", "a", "+", "b",
             "both go into one pile", "{a} and {b} {item} make a pile of {p}"),
        Step("x", "the number for each", "{item}", "p", "/", "c",
             "all get the same number", "dealt out to {c} {people} that is {x} for each"),
    ),
    questions=(
        "{name} has {a} {item} and {other} has {b}. They share all of them equally among {c} {people}. How many {item} "
        "does each get?",
        "{c} {people} share {name}'s {a} {item} and {other}'s {b} {item} equally. How many {item} are there for each?",
    ),
    gist="{a} and {b} {item} for {c} {people}",
    scene="Picture one pile of {item}",
    conclusion="each gets {x} {item}",
    mistake=Mistake("a", "+", "c", "adding {a} and {c}", "the {people} share"),
    settings=({"item": "nuts", "people": "squirrels"}, {"item": "sweets", "people": "children"},
              {"item": "crayons", "people": "pupils"}, {"item": "plums", "people": "friends"}),
    limits={"x": 8},
)

BOTH = Family(
    name="both",
    givens=(
        Given("a", "the number of {name}'s {item}", "", range(3, 11), range(2, 4)),
        Given("b", "the lead of {other}", "", range(2, 9), range(2, 3)),
    ),
    steps=(
        Step("p", "the number of {other}'s {item}", "{item}", "a", "+", "b",
             "{other} has {b} more", "{b} on top of {a} {item} make {p}"),
        Step("x", "the number of both together", "{item}", "a", "+", "p",
             "the two are put together", "{a} and {p} are {x} together"),
    ),
    questions=(
        "{name} has {a} {item}. {other} has {b} more than {name}. How many {item} do they have together?",
        "{other} has {b} more {item} than {name}, who has {a}. How many {item} do the two have in all?",
    ),
    gist="{a} {item} here and {b} more there",
    scene="Picture two piles of {item}, one beside the other",
    conclusion="together they have {x} {item}",
    mistake=Mistake("p", "+", "b", "adding {b} twice", "{b} is only the lead"),
    settings=({"item": "shells"}, {"item": "hats"}, {"item": "kites"}, {"item": "magnets"}),
)

BUS = Family(
    name="bus",
    givens=(
        Given("a", "the number of {people} at first", "", range(8, 21), range(5, 7)),
        Given("b", "the number who leave", "", range(2, 8), range(2, 3)),
        Given("c", "the number who come", "", range(2, 8), range(3, 5)),
    ),
    steps=(
        Step("p", "the number who stay", "{people}", "a", "-", "b",
             "{b} leave", "{b} of {a} {people} leave and {p} stay"),
        Step("x", "the number of {people} now", "{people}", "p", "+", "c",
             "{c} come", "with {c} new ones there are {x}"),
    ),
    questions=(
        "There are {a} {people} {place}. Then {b} leave and {c} others come. How many {people} are there now?",
        "{b} of the {a} {people} {place} go away, and {c} new ones arrive. How many {people} are there after that?",
    ),
    gist="{a} {people} of whom {b} leave while {c} come",
    scene="Picture the door, out and in",
    conclusion="there are {x} {people}",
    mistake=Mistake("a", "+", "c", "adding {c} alone", "{b} have left"),
    settings=({"people": "passengers", "place": "on a bus"}, {"people": "guests", "place": "in a cafe"},
              {"people": "skaters", "place": "on the ice"}, {"people": "readers", "place": "in a library"}),
)

REST = Family(
    name="rest",
    givens=(
        Given("a", "the number of {item}", "", range(9, 31), range(6, 9)),
        Given("b", "the number that go", "", range(2, 8), range(2, 5)),
        Given("c", "the number in each of the {box}", "", range(3, 7), range(2, 3)),
    ),
    steps=(
        Step("p", "the number that stay", "{item}", "a", "-", "b",
             "{b} are gone", "{b} of {a} {item} go and {p} stay"),
        Step("x", "the number of {box}", "{box}", "p", "/", "c",
             "all {box} hold the same number", "these go into {x} {box} of {c}"),
    ),
    questions=(
        "{name} has {a} {item}. {b} are {spoilt}, and {she} puts the others into {box} of {c}. How many {box} does "
        "{name} fill?",
        "Of {a} {item} {b} are {spoilt}. The others go into {box}, {c} in each. How many {box} are needed?",
    ),
    gist="{a} {item} without {b} in {box} of {c}",
    scene="Picture the {box} filling up",
    conclusion="it takes {x} {box}",
    mistake=Mistake("a", "-", "c", "subtracting {c}", "each of the {box} holds {c}"),
    settings=({"item": "pears", "spoilt": "rotten", "box": "bags"},
              {"item": "cups", "spoilt": "broken", "box": "boxes"},
              {"item": "muffins", "spoilt": "eaten", "box": "tins"},
              {"item": "tulips", "spoilt": "sold", "box": "vases"}),
    limits={"x": 8},
)

SEATS = Family(
    name="seats",
    givens=(
        Given("a", "the number of rows", "", range(3, 7), range(2, 3)),
        Given("b", "the number of {seats} in each row", "", range(3, 7), range(3, 5)),
        Given("c", "the number of empty {seats}", "", range(2, 8), range(2, 3)),
    ),
    steps=(
        Step("p", "the number of {seats}", "{seats}", "a", "*", "b",
             "all rows are alike", "{a} rows of {b} {seats} make {p}"),
        Step("x", "the number of taken {seats}", "{seats}", "p", "-", "c",
             "{c} are empty", "{c} of them are empty and {x} are taken"),
    ),
    questions=(
        "There are {a} rows of {b} {seats} {place}, and {c} {seats} are empty. How many {seats} are taken?",
        "{name} counts {a} rows with {b} {seats} each {place}. All but {c} are taken. How many are that?",
    ),
    gist="{a} rows of {b} {seats} with {c} empty",
    scene="Picture the rows one behind the other",
    conclusion="{x} {seats} are taken",
    mistake=Mistake("a", "+", "b", "adding {a} and {b}", "all rows have {b}"),
    settings=({"seats": "chairs", "place": "in a hall"}, {"seats": "hooks", "place": "on a wall"},
              {"seats": "beds", "place": "in a camp"}, {"seats": "berths", "place": "in a harbor"}),
)

ALREADY = Family(
    name="already",
    givens=(
        Given("a", "the number of shared {item}", "", range(6, 37), range(4, 7, 2)),
        Given("b", "the number of {people}", "", range(3, 7), range(2, 3)),
        Given("c", "{name}'s own number", "", range(2, 10), range(4, 6)),
    ),
    steps=(
        Step("p", "the number for each", "{item}", "a", "/", "b",
             "all get the same number", "{a} {item} dealt out to {b} {people} are {p} for each"),
        Step("x", "{name}'s number in the end", "{item}", "p", "+", "c",
             "{c} were there already", "with {c} of {her} own {name} has {x}"),
    ),
    questions=(
        "{name} and {her} friends, {b} {people} in all, share {a} {item} equally. {name} had {c} {item} before. How "
        "many {item} does {she} have now?",
        "{name} has {c} {item}. Then {b} {people} share {a} {item} equally, and {name} is one of them. How many {item} "
        "does {name} have in the end?",
    ),
    gist="{a} {item} for {b} {people}, one of whom has {c}",
    scene="Picture {name}'s hands",
    conclusion="{name} has {x} {item}",
    mistake=Mistake("a", "+", "c", "adding {a} and {c}", "the {a} are shared"),
    settings=({"item": "coins", "people": "children"}, {"item": "dates", "people": "people"},
              {"item": "cards", "people": "players"}, {"item": "seeds", "people": "gardeners"}),
    limits={"p": 9},
)

TWO_STEP_FAMILIES = (PACKS, TWICE, CHANGE, POOL, BOTH, BUS, REST)
TWO_STEP_HELD_OUT = (SEATS, ALREADY)
