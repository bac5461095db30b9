"""Every Triton kernel compiles for GPUs that are not here, without spills, and reaches past 2^31 elements."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from mind_kernels.commands import ahead

# Both are run in a process of their own, since the tests' own kernels may be the interpreter's.
FAULTS = """
from dataclasses import replace
from mind_kernels.linear_cross_entropy._triton.rows import variants
from mind_kernels.commands.ahead import compile_variant

good = variants()[0]
report = compile_variant(good, 90)
assert not report.fault and report.registers > 16 and report.stack_bytes == report.spills == 0
crowded = replace(good, keywords=good.keywords | {"num_warps": 1})
report = compile_variant(crowded, 90)
assert report.fault == "spills" and report.stack_bytes > 0 and report.spills > 0
assert compile_variant(replace(crowded, harmless_spills="once per row"), 90).fault == ""
assert compile_variant(replace(good, wide=("logits", "target")), 90).fault == "32-bit offset into target"
"""

# Triton makes a constant of an integer argument of 1, which then has no dtype.
ARGUMENTS_OF_ONE = """
from dataclasses import replace
from mind_kernels.linear_cross_entropy._triton import pieces, stream
from mind_kernels.commands.ahead import compile_variant

for variant, names in (
    (stream.variants()[1], ("rows", "vocabulary", "group", "splits", "hidden_stride", "weight_stride", "size")),
    (stream.variants()[3], ("rows", "vocabulary", "group", "splits")),
    (pieces.variants()[0], ("rows", "vocabulary", "tiles", "hidden_stride", "weight_stride", "size")),
):
    ones = replace(variant, keywords=variant.keywords | dict.fromkeys(names, 1))
    assert not compile_variant(ones, (*variant.capabilities, 90)[0]).narrow, variant.name
"""


def run(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)


# Of those that are launched alike on all architectures one is compiled: `python -m mind_kernels ahead` has them all.
# With an argument the first variant of each kernel is.
EVERY_LAUNCH = """
import sys
from mind_kernels.commands.ahead import compile_variant, modules, variants

every = variants(modules())
first = {id(variant.kernel): variant for variant in reversed(every)}
for variant in first.values() if sys.argv[1:] else every:
    for capability in variant.capabilities or (90,):
        fault = compile_variant(variant, capability).fault
        assert not fault, f"{variant.name} on sm_{capability}: {fault}"
print("compiled")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "which", [("first",), pytest.param((), marks=pytest.mark.nightly)], ids=["kernels", "launches"]
)
def test_kernels_compile_without_spills(which):
    result = run("-c", EVERY_LAUNCH, *which)
    assert result.returncode == 0 and "compiled" in result.stdout, result.stderr


def test_the_command_prints_a_line_per_variant():
    result = run("-m", "mind_kernels", "ahead", "--capability", "90", "--module", "mind_kernels.triton_gather")
    lines = result.stdout.splitlines()
    assert result.returncode == 0 and len(lines) == 1 + len(ahead.variants(["mind_kernels.triton_gather"]))


def test_faults_are_seen():
    result = run("-c", FAULTS)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_arguments_of_one_compile():
    result = run("-c", ARGUMENTS_OF_ONE)
    assert result.returncode == 0, result.stderr


def test_the_interpreter_has_nothing_to_compile():
    variant = ahead.Variant("example", object(), {}, {})
    with pytest.raises(RuntimeError, match="example: TRITON_INTERPRET was set"):
        ahead.compile_variant(variant, 90)


def test_every_kernel_is_in_a_variant():
    """Also those of a module that is new: the command finds it in its operation's `_triton`."""
    modules = ahead.modules()
    compiled = {id(variant.kernel) for variant in ahead.variants(modules)}
    kernels = {
        f"{module}.{name}": value
        for module in modules
        for name, value in vars(sys.modules[module]).items()
        if name.endswith("_kernel")
    }
    assert len(kernels) > 10
    assert not [name for name, kernel in kernels.items() if id(kernel) not in compiled]


def test_offset_types():
    ttir = """
  tt.func public @kernel(%logits: !tt.ptr<bf16> {tt.divisibility = 16 : i32} loc("logits"(#loc)), %n: i32 loc(#loc)) {
    %row = tt.addptr %logits, %offset : !tt.ptr<bf16>, i64 loc(#loc1)
    %x = tt.addptr %row, %n : !tt.ptr<bf16>, i32 loc(#loc2)
    %many = tt.splat %logits : !tt.ptr<bf16> -> tensor<8x!tt.ptr<bf16>> loc(#loc3)
    %y = tt.addptr %many, %columns : tensor<8x!tt.ptr<bf16>>, tensor<8xi32> loc(#loc4)
  """
    assert ahead.offset_types(ttir, "logits") == ["i64", "i32"]
    assert ahead.offset_types(ttir, "weight") == []
