"""`python -m mind_kernels ahead`: compiles the Triton kernels for GPUs that this machine lacks, and checks the result.

    python -m mind_kernels ahead [--capability 80 90 100] [--module mind_kernels.triton_gather ...] [--candidates]

prints registers, shared memory and spills of every variant that the launchers use. It fails if a variant spills
registers to memory, or uses a 32-bit offset into a tensor that may have more than 2^31 elements. It needs the triton
package, but no GPU.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field

import triton
import triton.knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

import mind_kernels
from mind_kernels.commands.options import Parser, one_of, whole_number
from mind_kernels.triton_variant import Variant


@dataclass(frozen=True)
class Report:
    """The compiler's result for a variant."""

    variant: Variant
    capability: int
    registers: int  # per thread
    shared_bytes: int  # per program
    stack_bytes: int  # per thread
    spills: int  # instructions that access the stack
    narrow: tuple[str, ...]  # large tensors with a 32-bit offset
    ttir: str = field(repr=False)

    @property
    def fault(self) -> str:
        """Why this variant is not acceptable; empty if it is."""
        if self.narrow:
            return f"32-bit offset into {', '.join(self.narrow)}"
        if self.spills or self.stack_bytes:
            return "" if self.variant.harmless_spills else "spills"
        return ""


def source_of(variant: Variant) -> ASTSource:
    """The source that Triton compiles for `variant`."""
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(variant.signature.items())
        if name not in variant.unaligned and (kind.startswith("*") or kind in ("i32", "i64"))
    }
    return ASTSource(variant.kernel, variant.signature, variant.constexprs, aligned)


def compile_variant(variant: Variant, capability: int) -> Report:
    """Compiles for sm_`capability` and examines the result."""
    if not isinstance(variant.kernel, triton.JITFunction):
        raise RuntimeError(f"{variant.name}: TRITON_INTERPRET was set when its module was imported: nothing to compile")
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source_of(variant), target=target, options=variant.options)
    ttir = compiled.asm["ttir"]
    registers, stack_bytes, spills = resources(compiled)
    narrow = tuple(name for name in variant.wide if set(offset_types(ttir, name)) != {"i64"})
    return Report(variant, capability, registers, compiled.metadata.shared, stack_bytes, spills, narrow, ttir)


def resources(compiled: CompiledKernel) -> tuple[int, int, int]:
    """Registers and bytes of stack per thread, and the instructions that load or store there."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _cuobjdump("-res-usage", file.name)
        used = dict(re.findall(r"\b(REG|STACK):(\d+)", usage))
        registers, stack = int(used["REG"]), int(used["STACK"])
        # Registers are spilled to a stack frame: without one there are no spills.
        sass = _cuobjdump("-sass", file.name) if stack else ""
    return registers, stack, len(re.findall(r"\b(?:LDL|STL)\b", sass))


def _cuobjdump(option: str, path: str) -> str:
    command = [triton.knobs.nvidia.cuobjdump.path, option, path]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def offset_types(ttir: str, argument: str) -> list[str]:
    """The types, "i32" or "i64", of the offsets that are added directly to a pointer argument.

    Offsets added to the result, the start of a row, stay within that row and are not listed.
    """
    pointers, found = {f"%{argument}"}, []
    for result, operation, operand, types in re.findall(r"(%\w+) = tt\.(addptr|splat) (%\w+)(.*)", ttir):
        if operand in pointers and operation == "addptr":
            offset = re.search(r"(i\d+)>?(?: loc\(.*)?$", types)
            found.append(offset[1] if offset else types)
        elif operand in pointers:
            pointers.add(result)
    return found


def modules() -> list[str]:
    """The modules of Triton kernels: those in each operation's folder `_triton`, and those that the operations
    share."""
    found = (module.name for module in pkgutil.walk_packages(mind_kernels.__path__, "mind_kernels."))
    return [name for name in found if "._triton." in name or name.startswith("mind_kernels.triton_")]


def variants(names: Iterable[str], candidates: bool = False) -> list[Variant]:
    """The variants of these modules, and the candidates of `tune` too if asked for.

    A module that only has functions for kernels of other modules has no variants.
    """
    found = [importlib.import_module(name) for name in names]
    kinds = ("variants", "candidates") if candidates else ("variants",)
    return [
        variant for module in found for kind in kinds if hasattr(module, kind) for variant in getattr(module, kind)()
    ]


def main(arguments: list[str]) -> int:
    parser = Parser(
        prog="python -m mind_kernels ahead",
        description="Compiles the Triton kernels for GPUs that are not here. Fails if one spills registers to memory, "
        "or reaches into a large tensor by a 32-bit offset.",
        epilog="Example: python -m mind_kernels ahead --capability 90",
    )
    parser.add_argument(
        "--capability", type=whole_number, nargs="+", default=[80, 90, 100], help="GPU architectures, sm_<n>"
    )
    parser.add_argument(
        "--module",
        nargs="+",
        type=one_of(modules()),
        metavar="MODULE",
        help="such as mind_kernels.triton_gather; all by default",
    )
    parser.add_argument("--candidates", action="store_true", help="also what `tune` may put in place of a default")
    options = parser.parse_args(arguments)
    faults = 0
    print(f"{'variant':44} {'sm':>4} {'warps':>5} {'registers':>9} {'shared':>8} {'stack':>6} {'spills':>6}")
    for variant in variants(options.module or modules(), options.candidates):
        for capability in options.capability:
            if variant.capabilities and capability not in variant.capabilities:
                continue
            report = compile_variant(variant, capability)
            faults += bool(report.fault)
            print(
                f"{variant.name:44} {capability:4} {variant.options.get('num_warps', 4):5} {report.registers:9} "
                f"{report.shared_bytes:8} {report.stack_bytes:6} {report.spills:6}  "
                f"{report.fault or variant.harmless_spills}".rstrip(),
                flush=True,
            )
    if faults:
        print(f"{faults} variants are at fault", file=sys.stderr)
    return min(faults, 1)
