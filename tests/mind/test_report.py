"""The report of a synthetic run: eight perspectives, forty steps, hostile names."""

import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from sample_run import PERSPECTIVES, RIGHT, WORK, side, train_line, write_run

from mind.errors import MindError
from mind.report.pictures import _from_zero, perspective_inks
from mind.report.reading import Metrics, binned, running_mean
from mind.report.tables import evaluation_table, status_rows
from mind.run.report import write_run_report
from mind.run_folder import RunFolder

PICTURES = 14


def page_of(run: Path) -> str:
    return write_run_report(RunFolder(run)).read_text(encoding="utf-8")


def write_steps(run: Path, *rows: dict) -> None:
    lines = [json.dumps({"phase": "train", "step": step} | row) + "\n" for step, row in enumerate(rows, start=1)]
    (run / "metrics.jsonl").write_text("".join(lines))


def drawn(page: str) -> list[str]:
    return re.findall(r'<svg viewBox="[^"]*" role="img"[^>]*>.*?</svg>', page, flags=re.DOTALL)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(write_run(tmp_path_factory.mktemp("whole")))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def test_pictures_table_and_headlines(run: Path) -> None:
    page = page_of(run)
    assert (run / "report.html").read_text(encoding="utf-8") == page and "MIND run report" in page
    assert len(drawn(page)) == PICTURES == page.count("<figcaption ")
    assert "Not drawn" not in page
    assert 'class="notes"' not in page
    cards = re.findall(r"<li><span>([^<]*)</span><b>([^<]*)</b><span>([^<]*)</span></li>", page)
    assert cards[:2] == [
        ("accuracy, gsm8k &lt;b&gt; (50 questions)", "30.0 % → 42.0 %",
         "+12.0 points (95 % interval −3.2 to +26.3 points)"),
        ("held-out NLL, nats per token (320 rationales of 40 questions)", "1.250 → 1.000", "−0.250 (−20.0 %)"),
    ]  # fmt: skip
    assert [card[0] for card in cards[2:]] == [
        "train loss, first and last 4 steps",
        "token accuracy, first and last 4 steps",
    ]
    assert "<td>30.0 %</td><td>42.0 %</td><td>+12.0 points</td>" in page
    assert "<td>19.1 to 43.8 %</td><td>29.4 to 55.8 %</td><td>−3.2 to +26.3 points</td>" in page
    assert all(text in page for text in ("163,840", "objective.beta", "λ = 0.1"))
    assert not list(run.glob(".report*")), "the unfinished file is gone"


def test_no_name_gives_orders_to_who_reads_the_page(run: Path) -> None:
    """Such as that of a folder, or of an evaluation file, and so of its results."""
    name = "m\x1b[31m\x00\u202e\ud83d"
    config = json.loads((run / "config.json").read_text())
    config["student"]["model"], config["data"]["evaluation"] = name, [f"{name}.jsonl"]
    (run / "config.json").write_text(json.dumps(config))
    evaluation = json.loads((run / "evaluation.json").read_text())
    for when in evaluation.values():
        when["files"] = {f"{name}{label}": result for label, result in when["files"].items()}
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    (run / "inputs.json").write_text(json.dumps({name: {"source": name, "sha256": name}}))
    page = page_of(run)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]|&#55357", page)
    assert page.count("m\ufffd[31m\ufffd[U+202E]\ufffd") >= 5


def test_the_page_is_self_contained_and_escaped(page: str) -> None:
    assert not re.search(r"https?://|<link|<script|@import|<iframe|\bsrc=", page)
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in re.findall(r'href="([^"]*)"', page))
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; $x$" in page
    assert "gsm8k <b>" not in page
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_a_reference_in_a_picture_resolves(page: str) -> None:
    ids = set(re.findall(r' id="([^"]*)"', page))
    assert set(re.findall(r"url\(#([^)]*)\)", page)) | set(re.findall(r'href="#([^"]*)"', page)) <= ids


