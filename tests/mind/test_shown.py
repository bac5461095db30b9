"""What a method shows of its numbers: charts in the report, words in the progress bar."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tiny import NAMES

from mind.config import DataConfig, MindConfig
from mind.methods import METHODS
from mind.methods.mind import Mind
from mind.methods.sft import Sft
from mind.report.charts import STUDENT, Chart, Series, briefly

SHARE = Chart("share", "Share", "%", "It should grow.", (Series("share", scale=100, brief="{:.0f} %"), Series("rest")))


class Shown(Sft):
    title = "Shown"
    charts = (SHARE, Chart("losses", "Own loss", "nats", "", (Series("loss", brief="own {:.1f}"),)))


def test_the_bar_says_what_has_words_and_was_logged():
    assert briefly(Shown.charts, {"share": 0.25, "loss": 1.25, "rest": 3}) == "25 %, own 1.2"
    assert briefly(Shown.charts, {"loss": 2}) == "own 2.0"
    assert briefly((), {"loss": 2}) == ""


def test_a_chart_takes_the_place_of_a_common_one_by_its_key():
    student, own = Shown.sections(MindConfig())
    assert [chart.key for chart in student.charts] == [chart.key for chart in STUDENT.charts]
    assert {chart.key: chart.title for chart in student.charts}["losses"] == "Own loss"
    assert own.title == "Shown" and own.charts == (SHARE,)
    assert Sft.sections(MindConfig()) == (STUDENT,)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_charts_of_a_method_have_keys_of_their_own(name):
    config = MindConfig(method=name, options=METHODS[name].Options())
    keys = [chart.key for section in METHODS[name].sections(config) for chart in section.charts]
    assert len(set(keys)) == len(keys)


def test_the_bar_of_mind_says_what_is_selected_and_how_evenly():
    method = Mind.__new__(Mind)
    method.context = SimpleNamespace(config=MindConfig(data=DataConfig(perspectives=NAMES)))
    shares = {f"selected_share/{name}": share for name, share in zip(NAMES, (0.5, 0.4, 0.9), strict=True)}
    often = f"{NAMES[0]}+{NAMES[2]}"
    assert method.progress({**shares, "alpha_entropy": 0.693}) == f"selected {often}, alpha's entropy 0.69"
    assert method.progress({f"selected_share/{name}": 0.3 for name in NAMES}) == "selected others each time"
