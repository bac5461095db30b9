"""What takes the place of TRL's functions: right values, what install changes, and what is refused."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.nn.functional import log_softmax

pytest.importorskip("trl", reason="trl is not installed (mind-kernels[test])")

from test_trl import distillation, dpo, sft
from test_trl_gkd import FusedGKDTrainer, GKDTrainer, gkd
from trl import SFTTrainer
from trl.trainer import distillation_trainer, utils
from trl_runs import model

from mind_kernels.integrations import trl as fused
from mind_kernels.integrations.signature import expect
from mind_kernels.integrations.transformers import fuse
from mind_kernels.integrations.trl_logits import check_logits

HEADS = {
    "plain": {},
    "warm": {"temperature": 0.7},
    "softcap": {"temperature": 0.7, "softcap": 3.0, "scale": 0.5},
    "bias": {"bias": True, "scale": 2.0},
}


def head(rows, generator, width=8, vocabulary=37, bias=False, softcap=None, scale=1.0, temperature=1.0):
    """Hidden states, weight and bias in float32, and the logits by their definition in float64."""
    hidden, weight = (torch.randn(n, width, generator=generator).requires_grad_() for n in (rows, vocabulary))
    added = torch.randn(vocabulary, generator=generator).requires_grad_() if bias else None
    z = hidden.double() @ weight.double().T + (0 if added is None else added.double())
    z = z * scale if softcap is None else softcap * torch.tanh(z * scale / softcap)
    return (hidden, weight, added), z / temperature


def gradients(loss, tensors, **more):
    wanted = [tensor for tensor in tensors if tensor is not None]
    return torch.autograd.grad(loss, wanted, **more)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("rows", [0, 5])
def test_log_probabilities(kind, rows):
    generator = torch.Generator().manual_seed(0)
    settings = HEADS[kind]
    tensors, z = head(rows, generator, **settings)
    target = torch.randint(37, (rows,), generator=generator)
    found = fused.FusedLogProb.apply(
        *(*tensors, target, settings.get("temperature", 1.0), 16),
        *(settings.get("softcap"), settings.get("scale", 1.0)),
    )
    log_p = log_softmax(z, dim=-1)
    own = log_p.gather(-1, target[:, None]).squeeze(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    expected = (own, entropy, (2 * log_p).logsumexp(-1), z.mean(-1), z.argmax(-1) == target)
    for ours, value in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.to(value.dtype), value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        gradients(found[0].sum() + 0.3 * found[1].sum(), tensors),
        gradients(own.sum() + 0.3 * entropy.sum(), tensors),
        rtol=1e-4,
        atol=1e-5,
    )


def test_only_the_outputs_asked_for():
    generator = torch.Generator().manual_seed(0)
    tensors, _ = head(3, generator)
    target = torch.zeros(3, dtype=torch.int64)
    found = fused.FusedLogProb.apply(*tensors, target, 1.0, 16, None, 1.0, ("log_probs", "mean_logits"))
    assert [value is not None for value in found] == [True, False, False, True, False]


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("of_student", ["plain", "bias", "softcap"])
@pytest.mark.parametrize("of_teacher", ["plain", "softcap", "bias"])
def test_divergence(beta, of_student, of_teacher):
    generator = torch.Generator().manual_seed(0)
    student, teacher = ({**HEADS[kind], "temperature": 1.3} for kind in (of_student, of_teacher))
    tensors, z = head(5, generator, **student)
    constants, y = head(5, generator, width=4, **teacher)
    found, entropy = fused.FusedDivergence.apply(
        *(*tensors, *constants, beta, 1.3),
        *(student.get("scale", 1.0), student.get("softcap"), teacher.get("scale", 1.0), teacher.get("softcap")),
    )
    log_q, log_p = log_softmax(z, dim=-1), log_softmax(y.detach(), dim=-1)
    p, q = log_p.exp(), log_q.exp()
    log_m = (beta * p + (1 - beta) * q).log()
    if beta in (0.0, 1.0):
        expected = (p * (log_p - log_q)).sum(-1) if beta == 0.0 else (q * (log_q - log_p)).sum(-1)
    else:
        expected = (beta * p * (log_p - log_m) + (1 - beta) * q * (log_q - log_m)).sum(-1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(entropy.double(), -(q * log_q).sum(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        gradients(found.sum(), tensors, retain_graph=True), gradients(expected.sum(), tensors), rtol=1e-4, atol=1e-5
    )
    wanted = [constant for constant in constants if constant is not None]
    assert not any(torch.is_tensor(d) for d in torch.autograd.grad(found.sum(), wanted, allow_unused=True))


def test_installed_and_only_inside_the_context():
    def now():
        return utils._ChunkedLogProbFunction, distillation_trainer.ChunkedDivergenceFunction, SFTTrainer.__init__

    before = now()
    with fused.fused_losses():
        fused.install()
        inside = now()
        assert inside[:2] == (fused.FusedLogProb, fused.FusedDivergence) and inside[2] is not before[2]
        with fused.fused_losses():
            assert now() == inside
        assert now() == inside
    assert now() == before


def test_another_version_of_trl_is_refused(monkeypatch):
    class Other(torch.autograd.Function):
        @staticmethod
        def forward(ctx, hidden, weight, extra):
            return hidden

    place = r"trl 1\.\d+.*trl.trainer.utils._ChunkedLogProbFunction.forward"
    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", Other)
    with pytest.raises(
        ImportError, match=place + " takes ctx, hidden, weight, extra: expected ctx, hidden, weight, bias"
    ):
        fused.install()
    monkeypatch.delattr(utils, "_ChunkedLogProbFunction")
    with pytest.raises(ImportError, match=place + " does not exist: expected"), fused.fused_losses():
        pass


def test_another_head_of_trl_is_refused(monkeypatch):
    monkeypatch.setattr(utils, "add_fused_lm_head", lambda model, scale: None)
    with pytest.raises(ImportError, match=r"trl 1.*add_fused_lm_head takes model, scale: expected model, temperature"):
        fused.install()


def test_the_arguments_of_a_method_are_checked():
    expect("trl", SFTTrainer, "log", "self", "logs", "start_time")
    with pytest.raises(ImportError, match=r"SFTTrainer.log takes self, logs, start_time: expected self$"):
        expect("trl", SFTTrainer, "log", "self")


# Settings and layers that TRL does not know, which its own loss leaves out without a word.
UNKNOWN = {
    "recurrent_gemma": "RecurrentGemmaForCausalLM: TRL computes its logits with scale 1 and no softcap, the model with "
    "scale 1 and softcap 3",
    "mpt": "MptForCausalLM: TRL computes its logits with scale 0.0625 and no softcap, the model with scale 1",
    "modernbert-decoder": "ModernBertDecoderForCausalLM: TRL computes its logits from the last hidden states, and the",
}


@pytest.mark.parametrize("family", UNKNOWN)
def test_a_model_whose_logits_trl_computes_wrongly_is_refused(tmp_path, family):
    with fused.fused_losses(), pytest.raises(ValueError, match=UNKNOWN[family]):
        sft(tmp_path, of={"family": family})
    with fused.fused_losses(), pytest.raises(ValueError, match=UNKNOWN[family]):
        distillation(tmp_path, teacher={"family": family, "hidden_size": 32})
    with fused.fused_losses(), pytest.raises(ValueError, match=UNKNOWN[family]):
        dpo(tmp_path, reference={"family": family})


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "granite", "minicpm3", "falcon_h1", "phi"])
def test_logits_that_trl_computes_are_accepted(family):
    checked = model(family)
    state = torch.random.get_rng_state()
    check_logits(checked)
    assert torch.equal(torch.random.get_rng_state(), state) and checked.training and "forward" not in vars(checked)


class Capped(torch.nn.Linear):
    def forward(self, hidden):
        return 2 * super().forward(hidden).tanh()


def with_a_forward_of_its_own(head):
    head.__class__ = Capped


def with_a_hook(head):
    head.register_forward_hook(lambda head, inputs, logits: 1.1 * logits)


def with_fewer_logits(head):
    head.register_forward_hook(lambda head, inputs, logits: logits[..., :-2])


def with_codes(head):
    """As a quantized layer, which multiplies by codes and a scale."""
    codes = (head.weight * 64).round().to(torch.int8)
    head.weight = torch.nn.Parameter(codes, requires_grad=False)
    head.forward = lambda hidden: torch.nn.functional.linear(hidden, codes.float() / 64)


HEADS_BEYOND_THEIR_WEIGHT = {
    with_a_forward_of_its_own: r"LlamaForCausalLM: the LM head is a .*Capped: expected an nn.Linear, with its forward",
    with_a_hook: "LlamaForCausalLM: its logits are not those of its head's inputs and weight, by up to",
    with_fewer_logits: "LlamaForCausalLM: 97 logits per token: expected 99, as its LM head",
    with_codes: "LlamaForCausalLM: the LM head is a Linear with a weight of torch.int8",
}


@pytest.mark.parametrize("change", HEADS_BEYOND_THEIR_WEIGHT)
def test_a_head_that_is_more_than_its_weight_is_refused(change):
    checked = model()
    change(checked.lm_head)
    with pytest.raises(ValueError, match=HEADS_BEYOND_THEIR_WEIGHT[change]):
        check_logits(checked)


def test_a_head_of_another_dtype_is_accepted():
    checked = model(dtype=torch.bfloat16)
    checked.lm_head.float()
    checked.lm_head.register_forward_pre_hook(lambda head, inputs: (inputs[0].float(),))
    check_logits(checked)


def test_only_calls_of_the_own_thread_are_read(monkeypatch):
    """Another trainer's step may come in between."""
    function, generator = utils._ChunkedLogProbFunction, torch.Generator().manual_seed(0)
    tensors, _ = head(3, generator)
    added = utils.add_fused_lm_head

    def with_another_step(checked):
        added(checked)
        checked.model.register_forward_hook(lambda *_: run_in_another_thread())

    def run_in_another_thread():
        arguments = (*tensors, torch.zeros(3, dtype=torch.int64), 1.0, 16, None, 1.0, ("log_probs",))
        thread = threading.Thread(target=lambda: steps.append(utils._ChunkedLogProbFunction.apply(*arguments)))
        thread.start()
        thread.join()

    steps = []
    monkeypatch.setattr(utils, "add_fused_lm_head", with_another_step)
    check_logits(model())
    assert len(steps) == 1 and utils._ChunkedLogProbFunction is function


