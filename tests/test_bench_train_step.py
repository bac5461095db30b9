"""The benchmark of a whole training step, on a tiny random Llama. No time is asserted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench import train_step
from bench.measure import read_results, write_results
from bench.training_step import inputs as steps
from bench.training_step import losses, models, variants
from bench.training_step.gate import Gate
from bench.training_step.picture import draw
from bench.training_step.variants import REFERENCE, VARIANTS, Variant, forward_backward, padded, peak_call, take_step
from mind.batches.packing import sequence_lengths
from mind.batches.steps import question_tokens
from mind.records import TokenizedQuestion

LENGTH = 64  # tokens of a row: the longest question takes several
QUESTIONS, PERSPECTIVES, PROMPT = 3, 4, 9
OURS = [name for name, variant in VARIANTS.items() if not variant.peer]


def build_model(dtype=torch.float64, device="cpu"):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).to(device, dtype).train()


def build_questions():
    """Questions of different lengths; rationale k of question q has 5 + 2 k + 3 q tokens, and q + 2 its suffix."""
    generator = torch.Generator().manual_seed(1)

    def ids(count):
        return tuple(torch.randint(258, (count,), generator=generator).tolist())

    return [
        TokenizedQuestion(f"q{q}", ids(PROMPT), {k: ids(5 + 2 * k + 3 * q) for k in range(PERSPECTIVES)}, ids(q + 2))
        for q in range(QUESTIONS)
    ]


@pytest.fixture(scope="module")
def inputs():
    return steps.select(build_questions(), "random")


@pytest.fixture(scope="module")
def model():
    return build_model()


@pytest.fixture(scope="module")
def gate(model, inputs):
    return Gate(model, inputs, LENGTH)


@pytest.fixture(autouse=True)
def tiny_student(monkeypatch):
    monkeypatch.setitem(models.MODELS, "tiny", build_model)


def judged(gate, variant, model, inputs):
    model.zero_grad(set_to_none=True)
    outcome = forward_backward(variant, model, inputs, LENGTH)
    return outcome, gate.errors(outcome, model)


def test_half_of_the_rationales_are_selected_always_the_same_ones(inputs):
    assert inputs.selected.sum(1).tolist() == [PERSPECTIVES // 2] * QUESTIONS
    torch.testing.assert_close(inputs.alpha.sum(1), torch.ones(QUESTIONS, dtype=torch.float64))
    assert torch.equal(inputs.alpha > 0, inputs.selected)
    again = steps.select(build_questions(), "random")
    assert torch.equal(again.alpha, inputs.alpha)
    with pytest.raises(ValueError, match=r"have \[3, 4\] rationales: expected the same number for all"):
        questions = build_questions()
        del questions[0].rationales[3]
        steps.select(questions, "")


def test_the_questions_are_those_at_the_middles_of_equal_shares():
    lengths = [8, 1, 5, 3, 7, 2, 6, 4]
    questions = [TokenizedQuestion(f"q{length}", (0,) * length, {}, ()) for length in lengths]
    assert [question.id for question in steps.quantiles(questions, 4)] == ["q2", "q4", "q6", "q8"]
    assert [question.id for question in steps.quantiles(questions, 1)] == ["q5"]


def test_a_step_holds_no_sequence_that_is_too_long(monkeypatch, tmp_path):
    monkeypatch.setattr("bench.real_rows.complete_questions", lambda *_: [])
    monkeypatch.setattr("mind.student.model.load_student", lambda _: (None, None))
    monkeypatch.setattr("mind.student.tokenization.tokenize", lambda *_: build_questions())
    sequences = [PROMPT + 5 + 2 * (PERSPECTIVES - 1) + 3 * q + q + 2 for q in range(QUESTIONS)]
    assert [max(sequence_lengths(question)) for question in build_questions()] == sequences
    step = steps.tokenized_step(2, tmp_path / "sums.jsonl", sequences[1])
    assert [question.id for question in step.questions] == ["q0", "q1"] and step.label == "sums.jsonl"
    with pytest.raises(ValueError, match="2 questions have a rationale in every perspective .* expected at least 3"):
        steps.tokenized_step(3, None, sequences[1])


def test_the_tokens_of_a_step_survive_a_file(inputs, tmp_path):
    file = tmp_path / "step.json"
    steps.save_tokens(inputs, file)
    loaded = steps.load_tokens(file)
    assert loaded.questions == inputs.questions and loaded.label == "random"
    assert torch.equal(loaded.alpha, inputs.alpha)


@pytest.mark.parametrize("name", OURS)
def test_all_variants_compute_the_same(gate, model, inputs, name):
    _, errors = judged(gate, replace(VARIANTS[name], sparse=False), model, inputs)
    assert all(error < 1e-6 for error in errors.values()), errors  # the norms of a Llama are float32 in any dtype
    gate.check(VARIANTS[name], errors)


def test_the_truth_is_the_definition(gate, model, inputs):
    """L_total as the paper writes it, on one sequence at a time."""
    total, l_real = 0, torch.zeros(inputs.alpha.shape, dtype=torch.float64)
    for q, question in enumerate(inputs.questions):
        answers = []
        for k, ids in question.rationales.items():
            sequence = torch.tensor([*question.prompt, *ids, *question.suffix])
            log_p = model(sequence[None]).logits[0, PROMPT - 1 : -1].log_softmax(-1)
            l_real[q, k] = -log_p.gather(1, sequence[PROMPT:, None]).mean()
            answers.append(log_p[-len(question.suffix) :].exp())
        total = total + inputs.alpha[q] @ l_real[q]
        for i in range(PERSPECTIVES):
            for j in range(i):
                mixture = (answers[i] + answers[j]) / 2
                jsd = sum((p * (p / mixture).log()).sum(1).mean() for p in (answers[i], answers[j])) / 2
                total = total + losses.CONSISTENCY * inputs.alpha[q, i] * inputs.alpha[q, j] * jsd
    torch.testing.assert_close(gate.outcome.l_real, l_real.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(gate.outcome.loss, total.detach() / QUESTIONS, rtol=1e-6, atol=0)


def test_tokens_are_counted(gate, model, inputs):
    longest = PROMPT + 5 + 2 * 3 + 3 * 2 + 4
    sequences = sum(
        PROMPT + len(ids) + len(question.suffix)
        for question in inputs.questions
        for ids in question.rationales.values()
    )
    assert inputs.supervision_tokens == sequences - QUESTIONS * PERSPECTIVES * PROMPT
    assert padded(inputs).ids.shape == (QUESTIONS * PERSPECTIVES, longest)
    counts = {name: judged(gate, VARIANTS[name], model, inputs)[0][2:] for name in OURS}
    assert counts["naive"] == (QUESTIONS * PERSPECTIVES * longest,) * 2
    assert counts["packed"] == (sequences,) * 2
    shared, _ = counts["+ shared prompts"]
    assert sum(map(question_tokens, inputs.questions)) <= shared < sequences  # a prompt again in each further row
    forward, backward = counts["+ selected only"]
    assert backward < shared <= forward
    assert counts["+ fused losses"] == counts["+ sparse gradient"] == (forward, backward)


@pytest.mark.parametrize(
    "broken, error",
    [
        ({"train": lambda hidden, head, batch, alpha: losses.eager(hidden, head, batch, 1.01 * alpha)}, "loss_error"),
        ({"train": lambda hidden, *rest: losses.eager(hidden.detach(), *rest)}, "grad"),
        ({"observe": lambda *arguments: 1.01 * losses.observe_eagerly(*arguments)}, "l_real_error"),
    ],
)
def test_a_wrong_variant_is_refused_and_nothing_is_timed(monkeypatch, tmp_path, inputs, broken, error):
    wrong = replace(VARIANTS["+ selected only"], losses=replace(losses.EAGER, **broken))
    monkeypatch.setitem(train_step.VARIANTS, "+ fused losses", wrong)
    monkeypatch.setattr(train_step, "add_times", lambda *_: pytest.fail("timed"))
    options, _ = train_step.parse(["--output", str(tmp_path), "--model", "tiny", "--pack-length", str(LENGTH)])
    with pytest.raises(AssertionError, match=error):
        list(train_step.measure(options, inputs))


def test_a_peer_that_is_wrong_or_fails_is_noted(monkeypatch, tmp_path, model, inputs):
    def failing(*_):
        raise RuntimeError("no such kernel\nand a long tail")

    def doubled(*arguments):
        return losses.eager(*arguments[:3], 2 * arguments[3])

    given = ["--pack-length", str(LENGTH), "--providers", "packed + Liger", "packed", "--output", str(tmp_path)]
    options, _ = train_step.parse(given)
    monkeypatch.setattr(Variant, "reason_absent", lambda *_: "")
    notes = []
    for train in (failing, doubled):
        peer = replace(VARIANTS["packed + Liger"], losses=replace(losses.LIGER, train=train))
        monkeypatch.setitem(train_step.VARIANTS, "packed + Liger", peer)
        columns, _ = train_step.judge(options, models.build_student("tiny", torch.float64, "cpu"), inputs)
        assert "note" not in columns["packed"]
        notes.append(columns["packed + Liger"]["note"])
    assert notes[0] == "not timed: RuntimeError: no such kernel"
    assert notes[1].startswith("not timed: AssertionError: loss_error")


def test_a_missing_consistency_is_wrong(gate, model, inputs, monkeypatch):
    monkeypatch.setattr(losses, "CONSISTENCY", 0.0)
    _, errors = judged(gate, VARIANTS["packed"], model, inputs)
    with pytest.raises(AssertionError, match="loss_error"):
        gate.check(VARIANTS["packed"], errors)


def test_the_sparse_gradient_has_a_limit_of_its_own(gate, inputs):
    errors = {"loss_error": 0.0, "l_real_error": 0.0, "grad_error": 0.5 * gate.limits.sparse_gradient}
    gate.check(VARIANTS["+ sparse gradient"], errors)
    with pytest.raises(AssertionError, match="grad_error"):
        gate.check(VARIANTS["+ fused losses"], errors)
    with pytest.raises(AssertionError, match="nan exceeds"):
        gate.check(VARIANTS["+ sparse gradient"], errors | {"grad_error": float("nan")})


def test_in_16_bits_the_truth_is_float32(inputs):
    model = build_model(torch.bfloat16)
    gate = Gate(model, inputs, LENGTH)
    assert gate.outcome.loss.dtype == torch.float32
    _, errors = judged(gate, VARIANTS["+ fused losses"], model, inputs)
    assert errors["grad_error"] > 1e-4
    gate.check(VARIANTS["+ fused losses"], errors)


def test_a_step_moves_the_weights_a_little(inputs):
    student = models.build_student("tiny", torch.float64, "cpu")
    before = [parameter.detach().clone() for parameter in student.model.parameters()]
    first, second = (take_step(VARIANTS["+ fused losses"], student, inputs, LENGTH) for _ in range(2))
    assert all(
        0 < float((p - old).detach().abs().max()) < 4 * models.LEARNING_RATE
        for p, old in zip(student.model.parameters(), before, strict=True)
    )
    assert float(first.loss) == pytest.approx(float(second.loss), rel=1e-3) and second.loss < first.loss


def test_what_does_not_fit_or_is_not_here_is_noted(monkeypatch, model, inputs):
    assert VARIANTS["packed + Liger"].reason_absent(model, inputs, LENGTH) == "needs a CUDA device"
    sizes = [VARIANTS[name].needed_bytes(model, inputs, LENGTH) for name in OURS]
    assert sizes[:-1] == sorted(sizes[:-1], reverse=True) and sizes[-1] == sizes[-2]
    monkeypatch.setattr(variants, "free_bytes", lambda _: 0)
    assert VARIANTS[REFERENCE].reason_absent(model, inputs, LENGTH) == "it takes about 0 GiB of 0 free"


def run(capsys, *arguments):
    train_step.main(list(map(str, arguments)))
    return capsys.readouterr().out


def test_from_tokens_to_table_and_picture(monkeypatch, tmp_path, capsys, inputs):
    steps.save_tokens(inputs, tmp_path / "step.json")
    monkeypatch.setattr(train_step, "peak_extra_mib", lambda *_, kwargs, **__: {"naive": 8.0}.get(kwargs["variant"], 2))
    options = [
        "--model",
        "tiny",
        "--tokens",
        tmp_path / "step.json",
        "--pack-length",
        LENGTH,
        "--repeats",
        2,
        "--output",
        tmp_path,
    ]
    table = run(capsys, *options, "--providers", *VARIANTS)
    rows = {row["variant"]: row for row in read_results(tmp_path / "train_step.jsonl")}
    assert list(rows) == list(VARIANTS)
    assert rows["packed + Liger"]["note"] == "not run: needs a CUDA device" and "needs a CUDA device" in table
    assert rows["naive"]["speedup"] == 1 and rows["+ fused losses"]["memory_of_naive"] == 0.25
    assert all(
        row["supervision_tokens"] == inputs.supervision_tokens and row["selected_share"] == 0.5 for row in rows.values()
    )
    of_cuda = {"predicted_ms", "times_predicted"}
    assert set(train_step.COLUMNS) - of_cuda <= set().union(*rows.values())
    assert rows["naive"]["padded_tokens"] == rows["naive"]["forward_tokens"]
    picture = (tmp_path / "train_step.svg").read_text()
    assert "shared" in picture and "4x less" in picture and "Liger" not in picture
    assert run(capsys, "--draw", "--output", tmp_path) == table
    assert (tmp_path / "train_step.svg").read_text() == picture  # the same file from the same numbers


def test_the_options_of_the_script_that_runs_all_benchmarks_on_a_gpu(tmp_path):
    given = ["--device", "cuda", "--output", str(tmp_path), "--overwrite", "--repeats", "3", "--minutes", "0.8"]
    options, file = train_step.parse(given)
    assert (options.model, options.pack_length, options.dtype) == (models.RANDOM, 4096, torch.bfloat16)
    assert options.providers == list(VARIANTS) and options.questions == 4 and file == tmp_path / "train_step_cuda.jsonl"
    (tmp_path / "x").touch()
    elsewhere = ["--output", str(tmp_path / "new")]
    assert train_step.parse(elsewhere)[0].questions == 1
    assert train_step.parse([*elsewhere, "--data", str(tmp_path / "x")])[0].questions == 4


def test_save_tokens_measures_nothing(monkeypatch, tmp_path, capsys, inputs):
    steps.save_tokens(inputs, tmp_path / "step.json")
    monkeypatch.setattr(train_step, "measure", lambda *_: pytest.fail("measured"))
    run(capsys, "--tokens", tmp_path / "step.json", "--save-tokens", tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (tmp_path / "step.json").read_text()


def test_a_peer_in_the_picture_is_no_step_of_the_waterfall(tmp_path):
    times = {"naive": 8, "packed": 4, "packed + Liger": 5, "+ shared prompts": 6}
    facts = {"model": "tiny", "dtype": "float32", "questions": 1, "K": 4, "inputs": "none", "supervision_tokens": 1000}
    path = tmp_path / "train_step_cuda.jsonl"
    rows = [
        {"variant": name, **facts, "median_ms": 1e3 * seconds, "peak_extra_mib": 1024 * seconds}
        for name, seconds in times.items()
    ]
    write_results(rows, path)
    text = draw(path).read_text()
    assert "5 s" in text and "1.6x faster" in text and "2x less" in text
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no measurement"):
        draw(tmp_path / "empty.jsonl")


def test_a_fresh_process_gets_a_step_that_holds_no_gradients(inputs):
    call = peak_call("+ fused losses", "tiny", torch.float32, inputs, LENGTH)
    assert call().loss > 0
