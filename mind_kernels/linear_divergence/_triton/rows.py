"""The divergence from a teacher's logits in Triton, on float32 logits of both sides in memory. One program per row.

Passes: both normalizers (read both sides; twice for an interpolated teacher), the divergence and S = sum q F' / sum q
(read both), the gradient in place (read both, write). Peak memory: three numbers per row beside the logits. All
arithmetic in float32, by the formulas of `linear_divergence.terms`; deterministic.

Count for N 8192, V 151936: 28 bytes per pair of logits, 35 GB, 8 ms at 4.3 TB/s; the four products take 45 ms at D
3584. The second and third reads find part of a row, 600 KB, in the L2 cache.
"""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from mind_kernels.head import Head
from mind_kernels.linear_divergence.contract import RowValues
from mind_kernels.linear_divergence.kinds import Divergence
from mind_kernels.linear_divergence.teachers import LOWEST
from mind_kernels.triton_math import (
    FLOOR,
    cdiv,
    columns_of,
    conditions,
    exp,
    jit,
    join_lanes,
    load_logits,
    log1p,
    next_power_of_2,
    online_softmax,
    row_pointer,
    slope,
    tanh,
)
from mind_kernels.triton_variant import Variant

_TINY = tl.constexpr(1.1754943508222875e-38)  # the smallest normal number
# |log(q / p)| is less unless q or p is 0.
_FAR = tl.constexpr(1e4)
# What a logit below its row's largest counts as at least, before two of them are interpolated.
_LOWEST = tl.constexpr(LOWEST)
# 512 threads of 32 to 53 registers: two or more programs share a multiprocessor, and have 32 KiB of loads in flight.
# Without 16-byte loads each thread has the state of four times as many lanes, and 512 threads would spill.
_WARPS = {True: 16, False: 8}
_VECTOR = 4


def pair_launch(vocabulary: int) -> dict[str, int]:
    """Tile and warps of the kernel: a thread loads 16 bytes of each of two rows; with more, registers would spill."""
    warps = min(_WARPS[vocabulary % 16 == 0], next_power_of_2(cdiv(vocabulary, 32 * _VECTOR)))
    return {"LANES": 32 * warps, "VECTOR": _VECTOR, "num_warps": warps}


@jit
def _entry(
    student,
    teacher,
    log_totals,
    parts,
    FORWARD: tl.constexpr,
    REVERSE: tl.constexpr,
    OF_TEACHER: tl.constexpr,
    OF_STUDENT: tl.constexpr,
):
    """q, the entry of the divergence, and q F', from logits shifted so that their maximum is 0.

    If q or p is 0, the ratio may be infinite or nan: see `linear_divergence.terms`.
    """
    log_total, their_log_total = log_totals
    c, rest, teacher_part, student_part, difference_part = parts
    ratio = (student - teacher) - (log_total - their_log_total)
    q, p = exp(student - log_total), exp(teacher - their_log_total)
    bounded = tl.maximum(tl.where(ratio < _FAR, ratio, _FAR), -_FAR)
    difference = (p + q) * tanh(0.5 * bounded)
    if FORWARD:
        entry = difference - tl.where(p == 0, 0.0, p * ratio)
        derivative = difference
    elif REVERSE:
        derivative = tl.where(q == 0, 0.0, q * ratio)
        entry = derivative - difference
    else:
        relative = difference / tl.maximum(c * p + rest * q, _TINY)
        log_larger = log1p(tl.maximum(c * relative, -rest * relative))
        entry = difference_part * difference
        slope_of_q = (rest * difference_part) * relative
        if OF_TEACHER:
            entry += teacher_part * p * (log_larger - tl.maximum(bounded, 0.0))
        if OF_STUDENT:
            of_student = student_part * (log_larger + tl.minimum(bounded, 0.0))
            entry += q * of_student
            slope_of_q += of_student
        derivative = q * slope_of_q
    return q, entry, derivative