def test_colors_are_the_same_in_all_pictures_and_differ(page: str) -> None:
    assert len({(ink.color, ink.dashes) for ink in perspective_inks([str(k) for k in range(32)])}) == 32
    assert len({ink.color for ink in perspective_inks([str(k) for k in range(32)])}) == 32
    keys = re.findall(r'stroke: ([^"]*)" stroke-width="2.6"/></svg>formal_symbolic<', page)
    assert (len(keys), len(set(keys))) == (3, 1)


def test_thirty_two_perspectives_and_a_long_run_stay_small(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path, steps=900, names=[f"perspective_{k}" for k in range(32)]))
    assert len(drawn(page)) == PICTURES
    assert "each drawn point is the mean of 3 steps" in page
    assert len(page) < 3_000_000


def test_one_bare_step_draws_what_there_is(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"phase": "train", "step": 1, "loss": 2.0, "sft_loss": 2.0}\n')
    page = page_of(run)
    assert len(drawn(page)) == 1
    assert page.count("Not drawn") == PICTURES - 1


@pytest.mark.parametrize("name", ["config.json: no such", "metrics.jsonl: no such"])
def test_a_missing_file_is_named(run: Path, name: str) -> None:
    (run / name.partition(":")[0]).unlink()
    with pytest.raises(MindError, match=name):
        page_of(run)
    assert not (run / "report.html").exists()


def test_malformed_files_are_named_with_their_line(run: Path) -> None:
    (run / "status.json").write_text('{"wall_s": 1,\n oops}')
    with pytest.raises(MindError, match=r"status\.json:2: not JSON"):
        page_of(run)
    (run / "evaluation.json").write_text("[]")
    with pytest.raises(MindError, match=r"evaluation\.json: expected a JSON object, not list"):
        page_of(run)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"phase": "train", "step": 1}\n{"phase": "tr\n', "line 2: not JSON"),
        ('{"phase": "train", "step": 1}\n' + "[" * 100_000 + "\n", "line 2: cannot be read: brackets"),
        ('{"phase": "train", "step": 1}\n[1]\n', "line 2: expected a JSON object"),
        ('{"phase": "train"}\n', "line 1: a train line needs a number as its step"),
        ('{"phase": "train", "step": 1, "loss": "low"}\n', "line 1: loss is 'low', expected a number"),
        ('{"phase": "train", "step": 1, "score": [1]}\n', r"line 1: score is \[1\], expected an object"),
        ('{"phase": "warmup", "epoch": 1, "meta_loss": 0.5}\n', "no train lines"),
        ("", "no train lines"),
        ('{"phase": "train", "step": 1, "work": [1]}\n', r"line 1: work is \[1\], expected an object by kind"),
        ('{"phase": "train", "step": 1, "work": {"packed": "x"}}\n', "line 1: work.packed is 'x', expected a number"),
    ],
)
def test_malformed_metrics_are_named(run: Path, text: str, message: str) -> None:
    (run / "metrics.jsonl").write_text(text)
    with pytest.raises(MindError, match=r"metrics\.jsonl.*" + message):
        page_of(run)


def test_work_of_the_warm_up_is_no_epoch_of_it(run: Path) -> None:
    metrics, page = run / "metrics.jsonl", page_of(run)
    metrics.write_text('{"phase": "warmup", "work": {"encoded": 7}}\n' + metrics.read_text())
    again = page_of(run)
    assert "warm-up epoch 1<" in again and "epoch nan" not in again
    assert again.count("warm-up epoch ") == page.count("warm-up epoch ")


def test_a_killed_run_says_what_is_left_out(run: Path) -> None:
    metrics = run / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-30])
    (run / "evaluation.json").unlink()
    (run / "status.json").unlink()
    page = page_of(run)
    assert "metrics.jsonl, line 48: last line incomplete, left out" in page
    assert all(text in page for text in ("No evaluation", "No status.json", "39 logged steps"))


@pytest.mark.parametrize(("missing", "text"), [("before", "before training is missing"), ("after", "was interrupted")])
def test_one_side_of_the_evaluation(run: Path, missing: str, text: str) -> None:
    (run / "metrics.jsonl").write_text('{"phase": "train", "step": 1, "loss": 2.0}\n')
    evaluation = {"before": side(1.25, 0.3), "after": side(1.0, 0.4)} | {missing: None}
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    assert text in page_of(run)


