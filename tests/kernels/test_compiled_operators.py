"""The operators of both compiled libraries, called directly: wrong tensors are named, values out of range never reach
memory, threads change nothing, and the statistics of a row have one order."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from compiled_kernels import NAMES, Compiled, compiled
from kernel_cases import make_groups, make_rows

from mind_kernels import extension
from mind_kernels.linear_cross_entropy.compiled_rows import ROW_NUMBERS
from mind_kernels.linear_cross_entropy.shard_contract import GradientTerms, RowSums
from mind_kernels.sparse_gradient import offsets_of

Arguments = dict[str, Any]
THRESHOLD = math.log(2**-8)


@pytest.fixture(params=["cpp-baseline", "emulated"])
def library(request):
    with compiled(request.param) as found:
        yield found


@pytest.fixture(params=[name for name in NAMES if name.startswith("cpp")])
def cpp(request):
    with compiled(request.param) as found:
        yield found


def options() -> Arguments:
    return {"softcap": 0.0, "temperature": 1.0, "label_smoothing": 0.1, "z_loss": 1e-3}


def row_kernel_(library: Compiled, rows: int = 3, vocabulary: int = 101) -> Arguments:
    logits, target, scale, entropy_scale = make_rows(rows, vocabulary, torch.float32)
    numbers, correct = torch.zeros(len(ROW_NUMBERS), rows), torch.zeros(rows, dtype=torch.bool)
    weights = {"scale": scale, "entropy_scale": entropy_scale}
    return {"logits": logits, "target": target} | weights | options() | {"numbers": numbers, "correct": correct}


def count(library: Compiled, *shape: int) -> Arguments:
    rows = row_kernel_(library, *shape)
    numbers, correct = rows.pop("numbers"), rows.pop("correct")
    del rows["scale"], rows["entropy_scale"]
    kept, dropped_mass = torch.zeros_like(rows["target"]), torch.zeros_like(numbers[0])
    return rows | {
        "log_threshold": THRESHOLD,
        "numbers": numbers,
        "correct": correct,
        "kept": kept,
        "dropped_mass": dropped_mass,
    }


def entries(library: Compiled, *shape: int) -> Arguments:
    counted, rows = count(library, *shape), row_kernel_(library, *shape)
    library.operators().count(*counted.values())
    total = int(counted["kept"].sum())
    return (
        {name: rows[name] for name in ("logits", "target", "scale", "entropy_scale")}
        | options()
        | {
            "log_threshold": THRESHOLD,
            "numbers": counted["numbers"],
            "offsets": offsets_of(counted["kept"]),
            "columns": torch.zeros(total, dtype=torch.int32),
            "values": torch.zeros(total),
            "kept_sum": torch.zeros_like(counted["dropped_mass"]),
        }
    )


def background(library: Compiled, *shape: int) -> Arguments:
    counted = count(library, *shape)
    library.operators().count(*counted.values())
    names = ("logits", "target", "softcap", "temperature", "log_threshold", "numbers")
    sample, out = torch.tensor([0, 1]), torch.zeros(counted["logits"].shape[1])
    return {name: counted[name] for name in names} | {"sample": sample, "weight": torch.ones(2), "out": out}


def shard(rows: int, vocabulary: int) -> Arguments:
    """Logits of a shard, with the target of the first row in another one, and conditions."""
    logits, target, *_ = make_rows(rows, vocabulary, torch.float32)
    target[0] = -1
    return {"logits": logits, "target": target, "softcap": 0.0, "temperature": 1.0}


def shard_sums(library: Compiled, rows: int = 3, vocabulary: int = 101) -> Arguments:
    sums, argmax = torch.zeros(len(RowSums._fields) - 1, rows), torch.zeros(rows, dtype=torch.int64)
    return shard(rows, vocabulary) | {"adds_logits": True, "sums": sums, "argmax": argmax}


def shard_gradient_(library: Compiled, rows: int = 3, vocabulary: int = 101) -> Arguments:
    generator = torch.Generator().manual_seed(0)
    terms = dict(zip(GradientTerms._fields, torch.randn(6, rows, generator=generator), strict=True))
    return shard(rows, vocabulary) | terms | {"maximum": terms["maximum"] + 9}


def shard_count(library: Compiled, rows: int = 3, vocabulary: int = 101) -> Arguments:
    counted = count(library, rows, vocabulary)
    library.operators().count(*counted.values())
    return (
        shard(rows, vocabulary)
        | {"log_threshold": THRESHOLD, "numbers": counted["numbers"]}
        | {"kept": torch.zeros_like(counted["kept"]), "kept_mass": torch.zeros_like(counted["dropped_mass"])}
    )


def gather_rows(library: Compiled, bags: int = 2, size: int = 40) -> Arguments:
    generator = torch.Generator().manual_seed(size)
    counts = torch.arange(bags) % 7 * 30 + 3
    total = int(counts.sum())
    return {
        "values": torch.randn(total, generator=generator),
        "indices": torch.randint(0, 11, (total,), generator=generator, dtype=torch.int32),
        "offsets": offsets_of(counts),
        "matrix": torch.randn(11, size, generator=generator),
        "left": torch.ones(bags, 1),
        "right": torch.ones(1, size),
        "out": torch.zeros(bags, size),
    }


def groups(kind: str, weight_name: str) -> Arguments:
    logits, weight, mask = make_groups(kind, 2, 3, 67)
    results = {"divergence": torch.zeros_like(weight), "gradient": torch.zeros_like(logits)}
    return {"logits": logits, weight_name: weight, "mask": mask} | results


def pair_divergences(library: Compiled) -> Arguments:
    return groups("pairs", "pair_weight")


def mixture_divergences(library: Compiled) -> Arguments:
    return groups("mixture", "mixture_weight")


WHOLE_ROWS = (row_kernel_, count)
SHARDS = (entries, background, shard_sums, shard_gradient_, shard_count)  # targets may be in another one: -1
ROW_OPERATORS = (*WHOLE_ROWS, *SHARDS)
OPERATORS: dict[str, Callable[..., Arguments]] = {
    make.__name__: make for make in (*ROW_OPERATORS, gather_rows, pair_divergences, mixture_divergences)
}


def call(library: Compiled, operator: str, arguments: Arguments) -> None:
    getattr(library.operators(), operator)(*arguments.values())


@pytest.mark.parametrize("operator", OPERATORS)
def test_schemas(operator, library):
    schema = getattr(library.operators(), operator).default._schema
    arguments = OPERATORS[operator](library)
    assert [argument.name for argument in schema.arguments] == list(arguments)
    written = {argument.name for argument in schema.arguments if argument.alias_info and argument.alias_info.is_write}
    before = {name: value.clone() for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    call(library, operator, arguments)
    changed = {name for name, value in before.items() if not torch.equal(value, arguments[name])}
    assert changed <= written and changed


def test_an_unknown_instruction_set_changes_nothing(cpp):
    before = extension.capability()
    with pytest.raises(RuntimeError, match="capability is 'mmx': expected avx512, avx2 or baseline"):
        extension.use_capability("mmx")
    assert extension.capability() == before


def test_order_of_the_statistics_of_a_row(cpp):
    assert sys.modules["mind_kernels._cpp"].row_numbers() == ROW_NUMBERS


@pytest.mark.parametrize(
    ("operator", "argument", "change", "message"),
    [
        ("row_kernel_", "logits", lambda t: t.T, "logits has rows that are not contiguous"),
        ("row_kernel_", "logits", lambda t: t.double(), "logits has dtype"),
        ("row_kernel_", "logits", lambda t: t[:1].expand(3, 101), "logits has rows that overlap"),
        ("row_kernel_", "logits", lambda t: t[:, :0], "logits have 0 columns"),
        ("row_kernel_", "logits", lambda t: t[None], "logits has shape"),
        ("row_kernel_", "target", lambda t: t[:2], r"target has shape \(2\): expected \(3\)"),
        ("row_kernel_", "target", lambda t: t.int(), "target has dtype"),
        ("row_kernel_", "scale", lambda t: t[:1], "scale has shape"),
        ("row_kernel_", "entropy_scale", lambda t: t.double(), "entropy_scale has dtype"),
        (
            "row_kernel_",
            "softcap",
            lambda softcap: -1.0,
            "softcap is -1: expected a finite float32 number",
        ),
        (
            "row_kernel_",
            "temperature",
            lambda temperature: 0.0,
            "temperature is 0: expected a finite float32 number",
        ),
        ("row_kernel_", "numbers", lambda t: t[:-1], rf"numbers has shape .*: expected \({len(ROW_NUMBERS)}, 3\)"),
        ("row_kernel_", "numbers", lambda t: t.T.contiguous().T, "numbers is not contiguous"),
        ("row_kernel_", "correct", lambda t: t.float(), "correct has dtype"),
        ("count", "kept", lambda t: t.int(), "kept has dtype"),
        ("count", "dropped_mass", lambda t: t[:2], "dropped_mass has shape"),
        ("entries", "scale", lambda t: None, "scale is missing"),
        ("entries", "offsets", lambda t: t[1:], "offsets has shape"),
        ("entries", "columns", lambda t: t.long(), "columns has dtype"),
        ("entries", "values", lambda t: t[1:], "values has shape"),
        ("entries", "kept_sum", lambda t: t.half(), "kept_sum has dtype"),
        ("background", "sample", lambda t: t.int(), "sample has dtype"),
        ("background", "weight", lambda t: t[:1], "weight has shape"),
        ("background", "out", lambda t: t[:100], "out has shape"),
        ("shard_sums", "sums", lambda t: t[:-1], r"sums has shape \(4, 3\): expected \(5, 3\)"),
        ("shard_sums", "argmax", lambda t: t.int(), "argmax has dtype"),
        ("shard_gradient_", "logits", lambda t: t[:1].expand(3, 101), "logits has rows that overlap"),
        ("shard_gradient_", "log_total", lambda t: t.double(), "log_total has dtype"),
        ("shard_gradient_", "b", lambda t: t[:2], "b has shape"),
        ("shard_gradient_", "uniform", lambda t: torch.stack([t, t], 1)[:, 0], "uniform is not contiguous"),
        ("shard_count", "numbers", lambda t: t[:-1], "numbers has shape"),
        ("shard_count", "kept_mass", lambda t: t[:2], "kept_mass has shape"),
        ("gather_rows", "indices", lambda t: t.long(), "indices has dtype"),
        ("gather_rows", "offsets", lambda t: t[1:], "offsets has shape"),
        ("gather_rows", "matrix", lambda t: t.T, "matrix has rows that are not contiguous"),
        ("gather_rows", "left", lambda t: t[:1], "left has shape"),
        ("gather_rows", "left", lambda t: t.half(), "left has dtype Half: expected Float"),
        ("gather_rows", "right", lambda t: t.half(), "right has dtype Half: expected Float"),
        ("gather_rows", "out", lambda t: t.half(), "out has dtype Half: expected Float"),
        ("gather_rows", "out", lambda t: t[:1].expand(2, 40), "out has rows that overlap"),
        *[
            (operator, argument, change, message)
            for operator, weight in (("pair_divergences", "pair_weight"), ("mixture_divergences", "mixture_weight"))
            for argument, change, message in [
                ("logits", lambda t: t[0], "logits have shape"),
                ("logits", lambda t: t.double(), "logits has dtype"),
                ("logits", lambda t: t.transpose(1, 2).contiguous().transpose(1, 2), "logits is not contiguous"),
                ("logits", lambda t: t[..., :0], "logits have 0 columns"),
                (weight, lambda t: t[:1], f"{weight} has shape"),
                (weight, lambda t: t.double(), f"{weight} has dtype"),
                (weight, lambda t: torch.stack([t, t], -1)[..., 0], f"{weight} is not contiguous"),
                ("mask", lambda t: t[:, :2], "mask has shape"),
                ("mask", lambda t: t.float(), "mask has dtype"),
                ("divergence", lambda t: t[..., :2], "divergence has shape"),
                ("divergence", lambda t: t.bfloat16(), "divergence has dtype"),
                ("gradient", lambda t: t[..., :66], "gradient has shape"),
                ("gradient", lambda t: t.half(), "gradient has dtype"),
            ]
        ],
    ],
)
def test_wrong_arguments_are_named(operator, argument, change, message, library):
    arguments = OPERATORS[operator](library)
    arguments[argument] = change(arguments[argument])
    with pytest.raises(RuntimeError, match=message):
        call(library, operator, arguments)


@pytest.mark.parametrize(
    ("operator", "argument", "position", "value", "message"),
    [
        *[
            (operator.__name__, "target", 1, value, rf"target\[1\] is {value}: expected 0 to 100")
            for operator in WHOLE_ROWS
            for value in (-1, 101, 2**40)
        ],
        *[
            (operator.__name__, "target", 1, value, rf"target\[1\] is {value}: expected -1 to 100")
            for operator in SHARDS
            for value in (-2, 101, 2**40)
        ],
        *[("background", "sample", 1, value, rf"sample\[1\] is {value}: expected 0 to 2") for value in (-1, 3, 2**40)],
        ("entries", "offsets", 1, -1, "offsets decrease at 0"),
        ("entries", "offsets", 1, 2**40, "offsets decrease at 1"),
        ("entries", "offsets", 3, 2**40, "offsets reach from 0 to 1099511627776: expected 0 to "),
        ("gather_rows", "indices", 1, 11, r"indices\[1\] is 11: expected 0 to 10"),
        ("gather_rows", "indices", 30, -1, r"indices\[30\] is -1: expected 0 to 10"),
        ("gather_rows", "indices", 5, 2**31 - 1, r"indices\[5\] is 2147483647: expected 0 to 10"),
        ("gather_rows", "offsets", 1, -1, "offsets decrease at 0"),
        ("gather_rows", "offsets", 1, 37, "offsets decrease at 1"),
        ("gather_rows", "offsets", 2, 2**40, "offsets reach from 0 to 1099511627776: expected 0 to 36"),
    ],
)
@pytest.mark.parametrize("name", ["cpp-baseline", "emulated"])
def test_bad_values_never_reach_memory(operator, argument, position, value, message, name):
    """The CPU library names them; a CUDA kernel, whose values the host cannot check, ends before it uses them."""
    with compiled(name) as library:
        arguments = OPERATORS[operator](library)
        arguments[argument][position] = value
        expected = f"{operator} could not be launched: trap" if name == "emulated" else message
        with pytest.raises(RuntimeError, match=expected):
            call(library, operator, arguments)


@pytest.mark.parametrize("operator", SHARDS, ids=lambda operator: operator.__name__)
def test_an_empty_shard(operator, library):
    """Of rows whose targets are all in another one; no memory that there is not is touched."""
    arguments = operator(library)
    arguments["logits"], arguments["target"] = arguments["logits"][:, :0], torch.full((3,), -1)
    if operator is entries:
        arguments |= {"offsets": torch.zeros(4, dtype=torch.int64)}
        arguments |= {name: arguments[name][:0] for name in ("columns", "values")}
    if operator is background:
        arguments["out"] = arguments["out"][:0]
    call(library, operator.__name__, arguments)
    if operator is shard_sums:
        assert arguments["sums"][0].tolist() == [-math.inf] * 3 and not arguments["sums"][1:].any()
        assert not arguments["argmax"].any()
    if operator is shard_count:
        assert not arguments["kept"].any() and not arguments["kept_mass"].any()


def test_too_few_places_for_entries():
    """Offsets of other statistics: nothing is written beyond a row's places. The CUDA kernel ends there."""
    for name in ("cpp-baseline", "emulated"):
        with compiled(name) as library:
            arguments = entries(library)
            arguments["offsets"][2] -= 1
            if name == "emulated":
                with pytest.raises(RuntimeError, match="entries could not be launched: trap"):
                    call(library, "entries", arguments)
            else:
                call(library, "entries", arguments)
                assert bool((arguments["columns"] < 101).all())


@pytest.mark.parametrize("operator", [operator.__name__ for operator in (*ROW_OPERATORS, gather_rows)])
def test_threads_change_nothing(operator, cpp, threads):
    shape = (50, 1100) if operator == "gather_rows" else (17, 5003)
    results = []
    for number in (1, 2, 3, 7):
        threads(number)
        arguments = OPERATORS[operator](cpp, *shape)
        call(cpp, operator, arguments)
        results.append([value for value in arguments.values() if isinstance(value, torch.Tensor)])
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))
