"""Families about quantities with a unit: money, distance, weight, volume, points."""

from __future__ import annotations

from mind.word_problems.problem import Family, Given, Mistake, Step

SHOPPING = Family(
    name="shopping",
    givens=(
        Given("m", "the number of {first}", "", range(3, 10), range(2, 4)),
        Given("p", "the price of a {first_one}", "dollars", range(2, 8), range(2, 4)),
        Given("n", "the number of {second}", "", range(3, 10), range(2, 4)),
        Given("q", "the price of a {second_one}", "dollars", range(2, 9), range(2, 4)),
        Given("w", "the amount paid", "dollars", range(40, 151, 10), range(20, 21)),
    ),
    steps=(
        Step("c", "the cost of the {first}", "dollars", "m", "*", "p",
             "each {first_one} has the same price", "the {first} ring up at {c} dollars, {m} times {p}"),
        Step("d", "the cost of the {second}", "dollars", "n", "*", "q",
             "each {second_one} has the same price", "the {second} add {n} times {q}, another {d}"),
        Step("t", "the whole cost", "dollars", "c", "+", "d",
             "both kinds are bought", "so the till shows {t}"),
        Step("x", "the change", "dollars", "w", "-", "t",
             "change is what is paid beyond the cost", "from {w} dollars, {x} come back"),
    ),
    questions=(
        "{name} buys {m} {first} at ${p} each and {n} {second} at ${q} each, and pays with ${w}. How many "
        "dollars does {she} get back?",
        "In a shop a {first_one} costs ${p} and a {second_one} costs ${q}. {name} takes {m} {first} and {n} "
        "{second} and hands over ${w}. How much change, in dollars, is due?",
    ),
    gist="someone buys {m} {first} at {p} dollars and {n} {second} at {q} dollars and pays with {w} dollars",
    scene="Watch the till while {name} shops",
    conclusion="{name} gets {x} dollars back",
    mistake=Mistake("w", "-", "c", "paying for the {first} only", "the {second} cost money too"),
    settings=({"first": "pens", "first_one": "pen", "second": "notebooks", "second_one": "notebook"},
              {"first": "mugs", "first_one": "mug", "second": "plates", "second_one": "plate"},
              {"first": "tulips", "first_one": "tulip", "second": "roses", "second_one": "rose"},
              {"first": "brushes", "first_one": "brush", "second": "sponges", "second_one": "sponge"}),
)

SAVING = Family(
    name="saving",
    givens=(
        Given("p", "the price of the {item}", "dollars", range(80, 400, 5), range(20, 41)),
        Given("h", "the savings so far", "dollars", range(10, 80)),
        Given("e", "the weekly earnings", "dollars", range(15, 45), range(6, 12)),
        Given("s", "the weekly spending", "dollars", range(4, 20)),
    ),
    steps=(
        Step("m", "the amount still missing", "dollars", "p", "-", "h",
             "part of the price is already saved",
             "the {item} at {p} with {h} in the jar leaves a gap of {m} dollars"),
        Step("n", "the amount saved in a week", "dollars", "e", "-", "s",
             "spent money cannot be saved", "out of {e} a week {s} slip away, so {n} go into the jar"),
        Step("x", "the number of weeks", "weeks", "m", "/", "n",
             "every week closes the same part of the gap", "{n} at a time, the gap closes in {x} weeks"),
    ),
    questions=(
        "{name} wants a {item} that costs ${p}. {She} has already saved ${h}. Each week {she} earns ${e} "
        "and spends ${s} of it. In how many weeks can {she} buy the {item}?",
        "A {item} costs ${p}, and {name} has ${h} in {her} savings jar. Every week {name} earns ${e}, "
        "spends ${s} and saves the rest. How many weeks does it take until the {item} is affordable?",
    ),
    gist="a {item} costs {p} dollars, {h} are saved, and each week {e} are earned and {s} spent",
    scene="Think of a jar that slowly fills up",
    conclusion="{name} needs {x} weeks",
    mistake=Mistake("m", "-", "n", "subtracting a single week's saving",
                    "that leaves dollars, not a count of weeks"),
    settings=({"item": "bicycle"}, {"item": "guitar"}, {"item": "camera"}, {"item": "telescope"}),
    limits={"x": 40},
)

