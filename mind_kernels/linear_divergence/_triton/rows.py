"""Row kernels of the divergences in Triton, over float32 chunks of logits in memory. One program a row; deterministic.

Passes of the full form: both normalisers (read both), for an interpolated teacher once more, the divergence and
S = sum q F' / sum q (read both), the gradient in place (read both, write). Of the listed form: the normaliser of the
tokens that are not listed (read), their gradient in place (read, write); the events are left to `terms.event_terms`.
Peak memory: a few numbers a row beside the logits. All arithmetic in float32, by the formulas of `terms`.

Count for N 8192, V 151936, full form: 28 bytes a pair of logits, 35 GB, 8 ms at 4.3 TB/s; the four products take 45 ms
at D 3584. The second and third reads find part of a row, 600 KB, in the L2 cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mind_kernels.head import Head
from mind_kernels.linear_divergence.kinds import Divergence
from mind_kernels.triton_math import (
    LOWEST,
    columns_of,
    condition,
    conditions,
    exp,
    join_lanes,
    load_logits,
    log1p,
    online_softmax,
    row_launch,
    row_pointer,
    slope,
    tanh,
)
from mind_kernels.triton_variant import Variant

_TINY = tl.constexpr(1.1754943508222875e-38)  # the smallest normal number
# 512 threads of 32 to 48 registers: two programs or more share a multiprocessor, and have 32 KiB of loads in flight.
# Without 16-byte loads each thread carries the state of four times as many lanes, and 512 would spill.
_WARPS = {True: 16, False: 8}
_VECTOR = 4


@triton.jit
def _entry(
    student,
    teacher,
    log_total,
    their_log_total,
    c,
    rest,
    teacher_part,
    student_part,
    difference_part,
    FORWARD: tl.constexpr,
    REVERSE: tl.constexpr,
    OF_TEACHER: tl.constexpr,
    OF_STUDENT: tl.constexpr,
):
    """q, the entry of the divergence, and q F', from logits that are shifted to a maximum of 0. See `terms`."""
    ratio = (student - teacher) - (log_total - their_log_total)
    q, p = exp(student - log_total), exp(teacher - their_log_total)
    difference = (p + q) * tanh(0.5 * ratio)
    if FORWARD:
        entry = difference - p * ratio
        derivative = difference
    elif REVERSE:
        derivative = q * ratio
        entry = derivative - difference
    else:
        relative = difference / tl.maximum(c * p + rest * q, _TINY)
        log_larger = log1p(tl.maximum(c * relative, -rest * relative))
        entry = difference_part * difference
        slope_of_q = (rest * difference_part) * relative
        if OF_TEACHER:
            entry += teacher_part * p * (log_larger - tl.maximum(ratio, 0.0))
        if OF_STUDENT:
            of_student = student_part * (log_larger + tl.minimum(ratio, 0.0))
            entry += q * of_student
            slope_of_q += of_student
        derivative = q * slope_of_q
    return q, entry, derivative


@triton.jit
def _load_both(
    row,
    their_row,
    columns,
    vocabulary,
    softcap,
    temperature,
    teacher_softcap,
    teacher_temperature,
    shift,
    their_shift,
    interpolation,
    HAS_SOFTCAP: tl.constexpr,
    TEACHER_HAS_SOFTCAP: tl.constexpr,
    INTERPOLATED: tl.constexpr,
):
    """The student's logits z, z - shift, and the teacher's less their shift, or those between."""
    z = load_logits(row, columns, vocabulary, softcap, temperature, HAS_SOFTCAP)
    theirs = load_logits(their_row, columns, vocabulary, teacher_softcap, teacher_temperature, TEACHER_HAS_SOFTCAP)
    student, theirs = z - shift, theirs - their_shift
    if INTERPOLATED:
        theirs = student + interpolation * (theirs - student)  # exactly the student's where they are equal
    return z, student, theirs


