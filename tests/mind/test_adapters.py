"""PEFT's adapters: loss, gradients and the saved student are those of the model's own logits, or they are refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from families import build
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from tiny import build_model, build_tokenizer
from transformers import AutoModelForCausalLM

from mind.batches.packing import plain_pack
from mind.batches.trunk import pack_hidden
from mind.config import StudentConfig
from mind.errors import MindError
from mind.student.adapters import check_adapters, check_gradients, merged
from mind.student.model import head_of, load_student
from mind_kernels import linear_cross_entropy

IDS = torch.randint(3, 250, (24,), generator=torch.Generator().manual_seed(0))


def adapted(tied, config=None, **lora):
    """A model with adapters that have learned something: none of their parameters is zero."""
    model = build_model(tie_word_embeddings=tied).double()
    model = get_peft_model(model, config or LoraConfig(r=4, task_type="CAUSAL_LM", **lora)).double().eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def own_loss(model):
    return F.cross_entropy(model(input_ids=IDS[None]).logits[0, :-1], IDS[1:])


CONFIGURATIONS = {
    "layers": {"target_modules": ["q_proj", "down_proj"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "both": {"target_modules": ["embed_tokens", "lm_head"]},
    "both, tied": {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    "rank-stabilized head": {"target_modules": ["lm_head"], "use_rslora": True},
    "DoRA in layers": {"target_modules": ["q_proj"], "use_dora": True},
    "whole head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "whole embeddings": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "whole embeddings, tied": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 6, int(IDS[3])]},
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_adapters_are_trained_and_saved_as_the_model_computes_them(name, tied, tmp_path):
    model = adapted(tied, **CONFIGURATIONS[name])
    check_adapters(model)
    hidden = pack_hidden(model, plain_pack([IDS.tolist()]))
    loss = linear_cross_entropy(hidden[:-1], head_of(model), IDS[1:])
    loss.backward()
    check_gradients(model.named_parameters())
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    expected = own_loss(model)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for parameter, gradient in found.items():
        torch.testing.assert_close(gradient, model.get_parameter(parameter).grad, msg=parameter)
    merged(model).save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(own_loss(reloaded), expected)


def test_a_bias_of_the_adapter_is_part_of_the_head():
    model = build_model(tie_word_embeddings=False).double()
    model.lm_head = torch.nn.Linear(32, 258).double()
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["lm_head"], lora_bias=True)).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    hidden, head = torch.randn(3, 32, dtype=torch.float64), head_of(model)
    torch.testing.assert_close(
        hidden @ head.weight.T + head.bias, model.get_base_model().get_output_embeddings()(hidden)
    )


def test_inactive_adapters_are_not_part_of_the_head():
    model = adapted(False, target_modules=["lm_head"])
    plain = model.get_base_model().lm_head.base_layer.weight
    with model.disable_adapter():
        assert head_of(model).weight is plain
    assert not torch.equal(head_of(model).weight, plain)
    model.merge_adapter()
    assert head_of(model).weight is plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"target_modules": ["lm_head"], "use_dora": True},
            "the LM head has an adapter .DoraLinearVariant. that cannot",
        ),
        ({"target_modules": ["lm_head"], "lora_dropout": 0.1}, "the LM head has an adapter with dropout"),
        ({"target_modules": ["q_proj"], "lora_bias": True}, "the adapter of a Linear has a bias"),
        (
            {"config": IA3Config(target_modules=["k_proj", "lm_head"], feedforward_modules=[])},
            "the LM head has an adapter .peft.tuners.ia3.layer. that cannot be part of its weight: plain LoRA can",
        ),
        (
            {"config": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)},
            "adapters of the kind PeftModelForCausalLM cannot be merged",
        ),
    ],
)
def test_adapters_that_would_go_wrong_are_refused(options, message):
    with pytest.raises(MindError, match=message):
        check_adapters(adapted(False, **options))


def test_what_else_is_tied_is_saved_too(tmp_path):
    """Zamba's layers share an attention by the setting that ties embeddings and head."""
    model = get_peft_model(build("zamba"), LoraConfig(r=2, target_modules=["embed_tokens"], task_type="CAUSAL_LM"))
    torch.nn.init.normal_(model.get_base_model().get_input_embeddings().lora_embedding_A["default"])
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        expected = model.eval()(input_ids=ids, use_cache=False).logits
        merged(model).save_pretrained(tmp_path)
        reloaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(reloaded(input_ids=ids, use_cache=False).logits, expected, rtol=1e-3, atol=1e-4)


def test_a_layer_that_does_more_than_a_product_is_not_merged():
    """Inkling norms the embeddings that it looks up; Gemma scales them, which PEFT knows."""

    def with_lora(family):
        return get_peft_model(build(family), LoraConfig(r=2, target_modules=["embed_tokens"], task_type="CAUSAL_LM"))

    with pytest.raises(MindError, match="the adapter of InklingNormedEmbedding cannot be merged"):
        check_adapters(with_lora("inkling_text"))
    check_adapters(with_lora("gemma3_text"))


def test_a_student_from_a_folder_of_adapters_is_evaluated_and_not_trained(model_folder, tmp_path):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), LoraConfig(target_modules=["lm_head"]))
    torch.nn.init.normal_(model.get_base_model().lm_head.lora_B["default"].weight)
    model.save_pretrained(tmp_path / "adapters")
    build_tokenizer().save_pretrained(tmp_path / "adapters")
    student, _ = load_student(StudentConfig(model=str(tmp_path / "adapters")))
    with torch.no_grad():
        hidden, head = pack_hidden(student, plain_pack([IDS.tolist()])), head_of(student)
        torch.testing.assert_close(hidden @ head.weight.T, model(input_ids=IDS[None]).logits[0])
    with pytest.raises(MindError, match="folder of adapters: merge them"):
        check_adapters(student)
    with pytest.raises(MindError, match="folder of adapters: merge them"):
        load_student(StudentConfig(model=str(tmp_path / "adapters"), lora=True))


def test_parameters_without_a_gradient_are_named():
    model = build_model()
    model.extra = torch.nn.Parameter(torch.zeros(3))
    own_loss(model).backward()
    with pytest.raises(MindError, match="parameters that take no part in the loss are to be trained: extra; leave"):
        check_gradients(model.named_parameters())
    model.extra.requires_grad_(False)
    check_gradients(model.named_parameters())
