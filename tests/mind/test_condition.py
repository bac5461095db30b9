"""Heads: what a model does to its logits, under a setting of any name, is read off it, or the model is refused."""

from __future__ import annotations

import pytest
import torch
from families import build
from tiny import build_model
from transformers import LlamaConfig, LlamaForCausalLM

from mind.batches.cross_entropy import rationale_losses
from mind.batches.prompt_sharing import attention_and_pack_options
from mind.config import MindConfig
from mind.errors import MindError
from mind.records import PackOptions, TokenizedQuestion
from mind.student.model import check_trainable, head_of


@pytest.mark.parametrize(
    ("family", "settings", "softcap", "temperature"),
    [
        ("llama", {}, None, 1.0),
        ("cohere", {"logit_scale": 0.0625}, None, 16.0),
        ("granite", {"logits_scaling": 3.0}, None, 3.0),
        ("falcon_h1", {"lm_head_multiplier": 0.0195}, None, 1 / 0.0195),
        ("hyperclovax", {"logits_scaling": 0.125}, None, 8.0),
        ("minicpm3", {"dim_model_base": 8}, None, 4.0),
        ("gemma2", {"final_logit_softcapping": 30.0}, 30.0, 1.0),
        ("recurrent_gemma", {"logits_soft_cap": 30.0}, 30.0, 1.0),
        ("mpt", {"logit_scale": 0.5}, None, 1.0),  # a setting that the model does not heed
    ],
)
def test_settings_of_any_name_are_read_off_the_model(family, settings, softcap, temperature):
    model = build(family, **settings)
    head = head_of(model)
    assert head.softcap == softcap and head.temperature == pytest.approx(temperature, rel=1e-6)
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids).last_hidden_state
        logits = model(input_ids=ids).logits
        x = hidden.double() @ model.get_output_embeddings().weight.double().T
        expected = (x if softcap is None else softcap * torch.tanh(x / softcap)) / temperature
    torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(head.logits(hidden), logits, rtol=1e-4, atol=1e-5)


class Changed(LlamaForCausalLM):
    """A family that nobody has seen: `before` changes hidden states, `after` the projected logits."""

    def forward(self, input_ids=None, labels=None, **options):
        output = self.model(input_ids, **options)
        output["logits"] = self.after(self.lm_head(self.before(output.last_hidden_state)))
        return output

    def before(self, hidden):
        return hidden

    def after(self, logits):
        return logits


def build_changed(dtype=torch.float32, **methods):
    torch.manual_seed(0)
    kind = type("Odd", (Changed,), {name: lambda self, x, f=f: f(x) for name, f in methods.items()})
    model = kind(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,
        )
    )
    return model.eval().to(dtype)


def capped(scale, bound):
    return lambda logits: bound * torch.tanh(logits * scale / bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("methods", "softcap", "temperature"),
    [
        ({"after": lambda z: z * 0.3}, None, 1 / 0.3),
        ({"before": lambda h: h / 4}, None, 4.0),
        ({"before": lambda h: h * 12, "after": lambda z: z / 3}, None, 0.25),
        ({"after": capped(0.5, 6.0)}, 12.0, 2.0),  # 6 tanh(x / 12) = 12 tanh(x / 12) / 2
        ({"before": lambda h: h / 2, "after": lambda z: capped(1, 5.0)(z) / 8}, 10.0, 16.0),
    ],
)
def test_scales_before_and_behind_the_head_become_softcap_and_temperature(methods, softcap, temperature, dtype):
    head = head_of(build_changed(dtype, **methods))
    rel = 1e-6 if dtype.itemsize > 2 else 1e-3  # the model rounds its scaled hidden states
    assert head.temperature == pytest.approx(temperature, rel=rel)
    assert head.softcap is None if softcap is None else head.softcap == pytest.approx(softcap, rel=rel)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"after": lambda z: z.clamp(-50, 50)}, "turns outputs x of its LM head into something else"),
        ({"after": lambda z: -z}, "turns outputs x of its LM head into something else"),
        ({"after": lambda z: z + 1}, "turns outputs x of its LM head into something else"),
        ({"after": lambda z: z.log_softmax(-1)}, "turns outputs x of its LM head into something else"),
        ({"after": lambda z: z.index_fill(-1, torch.tensor([5]), -1e9)}, "something else .*: 7 into -1e\\+09"),
        ({"after": lambda z: z * torch.linspace(1, 2, 64)}, "turns outputs x of its LM head into something else"),
        ({"after": lambda z: z[..., :60]}, r"its logits are \(1, 9, 60\), those of trunk and head \(1, 9, 64\)"),
        ({"before": lambda h: h.flip(-1)}, "transforms the hidden states of its trunk before they reach the LM head"),
        ({"before": torch.tanh}, "transforms the hidden states of its trunk before they reach the LM head"),
        ({"before": lambda h: h.roll(1, 1)}, "transforms the hidden states of its trunk before they reach the LM head"),
        ({"before": lambda h: h * -1}, "transforms the hidden states of its trunk before they reach the LM head"),
        ({"before": lambda h: h[1]}, "cannot be trained: IndexError"),
    ],
)
def test_what_else_a_model_does_to_its_logits_is_refused(methods, message):
    with pytest.raises(MindError, match=f"Odd.*{message}"):
        head_of(build_changed(**methods))