@triton.jit
def _softmaxes(
    row,
    their_row,
    vocabulary,
    softcap,
    temperature,
    teacher_softcap,
    teacher_temperature,
    shift,
    their_shift,
    interpolation,
    HAS_SOFTCAP: tl.constexpr,
    TEACHER_HAS_SOFTCAP: tl.constexpr,
    INTERPOLATED: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Maximum and sum of e^(z - maximum) of the shifted logits, the student's, its sum of e^(z - m) (z - m), theirs."""
    maximum = tl.full((LANES,), LOWEST, tl.float32)
    their_maximum = tl.full((LANES,), LOWEST, tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    entropy_sum = tl.zeros((LANES,), tl.float32)
    their_total = tl.zeros((LANES,), tl.float32)
    unused = tl.zeros((LANES,), tl.float32)
    for start in range(0, vocabulary, LANES * VECTOR):
        _, z, theirs = _load_both(
            row,
            their_row,
            columns_of(start, LANES, VECTOR),
            vocabulary,
            softcap,
            temperature,
            teacher_softcap,
            teacher_temperature,
            shift,
            their_shift,
            interpolation,
            HAS_SOFTCAP,
            TEACHER_HAS_SOFTCAP,
            INTERPOLATED,
        )
        maximum, total, entropy_sum = online_softmax(z, tl.max(z, axis=1), maximum, total, entropy_sum)
        their_maximum, their_total, unused = online_softmax(
            theirs, tl.max(theirs, axis=1), their_maximum, their_total, unused
        )
    row_maximum, row_total, row_entropy_sum = join_lanes(maximum, total, entropy_sum)
    their_row_maximum, their_row_total, _ = join_lanes(their_maximum, their_total, unused)
    return row_maximum, row_total, row_entropy_sum, their_row_maximum, their_row_total


@triton.jit
def _row_kernel(
    logits,  # (n, V)
    teacher_logits,  # (n, V)
    scale,  # (n,) or None: statistics only
    numbers,  # (2, n): divergence, entropy
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
    row, their_row = row_pointer(logits, r, vocabulary), row_pointer(teacher_logits, r, vocabulary)
    maximum, total, entropy_sum, their_maximum, their_total = _softmaxes(
        row,
        their_row,
        vocabulary,
        softcap,
        temperature,
        teacher_softcap,
        teacher_temperature,
        0.0,
        0.0,
        0.0,
        HAS_SOFTCAP,
        TEACHER_HAS_SOFTCAP,
        False,
        LANES,
        VECTOR,
    )
    top = 0.0
    if INTERPOLATED:  # between logits below 0, since a rounding of large ones would be one of p
        _, total, entropy_sum, top, their_total = _softmaxes(
            row,
            their_row,
            vocabulary,
            softcap,
            temperature,
            teacher_softcap,
            teacher_temperature,
            maximum,
            their_maximum,
            interpolation,
            HAS_SOFTCAP,
            TEACHER_HAS_SOFTCAP,
            True,
            LANES,
            VECTOR,
        )

    log_total, their_log_total = tl.log(total), tl.log(their_total)
    value = tl.zeros((LANES,), tl.float32)
    mass = tl.zeros((LANES,), tl.float32)
    weighted = tl.zeros((LANES,), tl.float32)
    for start in range(0, vocabulary, LANES * VECTOR):
        z, student, theirs = _load_both(
            row,
            their_row,
            columns_of(start, LANES, VECTOR),
            vocabulary,
            softcap,
            temperature,
            teacher_softcap,
            teacher_temperature,
            maximum,
            their_maximum,
            interpolation,
            HAS_SOFTCAP,
            TEACHER_HAS_SOFTCAP,
            INTERPOLATED,
        )
        q, entry, derivative = _entry(
            student,
            theirs - top,
            log_total,
            their_log_total,
            c,
            rest,
            teacher_part,
            student_part,
            difference_part,
            FORWARD,
            REVERSE,
            OF_TEACHER,
            OF_STUDENT,
        )
        value += tl.sum(entry, axis=1)
        mass += tl.sum(q, axis=1)
        weighted += tl.sum(derivative, axis=1)
    tl.store(numbers + r, tl.maximum(tl.sum(value, axis=0), 0.0, propagate_nan=tl.PropagateNan.ALL))
    tl.store(numbers + tl.num_programs(0) + r, log_total - entropy_sum / total)

    if scale is not None:
        weight = tl.load(scale + r)
        share = tl.sum(weighted, axis=0) / tl.sum(mass, axis=0)
        for start in range(0, vocabulary, LANES * VECTOR):
            columns = columns_of(start, LANES, VECTOR)
            z, student, theirs = _load_both(
                row,
                their_row,
                columns,
                vocabulary,
                softcap,
                temperature,
                teacher_softcap,
                teacher_temperature,
                maximum,
                their_maximum,
                interpolation,
                HAS_SOFTCAP,
                TEACHER_HAS_SOFTCAP,
                INTERPOLATED,
            )
            q, entry, derivative = _entry(
                student,
                theirs - top,
                log_total,
                their_log_total,
                c,
                rest,
                teacher_part,
                student_part,
                difference_part,
                FORWARD,
                REVERSE,
                OF_TEACHER,
                OF_STUDENT,
            )
            dx = weight * (derivative - share * q) * slope(z, softcap, temperature, HAS_SOFTCAP)
            tl.store(row + columns, dx, mask=columns < vocabulary)


@triton.jit
def _load_others(row, columns, vocabulary, softcap, temperature, HAS_SOFTCAP: tl.constexpr):
    """z of these columns of a row; LOWEST where that is the logit, and beyond the vocabulary."""
    x = tl.load(row + columns, mask=columns < vocabulary, other=LOWEST)
    return tl.where(x <= LOWEST, LOWEST, condition(x, softcap, temperature, HAS_SOFTCAP))


@triton.jit
def _others_kernel(
    logits,  # (n, V), LOWEST where a token is listed
    numbers,  # (3, n): maximum, log_total, mean
    vocabulary,
    softcap,
    temperature,
    HAS_SOFTCAP: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    r, rows = tl.program_id(0), tl.num_programs(0)
    row = row_pointer(logits, r, vocabulary)
    maximum = tl.full((LANES,), LOWEST, tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    entropy_sum = tl.zeros((LANES,), tl.float32)
    for start in range(0, vocabulary, LANES * VECTOR):
        columns = columns_of(start, LANES, VECTOR)
        z = _load_others(row, columns, vocabulary, softcap, temperature, HAS_SOFTCAP)
        maximum, total, entropy_sum = online_softmax(z, tl.max(z, axis=1), maximum, total, entropy_sum)
    row_maximum, row_total, entropy_sum = join_lanes(maximum, total, entropy_sum)
    tl.store(numbers + r, row_maximum)
    tl.store(numbers + rows + r, tl.log(row_total))
    tl.store(numbers + 2 * rows + r, entropy_sum / row_total)


@triton.jit
def _spread_kernel(
    logits,  # (n, V), LOWEST where a token is listed
    numbers,  # (3, n): maximum, log_total, mean
    weight,  # (n,)
    vocabulary,
    softcap,
    temperature,
    HAS_SOFTCAP: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    r, rows = tl.program_id(0), tl.num_programs(0)
    row = row_pointer(logits, r, vocabulary)
    maximum, log_total = tl.load(numbers + r), tl.load(numbers + rows + r)
    share = tl.load(weight + r)
    for start in range(0, vocabulary, LANES * VECTOR):
        columns = columns_of(start, LANES, VECTOR)
        z = _load_others(row, columns, vocabulary, softcap, temperature, HAS_SOFTCAP)
        dx = share * exp((z - maximum) - log_total) * slope(z, softcap, temperature, HAS_SOFTCAP)
        tl.store(row + columns, dx, mask=columns < vocabulary)


def _kinds(divergence: Divergence) -> dict[str, float | bool]:
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


def _teacher_conditions(head: Head) -> dict[str, float | bool]:
    return {("TEACHER_" if name.isupper() else "teacher_") + name: value for name, value in conditions(head).items()}


def _launch(vocabulary: int) -> dict[str, int]:
    """Tile and warps of the kernels that read one row."""
    return row_launch(vocabulary, vocabulary, torch.float32)


def pair_launch(vocabulary: int) -> dict[str, int]:
    """Tile and warps of the kernel that reads two rows: one 16-byte load of each a thread, or registers would spill."""
    warps = min(_WARPS[vocabulary % 16 == 0], triton.next_power_of_2(triton.cdiv(vocabulary, 32 * _VECTOR)))
    return {"LANES": 32 * warps, "VECTOR": _VECTOR, "num_warps": warps}


def row_kernel_(
    logits: Tensor,  # (n, V) float32, projected, contiguous; becomes the gradient where scale is given
    teacher_logits: Tensor,  # the same
    scale: Tensor | None,  # (n,) float32, d(total loss) / d(row's divergence)
    head: Head,
    teacher_head: Head,
    divergence: Divergence,
) -> Tensor:
    """(2, n): the rows' divergence and the student's entropy; `logits` become their gradient, in place."""
    rows, vocabulary = logits.shape
    numbers = logits.new_empty(2, rows)
    _row_kernel[(rows,)](
        logits,
        teacher_logits,
        scale,
        numbers,
        vocabulary,
        **conditions(head),
        **_teacher_conditions(teacher_head),
        **_kinds(divergence),
        **pair_launch(vocabulary),
    )
    return numbers


def others(
    logits: Tensor,  # (n, V) float32, projected, contiguous, LOWEST where a token is listed
    head: Head,
) -> Tensor:
    """(3, n): maximum of z, log sum exp(z - maximum), and the mean of z - maximum in their softmax."""
    rows, vocabulary = logits.shape
    numbers = logits.new_empty(3, rows)
    _others_kernel[(rows,)](logits, numbers, vocabulary, **conditions(head), **_launch(vocabulary))
    return numbers


def spread_(
    logits: Tensor,  # as for `others`; becomes the gradient, 0 where a token is listed
    numbers: Tensor,  # (3, n), of `others`
    weight: Tensor,  # (n,) float32, d(total loss) / d(log-sum-exp of the others)
    head: Head,
) -> None:
    """The gradient of the others' log-sum-exp with respect to the projected logits, times weight, in place."""
    rows, vocabulary = logits.shape
    _spread_kernel[(rows,)](logits, numbers, weight, vocabulary, **conditions(head), **_launch(vocabulary))


_TYPES = {
    "logits": "*fp32",
    "teacher_logits": "*fp32",
    "scale": "*fp32",
    "numbers": "*fp32",
    "weight": "*fp32",
    "vocabulary": "i32",
} | dict.fromkeys(
    (
        "softcap",
        "temperature",
        "teacher_softcap",
        "teacher_temperature",
        "c",
        "rest",
        "teacher_part",
        "student_part",
        "difference_part",
        "interpolation",
    ),
    "fp32",
)


def variants() -> list[Variant]:
    """Each form of the divergence, statistics alone, all options, and a vocabulary that is not a multiple of 16."""
    plain = {"HAS_SOFTCAP": False, "TEACHER_HAS_SOFTCAP": False}
    full = {"HAS_SOFTCAP": True, "TEACHER_HAS_SOFTCAP": True}
    kinds = {
        "forward": Divergence(1.0, 0.0, 0.0),
        "reverse": Divergence(0.0, 1.0, 1.0),
        "interpolated": Divergence(1.0, 0.0, 0.0, 0.5),
        "jsd": Divergence(0.5, 0.5, 0.5),
        "skew forward": Divergence(1.0, 0.0, 0.1),
        "skew reverse": Divergence(0.0, 1.0, 0.9),
    }

    def variant(name, kernel, options, vocabulary=151936, **more):
        constants = {key: value for key, value in options.items() if key.isupper() or value is None}
        pair = kernel is _row_kernel
        launch = pair_launch(vocabulary) if pair else _launch(vocabulary)
        return Variant(name, kernel, _TYPES, constants | launch, ("logits", "teacher_logits")[: 1 + pair], **more)

    unaligned = {"vocabulary": 50257, "unaligned": ("vocabulary",)}
    out = []
    for name, divergence in kinds.items():
        options = _kinds(divergence)
        out += [
            variant(f"divergence, {name}", _row_kernel, plain | options),
            variant(f"divergence, {name}, all options", _row_kernel, full | options),
            variant(f"divergence, {name}, unaligned", _row_kernel, full | options, **unaligned),
        ]
    out.append(variant("divergence, statistics", _row_kernel, plain | options | {"scale": None}))
    for name, kernel in (("others", _others_kernel), ("others' gradient", _spread_kernel)):
        out += [
            variant(name, kernel, plain),
            variant(f"{name}, all options", kernel, full),
            variant(f"{name}, unaligned", kernel, full, **unaligned),
        ]
    return out