FENCE = Family(
    name="fence",
    givens=(
        Given("a", "the length of the {plot}", "metres", range(15, 50)),
        Given("b", "the width of the {plot}", "metres", range(4, 15)),
        Given("c", "the price of a metre of fence", "dollars", range(3, 13)),
        Given("g", "the discount", "dollars", range(10, 60)),
    ),
    steps=(
        Step("h", "the length of two neighbouring sides", "metres", "a", "+", "b",
             "a long and a short side meet at a corner",
             "one long and one short side, {a} and {b}, run {h} metres"),
        Step("f", "the length of the fence", "metres", "h", "*", 2,
             "a rectangle has two such pairs of sides", "walking the other half too makes {f} metres"),
        Step("t", "the price before the discount", "dollars", "f", "*", "c",
             "each metre costs the same", "at {c} dollars for every stride of a metre the bill is {t}"),
        Step("x", "the price to pay", "dollars", "t", "-", "g",
             "a discount lowers the bill", "knock {g} off and {x} dollars are left to pay"),
    ),
    questions=(
        "A rectangular {plot} is {a} metres long and {b} metres wide. {name} puts a fence around it. A "
        "metre of fence costs ${c}, and {she} gets a discount of ${g} on the whole. How many dollars does "
        "{name} pay?",
        "{name} fences a rectangular {plot} of {a} metres by {b} metres. The fence costs ${c} per metre, "
        "and the dealer takes ${g} off the bill. What does the fence cost in dollars?",
    ),
    gist="a plot of {a} by {b} metres is fenced at {c} dollars a metre with {g} dollars off",
    scene="Take a walk around the {plot}",
    conclusion="{name} pays {x} dollars",
    mistake=Mistake("h", "*", "c", "fencing only two sides", "the fence goes round all four sides"),
    settings=({"plot": "garden"}, {"plot": "chicken run"}, {"plot": "paddock"}, {"plot": "playground"}),
)

TRAVEL = Family(
    name="travel",
    givens=(
        Given("u", "the first speed", "kilometres an hour", range(12, 40)),
        Given("s", "the first time", "hours", range(2, 7)),
        Given("v", "the second speed", "kilometres an hour", range(12, 40)),
        Given("t", "the second time", "hours", range(2, 7)),
    ),
    steps=(
        Step("a", "the distance before the break", "kilometres", "u", "*", "s",
             "distance is speed times time", "{s} hours at {u} an hour cover {a} kilometres"),
        Step("b", "the distance after the break", "kilometres", "v", "*", "t",
             "the same rule holds after the break", "another {t} hours at {v} bring {b} more"),
        Step("x", "the whole distance", "kilometres", "a", "+", "b",
             "the two stretches follow each other", "end to end the two stretches are {x} long"),
    ),
    questions=(
        "{name} {moves} for {s} hours at {u} kilometres an hour, takes a break, and then goes on for {t} "
        "hours at {v} kilometres an hour. How many kilometres does {she} travel in all?",
        "Before lunch {name} {moves} at {u} km/h for {s} hours. After lunch {she} goes on at {v} km/h for "
        "{t} hours. What is the length of the whole trip in kilometres?",
    ),
    gist="a trip takes {s} hours at {u} kilometres an hour and then {t} hours at {v} kilometres an hour",
    scene="Imagine the road rolling by",
    conclusion="{name} travels {x} kilometres",
    mistake=Mistake("a", "+", "v", "adding the second speed",
                    "a speed is not a distance, and it lasts {t} hours"),
    settings=({"moves": "cycles"}, {"moves": "rides a scooter"}, {"moves": "sails"}, {"moves": "rows"}),
)

WAGES = Family(
    name="wages",
    givens=(
        Given("d", "the number of days", "", range(3, 8)),
        Given("h", "the number of hours a day", "", range(3, 9)),
        Given("r", "the hourly pay", "dollars", range(8, 21)),
        Given("s", "the cost of the {item}", "dollars", range(20, 100)),
    ),
    steps=(
        Step("t", "the number of hours worked", "hours", "d", "*", "h",
             "the days are equally long", "{d} days of {h} hours are {t} hours on the clock"),
        Step("m", "the pay", "dollars", "t", "*", "r",
             "every hour is paid alike", "{r} dollars for each of those hours is {m} in the pocket"),
        Step("x", "the money left over", "dollars", "m", "-", "s",
             "the {item} must be paid for", "once the {item} eat up {s}, {x} are left"),
    ),
    questions=(
        "{name} works {h} hours a day for {d} days and earns ${r} an hour. {She} then spends ${s} on "
        "{item}. How many dollars of {her} pay are left?",
        "For each hour at the {place}, {name} is paid ${r}. {She} works there on {d} days for {h} hours "
        "each and buys {item} for ${s}. How much of the pay, in dollars, does {she} still have?",
    ),
    gist="someone works {d} days of {h} hours at {r} dollars an hour and spends {s} dollars",
    scene="Think of a pay envelope after a stretch of work at the {place}",
    conclusion="{name} has {x} dollars left",
    mistake=Mistake("d", "*", "r", "paying each day like one hour", "a day has {h} paid hours"),
    settings=({"item": "shoes", "place": "café"}, {"item": "concert tickets", "place": "farm"},
              {"item": "schoolbooks", "place": "petrol station"}, {"item": "groceries", "place": "market"}),
)

