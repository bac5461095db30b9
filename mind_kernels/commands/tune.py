"""`python -m mind_kernels tune MODEL`: times the backends at a model's sizes, and stores the fastest for "auto".

    python -m mind_kernels tune HuggingFaceTB/SmolLM2-135M
    python -m mind_kernels tune --hidden-size 576 --vocabulary 49152 --dtype bfloat16

Each backend first has to pass the comparison of `check`. Then all of them compute the same loss and gradients in turn,
so that a slow moment of the machine affects all. The default is replaced only if another backend was faster in so many
rounds that chance would cause this in at most one of forty cases per backend: a difference within the noise changes
nothing. The tiles of backend triton_streaming are compared in the same way.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from mind_kernels import tuning
from mind_kernels.backend import BACKENDS, PREFERRED, backends_of, fastest, preferred
from mind_kernels.commands.check import CASES, Case, Inputs, add_device, fault, require_device, results
from mind_kernels.commands.options import Parser, fail, listed, one_of, whole_number
from mind_kernels.head import Head
from mind_kernels.linear_cross_entropy.contract import RowSpec
from mind_kernels.row_chunks import rows_per_chunk
from mind_kernels.sparse_gradient import SAMPLE_ROWS

STREAMING = "triton_streaming"
GROUP = 8  # rows per group: the perspectives of a question
LISTED = 64  # tokens in a teacher's list
CERTAINTY = (4.0, 15.0)  # standard deviations of the rows' logits: few entries dominate, as in a trained model
THRESHOLD = 2.0**-12  # of the sparse gradient
# Rows for the sparse gradient on a CPU: the sampled ones, whose logits are kept, and seven times as many others.
SPARSE_ROWS = 8 * SAMPLE_ROWS
PER_ROW = ("hidden", "target", "row_weight", "teacher_hidden", "teacher_ids", "teacher_log_prob")  # of the inputs
ONE_IN = 40  # chance may decide one in so many cases
FEWEST_ROUNDS = math.ceil(math.log2(ONE_IN))


def needed(rounds: int) -> int:
    """In how many of the rounds, at least 6, a backend has to be faster: by chance, in at most one of forty cases."""
    lost, likely, ways = 0, 1, rounds  # ways to lose once more; of all 2**rounds, `likely` have at most `lost` losses
    while ONE_IN * (likely + ways) <= 2**rounds:
        lost += 1
        likely += ways
        ways = ways * (rounds - lost) // (lost + 1)
    return rounds - lost


def chosen(seconds: Mapping[str, Sequence[float]], default: str) -> str:
    """The backend to choose, given the times of each in the same rounds."""

    def won(name: str) -> int:
        return sum(mine < theirs for mine, theirs in zip(seconds[name], seconds[default], strict=True))

    enough = needed(len(seconds[default]))
    faster = [name for name in seconds if name != default and won(name) >= enough]
    return min(faster, key=lambda name: statistics.median(seconds[name]), default=default)


def timed(calls: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each call in each round, after one call of each to compile kernels and start threads."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for turn in range(rounds):
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            _synchronize(device)
            start = time.perf_counter()
            calls[name]()
            _synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def inputs_of(rows: int, size: int, vocabulary: int, dtype: torch.dtype, device: torch.device) -> Inputs:
    """Inputs for the cases of `check` at these sizes, with rows as certain as a trained model's."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device)

    certainty = torch.empty(rows, 1, device=device).uniform_(*CERTAINTY, generator=generator)
    hidden, weight = normal(rows, size) * certainty, (normal(vocabulary, size) / size**0.5).to(dtype)
    target = torch.cat([(part.to(dtype) @ weight.T).argmax(1) for part in hidden.split(256)])
    listed = min(LISTED, vocabulary)
    groups = rows // GROUP
    return {
        "hidden": hidden.to(dtype),
        "weight": weight,
        "target": target,
        "row_weight": torch.ones(rows, device=device),
        "pair_weight": torch.full((groups, GROUP, GROUP), 1 / groups, device=device),
        "teacher_hidden": (hidden + normal(rows, size)).to(dtype),
        "teacher_weight": weight,
        "teacher_ids": torch.stack([torch.arange(listed, device=device)] * rows),
        "teacher_log_prob": torch.full((rows, listed), -math.log(listed + (listed < vocabulary)), device=device),
        "sharper": torch.tensor(1.0, dtype=dtype),
        "threshold": torch.tensor(THRESHOLD),
    }


