"""What happens to a model after `fuse`: it stays right, or the next call with labels says why not."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.utils.prune
from test_fuse import BATCH, assert_as_stock
from torch import nn
from trainers import VOCABULARY, make

from mind_kernels.integrations.transformers import fuse

WIDTH = 32


def pair(**changes):
    """The same model, stock and fused."""
    stock = make(**changes)
    return stock, fuse(copy.deepcopy(stock))


def resized(model):
    model.resize_token_embeddings(VOCABULARY + 21)


def smaller(model):
    model.resize_token_embeddings(VOCABULARY - 1)


def tied(model):
    model.lm_head.weight = model.model.embed_tokens.weight


def untied(model):
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() * 1.1)


def another_head(model):
    model.set_output_embeddings(nn.Linear(WIDTH, VOCABULARY, bias=True))


def head_without_gradient(model):
    model.lm_head.requires_grad_(False)


def trunk_without_gradient(model):
    model.model.requires_grad_(False)


def normalized_head(model):
    nn.utils.parametrizations.weight_norm(model.lm_head)


def scaled_inputs(model):
    model.lm_head.register_forward_pre_hook(lambda head, inputs: (inputs[0] * 0.5,))


def pruned(model):
    nn.utils.prune.random_unstructured(model.lm_head, "weight", 0.3)


def checkpointed(model):
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()


CHANGES = [
    resized,
    smaller,
    tied,
    untied,
    another_head,
    head_without_gradient,
    trunk_without_gradient,
    normalized_head,
    scaled_inputs,
    pruned,
    checkpointed,
]


@pytest.mark.parametrize("change", CHANGES)
def test_changes_that_stay_right(change):
    models = pair(tie_word_embeddings=change is untied)
    for model in models:
        torch.manual_seed(1)
        change(model)
    stock, fused = models
    batch = {name: BATCH[name].clamp(max=VOCABULARY - 2) for name in ("input_ids", "labels")}
    assert_as_stock(fused, stock, **batch)
    assert fused(**BATCH | batch).logits.shape == (4, 0, stock.lm_head.weight.shape[0])


class Capped(nn.Linear):
    def forward(self, hidden):
        return 2 * super().forward(hidden).tanh()


def test_another_kind_of_head_is_refused():
    """Its logits were not looked at when the model was fused."""
    fused = fuse(make())
    fused.set_output_embeddings(Capped(WIDTH, VOCABULARY))
    with pytest.raises(ValueError, match=r"the LM head is a .*Capped: expected an nn.Linear, with its forward pass"):
        fused(**BATCH)
    other = make()
    other.lm_head = Capped(WIDTH, VOCABULARY)
    with pytest.raises(ValueError, match=r"the LM head is a .*Capped: expected an nn.Linear, with its forward pass"):
        fuse(other)


def test_a_head_that_zero_3_divides_is_refused():
    """Whichever comes first. DeepSpeed marks its parameters with a number."""
    fused, other = fuse(make()), make()
    for model in (fused, other):
        model.lm_head.weight.ds_id = 0
    with pytest.raises(ValueError, match="the LM head is divided by DeepSpeed's ZeRO-3"):
        fused(**BATCH)
    with pytest.raises(ValueError, match="the LM head is divided by DeepSpeed's ZeRO-3"):
        fuse(other)


def test_another_loss_is_refused():
    fused = fuse(make())
    with pytest.raises(ValueError, match="LlamaForCausalLM is fused, and would not call another loss_function"):
        fused.loss_function = nn.functional.cross_entropy
    with pytest.raises(ValueError, match="ignore_index is 5: a fused model ignores labels of -100"):
        fused(**BATCH, ignore_index=5)
    other = make()
    other.loss_function = lambda logits, labels, vocab_size, **_: logits.square().mean()
    with pytest.raises(ValueError, match="LlamaForCausalLM: its loss_function is .*lambda>, which `fuse` would"):
        fuse(other)
    fused.loss_type = "ForMaskedLM"
    with pytest.raises(ValueError, match="its loss_function is ForMaskedLMLoss, and was ForCausalLMLoss when it was"):
        fused(**BATCH)


def changed_labels(**changes):
    """A model whose forward pass changes what its loss function is given."""
    model = make()

    class Changed(type(model)):
        def forward(self, *args, labels=None, **kwargs):
            kwargs |= {name: change(labels) for name, change in changes.items()} if labels is not None else {}
            return super().forward(*args, **{"labels": labels} | kwargs)

    model.__class__ = Changed
    return model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": lambda labels: labels.masked_fill(labels == 50, -100)}, "hands other labels to its loss_function"),
        ({"ignore_index": lambda labels: 50 if labels.numel() > 9 else -100}, "ignores labels of 50: expected -100"),
    ],
)
def test_a_model_that_ignores_more_labels_is_refused(changes, message):
    """As some ignore those of padding, none of which the comparison of `fuse` meets."""
    fused = fuse(changed_labels(**changes))
    with pytest.raises(ValueError, match=message):
        fused(**BATCH | {"labels": BATCH["labels"].masked_fill(BATCH["labels"] % 7 == 0, 50)})


def test_labels_that_are_copied_on_the_way():
    stock = changed_labels(labels=torch.clone)
    assert_as_stock(fuse(copy.deepcopy(stock)), stock)


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_a_backward_hook_of_the_head_is_refused(register):
    """It would never be called."""
    fused = fuse(make())
    getattr(fused.lm_head, register)(lambda *_: None)
    with pytest.raises(ValueError, match="the LM head has a backward hook"):
        fused(**BATCH)
    assert fused(input_ids=BATCH["input_ids"]).logits.shape == (4, 17, VOCABULARY)


def test_adapters_per_row_of_the_head_are_refused():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(fuse(make()), config).eval()
    with pytest.raises(ValueError, match="the LM head was given adapter_names beside hidden states: unfuse"):
        model(**BATCH, adapter_names=["default", "__base__"] * 2)


ADAPTERS = {
    "IA3Config": ({"feedforward_modules": []}, True),
    "VeraConfig": ({"r": 4}, True),
    "AdaLoraConfig": ({"total_step": 10}, True),
    "OFTConfig": ({"oft_block_size": 4, "r": 0}, True),
    "LoHaConfig": ({"r": 4}, True),
    "LNTuningConfig": ({}, False),
    "PromptTuningConfig": ({"num_virtual_tokens": 5}, False),
    "PrefixTuningConfig": ({"num_virtual_tokens": 5}, False),
}
"""Of PEFT's other adapters: options, and whether they can be on the head."""