@jit
def load_both(
    rows,
    columns,
    vocabulary,
    heads,
    shifts,
    interpolation,
    HAS_SOFTCAP: tl.constexpr,
    TEACHER_HAS_SOFTCAP: tl.constexpr,
    INTERPOLATED: tl.constexpr,
):
    """The student's logits z, z - shift, and the teacher's logits minus their shift, or interpolated ones."""
    softcap, temperature, teacher_softcap, teacher_temperature = heads
    z = load_logits(rows[0], columns, vocabulary, softcap, temperature, HAS_SOFTCAP)
    theirs = load_logits(rows[1], columns, vocabulary, teacher_softcap, teacher_temperature, TEACHER_HAS_SOFTCAP)
    student, theirs = z - shifts[0], theirs - shifts[1]
    if INTERPOLATED:
        student, theirs = tl.where(student < _LOWEST, _LOWEST, student), tl.where(theirs < _LOWEST, _LOWEST, theirs)
        theirs = student + interpolation * (theirs - student)  # exactly the student's if both are equal
    return z, student, theirs


@jit
def softmaxes(
    rows,
    vocabulary,
    heads,
    shifts,
    interpolation,
    HAS_SOFTCAP: tl.constexpr,
    TEACHER_HAS_SOFTCAP: tl.constexpr,
    INTERPOLATED: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Maximum, sum of e^(z - maximum) and sum of e^(z - m) (z - m) of the shifted logits of student and teacher."""
    maximum = tl.full((LANES,), FLOOR, tl.float32)
    their_maximum = tl.full((LANES,), FLOOR, tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    entropy_sum = tl.zeros((LANES,), tl.float32)
    their_total = tl.zeros((LANES,), tl.float32)
    their_entropy_sum = tl.zeros((LANES,), tl.float32)
    for start in range(0, vocabulary, LANES * VECTOR):
        columns = columns_of(start, LANES, VECTOR)
        _, z, theirs = load_both(
            rows, columns, vocabulary, heads, shifts, interpolation, HAS_SOFTCAP, TEACHER_HAS_SOFTCAP, INTERPOLATED
        )
        maximum, total, entropy_sum = online_softmax(z, tl.max(z, axis=1), maximum, total, entropy_sum)
        their_maximum, their_total, their_entropy_sum = online_softmax(
            theirs, tl.max(theirs, axis=1), their_maximum, their_total, their_entropy_sum
        )
    return join_lanes(maximum, total, entropy_sum) + join_lanes(their_maximum, their_total, their_entropy_sum)


@jit
def row_parts(
    rows,
    vocabulary,
    heads,
    shifts,
    top,
    log_totals,
    interpolation,
    parts,
    HAS_SOFTCAP: tl.constexpr,
    TEACHER_HAS_SOFTCAP: tl.constexpr,
    INTERPOLATED: tl.constexpr,
    FORWARD: tl.constexpr,
    REVERSE: tl.constexpr,
    OF_TEACHER: tl.constexpr,
    OF_STUDENT: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """The sums of the divergence's entries, of q F' and of q, per lane of a row."""
    value = tl.zeros((LANES,), tl.float32)
    mass = tl.zeros((LANES,), tl.float32)
    weighted = tl.zeros((LANES,), tl.float32)
    for start in range(0, vocabulary, LANES * VECTOR):
        columns = columns_of(start, LANES, VECTOR)
        z, student, theirs = load_both(
            rows, columns, vocabulary, heads, shifts, interpolation, HAS_SOFTCAP, TEACHER_HAS_SOFTCAP, INTERPOLATED
        )
        q, entry, derivative = _entry(
            student, theirs - top, log_totals, parts, FORWARD, REVERSE, OF_TEACHER, OF_STUDENT
        )
        value += tl.sum(entry, axis=1)
        mass += tl.sum(q, axis=1)
        weighted += tl.sum(derivative, axis=1)
    return value, weighted, mass


@jit
def write_gradient(
    rows,
    weight,
    share,
    vocabulary,
    heads,
    shifts,
    top,
    log_totals,
    interpolation,
    parts,
    softcap,
    temperature,
    HAS_SOFTCAP: tl.constexpr,
    TEACHER_HAS_SOFTCAP: tl.constexpr,
    INTERPOLATED: tl.constexpr,
    HAS_SLOPE: tl.constexpr,
    FORWARD: tl.constexpr,
    REVERSE: tl.constexpr,
    OF_TEACHER: tl.constexpr,
    OF_STUDENT: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Overwrites the student's logits of a row by their gradient. `share` is S; the slope is that of this softcap (with
    HAS_SLOPE) and temperature."""
    for start in range(0, vocabulary, LANES * VECTOR):
        columns = columns_of(start, LANES, VECTOR)
        z, student, theirs = load_both(
            rows, columns, vocabulary, heads, shifts, interpolation, HAS_SOFTCAP, TEACHER_HAS_SOFTCAP, INTERPOLATED
        )
        q, entry, derivative = _entry(
            student, theirs - top, log_totals, parts, FORWARD, REVERSE, OF_TEACHER, OF_STUDENT
        )
        dx = weight * (derivative - share * q) * slope(z, softcap, temperature, HAS_SLOPE)
        dx = tl.where(weight == 0, 0.0, dx)  # also if the divergence is infinite
        tl.store(rows[0] + columns, dx, mask=columns < vocabulary)


@jit
def _row_kernel(
    logits,  # (n, V)
    teacher_logits,  # (n, V)
    scale,  # (n,) or None: statistics only
    numbers,  # (3, n): divergence, both entropies
    vocabulary,
    softcap,
    temperature,
    teacher_softcap,
    teacher_temperature,
    c,
    rest,  # 1 - c
    teacher_part,
    student_part,
    difference_part,
    interpolation,
    HAS_SOFTCAP: tl.constexpr,
    TEACHER_HAS_SOFTCAP: tl.constexpr,
    FORWARD: tl.constexpr,
    REVERSE: tl.constexpr,
    OF_TEACHER: tl.constexpr,
    OF_STUDENT: tl.constexpr,
    INTERPOLATED: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    r = tl.program_id(0)
    rows = (row_pointer(logits, r, vocabulary), row_pointer(teacher_logits, r, vocabulary))
    heads = (softcap, temperature, teacher_softcap, teacher_temperature)
    parts = (c, rest, teacher_part, student_part, difference_part)
    maximum, total, entropy_sum, their_maximum, their_total, their_entropy_sum = softmaxes(
        rows, vocabulary, heads, (0.0, 0.0), 0.0, HAS_SOFTCAP, TEACHER_HAS_SOFTCAP, False, LANES, VECTOR
    )
    shifts, top = (maximum, their_maximum), 0.0
    if INTERPOLATED:  # interpolates shifted logits, at most 0: rounding of large logits would change p
        shifts = (tl.where(total > 0, maximum, float("nan")), tl.where(their_total > 0, their_maximum, float("nan")))
        _, total, entropy_sum, top, their_total, their_entropy_sum = softmaxes(
            rows, vocabulary, heads, shifts, interpolation, HAS_SOFTCAP, TEACHER_HAS_SOFTCAP, True, LANES, VECTOR
        )

    log_totals = (tl.log(total), tl.log(their_total))
    value, weighted, mass = row_parts(
        rows,
        vocabulary,
        heads,
        shifts,
        top,
        log_totals,
        interpolation,
        parts,
        HAS_SOFTCAP,
        TEACHER_HAS_SOFTCAP,
        INTERPOLATED,
        FORWARD,
        REVERSE,
        OF_TEACHER,
        OF_STUDENT,
        LANES,
        VECTOR,
    )
    tl.store(numbers + r, tl.maximum(tl.sum(value, axis=0), 0.0, propagate_nan=tl.PropagateNan.ALL))
    tl.store(numbers + tl.num_programs(0) + r, log_totals[0] - entropy_sum / total)
    tl.store(numbers + 2 * tl.num_programs(0) + r, log_totals[1] - their_entropy_sum / their_total)

    if scale is not None:
        write_gradient(
            rows,
            tl.load(scale + r),
            tl.sum(weighted, axis=0) / tl.sum(mass, axis=0),
            vocabulary,
            heads,
            shifts,
            top,
            log_totals,
            interpolation,
            parts,
            softcap,
            temperature,
            HAS_SOFTCAP,
            TEACHER_HAS_SOFTCAP,
            INTERPOLATED,
            HAS_SOFTCAP,
            FORWARD,
            REVERSE,
            OF_TEACHER,
            OF_STUDENT,
            LANES,
            VECTOR,
        )


def divergence_arguments(divergence: Divergence) -> dict[str, float | bool]:
    """The divergence as kernel arguments."""
    c = divergence.mixture
    return {
        "c": c,
        "rest": 1 - c,
        "teacher_part": divergence.teacher_part,
        "student_part": divergence.student_part,
        "difference_part": divergence.difference_part,
        "interpolation": divergence.interpolation,
        "FORWARD": c == 0,
        "REVERSE": c == 1,
        "OF_TEACHER": divergence.teacher_part != 0,
        "OF_STUDENT": divergence.student_part != 0,
        "INTERPOLATED": divergence.interpolation != 1,
    }


def teacher_conditions(head: Head) -> dict[str, float | bool]:
    return {("TEACHER_" if name.isupper() else "teacher_") + name: value for name, value in conditions(head).items()}


def variants() -> list[Variant]:
    """Each form of the divergence, only statistics, all options, and a vocabulary that is not a multiple of 16."""
    divergences = {
        "forward": Divergence(1.0, 0.0, 0.0),
        "reverse": Divergence(0.0, 1.0, 1.0),
        "interpolated": Divergence(1.0, 0.0, 0.0, 0.5),
        "jsd": Divergence(0.5, 0.5, 0.5),
        "skew forward": Divergence(1.0, 0.0, 0.1),
        "skew reverse": Divergence(0.0, 1.0, 0.9),
    }
    numbers = ("softcap", "temperature", "teacher_softcap", "teacher_temperature")
    numbers += tuple(name for name in divergence_arguments(divergences["jsd"]) if name.islower())
    types = dict.fromkeys(("logits", "teacher_logits", "scale", "numbers"), "*fp32")
    types |= dict.fromkeys(numbers, "fp32") | {"vocabulary": "i32"}

    def variant(label, divergence, softcaps, vocabulary=151936, unaligned=(), absent=()):
        constants = {name: value for name, value in divergence_arguments(divergence).items() if name.isupper()}
        constants |= {"HAS_SOFTCAP": softcaps, "TEACHER_HAS_SOFTCAP": softcaps} | dict.fromkeys(absent)
        keywords = constants | pair_launch(vocabulary)
        return Variant(f"divergence, {label}", _row_kernel, types, keywords, ("logits", "teacher_logits"), unaligned)

    out = []
    for name, divergence in divergences.items():
        out += [
            variant(name, divergence, False),
            variant(f"{name}, all options", divergence, True),
            variant(f"{name}, unaligned", divergence, True, 50257, ("vocabulary",)),
        ]
    return [*out, variant("statistics", divergences["skew reverse"], False, absent=("scale",))]


def divergence_(
    logits: Tensor,  # (n, V) float32, projected, contiguous; becomes its own gradient if there are weights
    teacher_logits: Tensor,  # (n, V) float32, projected, contiguous
    weights: Tensor | None,  # (n,) float32, d(total loss) / d(divergence of the row)
    head: Head,
    teacher_head: Head,
    divergence: Divergence,
) -> RowValues:
    """See `contract.RowKernels`."""
    rows, vocabulary = logits.shape
    numbers = logits.new_empty(len(RowValues._fields), rows)
    _row_kernel[(rows,)](
        logits,
        teacher_logits,
        weights,
        numbers,
        vocabulary,
        **conditions(head),
        **teacher_conditions(teacher_head),
        **divergence_arguments(divergence),
        **pair_launch(vocabulary),
    )
    return RowValues(*numbers)