RECIPE = Family(
    name="recipe",
    givens=(
        Given("f", "the weight in the recipe", "grams", range(60, 601, 10), range(10, 31)),
        Given("s", "the number of people the recipe serves", "", range(2, 9)),
        Given("n", "the number of guests", "", range(5, 16), range(3, 8)),
        Given("h", "the weight at home", "grams", range(50, 400, 10), range(5, 11)),
    ),
    steps=(
        Step("p", "the weight for one person", "grams", "f", "/", "s",
             "the recipe treats all people alike", "{f} grams among {s} plates is {p} grams a plate"),
        Step("t", "the weight for all guests", "grams", "p", "*", "n",
             "each guest needs one portion", "set {n} plates and {t} grams go into the pot"),
        Step("x", "the weight to buy", "grams", "t", "-", "h",
             "what is at home need not be bought", "the cupboard gives {h}, so the shop must supply {x}"),
    ),
    questions=(
        "A recipe for {s} people needs {f} grams of {item}. {name} cooks for {n} guests and has {h} grams "
        "of {item} at home. How many grams of {item} must {she} buy?",
        "{name} expects {n} guests. {Her} recipe takes {f} grams of {item} and serves {s} people, and there "
        "are {h} grams of {item} in the cupboard. How many more grams of {item} does {name} need?",
    ),
    gist="a recipe takes {f} grams of {item} for {s} people, {n} guests come and {h} grams are at home",
    scene="Stand in the kitchen with the plates laid out",
    conclusion="{name} must buy {x} grams of {item}",
    mistake=Mistake("f", "*", "n", "taking the whole recipe for every guest",
                    "{f} grams already serve {s} people"),
    settings=({"item": "rice"}, {"item": "flour"}, {"item": "lentils"}, {"item": "pasta"}),
)

TANK = Family(
    name="tank",
    givens=(
        Given("a", "the volume at first", "litres", range(120, 400, 5), range(20, 41)),
        Given("o", "the outflow in a minute", "litres", range(4, 16)),
        Given("t", "the draining time", "minutes", range(4, 16)),
        Given("n", "the number of buckets", "", range(3, 12)),
        Given("c", "the volume of a bucket", "litres", range(5, 16)),
    ),
    steps=(
        Step("d", "the volume drained", "litres", "o", "*", "t",
             "the outflow is steady", "{t} minutes of losing {o} let {d} litres run out"),
        Step("r", "the volume after draining", "litres", "a", "-", "d",
             "drained water is gone", "the level sinks from {a} to {r}"),
        Step("b", "the volume poured in", "litres", "n", "*", "c",
             "the buckets are equally large", "{n} buckets of {c} bring {b} back"),
        Step("x", "the volume at the end", "litres", "r", "+", "b",
             "poured water joins the rest", "so the {tank} ends up with {x} litres"),
    ),
    questions=(
        "A {tank} holds {a} litres of water. {o} litres a minute drain out for {t} minutes. Then {name} "
        "pours in {n} buckets of {c} litres each. How many litres are in the {tank} now?",
        "{name} drains a {tank} with {a} litres of water for {t} minutes at {o} litres per minute and "
        "afterwards empties {n} buckets of {c} litres into it. How many litres of water does it hold at the "
        "end?",
    ),
    gist="from {a} litres, {o} a minute drain for {t} minutes, and {n} buckets of {c} litres are added",
    scene="Keep an eye on the water line of the {tank}",
    conclusion="the {tank} holds {x} litres at the end",
    mistake=Mistake("a", "+", "b", "adding the buckets to the full {tank}", "{d} litres have drained before"),
    settings=({"tank": "pond"}, {"tank": "rain barrel"}, {"tank": "paddling pool"}, {"tank": "water tank"}),
)

AVERAGE = Family(
    name="average",
    givens=(
        Given("a", "the first {score}", "points", range(40, 99), range(2, 9)),
        Given("b", "the second {score}", "points", range(40, 99), range(2, 9)),
        Given("m", "the mean of all three", "points", range(50, 96), range(4, 8)),
    ),
    steps=(
        Step("t", "the sum of all three", "points", "m", "*", 3,
             "a mean of three is a third of their sum",
             "three rounds levelled out at {m} are worth {t} points"),
        Step("s", "the sum of the first two", "points", "a", "+", "b",
             "both of them are known", "{a} and {b} already bank {s}"),
        Step("x", "the third {score}", "points", "t", "-", "s",
             "the third closes the gap", "what is missing up to {t} is {x}"),
    ),
    questions=(
        "{name} has taken part in three {events}. The first two {score}s were {a} and {b} points, and the "
        "mean of all three is exactly {m} points. What was the third {score}?",
        "The mean of {name}'s three {score}s in {events} is {m} points. If two of them are {a} and {b} "
        "points, how many points is the remaining {score}?",
    ),
    gist="two {score}s are {a} and {b} points, and the mean of three is {m}",
    scene="Picture the three {score}s as stacks of coins that get levelled out",
    conclusion="the third {score} is {x} points",
    mistake=Mistake("t", "-", "a", "removing only the first {score}",
                    "the second one is part of the sum as well"),
    settings=({"score": "score", "events": "quizzes"}, {"score": "mark", "events": "spelling tests"},
              {"score": "result", "events": "archery rounds"}),
    limits={"x": 100},
)

MEASURE_FAMILIES = (SHOPPING, SAVING, FENCE, TRAVEL, WAGES, RECIPE, TANK, AVERAGE)
