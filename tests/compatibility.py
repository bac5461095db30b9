"""Runs the tests that meet other packages with another Python and other versions, and notes how many passed.

    python tests/compatibility.py PYTHON [--output FILE]

PYTHON is of an environment with the extra `test`, the versions to be tried, and without mind-kernels: this folder's is
used, with its compiled libraries. A line with the versions and counts is added to the file, by default
bench/results/compatibility.jsonl. Ends with status 1 if a test failed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "bench" / "results" / "compatibility.jsonl"
PACKAGES = ("torch", "triton", "transformers", "accelerate", "peft", "trl", "numpy")
LOSSES = "linear_cross_entropy linear_pairwise_jsd linear_mind_loss linear_divergence linear_log_prob linear_top_k"
TESTS = {
    "kernels": f"{LOSSES} graphs compiled_operators leading_shape",
    "mind": "run every_method config student run_folder formats evaluate_engines",
    "integrations": "fuse fuse_trainer fuse_families trl",
}
"""By folder of tests."""
VERSIONS = """
import importlib.metadata, json, platform
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
print(json.dumps({"python": platform.python_version(), **{name: version(name) for name in %r}}))
"""


def files() -> list[str]:
    return [f"tests/{folder}/test_{name}.py" for folder, names in TESTS.items() for name in names.split()]


def counts(ended: str) -> dict[str, int]:
    """From pytest's last line, such as "3 failed, 20 passed, 1 skipped, 2 errors in 9.00s"."""
    last = ended.splitlines()[-1]
    found = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    return {name: found.get(name, 0) for name in ("passed", "failed", "error", "skipped")}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("python", help="the interpreter of the environment")
    parser.add_argument("--output", type=Path, default=FILE)
    options = parser.parse_args()
    versions = subprocess.run(
        [options.python, "-c", VERSIONS % (PACKAGES,)], check=True, stdout=subprocess.PIPE, text=True
    )
    command = [options.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files()]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    ended = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    sys.stdout.write(ended.stdout)
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], stdout=subprocess.PIPE, text=True
    )
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    facts = {"threads": int(environment["OMP_NUM_THREADS"]), "commit": commit.stdout.strip(), "time": now}
    line = {**json.loads(versions.stdout), **counts(ended.stdout), **facts}
    with options.output.open("a") as out:
        out.write(json.dumps(line) + "\n")
    return int(ended.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