def test_another_number_of_calls_is_refused(monkeypatch):
    added = utils.add_fused_lm_head

    def without_a_call(checked):
        added(checked)
        checked.forward = lambda **_: None

    monkeypatch.setattr(utils, "add_fused_lm_head", without_a_call)
    with pytest.raises(ValueError, match="LlamaForCausalLM: TRL called its log-probabilities 0 times"):
        check_logits(model())


def test_a_class_of_trl_with_a_loss_of_its_own_is_not_checked(tmp_path):
    """GKD takes logits; a class of yours may call the loss that is replaced."""

    class Mine(SFTTrainer):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs)

    of = {"family": "recurrent_gemma"}
    with fused.fused_losses():
        for kind in (GKDTrainer, FusedGKDTrainer):
            gkd(tmp_path, kind=kind, student=of)
        with pytest.raises(ValueError, match=UNKNOWN["recurrent_gemma"]):
            sft(tmp_path, of=of, kind=Mine)


class Wrapper(torch.nn.Module):
    """Passes attributes on, as those of DeepSpeed and FSDP."""

    def __init__(self, model):
        super().__init__()
        self.module = model

    def __getattr__(self, name):
        return vars(self)["_modules"]["module"] if name == "module" else getattr(self.module, name)


def test_a_wrapped_model_is_left_alone():
    check_logits(Wrapper(model("recurrent_gemma")))