def test_repeated_and_diverged_steps_are_noted(run: Path) -> None:
    lines = ['{"phase": "train", "step": 1, "loss": 2.0}', '{"phase": "train", "step": 2, "loss": 2.0}']
    lines += ['{"phase": "train", "step": 2, "loss": NaN}', ""]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    page = page_of(run)
    assert "1 repeated step (a resumed run)" in page
    assert "line 3: loss is not finite" in page
    metrics = Metrics(run / "metrics.jsonl")
    assert metrics.steps.tolist() == [1, 2]
    assert math.isnan(metrics.series("loss")[-1])


def test_evaluation_table() -> None:
    pairs = {"gsm8k <b>": list(zip(RIGHT["before"], RIGHT["after"], strict=True))}
    rows = evaluation_table({"before": side(1.25, 0.3), "after": side(1.0, 0.42)}, pairs)
    assert [row.what for row in rows[:4]] == [
        "accuracy, gsm8k <b> (50 questions)", "responses without an answer, gsm8k <b>",
        "responses cut off, gsm8k <b>",
        "held-out NLL, nats per token (320 rationales of 40 questions)",
    ]  # fmt: skip
    assert rows[0].intervals == ("19.1 to 43.8 %", "29.4 to 55.8 %", "−3.2 to +26.3 points")
    assert list(rows[0].cells())[1] == dict(
        zip(("what", "before", "after", "change"), ("95 % interval", *rows[0].intervals), strict=True)
    )
    by_name = {row.what: row for row in rows}
    assert by_name["held-out NLL, intuitive"].change == "−0.250 (−19.2 %)"
    lost = evaluation_table({"before": side(1.25, 0.3), "after": side(1.0, 0.25)}, {})[0]
    assert lost.change == "−5.0 points" and lost.intervals == ("19.1 to 43.8 %", "14.3 to 37.4 %", "–")
    only = evaluation_table({"before": side(1.25, 0.3), "after": None}, {})
    assert list(only[3].cells()) == [{"what": only[3].what, "before": "1.250", "after": "–", "change": "–"}]
    assert only[0].intervals == ("19.1 to 43.8 %", "–", "–")
    assert evaluation_table({}, {}) == evaluation_table({"before": None, "after": None}, {}) == []


@pytest.mark.parametrize("interval", [None, [], [0.1], ["a", "b"], [math.nan, 1.0], [0.1, 1.2], 0.5, [0.1, None]])
def test_what_is_no_interval_is_not_shown_as_one(interval: object) -> None:
    (row, *_) = evaluation_table({"before": {"files": {"a": {"interval": interval}}}, "after": None}, {})
    assert row.intervals == ("–", "–", "–")


@pytest.mark.parametrize("result", [{}, {"correct": 3, "total": 4}, None])
def test_an_accuracy_without_an_interval_shows_none(result: object) -> None:
    (row, *_) = evaluation_table({"before": {"files": {"a": result}}, "after": None}, {})
    assert row.what.startswith("accuracy, a") and row.intervals == ("–", "–", "–")


def test_sample_answers_show_what_was_gained_lost_and_missed(page: str) -> None:
    section = page[page.index("<h2>Sample answers</h2>") : page.index("<h2>Student</h2>")]
    kinds = re.findall(
        r"<summary>([a-z ,]*): How many\? &lt;script&gt;alert\(1\)&lt;/script&gt; &amp; \$x\$ (\d+)</summary>", section
    )
    assert kinds == [
        ("wrong before, right now", "15"), ("wrong before, right now", "16"), ("right before, wrong now", "0"),
        ("wrong before and now", "25"),
    ]  # fmt: skip
    found = re.findall(r"answer that was found: ([^<]*)<", section)
    assert found == ["none", "15", "none", "16", "0", "none", "none", "none"]
    assert "before &lt;script&gt;alert(1)&lt;/script&gt; &amp; $x$ \ufffd[31m 15" in section