@pytest.mark.parametrize("name", ADAPTERS)
def test_other_adapters_are_right_on_the_trunk_and_refused_on_the_head(name):
    peft = pytest.importorskip("peft")
    options, on_layers = ADAPTERS[name]

    def adapted(model, *targets):
        torch.manual_seed(0)
        layers = {"target_modules": [*targets]} if on_layers else {}
        return peft.get_peft_model(model, getattr(peft, name)(task_type="CAUSAL_LM", **options, **layers))

    assert_as_stock(adapted(fuse(make()), "q_proj"), adapted(make(), "q_proj"))
    if on_layers:
        with pytest.raises(ValueError, match=r"the LM head has an adapter \(peft"):
            adapted(fuse(make()), "q_proj", "lm_head")(**BATCH)
        with pytest.raises(ValueError, match=r"the LM head has an adapter \(peft"):
            fuse(adapted(make(), "q_proj", "lm_head"))


def test_two_adapters_of_the_head_merged_and_taken_off():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj", "lm_head"], init_lora_weights=False, use_rslora=True, task_type="CAUSAL_LM"
    )
    stock = peft.get_peft_model(make(), config)
    stock.add_adapter("second", config)
    fused = fuse(copy.deepcopy(stock))
    for active in (["default", "second"], ["second"]):
        for model in (stock, fused):
            model.base_model.set_adapter(active)
        assert_as_stock(fused, stock)
    with stock.disable_adapter(), fused.disable_adapter():
        torch.testing.assert_close(fused(**BATCH).loss, stock(**BATCH).loss, rtol=1e-6, atol=0)
    stock, fused = stock.merge_and_unload(), fused.merge_and_unload()
    torch.testing.assert_close(fused(**BATCH).loss, stock(**BATCH).loss, rtol=1e-6, atol=0)
    assert fused(**BATCH).logits.shape == (4, 0, VOCABULARY)


@pytest.mark.parametrize(
    "options",
    [{"target_modules": ["lm_head"]}, {"trainable_token_indices": {"lm_head": [3, 50]}}],
    ids=["LoRA", "rows"],
)
@pytest.mark.parametrize("family", ["llama", "phi"])  # phi's head has a bias
def test_an_adapter_of_the_head_on_off_and_merged(options, family):
    """A merged adapter that is then disabled is taken out of the weight by the head's own forward pass."""
    peft = pytest.importorskip("peft")
    models = []
    for model in (make(family), fuse(make(family))):
        model.lm_head.bias = None if model.lm_head.bias is None else nn.Parameter(torch.arange(99) / 33)
        config = peft.LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False, **options)
        torch.manual_seed(0)
        models.append(peft.get_peft_model(model, config))
        for name, parameter in models[-1].named_parameters():
            if "trainable_tokens_delta" in name:
                nn.init.normal_(parameter)
    stock, fused = models
    assert_as_stock(fused, stock)
    for merge in (False, True):
        if merge:
            stock.merge_adapter(), fused.merge_adapter()
            torch.testing.assert_close(fused(**BATCH).loss, stock(**BATCH).loss, rtol=1e-6, atol=0)
        with stock.disable_adapter(), fused.disable_adapter():
            torch.testing.assert_close(fused(**BATCH).loss, stock(**BATCH).loss, rtol=1e-6, atol=0)
        assert_as_stock(fused, stock)


