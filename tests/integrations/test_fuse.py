"""A fused model on its own: the numbers of the stock model, and what else a user does with a model."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from trainers import Rows, distance, make, padded

from mind_kernels import BackendUnavailableError
from mind_kernels.integrations.condition import Condition
from mind_kernels.integrations.transformers import fuse, read_condition, unfuse

BATCH = padded([Rows()[i] for i in range(4)])


def losses_and_gradient(model, **inputs):
    model.zero_grad()
    output = model(**BATCH | inputs)
    output.loss.backward()
    return output.loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def assert_as_stock(fused, stock, **inputs):
    (loss, gradient), (expected, d_expected) = (losses_and_gradient(model, **inputs) for model in (fused, stock))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    assert distance(gradient, d_expected) < 1e-5


@pytest.mark.parametrize(
    ("family", "changes", "condition"),
    [
        ("llama", {}, Condition(None, 1.0)),
        ("gemma2", {"final_logit_softcapping": 3.0}, Condition(3.0, 1.0)),
        ("gemma2", {"final_logit_softcapping": 0.05}, Condition(0.05, 1.0)),
        ("cohere", {"logit_scale": 0.25}, Condition(None, 4.0)),
        ("granite", {"logits_scaling": 8.0}, Condition(None, 8.0)),
        ("falcon_h1", {"lm_head_multiplier": 0.05}, Condition(None, 20.0)),
        ("recurrent_gemma", {"logits_soft_cap": 3.0}, Condition(3.0, 1.0)),
        ("gpt2", {}, Condition(None, 1.0)),
        ("lfm2", {}, Condition(None, 1.0)),
        ("qwen3_next", {}, Condition(None, 1.0)),
    ],
)
def test_the_condition_is_read_off_the_model(family, changes, condition):
    stock = make(family, **changes)
    assert read_condition(stock) == condition
    fused = fuse(copy.deepcopy(stock))
    assert_as_stock(fused, stock, use_cache=False)


def test_what_a_call_may_be_given():
    stock = make()
    fused = fuse(copy.deepcopy(stock))
    for items in (7, torch.tensor(7)):
        assert_as_stock(fused, stock, num_items_in_batch=items)
    shifted = nn.functional.pad(BATCH["labels"], (0, 1), value=-100)[:, 1:].contiguous()
    assert_as_stock(fused, stock, shift_labels=shifted)
    by_place = (BATCH["input_ids"], BATCH["attention_mask"], None, None, None, BATCH["labels"])
    assert fused(*by_place).logits.shape == (4, 0, 99)
    assert torch.equal(fused(*by_place).loss, fused(**BATCH).loss)
    for twice in ("labels", "input_ids"):
        with pytest.raises(TypeError, match=rf"forward\(\) got .*{twice}"):
            fused(*by_place, **{twice: BATCH[twice]})
    assert fused(**BATCH, skip_logits=False).logits.shape == stock(**BATCH).logits.shape
    with pytest.raises(ValueError, match="logits_to_keep"):
        fused(**BATCH, logits_to_keep=3)
    assert fused._fused_call is None


def test_options_are_those_of_the_loss():
    fused = fuse(make(), label_smoothing=0.1, z_loss=1e-3)
    logits = unfuse(copy.deepcopy(fused))(**BATCH).logits[:, :-1]
    target = BATCH["labels"][:, 1:]
    rows = target != -100
    expected = nn.functional.cross_entropy(logits[rows], target[rows], label_smoothing=0.1)
    expected = expected + 1e-3 * logits[rows].logsumexp(-1).square().mean()
    torch.testing.assert_close(fused(**BATCH).loss, expected, rtol=1e-6, atol=0)
    sparse = fuse(make(), gradient_threshold=0.05)
    assert sparse(**BATCH).loss == fuse(make())(**BATCH).loss
    assert sparse.last_row_stats.kept_entries.shape == BATCH["labels"].shape


def test_statistics_of_the_last_call():
    fused = fuse(make())
    output = fused(**BATCH, skip_logits=False)
    stats, target = fused.last_row_stats, nn.functional.pad(BATCH["labels"], (0, 1), value=-100)[:, 1:]
    rows = target != -100
    log_p = output.logits.log_softmax(-1)[rows]
    assert torch.equal(stats.correct[rows], output.logits.argmax(-1)[rows] == target[rows])
    torch.testing.assert_close(stats.entropy[rows], -(log_p.exp() * log_p).sum(-1))
    torch.testing.assert_close(stats.nll.sum() / rows.sum(), output.loss.detach())
    assert not stats.nll[~rows].any() and not stats.nll.requires_grad


def test_without_labels_and_after_unfuse_it_is_the_stock_model():
    stock = make()
    fused = fuse(copy.deepcopy(stock))
    prompt = BATCH["input_ids"][:1, :6]
    assert torch.equal(fused(input_ids=prompt).logits, stock(input_ids=prompt).logits)
    given = {"input_ids": prompt, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(fused.eval().generate(**given), stock.eval().generate(**given))
    assert type(unfuse(fused)) is type(stock) and type(fused.lm_head) is nn.Linear
    assert vars(fused).keys() == vars(stock).keys()
    with pytest.raises(ValueError, match="LlamaForCausalLM: expected the model as `fuse` left it"):
        unfuse(fused)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_fused_and_their_own(copied):
    fused = fuse(make("gemma2", final_logit_softcapping=3.0), z_loss=0.1)
    twin = copied(fused)
    assert type(twin) is type(fused) and twin(**BATCH).logits.shape == (4, 0, 99)
    assert torch.equal(twin(**BATCH).loss, fused(**BATCH).loss)
    unfuse(twin)
    assert fused(**BATCH).logits.shape == (4, 0, 99)
    with torch.no_grad():
        twin.lm_head.weight.zero_()
    assert fused(**BATCH).loss != twin(**BATCH).loss


def test_what_is_saved_is_the_stock_model(tmp_path):
    from transformers import AutoModelForCausalLM

    fused = fuse(make())
    fused.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.architectures == ["LlamaForCausalLM"]
    torch.testing.assert_close(loaded(**BATCH).loss, fused(**BATCH).loss, rtol=1e-6, atol=0)


def test_data_parallel_replicas_keep_their_calls_apart():
    """torch.nn.DataParallel copies what a module holds and runs the copies in threads: a call is no part of that."""
    fused = fuse(make())
    replica = fused._replicate_for_data_parallel()
    replica._fused_call = object()
    assert fused._fused_call is None


def quantized():
    model = make()
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.to(torch.int8), requires_grad=False)
    return model


def other_logits():
    """A model that adds to its logits behind the head."""
    model = make()
    forward = type(model).forward

    class Shifted(type(model)):
        def forward(self, *args, **kwargs):
            output = forward(self, *args, **kwargs)
            output.logits = output.logits + 1.0
            return output

    model.__class__ = Shifted
    return model


def two_losses():
    """A model that adds the loss of other labels to its own."""
    model = make()
    forward = type(model).forward

    class TwoLosses(type(model)):
        def forward(self, *args, labels=None, **kwargs):
            output = forward(self, *args, labels=labels, **kwargs)
            if labels is not None:
                other = self.loss_function(logits=output.logits, labels=labels.roll(1), vocab_size=99)
                output.loss = output.loss + other
            return output

    model.__class__ = TwoLosses
    return model


def without_head():
    return make().model


def masked():
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=2))


def encoder_decoder():
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=2))


def on_meta():
    with torch.device("meta"):
        return make()


def weighed():
    """A loss that is the model's own, but for a token that the comparison does not meet."""
    model, weight = make(), torch.ones(99)
    weight[2] = 5.0
    model.loss_function = lambda logits, labels, **_: nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), weight=weight
    )
    return model


