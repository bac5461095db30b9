"""The tables of docs/experiments.md, which docs/tables.py writes."""

from __future__ import annotations

import json
from typing import Any

from bench.measure import RESULTS, read_results
from docs.generated import table


def comparison(name: str) -> dict[str, Any]:
    """What `mind compare` found in an experiment."""
    return json.loads((RESULTS / "experiments" / name / "comparison.json").read_text())


def accuracies(name: str) -> str:
    """Per label: means over seeds, of the first set with their range over the seeds, and the cost of a run."""
    found = comparison(name)
    sets = list(found["sets"])
    body = []
    for label, one in found["methods"].items():
        each = [run["accuracy"][sets[0]] for run in one["runs"]]
        spread = f" ({100 * min(each):.1f} to {100 * max(each):.1f})" if len(each) > 1 else ""
        cost = f"{one['trained_tokens']:,.0f}" if one["trained_tokens"] is not None else "–"
        nll = f"{one['nll']:.2f}" if one["nll"] is not None else "–"
        means = [f"{100 * one['accuracy'][name]:.1f} %" for name in sets]
        means[0] += spread
        body.append([f"`{label}`", str(len(each)), *means, nll, cost])
    heads = [f"`{name}` ({of['group'].upper()})" for name, of in found["sets"].items()]
    return table(["method", "seeds", *heads, "held-out NLL", "trained tokens"], body)


def differences(name: str) -> str:
    """Of the reference from each label, by group: points with their interval, and Holm's p of two sides."""
    found = comparison(name)
    of = {(one["other"], one["on"]): one for one in found["versus"]}
    body = []
    for label, method in found["methods"].items():
        if label == found["reference"]:
            continue
        cells = []
        for group in ("macro ID", "macro OOD"):
            one = of[label, group]
            low, high = (100 * end for end in one["interval"])
            p = "p < 0.001" if one["p_holm"] < 0.001 else f"p = {one['p_holm']:.3f}"
            cells.append(f"{100 * one['difference']:+.1f} ({low:+.1f} to {high:+.1f}), {p}")
        body.append([f"`{label}`", method["role"], *cells])
    return table([f"`{found['reference']}` minus", "role", "in distribution", "out of distribution"], body)


def latent() -> str:
    """The probe on students of a seed that it has not seen, by view, and the clusters."""
    body = []
    for row in read_results(RESULTS / "latent.jsonl"):
        told = f"{100 * row['new_student']:.1f} % ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
        chance = f"{100 * row['chance']:.1f} %"
        body.append([row["view"], row["group"], told, chance, f"{row['nmi']:.2f}", f"{row['clusters']:.0f}"])
    return table(["view", "students", "probe on a new student", "by chance", "NMI", "clusters"], body)