def rows_of(asked: int | None, vocabulary: int, dtype: torch.dtype, device: torch.device) -> dict[str, int]:
    """Rows for the form "sparse" and for all others (""): the requested number, else one chunk of logits.

    For the sparse gradient on a CPU it is more, since otherwise all rows might be in its sample.
    """
    rows = asked or rows_per_chunk(vocabulary, device, dtype.itemsize)
    rows = max(1, rows // GROUP) * GROUP
    return {"": rows, "sparse": rows if asked or device.type != "cpu" else max(rows, SPARSE_ROWS)}


def first_rows(inputs: Inputs, rows: int) -> Inputs:
    """The inputs of the first rows."""
    groups = rows // GROUP
    weight = torch.full((groups, GROUP, GROUP), 1 / groups, device=inputs["hidden"].device)
    return {**inputs, **{name: inputs[name][:rows] for name in PER_ROW}, "pair_weight": weight}


def first_cases() -> dict[str, Case]:
    """The case of each use that is timed."""
    cases: dict[str, Case] = {}
    for case in CASES.values():
        cases.setdefault(tuning.use(case.operation, case.form), case)
    return cases


def backends_here(operation: str, device: torch.device) -> list[str]:
    """The backends of an operation that run on the device, and not in an interpreter."""
    rows = {name: BACKENDS[name] for name in backends_of(operation)}
    return [name for name, row in rows.items() if row.tensors in ("any", device.type) and row.availability().available]


def wrong(case: Case, backend: str, dtype: torch.dtype, device: torch.device) -> str:
    """How a backend differs from the definition in the case's use; empty if it does not."""
    same = [other for other in CASES.values() if (other.operation, other.form) == (case.operation, case.form)]
    return next((told for other in same if (told := fault(other, backend, dtype, str(device))[1])), "")


def sizes_of(model: str) -> tuple[int, int]:
    """Hidden size and vocabulary of a model's language part, from its transformers configuration."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model).get_text_config()
    size, vocabulary = (getattr(config, name, None) for name in ("hidden_size", "vocab_size"))
    if not (isinstance(size, int) and isinstance(vocabulary, int) and min(size, vocabulary) > 0):
        raise ValueError(f"its {type(config).__name__} has no hidden_size and vocab_size")
    return size, vocabulary


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    size, vocabulary = _sizes(options)
    if options.rounds < FEWEST_ROUNDS:
        fail(f"--rounds {options.rounds}: expected at least {FEWEST_ROUNDS}")
    if options.rows is not None and options.rows < GROUP:
        fail(f"--rows {options.rows}: expected at least {GROUP}")
    require_device(options.device)
    device = torch.device(options.device)
    if not tuning.device_name(device):
        fail(f"--device {device}: expected a CPU or a CUDA device")
    try:
        overriding = preferred()
        tuning.make_folder()
    except (OSError, ValueError) as error:
        fail(str(error))
    print(f"on {device}: {tuning.device_name(device)}; hidden size {size}, vocabulary {vocabulary}")
    if overriding:
        print(f"{PREFERRED} is {','.join(overriding)!r}: while it is set, it overrides the table")
    entries, faults = [], 0
    for dtype in (getattr(torch, name) for name in options.dtype or [_usual(device)]):
        counts = rows_of(options.rows, vocabulary, dtype, device)
        told = f"{counts['']} rows" + (f", {counts['sparse']} of 'sparse'" if counts["sparse"] > counts[""] else "")
        print(f"\n{str(dtype).removeprefix('torch.')}, {told}: forward and backward, median of {options.rounds}")
        try:
            every = inputs_of(max(counts.values()), size, vocabulary, dtype, device)
        except RuntimeError as error:  # torch has no other error class for lack of memory
            fail(f"{told}, hidden size {size}, vocabulary {vocabulary}: {str(error).splitlines()[0]}")
        right: dict[str, list[str]] = {}
        for use, case in first_cases().items():
            names = right[use] = backends_here(case.operation, device)
            if len(names) < 2:
                print(f"  {use:<36}{''.join(names)} alone", flush=True)
                continue
            for name, told in [(name, wrong(case, name, dtype, device)) for name in names]:
                if told:
                    print(f"  {use:<36}without {name}, which differs from the definition: {told}", flush=True)
                    names.remove(name)
                    faults += 1
            if names:
                inputs = first_rows(every, counts["sparse" if case.form == "sparse" else ""])
                calls = {name: functools.partial(results, case, inputs, None, 1.0, name) for name in names}
                default = fastest(device.type, False, case.operation)
                entries.append(_measured(use, calls, default, inputs, options.rounds))
        if STREAMING in right["linear_cross_entropy"]:
            inputs = first_rows(every, counts[""])
            calls, wrong_tiles = tile_calls(inputs)
            for name, told in wrong_tiles.items():
                print(f"  {tuning.STREAM_TILE:<36}without {name}: {told}", flush=True)
            faults += len(wrong_tiles)
            if len(calls) > 1:
                entries.append(_measured(tuning.STREAM_TILE, calls, next(iter(calls)), inputs, options.rounds))
    return _finish(entries, device, faults)


def tile_calls(inputs: Inputs) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """Calls that compute the statistics of rows, by the name of the tile of backend triton_streaming, the default
    first; and why other tiles are left out."""
    from mind_kernels.linear_cross_entropy._triton.stream import stream_values, tiles_of
    from mind_kernels.linear_cross_entropy._triton.stream_tiles import label

    head, hidden, target = Head(inputs["weight"]), inputs["hidden"], inputs["target"]
    calls: dict[str, Callable[[], object]] = {}
    faults: dict[str, str] = {}
    expected = stream_values(hidden, target, RowSpec(head))
    for tile in tiles_of(hidden, head):
        call = functools.partial(stream_values, hidden, target, RowSpec(head), tile)
        try:
            found = call()
        except Exception as error:  # whatever the compiler raises, only this tile cannot be used
            faults[label(tile)] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            continue
        pairs = [(getattr(found, name), getattr(expected, name)) for name in ("nll", "lse", "entropy")]
        if all(torch.allclose(*pair, rtol=1e-4, atol=1e-4) for pair in pairs):
            calls[label(tile)] = call
        else:
            faults[label(tile)] = "its statistics differ from the default's"
    return calls, faults


def _measured(
    use: str, calls: Mapping[str, Callable[[], object]], default: str, inputs: Inputs, rounds: int
) -> tuning.Entry:
    """Times the calls of a use, given by the names that an entry may choose, and prints the result."""
    hidden = inputs["hidden"]
    seconds = timed(calls, rounds, hidden.device)
    default = default if default in calls else next(iter(calls))
    backend = chosen(seconds, default)
    median_ms = {name: round(1e3 * statistics.median(values), 4) for name, values in seconds.items()}
    times = ", ".join(f"{name} {value:.4g} ms" for name, value in median_ms.items())
    changed = "as before" if backend == default else f"in place of {default}"
    print(f"  {use:<36}{backend}, {changed}: {times}", flush=True)
    dtype = str(hidden.dtype).removeprefix("torch.")
    vocabulary, size = inputs["weight"].shape
    return tuning.Entry(use, dtype, vocabulary, size, len(hidden), backend, median_ms)


def _finish(entries: list[tuning.Entry], device: torch.device, faults: int) -> int:
    if entries:
        former = tuning.read(device)
        path = tuning.write(device, entries)
        print(f'\nwritten to {path}: "auto" takes these from the next process on')
        if former.problem:
            print(f"in place of a table that was not used: {former.problem}")
    else:
        print("\nnothing is written: no operation has two backends here")
    if faults:
        print(f"{faults} backends differ from the definition: python -m mind_kernels check --device {device}")
    return 1 if faults else 0


def _usual(device: torch.device) -> str:
    return "float32" if device.type == "cpu" else "bfloat16"


def _parser() -> Parser:
    parser = Parser(
        prog="python -m mind_kernels tune",
        description='Times the backends on the shapes of a model and writes a table for this device, from which "auto" '
        f"then chooses ({tuning.FOLDER} says where; {PREFERRED} overrides it). The exit status is 1 if a backend "
        "differs from the definition.",
        epilog="Examples: python -m mind_kernels tune HuggingFaceTB/SmolLM2-135M; python -m mind_kernels tune "
        "--hidden-size 576 --vocabulary 49152",
    )
    parser.add_argument("model", nargs="?", help="a folder or a name on the Hub; needs transformers")
    parser.add_argument("--hidden-size", type=whole_number, metavar="D", help="hidden size, in place of a model")
    parser.add_argument(
        "--vocabulary", type=whole_number, metavar="V", help="size of the vocabulary, in place of a model"
    )
    rows = f"default: one chunk of logits, of the sparse gradient on a CPU {SPARSE_ROWS} or more"
    parser.add_argument("--rows", type=whole_number, metavar="N", help=f"labeled tokens per call ({rows})")
    add_device(parser)
    dtypes = ("float32", "bfloat16", "float16")
    parser.add_argument(
        "--dtype",
        nargs="+",
        metavar="NAME",
        type=one_of(dtypes),
        help=f"{listed(dtypes)}; default: bfloat16 on a GPU, float32 on a CPU",
    )
    parser.add_argument(
        "--rounds", type=whole_number, default=9, metavar="R", help="of all backends in turn (default: 9)"
    )
    return parser


def _sizes(options: argparse.Namespace) -> tuple[int, int]:
    given = {"--hidden-size": options.hidden_size, "--vocabulary": options.vocabulary}
    if options.model is None:
        for name, value in given.items():
            if value is None:
                fail(f"{name} is missing: give a model, or --hidden-size and --vocabulary")
            if value < 1:
                fail(f"{name} {value}: expected at least 1")
        return options.hidden_size, options.vocabulary
    if any(value is not None for value in given.values()):
        fail("model: expected none beside --hidden-size and --vocabulary")
    if options.model.startswith(("/", ".", "~")) and not Path(options.model).exists():  # no name on the Hub begins so
        fail(f"model {options.model!r}: no such folder")
    try:
        return sizes_of(options.model)
    except ModuleNotFoundError as error:
        fail(f"model: {error.name} is not installed: pip install transformers, or give --hidden-size and --vocabulary")
    except (OSError, ValueError) as error:
        fail(f"model {options.model!r}: {str(error).splitlines()[0]}")
