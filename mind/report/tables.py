"""The tables of a run as rows of text."""

import math

from mind.report.reading import Metrics, Work, number_at, running_mean, value_at


def _row(what: str, values: list[float | None], pattern: str = "{:.3f}", relative: bool = False) -> dict[str, str]:
    """One table row; of a share (pattern in %) the change is in points."""
    before, after = values
    change = "–"
    if before is not None and after is not None:
        difference = after - before
        change = f"{100 * difference:+.1f} points" if "%" in pattern else ("{:+" + pattern[2:]).format(difference)
        change += f" ({100 * difference / before:+.1f} %)" if relative and before else ""
    first, last = ("–" if value is None else pattern.format(value) for value in values)
    return {"what": what, "before": first, "after": last, "change": change.replace("-", "−")}


def evaluation_table(evaluation: dict) -> list[dict[str, str]]:
    """evaluation.json's content as rows of text: what, before, after, change; a dash where a side is missing.

    The held-out loss comes first; changes of a loss are also given relative to before, those of an accuracy in points.
    """
    sides = [evaluation.get("before"), evaluation.get("after")]
    if sides == [None, None]:
        return []

    def both(*keys: str) -> list[float | None]:
        return [number_at(side, *keys) for side in sides]

    def names(*keys: str) -> list[str]:
        return list(dict.fromkeys(name for side in sides for name in value_at(side, *keys) or ()))

    rows = [_row("held-out NLL, nats a token", both("heldout", "nll"), relative=True)]
    for name in names("heldout", "nll_by_perspective"):
        rows.append(_row(f"held-out NLL, {name}", both("heldout", "nll_by_perspective", name), relative=True))
    for label in names("files"):
        rows.append(_row(f"accuracy, {label}", both("files", label, "accuracy"), "{:.1%}"))
        for count in ("total", "correct", "unparsed"):
            rows.append(_row(f"{count}, {label}", both("files", label, count), "{:,.0f}"))
    for count in ("questions", "rationales", "tokens"):
        rows.append(_row(f"held-out {count}", both("heldout", count), "{:,.0f}"))
    return rows


def headline_rows(table: list[dict[str, str]], metrics: Metrics) -> list[dict[str, str]]:
    """The held-out loss, up to three accuracies, and the training's own start against its end."""
    accuracies = [row for row in table if row["what"].startswith("accuracy, ")]
    window = max(1, len(metrics.steps) // 10)
    rows = table[:1] + accuracies[:3]
    for what, name, pattern in (("train loss", "loss", "{:.3f}"), ("token accuracy", "accuracy", "{:.1%}")):
        means = running_mean(metrics.series(name), window)[[window - 1, -1]]
        ends = [float(value) if math.isfinite(value) else None for value in means]
        rows.append(_row(f"{what}, first and last {window} steps", ends, pattern, relative=name == "loss"))
    return rows


def work_table(work: Work) -> list[dict[str, str]]:
    """The tokens of a run as rows of text: what, tokens, and their work as a share of the naive run's."""
    rows = {
        "naive run": (work.padded, 0),
        "without padding": (work.packed, 0),
        "with shared prompts": (work.shared, 0),
        "trained: forward and backward": (work.trained, 0),
        "observed: forward alone": (0, work.observed),
        "this run: trained and observed": (work.trained, work.observed),
    }
    return [
        {"what": what, "tokens": f"{sum(tokens):,}", "share": f"{work.of_naive(*tokens):.1%}"}
        for what, tokens in rows.items()
    ]