def weighed_by_its_class():
    model = make()

    class Weighed(type(model)):
        def loss_function(self, logits, labels, **_):
            weight = torch.where(torch.arange(99) == 2, 5.0, 1.0)
            return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), weight)

    model.__class__ = Weighed
    return model


def hidden_by_a_wrapper():
    """As FSDP's first version does, whose wrapper has the attributes of the model."""

    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def __getattr__(self, name):
            return super().__getattr__(name) if name == "module" else getattr(self.module, name)

    return Wrapper(make())


REFUSED = [
    (hidden_by_a_wrapper, "Wrapper has wrapped the model in a way that hides it: expected the model, before that"),
    (without_head, "LlamaModel has no LM head"),
    (lambda: nn.Linear(2, 3), "Linear has no LM head"),
    (masked, "BertForMaskedLM: it does not take its loss from its loss_function"),
    (encoder_decoder, "T5ForConditionalGeneration is an encoder-decoder"),
    (lambda: make("xlm"), "XLMWithLMHeadModel: it does not take its loss from its loss_function"),
    (other_logits, "Shifted: the model turns outputs x of its LM head into something else"),
    (two_losses, "TwoLosses: .*its loss_function was called twice with these labels"),
    (quantized, "the LM head is a Linear with a weight of torch.int8"),
    (lambda: fuse(make()), "LlamaForCausalLM is fused already"),
    (on_meta, "LlamaForCausalLM has no data yet"),
    (weighed, "LlamaForCausalLM: its loss_function is weighed.<locals>.<lambda>, which `fuse` would.*del model"),
    (weighed_by_its_class, "Weighed: its loss_function is weighed_by_its_class.<locals>.Weighed.loss_function, which"),
]