def test_responses_that_do_not_belong_together_give_no_samples(run: Path) -> None:
    file = run / "responses" / "after" / "gsm8k <b>.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
    page = page_of(run)
    assert "Sample answers" not in page and "<td>29.4 to 55.8 %</td><td>–</td>" in page


def test_the_origin_of_a_run(page: str, run: Path) -> None:
    section = page[page.index("<h2>Origin</h2>") :]
    assert "2026-11-28T17:00:00Z" in section and "torch 2.11" in section and "ab" * 32 in section
    assert "mind train --output &#39;&lt;script&gt;" in section
    starts = json.loads((run / "starts.json").read_text())
    (run / "starts.json").write_text(json.dumps(starts * 2))
    assert "start 2 of 2" in page_of(run)
    (run / "starts.json").write_text("{}")
    with pytest.raises(MindError, match=r"starts\.json: expected a JSON list of objects"):
        page_of(run)
    for file in ("starts.json", "inputs.json"):
        (run / file).unlink()
    assert "<h2>Origin</h2>" not in page_of(run), "an older version wrote neither"


def test_names_and_units_in_the_summary() -> None:
    status = {"wall_s": 468.3, "train_s": 61.2, "steps": 24, "tokens": 61234, "tokens_per_s": 231.7,
              "work_of_naive": 0.3561, "student_parameters": 134515008, "metanet_parameters": 1000,
              "peak_rss_mib": 2210, "new_number": 1.5, "nothing": None}  # fmt: skip
    assert [(row["what"], row["value"]) for row in status_rows(status)] == [
        ("time of the whole run", "7.8 min"), ("time of the training", "61.2 s"), ("optimizer steps", "24"),
        ("labeled tokens", "61,234"), ("labeled tokens per second of training steps", "232"),
        ("work, compared with a naive run", "35.6 %"), ("parameters of the student", "134,515,008"),
        ("parameters of MetaNet", "1,000"), ("peak memory of the process", "2,210 MiB"), ("new number", "1.5"),
        ("nothing", "–"),
    ]  # fmt: skip


def test_a_line_stays_below_the_edge_of_its_picture() -> None:
    """Values far from 0 with a small spread: the margin is of the axis, not of the spread."""
    axes = Figure().subplots()
    axes.plot([1, 2, 3], [330.0, 350.0, 340.0])
    _from_zero(axes)
    assert axes.get_ylim() == pytest.approx((0, 1.05 * 350))
    axes = Figure().subplots()
    axes.plot([1, 2], [0.0, 0.0])
    _from_zero(axes)
    assert axes.get_ylim()[0] == 0 < axes.get_ylim()[1]


def test_the_total_is_visible_under_the_sft_loss(page: str) -> None:
    figure = page[page.index('<figure id="losses">') :]
    figure = figure[: figure.index("</figure>")]
    assert re.search(r"stroke: #3f83f0[^>]*stroke-dasharray: |stroke-dasharray: [^>]*stroke: #3f83f0", figure)
    assert 'stroke-dasharray="2.5 2"' in figure, "and in the legend"


def test_running_mean_and_bins_leave_nan_out() -> None:
    nan = np.nan
    values = binned(running_mean(np.array([1.0, nan, 3.0, nan, nan, nan]), 2), 6)
    assert [None if math.isnan(v) else v for v in values] == [1.0, 1.0, 3.0, 3.0, None, None]
    assert binned(np.array([1.0, 3.0, nan, 5.0, 7.0]), 2).tolist() == [2.0, 6.0]


