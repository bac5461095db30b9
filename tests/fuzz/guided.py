"""The tier `parsers` guided by coverage: inputs that reach new code are kept and changed further.

    python -m tests.fuzz.guided [NAME ...] [--minutes 30] [--inputs N] [--seed 0] [--corpus FOLDER] [--output FILE]

Needs the package atheris (pip install atheris; CPython 3.11 to 3.13 on Linux). It decides in place of hypothesis: an
input is the numbers of the choices (tests/fuzz/choices.py), so a finding prints the same command. The first finding
ends a parser's time, and there is status 0 if there is none; --corpus keeps the inputs for another start, in a folder
per parser, and the counts are added to the file of --output, such as bench/results/fuzz.jsonl.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.choices import Choices
from tests.fuzz.results import keep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of parsers; default: all, one after the other")
    parser.add_argument("--minutes", type=float, default=30, help="of each, at most")
    parser.add_argument("--inputs", type=int, default=-1, metavar="N", help="of each, at most; default: no limit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path, metavar="FOLDER", help="where inputs that reached new code are kept")
    parser.add_argument("--output", type=Path, metavar="FILE", help="of JSON lines, to which the counts are added")
    options = parser.parse_args()
    from tests.fuzz.parsers import PARSERS  # not in the processes that import it instrumented

    if unknown := set(options.names) - set(PARSERS):
        parser.error(f"no {', '.join(sorted(unknown))} among {', '.join(PARSERS)}")
    failed = [name for name in options.names or PARSERS if not find_nothing(name, options)]
    sys.exit(f"findings: {', '.join(failed)}" if failed else 0)


def find_nothing(name: str, options: argparse.Namespace) -> bool:
    """Fuzzes a parser in a process of its own: atheris ends the process, and has to see all imports."""
    from tests.fuzz.parsers import memory

    context = multiprocessing.get_context("spawn")
    inputs = context.RawValue("q")
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(dir=memory()) as folder:
        process = context.Process(target=fuzz, args=(name, options, Path(folder), inputs))
        process.start()
        process.join()
    if options.output is not None and inputs.value:
        seconds, findings = time.monotonic() - begin, int(process.exitcode != 0)
        seeds = (options.seed, options.seed)
        keep(options.output, "parsers, guided", seeds, {name: inputs.value}, seconds, findings)
    return process.exitcode == 0


def fuzz(name: str, options: argparse.Namespace, folder: Path, inputs: ctypes.c_int64) -> None:
    """Counts the inputs in `inputs`, and leaves files in `folder`; does not return."""
    import atheris

    os.environ["TMPDIR"] = str(folder)
    with atheris.instrument_imports(include=["mind", "json"]):
        from tests.fuzz import parsers
    counts: Counter[str] = Counter()

    def one(data: bytes) -> None:
        provider = atheris.FuzzedDataProvider(data)
        choices = Choices(lambda most: provider.ConsumeIntInRange(0, most))
        inputs.value += 1
        try:
            parsers.example(name, choices, counts)
        except Exception:
            print(f"again: python -m tests.fuzz parsers --case {name}:{choices.code}", flush=True)
            raise
        if inputs.value % 10_000 == 0:
            print(f"{dict(counts)}", flush=True)

    corpus = folder / "corpus" if options.corpus is None else options.corpus / name
    corpus.mkdir(parents=True, exist_ok=True)
    limits = [f"-max_total_time={round(60 * options.minutes)}", f"-runs={options.inputs}"]
    limits += [f"-seed={options.seed or 1}", "-max_len=400"]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={folder}/", str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