@pytest.mark.parametrize(("refused", "message"), REFUSED)
def test_refused_and_left_as_it_was(refused, message):
    model = refused()
    kind, held, modes = type(model), dict(vars(model)), [module.training for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        fuse(model)
    assert type(model) is kind and vars(model).keys() == held.keys()
    assert [module.training for module in model.modules()] == modes


def test_adapters_that_no_weight_holds_are_refused():
    peft = pytest.importorskip("peft")
    for options, message in [({"use_dora": True}, "DoraLinearVariant"), ({"lora_dropout": 0.1}, "dropout")]:
        config = peft.LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM", **options)
        with pytest.raises(ValueError, match=f"the LM head has an adapter.*{message}"):
            fuse(peft.get_peft_model(make(), config))
        later = peft.get_peft_model(fuse(make()), config)
        with pytest.raises(ValueError, match=f"the LM head has an adapter.*{message}"):
            later(**BATCH)


def test_a_condition_spares_the_probe():
    fused = fuse(make(), condition=Condition(None, 2.0))
    expected = unfuse(copy.deepcopy(fused))
    logits = expected(**BATCH).logits[:, :-1] / 2
    target = BATCH["labels"][:, 1:]
    torch.testing.assert_close(
        fused(**BATCH).loss, nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten()), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize(
    ("condition", "error", "message"),
    [
        ((30.0, 1.0), TypeError, r"condition is \(30.0, 1.0\): expected a Condition"),
        (Condition(0.0, 1.0), ValueError, "softcap is 0.0: expected a positive"),
        (Condition(None, 0.0), ValueError, "temperature is 0.0: expected a positive"),
    ],
)
def test_a_condition_is_checked_at_once(condition, error, message):
    with pytest.raises(error, match=message):
        fuse(make(), condition=condition)


def test_logits_in_float32_of_a_model_in_bfloat16():
    """Its own loss is rounded to bfloat16 all the same."""
    model = make("nemotron_h", dtype=torch.bfloat16)
    assert model(input_ids=BATCH["input_ids"]).logits.dtype == torch.float32
    assert fuse(model)(**BATCH).logits.shape == (4, 0, 99)


def test_whatever_the_default_device_is():
    stock = make()
    with torch.device("meta"):  # the model is on the CPU
        fused = fuse(copy.deepcopy(stock))
    assert_as_stock(fused, stock)


def test_weights_that_change_when_they_are_read():
    """In training mode each reading of such a weight improves its norm."""
    model = make()
    nn.utils.parametrizations.spectral_norm(model.lm_head)
    before = copy.deepcopy(model.state_dict())
    after = fuse(model).state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_forward_pass_of_the_instance_is_refused():
    """As accelerate and TRL set one: it would be called in place of the fused one."""
    model = make()
    model.forward = model.forward
    with pytest.raises(ValueError, match="LlamaForCausalLM has a forward pass of its own"):
        fuse(model)
    del model.forward
    model.lm_head.forward = model.lm_head.forward
    with pytest.raises(ValueError, match="Linear has a forward pass of its own"):
        fuse(model)
    del model.lm_head.forward
    fuse(model).forward = model.forward
    with pytest.raises(ValueError, match="has a forward pass of its own: `del model.forward` first"):
        unfuse(model)
    del model.forward
    unfuse(model)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backend": "cudda"}, ValueError, "backend is 'cudda': expected 'auto' or one of"),
        ({"backend": "cuda"}, BackendUnavailableError, "backend 'cuda' is not available"),
        ({"label_smoothing": 2.0}, ValueError, "label_smoothing is 2.0: expected"),
        ({"gradient_threshold": 1.0}, ValueError, "gradient_threshold is 1.0: expected"),
    ],
)
def test_options_are_checked_at_once(options, error, message):
    if options.get("backend") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(error, match=message):
        fuse(make(), **options)


def test_a_loss_that_is_not_taken_is_an_error():
    """With a condition nothing is compared when the model is fused, so that it shows in the first call."""
    fused = fuse(make("xlm"), condition=Condition(None, 1.0)).eval()
    with pytest.raises(RuntimeError, match="XLMWithLMHeadModel: with labels its forward pass did not take its loss"):
        fused(**BATCH)


def test_a_model_made_of_the_class_is_the_stock_model():
    stock = make()
    other = type(fuse(copy.deepcopy(stock)))(stock.config)
    other.load_state_dict(stock.state_dict())
    assert torch.equal(other(**BATCH).loss, stock(**BATCH).loss)
    assert fuse(other)(**BATCH).logits.shape == (4, 0, 99)


def test_a_call_within_a_call():
    """A hook that asks the model for logits, and one that asks for another loss."""
    stock = make()
    fused = fuse(copy.deepcopy(stock))
    found = []

    def inner(module, inputs, output):
        if not found:
            found.append(None)
            found[0] = fused(input_ids=BATCH["input_ids"]).logits, fused(**BATCH).loss

    handle = fused.model.register_forward_hook(inner)
    outer = fused(**BATCH, num_items_in_batch=7)
    handle.remove()
    assert torch.equal(found[0][0], stock(input_ids=BATCH["input_ids"]).logits)
    assert torch.equal(found[0][1], fused(**BATCH).loss)
    assert torch.equal(outer.loss, fused(**BATCH, num_items_in_batch=7).loss) and outer.logits.shape == (4, 0, 99)


def test_a_part_of_the_head_that_no_dtensor_describes_is_refused():
    model = make()
    model.lm_head.weight = nn.Parameter(model.lm_head.weight[:50].detach())
    with pytest.raises(ValueError, match="the LM head holds 50 of 99 vocabulary entries here"):
        fuse(model)
