"""A student that is divided among processes takes the steps of one process: gradients, statistics, checkpoints, and
what is saved of it."""

from __future__ import annotations

import functools
import gc
import itertools
import os
import time

import pytest
import torch
from launches import LIMIT_S, launch
from small_run import expect_error
from test_replicas import assert_same_values, files, largest_difference, read, rows, run, words_of, write_questions
from test_trainer import build_trainer
from tiny import build_model

from mind import processes
from mind.config import flat
from mind.errors import MindError
from mind.evaluation.generation import generate_ids
from mind.run.sharded import blocks_of
from mind.student.adapters import merged
from tests.forked import free_port, in_processes

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12]]
STEPS = {"questions_per_step": 5, "max_steps": 4, "save_steps": 2, "pack_length": 150, "report_to": "none"}
"""Of 6 questions: every second step has one, and the other processes none."""
VARIANTS = {
    "tied": {"method": "mind"},
    "untied": {"method": "sft", "gradient_checkpointing": True, "weight_decay": 0.1},
    "lora": {"method": "mcc-kd"},
}


def student_of(variant):
    """A Llama, whose norms round to float32; with adapters in its layers and on a head that is tied."""
    model = build_model(tie_word_embeddings=variant != "untied").double()
    if variant != "lora":
        return model
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(processes.index())  # the adapters of the first process count
    options = {"target_modules": ["q_proj", "lm_head"], "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    return get_peft_model(model, LoraConfig(r=2, **options)).double()


def local(tensor):
    """What this process has of it."""
    return getattr(tensor, "to_local", lambda: tensor)()


def trained(place, variant, shard, checkpoint=None):
    """What a run of four steps computes, or its last two."""
    trainer = build_trainer(place, model=student_of(variant), shard=shard, **STEPS, **VARIANTS[variant])
    trainer.train(resume_from_checkpoint=checkpoint)
    with trainer.student.whole():
        model, tokenizer = trainer.context.model, trainer.context.tokenizer
        asked = PROMPTS if processes.main() else []  # the others have nothing to do
        answers = generate_ids(model, tokenizer, asked, max_new_tokens=4, batch_size=2)
    numbers = [local(p).numel() for p in trainer.model.parameters()]
    moments = [local(state["exp_avg"]).numel() for state in trainer.optimizer.state.values()]
    saved = merged(trainer.student.saved())
    return {
        "student": {} if saved is None else saved.state_dict(),
        "networks": [p.detach() for network in trainer.method.networks().values() for p in network.parameters()],
        "log": [row for row in trainer.state.log_history if "loss" in row],
        "answers": answers,
        "numbers": sum(numbers),
        "moments": sum(moments),
    }


def train_all(rank, count, port, place):
    launch = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {name: str(value) for name, value in (launch | {"MASTER_PORT": port}).items()}
    torch.set_num_threads(1)
    gc.freeze()  # the Trainer collects garbage, and what was imported is none
    folder = place / str(count)
    found = {variant: trained(folder / variant, variant, "fsdp2") for variant in VARIANTS}
    for variant in ("tied", "lora"):
        checkpoint = folder / variant / "run" / "checkpoint-2"
        found[f"{variant}, resumed"] = trained(folder / f"{variant}-resumed", variant, "fsdp2", checkpoint)
    if count == 3:  # from a checkpoint of two
        checkpoint = place / "2" / "tied" / "run" / "checkpoint-2"
        found["fewer"] = trained(folder / "fewer", "tied", "fsdp2", checkpoint)
        if rank == 0:
            (checkpoint / "sharded" / "__1_0.distcp").unlink()
        processes.wait()
        with pytest.raises(MindError, match="checkpoint-2: cannot be read: .*__1_0.distcp"):
            trained(folder / "damaged", "tied", "fsdp2", checkpoint)
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.barrier()


def start(function, count, *arguments):
    """function(rank, count, port, *arguments) in so many processes; they are killed if they wait for one another."""
    in_processes(count, function, (count, free_port(), *arguments), LIMIT_S)


COUNTS = pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.nightly)])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fsdp")


@pytest.fixture(scope="module")
def alone(place):
    """What one process with the whole student computes, by variant."""
    return {variant: trained(place / "alone" / variant, variant, "none") for variant in VARIANTS}


@pytest.fixture(scope="module")
def found(place):
    """found(count): what each of so many processes computes, by variant."""

    @functools.cache
    def of(count):
        if count == 3:
            of(2)  # whose checkpoint one of its runs goes on from
        (place / str(count)).mkdir()
        start(train_all, count, place)
        return [torch.load(place / str(count) / f"{rank}.pt") for rank in range(count)]

    return of


def assert_same(found, expected, tolerance):
    for name, weight in expected["student"].items():
        torch.testing.assert_close(found["student"][name], weight, rtol=0, atol=tolerance, msg=name)
    for p, q in zip(found["networks"], expected["networks"], strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=100 * tolerance)
    for row, other in zip(found["log"], expected["log"][-len(found["log"]) :], strict=True):
        for key in ("loss", "grad_norm", "learning_rate", "accuracy", "entropy"):
            assert float(row[key]) == pytest.approx(float(other[key]), rel=10 * tolerance), key


