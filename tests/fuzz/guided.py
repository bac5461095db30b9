"""The tier `parsers` guided by coverage: inputs that reach new code are kept and changed further.

    python -m tests.fuzz.guided NAME [--minutes 30] [--seed 0] [--corpus FOLDER] [--output FILE]

Needs the package atheris (pip install atheris; CPython 3.11 to 3.13 on Linux). It decides in place of hypothesis: an
input is the numbers of the choices (tests/fuzz/choices.py), so a finding prints the same command. Ends with the first
finding, and with status 0 if there is none; --corpus keeps the inputs for another start, and the counts are added to
the file of --output, such as bench/results/fuzz.jsonl.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.choices import Choices
from tests.fuzz.results import keep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of a parser in tests/fuzz/parsers.py")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", metavar="FOLDER", help="where inputs that reached new code are kept")
    parser.add_argument("--output", type=Path, metavar="FILE", help="of JSON lines, to which the counts are added")
    options = parser.parse_args()
    # In a process of its own, since atheris ends the process that fuzzes.
    inputs = multiprocessing.RawValue("q")
    process = multiprocessing.get_context("fork").Process(target=fuzz, args=(options, inputs))
    begin = time.monotonic()
    process.start()
    process.join()
    if options.output is not None and inputs.value:
        seconds, findings = time.monotonic() - begin, int(process.exitcode != 0)
        seeds = (options.seed, options.seed)
        keep(options.output, "parsers, guided", seeds, {options.name: inputs.value}, seconds, findings)
    sys.exit(process.exitcode)


def fuzz(options: argparse.Namespace, inputs: ctypes.c_int64) -> None:
    """Counts the inputs there; does not return."""
    import atheris

    with atheris.instrument_imports(include=["mind", "json"]):
        from tests.fuzz import parsers
    if options.name not in parsers.PARSERS:
        sys.exit(f"no {options.name} among {', '.join(parsers.PARSERS)}")
    counts: Counter[str] = Counter()

    def one(data: bytes) -> None:
        provider = atheris.FuzzedDataProvider(data)
        choices = Choices(lambda most: provider.ConsumeIntInRange(0, most))
        inputs.value += 1
        try:
            parsers.example(options.name, choices, counts)
        except Exception:
            print(f"again: python -m tests.fuzz parsers --case {options.name}:{choices.code}", flush=True)
            raise
        if inputs.value % 10_000 == 0:
            print(f"{dict(counts)}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        limits = [f"-max_total_time={round(60 * options.minutes)}", f"-seed={options.seed or 1}", "-max_len=400"]
        atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={folder}/", options.corpus or folder], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