def test_hidden_states_that_are_not_finite_are_named():
    model = build_changed()
    model.model.norm.variance_epsilon = float("nan")
    with pytest.raises(MindError, match="Odd: its hidden states are not finite"):
        head_of(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "before",
    [
        lambda h: h + h.roll(1, -1) / 20,
        lambda h: h * torch.linspace(1, 1.2, h.shape[1], dtype=h.dtype)[:, None],
    ],
)
def test_what_little_a_model_does_to_its_hidden_states_is_refused_in_every_dtype(before, dtype):
    with pytest.raises(MindError, match="transforms the hidden states of its trunk before they reach the LM head"):
        head_of(build_changed(dtype, before=before))


def test_a_head_with_another_product_is_refused():
    class Normed(torch.nn.Linear):
        def forward(self, hidden):
            return torch.nn.functional.linear(hidden, torch.nn.functional.normalize(self.weight))

    model = build_changed()
    model.lm_head.__class__ = Normed
    with pytest.raises(MindError, match="the LM head is a .*Normed: expected an nn.Linear, with its forward pass"):
        head_of(model)


def test_a_scale_that_trains_is_refused():
    """It would not be trained, nor heeded when it has moved; a frozen one is read off."""
    model = build_changed(after=lambda z: z)
    model.scale = torch.nn.Parameter(torch.tensor(0.25))
    model.after = lambda logits: logits * model.scale
    with pytest.raises(MindError, match="Odd: its logits depend on scale beside trunk and LM head"):
        head_of(model)
    model.scale.requires_grad_(False)
    assert head_of(model).temperature == 4.0


def test_a_head_that_is_not_called_is_refused():
    model = build_changed()
    head = torch.nn.Linear(32, 64, bias=False)
    model.get_output_embeddings = lambda: head
    with pytest.raises(MindError, match="its logits do not come from the LM head that it names"):
        head_of(model)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "jetmoe", "granitemoe"])
def test_an_auxiliary_loss_is_not_left_out_without_a_word(family):
    changes = {"router_aux_loss_coef": 0.001} if family != "jetmoe" else {"aux_loss_coef": 0.001}
    off, on = (build(family, output_router_logits=value, **changes) for value in (False, True))
    check_trainable(off)
    with pytest.raises(
        MindError, match="its own training loss is .* where the cross-entropy is .*output_router_logits"
    ):
        attention_and_pack_options(on, MindConfig(), [], "cpu")
    # Evaluation has no such loss, and the same NLL.
    question = TokenizedQuestion("q", (5, 6, 7), {0: (8, 9), 1: (10, 11, 12)}, (13,))
    losses = [rationale_losses(model, [question], 2, PackOptions(50, False))[0] for model in (off, on)]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("training", [False, True])
def test_the_probe_leaves_no_trace(training):
    model = build_model(attention_dropout=0.3).train(training)
    model.model.layers[0].train(not training)
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in [*model.state_dict().items(), *model.named_buffers()]}
    random = torch.get_rng_state()
    head_of(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in [*model.state_dict().items(), *model.named_buffers()])
    assert all(p.grad is None for p in model.parameters())
    assert not model.lm_head._forward_hooks


def test_a_student_of_nan_is_refused():
    model = build_model()
    torch.nn.init.constant_(model.model.norm.weight, torch.nan)
    with pytest.raises(MindError, match="LlamaForCausalLM"):
        head_of(model)
