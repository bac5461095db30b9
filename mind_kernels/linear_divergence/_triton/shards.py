"""The divergence from a teacher's logits in Triton for a shard of the vocabulary. One program per row.

Passes: both normalizers of the shard (read both sides; twice for an interpolated teacher), and in place the logits
after softcap, temperature and interpolation, if these change them (read, write both); the shard's parts of the
divergence and of S (read both); the gradient in place (read both, write). Between the passes the results of all shards
are combined. Passes, memory and arithmetic are those of `rows`.
"""

# Type checkers do not see that tl.static_range, which Triton unrolls, is an iterator.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from mind_kernels.head import Head
from mind_kernels.linear_divergence._triton.rows import (
    divergence_arguments,
    load_both,
    pair_launch,
    row_parts,
    softmaxes,
    teacher_conditions,
    write_gradient,
)
from mind_kernels.linear_divergence.kinds import Divergence
from mind_kernels.linear_divergence.shard_contract import Normalizers, ShardSums, SoftmaxSums
from mind_kernels.linear_divergence.terms import Parts
from mind_kernels.triton_math import columns_of, conditions, jit, row_pointer
from mind_kernels.triton_variant import Variant

# Maximum, total and moment of both sides, and the shifts of both before the interpolation.
_FIELDS = 8


