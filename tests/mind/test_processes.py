"""Several processes take the steps that one takes, whatever the method: gradients, statistics, and what it learns."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch
from every_method import config_of, student_of, trainer_of, write_inputs
from launches import LIMIT_S
from small_run import TIMING

from mind.config import flat
from mind.methods import METHODS, PRESETS, with_options
from mind.methods.method import Method
from mind.run.stages import stages_of
from tests.forked import free_port, in_processes
from tests.guide import example

QUESTIONS = 7
"""Of which a step has 6: in the next one a process has no share."""


def run(rank: int, processes: int, port: int, place: str, names: list[str]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "HF_HUB_OFFLINE": "1",
    }
    torch.set_num_threads(1)
    gc.freeze()  # the Trainer collects garbage, and what was imported is none
    METHODS["easiest"] = easiest(Path(place) / str(rank))
    found = {(name, "none"): train(Path(place), name, processes) for name in names}
    methods = [name for name in names if name not in PRESETS]  # a preset computes what its method does
    found |= {(name, "fsdp2"): train(Path(place), name, processes, "fsdp2") for name in methods}
    torch.save(found, Path(place) / f"{rank}.pt")


def easiest(folder: Path) -> type[Method]:
    """The guide's method, which observes a step before it trains on it."""
    folder.mkdir()
    return example("tests/mind/test_methods.py", folder).Easiest


def train(place: Path, name: str, processes: int, shard: str = "none") -> list[dict]:
    """What the stages of a run compute, the run's own last, each by a trainer as in a script; all of the processes have
    the same folder."""
    os.environ["MIND_CACHE"] = str(place / f"cache-{processes}")
    steps = 1 if name in PRESETS else 2  # a preset has the steps of its method
    output = place / f"{name}-{processes}-{shard}"
    config = config_of(place, name, output, max_steps=steps, pack_length=150, shard=shard)
    weights, found = [], []
    for stage in stages_of(with_options(config)):
        student = student_of(stage.config)
        if stage.former:
            for parameter, weight in zip(student.parameters(), weights, strict=True):
                parameter.data.copy_(weight)
        trainer = trainer_of(stage.config, student, QUESTIONS)
        assert trainer.args.world_size == processes
        method, main = trainer.method, trainer.is_world_process_zero()
        warmup = [flat({**row, "phase": 0}, "/") for row in method.before_training()]
        trainer.train()
        assert trainer.folder.metrics.exists()
        saved = trainer.student.saved()
        if config.student.lora and main:
            saved.save_pretrained(trainer.folder.adapter, save_embedding_layers=False)
        if processes > 1:
            torch.distributed.barrier()
        weights = [getattr(p, "full_tensor", p.clone)().detach() for p in student.parameters()]
        found.append(
            {
                "student": weights,
                "networks": [p.detach() for network in method.networks().values() for p in network.parameters()],
                "log": warmup + [row for row in trainer.state.log_history if "loss" in row],
            }
        )
    return found


@pytest.fixture(scope="module")
def found(request, tmp_path_factory):
    """What one process computes, by method, and each of two, by method and by how the student lies on them; for the
    methods and presets whose tests run."""
    place = tmp_path_factory.mktemp("processes")
    write_inputs(place)
    tests = [item for item in request.session.items if "found" in getattr(item, "fixturenames", ())]
    names = sorted({item.callspec.params["name"] for item in tests if item.path == request.path})
    try:
        import nevergrad  # noqa: F401
    except ImportError:
        names = [name for name in names if name != "mode-cotd"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIND_CACHE", "")
        patch.setitem(METHODS, "easiest", easiest(place / "alone"))
        alone = {name: train(place, name, 1) for name in names}
    in_processes(2, run, (2, free_port(), str(place), names), LIMIT_S)
    return [alone, *(torch.load(place / f"{rank}.pt") for rank in range(2))]


# One loss, a teacher's, the selection of rationales, a method of one's own; the others at night.
FEW = {"sft", "kd", "mind", "easiest"}


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this build of torch has no torch.distributed")
@pytest.mark.parametrize(
    ("name", "shard"),
    [
        *(pytest.param(name, "none", marks=pytest.mark.nightly) for name in PRESETS),  # what their methods compute
        *(
            pytest.param(name, shard, marks=[pytest.mark.nightly] * (name not in FEW))
            for name in [*sorted(METHODS), "easiest"]
            for shard in ("none", "fsdp2")
        ),
    ],
)
def test_two_processes_take_the_steps_of_one(name, shard, found):
    of_one, *several = found
    if name not in of_one:
        pytest.importorskip("nevergrad")
    for alone, first, second in zip(of_one[name], *(one[name, shard] for one in several), strict=True):
        single = bool(alone["networks"]) or name == "mode-cotd"  # networks and saved adapters are in float32
        tolerance = {"rtol": 0, "atol": 1e-6 if single else 1e-12}
        for part in ("student", "networks"):
            for p, q, r in zip(alone[part], first[part], second[part], strict=True):
                assert torch.equal(q, r), part
                torch.testing.assert_close(q, p, **tolerance)
        for row, other in zip(alone["log"], first["log"], strict=True):
            assert row.keys() == other.keys()
            for key in row.keys() - set(TIMING):
                assert other[key] == pytest.approx(row[key], rel=1e-5 if single else 1e-9, abs=1e-9), key
