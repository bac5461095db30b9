"""Presets and the options that they fix: from one method to another, in files, and what is told to have no effect."""

from __future__ import annotations

import dataclasses
import json
import warnings

import pytest
from small_run import expect_error

from mind.cli.training import train_defaults
from mind.config import DataConfig, MetaNetConfig, MindConfig, ObjectiveConfig, TrainConfig, flat
from mind.errors import MindError
from mind.methods import PRESETS, load_run_config, with_method, with_options
from mind.run.unused import warn_of_unused_options
from mind.typed_json import write_json


def test_every_preset_of_mind_says_where_its_scores_come_from():
    assert all("metanet.scores" in flat(preset.options) for preset in PRESETS.values() if preset.method == "mind")
    for name in ("mind-frozen", "mind-noinertia", "mind-nosynergy", "mind-nocons"):
        with pytest.raises(MindError, match=f"metanet.scores is uniform: method {name} fixes it at metanet"):
            with_options(MindConfig(method=name, metanet=MetaNetConfig(scores="uniform")))
    fast = MindConfig(method="mind-noinertia", metanet=MetaNetConfig(learning_rate=1e-5))
    with pytest.raises(MindError, match="metanet.learning_rate is 1e-05: method mind-noinertia fixes it at None"):
        with_options(fast)


@pytest.mark.parametrize("former", PRESETS)
def test_another_method_gets_nothing_that_a_preset_fixed(former):
    own = MindConfig(train=TrainConfig(max_steps=7), metanet=MetaNetConfig(width=64), data=DataConfig(train="t.jsonl"))
    config = with_options(dataclasses.replace(own, method=former))
    for method in ("mind", "sft", *PRESETS):
        expected = with_options(dataclasses.replace(own, method=method))
        assert with_options(with_method(config, method)) == expected


def test_the_config_of_a_run_by_a_preset_serves_another_method(tmp_path):
    config = with_options(MindConfig(method="mind-uniform", train=TrainConfig(max_steps=7)))
    write_json(dataclasses.asdict(config), tmp_path / "config.json")
    words = ["--config", str(tmp_path / "config.json")]
    assert train_defaults(words).job == config
    assert train_defaults([*words, "--method", "mind"]).job == with_options(MindConfig(train=config.train))
    frozen = train_defaults([*words, "--method", "mind-frozen"]).job
    assert (frozen.metanet.scores, frozen.metanet.joint, frozen.train.max_steps) == ("metanet", False, 7)


def test_a_contradiction_of_a_preset_is_refused(tmp_path, capsys):
    words = ["train", "--output", str(tmp_path / "run")]
    given = ["--method", "mind-frozen", "--metanet.scores", "uniform"]
    expect_error([*words, *given], capsys, "metanet.scores is uniform: method mind-frozen fixes it at metanet")
    file = tmp_path / "c.json"
    file.write_text('{"method": "mind-nocons", "objective": {"consistency_weight": 0.1}}')
    message = f"{file}: objective.consistency_weight is 0.1: method mind-nocons fixes it at 0.0: leave it out"
    expect_error([*words, "--config", str(file)], capsys, message)
    with pytest.raises(MindError) as error:
        load_run_config(file)
    assert str(error.value) == message
    assert not (tmp_path / "run").exists()
    file.write_text(json.dumps({"method": "mind-nocons", "objective": {"consistency_weight": 0, "beta": 0.5}}))
    assert with_options(load_run_config(file)).objective == ObjectiveConfig(beta=0.5, consistency_weight=0.0)


NOT_TAUGHT = "metanet.tau, metanet.spread have no effect: metanet.joint is off and metanet.warmup_epochs is 0"
UNUSED = [
    ("mind", {"scores": "instant", "anchor": "none"}, ["metanet.anchor has no effect: metanet.scores is instant"]),
    ("mind-table", {"anchor": "none"}, ["metanet.anchor has no effect: metanet.scores is table"]),
    ("mind", {"scores": "uniform", "anchor": "none"}, ["metanet.anchor has no effect: metanet.scores is uniform"]),
    ("mind-random", {"anchor": "none"}, []),
    ("mind-table", {"spread": 0.5}, []),
    ("mind", {"scores": "instant", "spread": 0.5}, []),
    ("mind-random", {"spread": 0.5}, ["metanet.spread has no effect: metanet.scores is random"]),
    ("mind", {"anchor": "none"}, []),
    (
        "mind-frozen",
        {"warmup_epochs": 0, "tau": 0.5, "spread": 0.2},
        [NOT_TAUGHT],
    ),
    ("mind-frozen", {"tau": 0.5, "spread": 0.2}, []),
    ("mind", {"warmup_epochs": 0, "tau": 0.5, "spread": 0.2}, []),
    ("sft", {"table_decay": 0.5}, ["metanet.table_decay has no effect: method is sft"]),
    ("mind-table", {"table_decay": 0.5, "feedback": "selected"}, []),
]


@pytest.mark.parametrize(("method", "metanet", "expected"), UNUSED)
def test_options_of_metanet_without_an_effect_are_told_once(method, metanet, expected):
    config = with_options(MindConfig(method=method, metanet=MetaNetConfig(**metanet)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_unused_options(config)
    assert [str(warning.message) for warning in caught] == expected