@jit
def _shard_sums_kernel(
    logits,  # (n, V of the shard)
    teacher_logits,  # (n, V of the shard)
    numbers,  # (_FIELDS, n)
    vocabulary,
    softcap,
    temperature,
    teacher_softcap,
    teacher_temperature,
    interpolation,
    HAS_SOFTCAP: tl.constexpr,
    TEACHER_HAS_SOFTCAP: tl.constexpr,
    INTERPOLATED: tl.constexpr,
    CHANGES: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    r = tl.program_id(0)
    rows = (row_pointer(logits, r, vocabulary), row_pointer(teacher_logits, r, vocabulary))
    heads = (softcap, temperature, teacher_softcap, teacher_temperature)
    maximum, total, moment, their_maximum, their_total, their_moment = softmaxes(
        rows, vocabulary, heads, (0.0, 0.0), 0.0, HAS_SOFTCAP, TEACHER_HAS_SOFTCAP, False, LANES, VECTOR
    )
    shifts = (0.0, 0.0)
    if INTERPOLATED:  # interpolates shifted logits, at most 0: rounding of large logits would change p
        shifts = (tl.where(total == 0, 0.0, maximum), tl.where(their_total == 0, 0.0, their_maximum))
        _, _, _, their_maximum, their_total, their_moment = softmaxes(
            rows, vocabulary, heads, shifts, interpolation, HAS_SOFTCAP, TEACHER_HAS_SOFTCAP, True, LANES, VECTOR
        )
    maximum = tl.where(total == 0, float("-inf"), maximum)
    their_maximum = tl.where(their_total == 0, float("-inf"), their_maximum)
    values = (maximum, total, moment, their_maximum, their_total, their_moment, shifts[0], shifts[1])
    for k in tl.static_range(len(values)):
        tl.store(numbers + k * tl.num_programs(0) + r, values[k])
    if CHANGES:
        for start in range(0, vocabulary, LANES * VECTOR):
            columns = columns_of(start, LANES, VECTOR)
            z, student, theirs = load_both(
                rows, columns, vocabulary, heads, shifts, interpolation, HAS_SOFTCAP, TEACHER_HAS_SOFTCAP, INTERPOLATED
            )
            tl.store(rows[0] + columns, z, mask=columns < vocabulary)
            tl.store(rows[1] + columns, theirs, mask=columns < vocabulary)


@jit
def _load_normalizers(maximum, total, their_maximum, their_total):
    """The shifts of both sides of this program's row, and log sum e^(z - shift) of both."""
    r = tl.program_id(0)
    log_totals = (tl.log(tl.load(total + r)), tl.log(tl.load(their_total + r)))
    return (tl.load(maximum + r), tl.load(their_maximum + r)), log_totals


@jit
def _shard_parts_kernel(
    logits,  # (n, V of the shard), after `_shard_sums_kernel`
    target_logits,  # (n, V of the shard), after `_shard_sums_kernel`
    maximum,  # (n,), of the whole row, as the following ones
    total,  # (n,)
    their_maximum,  # (n,)
    their_total,  # (n,)
    sums,  # (3, n): parts of the divergence, of q F', and of q
    vocabulary,
    c,
    rest,  # 1 - c
    teacher_part,
    student_part,
    difference_part,
    FORWARD: tl.constexpr,
    REVERSE: tl.constexpr,
    OF_TEACHER: tl.constexpr,
    OF_STUDENT: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    r = tl.program_id(0)
    rows = (row_pointer(logits, r, vocabulary), row_pointer(target_logits, r, vocabulary))
    shifts, log_totals = _load_normalizers(maximum, total, their_maximum, their_total)
    values = row_parts(
        rows,
        vocabulary,
        (1.0, 1.0, 1.0, 1.0),
        shifts,
        0.0,
        log_totals,
        0.0,
        (c, rest, teacher_part, student_part, difference_part),
        False,
        False,
        False,
        FORWARD,
        REVERSE,
        OF_TEACHER,
        OF_STUDENT,
        LANES,
        VECTOR,
    )
    for k in tl.static_range(len(values)):
        tl.store(sums + k * tl.num_programs(0) + r, tl.sum(values[k], axis=0))


@jit
def _shard_gradient_kernel(
    logits,  # (n, V of the shard), after `_shard_sums_kernel`
    target_logits,  # (n, V of the shard), after `_shard_sums_kernel`
    maximum,  # (n,), of the whole row, as the following ones
    total,  # (n,)
    their_maximum,  # (n,)
    their_total,  # (n,)
    weighted,  # (n,): the sum of q F'
    mass,  # (n,): the sum of q
    scale,  # (n,)
    vocabulary,
    softcap,
    temperature,
    c,
    rest,  # 1 - c
    teacher_part,
    student_part,
    difference_part,
    HAS_SOFTCAP: tl.constexpr,
    FORWARD: tl.constexpr,
    REVERSE: tl.constexpr,
    OF_TEACHER: tl.constexpr,
    OF_STUDENT: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    r = tl.program_id(0)
    rows = (row_pointer(logits, r, vocabulary), row_pointer(target_logits, r, vocabulary))
    shifts, log_totals = _load_normalizers(maximum, total, their_maximum, their_total)
    write_gradient(
        rows,
        tl.load(scale + r),
        tl.load(weighted + r) / tl.load(mass + r),
        vocabulary,
        (1.0, 1.0, 1.0, 1.0),
        shifts,
        0.0,
        log_totals,
        0.0,
        (c, rest, teacher_part, student_part, difference_part),
        softcap,
        temperature,
        False,
        False,
        False,
        HAS_SOFTCAP,
        FORWARD,
        REVERSE,
        OF_TEACHER,
        OF_STUDENT,
        LANES,
        VECTOR,
    )


def _form_arguments(divergence: Divergence) -> dict[str, float | bool]:
    """The divergence as kernel arguments, without the interpolation."""
    every = divergence_arguments(divergence)
    return {name: value for name, value in every.items() if name not in ("interpolation", "INTERPOLATED")}


def variants() -> list[Variant]:
    """Sums with and without an interpolated teacher, each form of the divergence, and a shard that is not a multiple of
    16."""
    forms = {
        "forward": Divergence(1.0, 0.0, 0.0),
        "reverse": Divergence(0.0, 1.0, 1.0),
        "jsd": Divergence(0.5, 0.5, 0.5),
        "skew forward": Divergence(1.0, 0.0, 0.1),
        "skew reverse": Divergence(0.0, 1.0, 0.9),
    }
    pointers = ("logits", "teacher_logits", "target_logits", "numbers", "maximum", "total", "their_maximum")
    pointers += ("their_total", "sums", "weighted", "mass", "scale")
    numbers = ("softcap", "temperature", "teacher_softcap", "teacher_temperature")
    numbers += tuple(name for name in divergence_arguments(forms["jsd"]) if name.islower())
    types = dict.fromkeys(pointers, "*fp32") | dict.fromkeys(numbers, "fp32") | {"vocabulary": "i32"}

    def variant(label, kernel, constants, vocabulary=18992, unaligned=()):
        wide = ("logits", "teacher_logits") if kernel is _shard_sums_kernel else ("logits", "target_logits")
        keywords = constants | pair_launch(vocabulary)
        return Variant(f"divergence shard {label}", kernel, types, keywords, wide, unaligned)

    out, other = [], (50257, ("vocabulary",))
    for name, softcap, interpolated in (("", False, False), (", all options", True, True)):
        constants = {"HAS_SOFTCAP": softcap, "TEACHER_HAS_SOFTCAP": softcap}
        constants |= {"INTERPOLATED": interpolated, "CHANGES": softcap}
        out.append(variant(f"sums{name}", _shard_sums_kernel, constants))
        if softcap:
            out.append(variant(f"sums{name}, unaligned", _shard_sums_kernel, constants, *other))
    for name, divergence in forms.items():
        constants = {key: value for key, value in _form_arguments(divergence).items() if key.isupper()}
        capped = constants | {"HAS_SOFTCAP": True}
        out += [
            variant(f"parts, {name}", _shard_parts_kernel, constants),
            variant(f"parts, {name}, unaligned", _shard_parts_kernel, constants, *other),
            variant(f"gradient, {name}, softcap", _shard_gradient_kernel, capped),
            variant(f"gradient, {name}, softcap, unaligned", _shard_gradient_kernel, capped, *other),
        ]
    return out


def shard_sums_(
    logits: Tensor,  # (n, V of the shard) float32, projected, contiguous, V > 0
    teacher_logits: Tensor,  # (n, V of the shard) float32, projected, contiguous
    head: Head,
    teacher_head: Head,
    divergence: Divergence,
) -> ShardSums:
    """See `shard_contract.ShardKernels`."""
    rows, vocabulary = logits.shape
    numbers = logits.new_empty(_FIELDS, rows)
    is_interpolated = divergence.interpolation != 1
    is_plain = all(each.softcap is None and each.temperature == 1 for each in (head, teacher_head))
    _shard_sums_kernel[(rows,)](
        logits,
        teacher_logits,
        numbers,
        vocabulary,
        interpolation=divergence.interpolation,
        INTERPOLATED=is_interpolated,
        CHANGES=is_interpolated or not is_plain,
        **conditions(head),
        **teacher_conditions(teacher_head),
        **pair_launch(vocabulary),
    )
    shift, their_shift = numbers[6:].double()
    offset = torch.lerp(shift, their_shift, divergence.interpolation)
    return ShardSums(SoftmaxSums(*numbers[:3]), SoftmaxSums(*numbers[3:6]), offset)


def shard_parts_(logits: Tensor, target_logits: Tensor, normalizers: Normalizers, divergence: Divergence) -> Parts:
    """See `shard_contract.ShardKernels`; keeps the logits of both, which `shard_gradient_` reads again."""
    rows, vocabulary = logits.shape
    sums = logits.new_empty(len(Parts._fields), rows)
    _shard_parts_kernel[(rows,)](
        logits,
        target_logits,
        *normalizers,
        sums,
        vocabulary,
        **_form_arguments(divergence),
        **pair_launch(vocabulary),
    )
    return Parts(*sums)


def shard_gradient_(
    logits: Tensor,
    target_logits: Tensor,
    normalizers: Normalizers,
    parts: Parts,
    weights: Tensor,
    head: Head,
    divergence: Divergence,
) -> None:
    """See `shard_contract.ShardKernels`."""
    rows, vocabulary = logits.shape
    _shard_gradient_kernel[(rows,)](
        logits,
        target_logits,
        *normalizers,
        parts.weighted,
        parts.mass,
        weights,
        vocabulary,
        **conditions(head),
        **_form_arguments(divergence),
        **pair_launch(vocabulary),
    )