@COUNTS
@pytest.mark.parametrize("variant", ["tied", pytest.param("untied", marks=pytest.mark.nightly), "lora"])
def test_the_steps_are_those_of_one_process(variant, count, alone, found):
    whole, first, *others = alone[variant], *(one[variant] for one in found(count))
    assert first["student"].keys() == whole["student"].keys()
    assert_same(first, whole, 1e-7)
    assert first["answers"] == whole["answers"] and len(first["log"]) == 4
    for other in others:
        assert not other["student"], "one process has the student in one piece"
        assert all(torch.equal(p, q) for p, q in zip(other["networks"], first["networks"], strict=True))
        assert [row["loss"] for row in other["log"]] == [row["loss"] for row in first["log"]]


@COUNTS
def test_each_process_has_a_share(count, alone, found):
    for variant, what in itertools.product(VARIANTS, ("numbers", "moments")):
        whole, shares = alone[variant][what], [one[variant][what] for one in found(count)]
        assert sum(shares) == whole and max(shares) < 1.2 * whole / count


@COUNTS
def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(count, alone, found):
    first = found(count)[0]
    for variant in ("tied", "lora"):
        whole, resumed = first[variant], first[f"{variant}, resumed"]
        assert all(torch.equal(p, resumed["student"][name]) for name, p in whole["student"].items())
        assert [row["loss"] for row in resumed["log"]][-2:] == [row["loss"] for row in whole["log"]][-2:]
    if count == 3:
        assert_same(first["fewer"], alone["tied"], 1e-7)


def test_models_that_cannot_be_divided():
    model = build_model()
    assert blocks_of(model) == list(model.model.layers)
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    with pytest.raises(MindError, match="its parameter model.layers.1.mlp.up_proj.weight belongs to several layers"):
        blocks_of(model)
    model.model.scale = torch.nn.Parameter(torch.ones(()))
    with pytest.raises(MindError, match="its parameter model.scale is a single number, which cannot be divided"):
        blocks_of(model)
    model._no_split_modules = None
    with pytest.raises(MindError, match=r"train.shard fsdp2: LlamaForCausalLM does not name the layers to divide"):
        blocks_of(model)


DIVIDED = ("--train.shard", "fsdp2")


@pytest.mark.nightly
def test_mind_train_is_killed_and_resumed(tmp_path):
    write_questions(tmp_path)
    alone, (divided, _) = (run(tmp_path, "alone", 1)[0], run(tmp_path, "divided", 2, *DIVIDED))
    killed = launch(tmp_path, words_of("killed", *DIVIDED), 2)
    while not (tmp_path / "killed" / "checkpoint-2" / "calibration.pt").exists():
        assert all(process.exitcode is None for process in killed.processes), killed.said()
        time.sleep(0.01)
    killed.processes[1].kill()
    assert killed.wait() == [2, -9] and "another process of this launch has ended" in killed.errors()[0], killed.said()
    resumed = launch(tmp_path, ["train", "--output", "killed", "--resume"], 2)
    assert resumed.wait() == [0, 0], resumed.said()
    for other in (divided, tmp_path / "killed"):
        for row, its in zip(rows(alone), rows(other), strict=True):
            assert_same_values(row, its, 1e-5)
        assert_same_values(*(flat(read(folder, "evaluation.json")) for folder in (alone, other)), 1e-5)
        assert largest_difference(alone, other, "student/model.safetensors") <= 1e-6
        assert largest_difference(alone, other, "metanet.safetensors") <= 1e-4
        for part in ("student", "responses"):
            assert files(other / part) == files(alone / part)
        shards = {path.name for path in (other / "checkpoint-4" / "sharded").iterdir()}
        assert shards == {".metadata", "__0_0.distcp", "__1_0.distcp"}
        assert not (other / "checkpoint-4" / "model.safetensors").exists()
    for name in ("student/model.safetensors", "metanet.safetensors"):
        assert largest_difference(divided, tmp_path / "killed", name) == 0


def test_what_cannot_be_divided_is_told_first(tmp_path, arguments, capsys):
    options = [*arguments, "--train.shard", "fsdp2", "--train.compile"]
    expect_error(options, capsys, "train.shard fsdp2: train.compile compiles a trunk that is whole")
    assert not (tmp_path / "run").exists()


def dropped(place, shard):
    """What dropout drops of the first numbers that it is given, in each forward pass of two steps."""
    from peft import LoraConfig, get_peft_model

    options = {"target_modules": ["q_proj"], "lora_dropout": 0.5, "task_type": "CAUSAL_LM"}
    model, masks = get_peft_model(build_model(), LoraConfig(r=2, **options)), []

    def see(module, given, output):
        if module.training:
            masks.append(tuple((output.detach().flatten()[:64] == 0).tolist()))

    next(one for one in model.modules() if isinstance(one, torch.nn.Dropout)).register_forward_hook(see)
    steps = {"questions_per_step": 2, "max_steps": 2, "pack_length": 600, "report_to": "none"}
    build_trainer(place, model=model, method="sft", shard=shard, **steps).train()
    return masks


def drop(rank, count, port, place):
    launch = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {name: str(value) for name, value in (launch | {"MASTER_PORT": port}).items()}
    torch.set_num_threads(1)
    torch.save([dropped(place / shard, shard) for shard in ("none", "fsdp2")], place / f"{rank}.pt")
    torch.distributed.barrier()


def test_each_process_drops_something_else(tmp_path):
    pytest.importorskip("peft")
    alone = dropped(tmp_path / "alone", "none")
    start(drop, 2, tmp_path)
    for first, second in zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True):
        assert len(first) == len(second) == len(alone) == 2
        assert first[0] == alone[0]
        assert len({*first, *second}) == 4