@pytest.mark.parametrize("items", [None, 3, 8.0, torch.tensor(7), torch.tensor([7.5])])
def test_counts_of_items(items):
    stock, fused = pair()
    assert_as_stock(fused, stock, num_items_in_batch=items)


def test_no_label_at_all():
    """As of the stock model: no number, and no gradient."""
    for items, expected in ((None, torch.nan), (torch.tensor(0), torch.nan), (3, 0.0)):
        for model in pair():
            output = model(**BATCH | {"labels": torch.full_like(BATCH["labels"], -100)}, num_items_in_batch=items)
            torch.testing.assert_close(output.loss.detach(), torch.tensor(expected), equal_nan=True)
            model.zero_grad()
            output.loss.backward()
            assert not any(p.grad.any() for p in model.parameters())


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (lambda labels: labels[:, :-1], ValueError, r"hidden states of shape \(4, 17, 32\) .* labels .* \(4, 16\)"),
        (lambda labels: nn.functional.pad(labels, (0, 2)), ValueError, r"the labels have shape \(4, 19\)"),
        (lambda labels: labels[0], ValueError, r"the labels have shape \(17,\)"),
        (lambda labels: labels.float(), TypeError, "target has dtype torch.float32: expected torch.int64 or"),
        (lambda labels: labels.clamp(min=-7), ValueError, "target: expected values in .*, got -7 in row 0"),
        (lambda labels: labels.masked_fill(labels > 90, VOCABULARY), ValueError, "target: expected .*, got 99 in row"),
    ],
)
def test_labels_that_are_none(labels, error, message):
    fused = fuse(make())
    with pytest.raises(error, match=message):
        fused(**BATCH | {"labels": labels(BATCH["labels"])})
    assert fused(**BATCH | {"labels": BATCH["labels"].int()}).loss == fused(**BATCH).loss


def test_what_else_a_call_returns():
    stock, fused = pair()
    assert_as_stock(fused, stock, position_ids=torch.arange(17).expand(4, -1) + 3)
    found, expected = (model(**BATCH, output_hidden_states=True) for model in (fused, stock))
    assert all(map(torch.equal, found.hidden_states, expected.hidden_states))
    found, expected = (model(**BATCH, return_dict=False) for model in (fused, stock))
    assert isinstance(found, tuple) and len(found) == len(expected)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=0)
    embedded = torch.randn(4, 17, WIDTH)
    assert_as_stock(fused, stock, input_ids=None, inputs_embeds=embedded)
    assert isinstance(fused, type(stock))


def test_generation_with_a_draft_and_with_beams():
    stock, fused = (model.eval() for model in pair())
    draft = make(num_hidden_layers=1).eval()
    prompt = {"input_ids": BATCH["input_ids"][:1, :6], "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    found = fused.generate(**prompt, assistant_model=fuse(copy.deepcopy(draft)))
    assert torch.equal(found, stock.generate(**prompt, assistant_model=draft))
    assert torch.equal(fused.generate(**prompt, num_beams=3), stock.generate(**prompt, num_beams=3))


def test_an_average_of_weights():
    from torch.optim.swa_utils import AveragedModel

    fused = fuse(make())
    average = AveragedModel(fused)
    average.update_parameters(fused)
    output = average(**BATCH)
    assert torch.equal(output.loss, fused(**BATCH).loss) and output.logits.shape == (4, 0, VOCABULARY)


def test_export():
    stock, fused = (model.eval() for model in pair(num_hidden_layers=1))
    given = {name: BATCH[name] for name in ("input_ids", "labels")} | {"use_cache": False}
    program = torch.export.export(fused, (), given)
    torch.testing.assert_close(program.module()(**given).loss, stock(**given).loss, rtol=1e-6, atol=0)


def test_what_moves_by_hooks_is_refused_before_and_right_after():
    """accelerate's offloading, as device_map asks for it, sets a forward pass on the instance."""
    accelerate = pytest.importorskip("accelerate")
    stock, fused = pair()
    moved = accelerate.cpu_offload(fused, execution_device=torch.device("cpu"))
    torch.testing.assert_close(moved(**BATCH).loss, stock(**BATCH).loss, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="has a forward pass of its own"):
        fuse(accelerate.cpu_offload(stock, execution_device=torch.device("cpu")))


def test_a_quantized_model_is_refused():
    with pytest.warns(Warning):  # torch.ao is deprecated
        quantized = torch.ao.quantization.quantize_dynamic(make(), {nn.Linear})
    with pytest.raises(ValueError, match=r"the LM head is a torch\.ao.*quantized.*Linear: expected an nn.Linear, with"):
        fuse(quantized)