def test_work_of_a_step_saving_by_saving(run: Path) -> None:
    first = {"padded": 600_000, "packed": 450_000, "shared": 300_000, "trained": 100_000, "observed": 120_000}
    second = {"padded": 400_000, "packed": 350_000, "shared": 300_000, "trained": 100_000, "observed": 30_000}
    write_steps(run, {"work": first}, {"work": second})
    work = Metrics(run / "metrics.jsonl").work()
    assert work.of_naive(work.trained, work.observed) == pytest.approx(0.25)
    page = page_of(run)
    (picture,) = drawn(page)
    assert re.findall(r">([^<]* tokens)<", picture) == [
        "100.0 % · 1.0 M tokens", "80.0 % · 800.0 k tokens", "60.0 % · 600.0 k tokens",
        "25.0 % · 200.0 k + 150.0 k / 3 tokens",
    ]  # fmt: skip
    bars = re.findall(r'd="M ([\d.]+) [\d.]+ \nL ([\d.]+) [^"]*"[^>]* style="fill: (?!none)([^"]*)"', picture)
    naive = float(bars[0][1]) - float(bars[0][0])
    blue, amber, pale = "#3f83f0", "#e08a1e", "var(--rule)"
    assert [((float(end) - float(start)) / naive, color) for start, end, color in bars] == [
        (pytest.approx(share, abs=1e-4), color)
        for share, color in [(1, blue), (0.8, blue), (0.2, pale), (0.6, blue), (0.2, pale),
                              (0.2, blue), (0.05, amber), (0.35, pale)]
    ]  # fmt: skip
    table = re.findall(r'<th scope="row">([^<]*)</th><td>([^<]*)</td><td>([^<]* %)</td></tr>', page)
    assert table == [
        ("naive run", "1,000,000", "100.0 %"), ("without padding", "800,000", "80.0 %"),
        ("with shared prompts", "600,000", "60.0 %"), ("trained: forward and backward pass", "200,000", "20.0 %"),
        ("observed: forward pass alone", "150,000", "5.0 %"), ("this run: trained and observed", "350,000", "25.0 %"),
    ]  # fmt: skip


@pytest.mark.parametrize("work", [None, {}, WORK | {"shared": None}, WORK | {"padded": 0}])
def test_work_that_is_not_there_is_said(run: Path, work: dict | None) -> None:
    write_steps(run, {"loss": 2.0, "work": work})
    page = page_of(run)
    assert re.search(r"Work of a step</h3>\s*<p class=\"absent\">Not drawn: metrics.jsonl holds no number", page)
    assert "share of the work" not in page and "hold no work" not in page
    write_steps(run, {"loss": 2.0, "work": work}, {"loss": 2.0, "work": WORK})
    page = page_of(run)
    assert "1 line without work left out" in page
    assert "<td>1,000</td><td>100.0 %</td>" in page


def test_another_method_shows_no_metanet(run: Path) -> None:
    """SFT: the student's own series, and nothing that only MIND has."""
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"method": "sft", "options": {}}))
    common = {"loss", "accuracy", "l_real", "learning_rate", "tokens_per_s", "peak_rss_mib", "work"}
    rows = [train_line(step, random.Random(step), PERSPECTIVES) for step in range(1, 6)]
    work = {"work": WORK | {"trained": WORK["shared"], "observed": 0}}
    write_steps(run, *({name: row[name] for name in common} | work for row in rows))
    page = page_of(run)
    assert "SFT run report" in page and "Loss of each perspective (L_real)</h3>" in page
    shown = re.findall(r"<h2>([^<]*)</h2>", page)
    assert shown == ["Summary", "Evaluation", "Sample answers", "Student", "Machine", "Origin", "Configuration"]
    assert re.findall(r"<h3[^>]*>([^<]*)</h3>", page) == [
        "Loss", "Token accuracy", "Loss of each perspective (L_real)", "Learning rate",
        "Throughput", "Peak memory", "Work of a step",
    ]  # fmt: skip
    assert len(drawn(page)) == 7 and "Not drawn" not in page
    body = page[: page.index("<h2>Configuration</h2>")]
    assert not re.search("MetaNet|I_dyn|consistency|selected", body)


def test_dropped_mass_is_drawn_where_there_is_some(run: Path, page: str) -> None:
    title = "Probability outside the sparse gradient"
    assert title not in page, "the gradient of that run is exact"
    write_steps(run, {"dropped_mass": 0.0}, {"dropped_mass": 0.004})
    page = page_of(run)
    assert title in page
    assert len(drawn(page)) == 1