def test_a_model_without_data_is_left_alone():
    check_logits(model("recurrent_gemma").to("meta"))


def test_a_head_that_zero_3_divides_is_refused():
    tensors, _ = head(2, torch.Generator().manual_seed(0))
    tensors[1].ds_id = 0
    with pytest.raises(ValueError, match="ZeRO-3"):
        fused.FusedLogProb.apply(*tensors, torch.zeros(2, dtype=torch.int64), 1.0, 16)


@pytest.mark.parametrize("make", [sft, distillation])
def test_an_adapter_on_the_head_is_refused_by_trl(tmp_path, make):
    """It would be left out: TRL's trainers hand over the head's own weight."""
    with fused.fused_losses(), pytest.raises(ValueError, match="PEFT adapter to `lm_head` is not supported"):
        make(tmp_path, adapters={"target_modules": ["q_proj", "lm_head"]})


def test_a_batch_without_labels_has_a_loss_of_zero(tmp_path):
    ids = torch.randint(6, 90, (2, 7))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.full_like(ids, -100)}
    with fused.fused_losses():
        for trainer in (sft(tmp_path), gkd(tmp_path, kind=FusedGKDTrainer)):
            loss = trainer.compute_loss(trainer.model, batch)
            loss.backward()
            assert loss == 0 and not trainer.model.lm_head.weight.grad.any()


def test_a_model_that_is_fused_before_is_trained_as_one_that_is_not(tmp_path):
    with fused.fused_losses():
        plain, before = (sft(tmp_path, of={"fused": each}) for each in (False, True))
        batch = next(iter(plain.get_train_dataloader()))
        losses = [trainer.compute_loss(trainer.model, batch) for trainer in (plain, before)]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="has a forward pass of its own"):
        fuse(plain.model)  # TRL's, which would pass the fused one by
