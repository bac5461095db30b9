"""`mind evaluate`."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from mind import processes
from mind.asking import AskingConfig
from mind.cli.folders import check_json_name
from mind.cli.terminal import note_loading, print_table, say, say_next
from mind.config import EMBEDDED_STUDENT, StudentConfig
from mind.display import number_of, percent
from mind.errors import MindError, require
from mind.evaluation.config import InteractionConfig, SamplingConfig
from mind.evaluation.labels import student_labels
from mind.files import check_apart, check_new_folder, check_replaceable, new_file, parse_object
from mind.hub import find_model
from mind.provenance import versions
from mind.run_folder import RunFolder
from mind.typed_json import read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mind.evaluation.evaluate import Before
    from mind.records import Question


@dataclass(frozen=True)
class Evaluate:
    """Measure accuracy on JSONL files, greedily or by samples, and teacher-forced NLL on held-out rationales."""

    student: StudentConfig = dataclasses.field(default_factory=StudentConfig)
    students: tuple[str, ...] = ()
    """Several students instead of --student.model, one after the other: folders or names; LABEL=FOLDER sets the name in
    the results. All of them share the other --student.* options."""
    evaluation: AskingConfig = dataclasses.field(default_factory=AskingConfig)
    files: tuple[str, ...] = ()
    """JSONL files of {"id", "question", "answer", "choices"?}."""
    sampling: Annotated[SamplingConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=SamplingConfig)
    engine: Literal["transformers", "vllm"] = "transformers"
    """The engine that generates the answers: transformers, or vLLM's offline engine in this process. Both get the same
    prompts, ends of an answer and grading."""
    engine_options: str = "{}"
    """A JSON object of vLLM's engine arguments, such as {"max_model_len": 4096}."""
    heldout: str | None = None
    """A JSONL file with rationales, for the NLL."""
    perspectives: tuple[str, ...] | None = None
    """Perspectives of `heldout`. None: all in that file."""
    lorid: InteractionConfig = dataclasses.field(default_factory=InteractionConfig)
    knowledge_base: str | None = None
    """Records with "knowledge", such as RUN/knowledge.jsonl of method nesycd: the rules of the most similar question in
    it are put before each question of `files`."""
    before: str = ""
    """A text before each question of `files`: "predict: " for a student that method sbs trained."""
    pack_length: int = 1024
    """Tokens per row of the trunk for the NLL, at most."""
    output: str | None = None
    """Write the results to this JSON file, and the responses to a folder beside it whose name ends in .responses, with
    one folder per student if there are several. Neither may exist."""
    overwrite: bool = False
    """Replace an earlier output; it is removed after all checks and before the first answer. A folder of responses that
    holds other files, too, is refused."""

    def __post_init__(self) -> None:
        require(self.pack_length >= 1, f"pack_length is {self.pack_length}: expected at least 1")
        together = bool(self.lorid.knowledge)
        ways = {
            "--before": self.before,
            "--knowledge-base": self.knowledge_base,
            "--lorid.knowledge and --lorid.deep": together,
        }
        given = [name for name, value in ways.items() if value]
        require(len(given) < 2, f"{' beside '.join(given)}: a student is asked in one way at a time")
        require(
            together or self.lorid == InteractionConfig(),
            "--lorid options are of three students that answer together: --lorid.knowledge and --lorid.deep name two",
        )
        alone = {
            "--students": self.students,
            "--samples": self.sampling.samples is not None,
            "--engine vllm": self.engine == "vllm",
            "--evaluation.last-line": self.evaluation.last_line,
        }
        given = [name for name, value in alone.items() if value]
        require(not (together and given), f"--lorid.knowledge beside {''.join(given[:1])}: expected one of them")
        require(
            not self.students or self.student.model == StudentConfig.model,
            "--students beside --student.model: expected one of them",
        )
        parse_object("engine_options", self.engine_options.encode("utf-8", "surrogatepass"))
        vllm = self.engine == "vllm"
        require(vllm or self.engine_options == "{}", "engine_options are of --engine vllm")
        require(not (vllm and self.heldout), "--heldout beside --engine vllm: the NLL needs transformers")
        require(not (vllm and len(self.students) > 1), "--engine vllm holds one student: expected one of --students")


def evaluate_command(options: Evaluate) -> None:
    from mind.data.questions import load_questions
    from mind.evaluation.labels import asked_questions, evaluation_labels

    if not options.files and options.heldout is None:
        raise MindError("nothing to evaluate: give --files, --heldout or both")
    require(
        processes.count() == 1 or options.engine != "vllm",
        f"--engine vllm in a launch of {processes.count()} processes: vLLM spreads over GPUs by itself; start it in "
        "one process, with --engine-options '{\"data_parallel_size\": N}'",
    )
    students = student_labels(options.students) or {"": options.student.model}
    output, responses = processes.agreed(lambda: _outputs(options, students.values()))
    files = {
        label: asked_questions(label, load_questions(file), options.evaluation.questions)
        for label, file in evaluation_labels(options.files).items()
    }
    heldout = (
        None
        if options.heldout is None
        else load_questions(
            options.heldout, perspectives=options.perspectives, require_rationales=True, minimum_rationales=1
        )
    )
    before: Before = options.before if options.knowledge_base is None else _knowledge_base(options.knowledge_base)
    others = [name for name in (options.lorid.knowledge, options.lorid.deep) if name is not None]
    for name in (*students.values(), *others):
        check_student(dataclasses.replace(options.student, model=name))
    results: dict[str, Any] = {}
    for label, name in students.items():
        own = dataclasses.replace(options, students=(), student=dataclasses.replace(options.student, model=name))
        note_loading("PyTorch", "transformers", name)
        folder = responses if responses is None or not label else responses / label
        former = () if results else (output, responses)
        one = _evaluated(own, files, heldout, before, folder, filter(None, former))
        results[label] = one
        if output is not None:
            told, place = _told(options) | (one if not label else {"students": results}), output
            processes.by_main(lambda told=told, place=place: write_json(told, place))
        print_table(f"{label}: {name}" if label else name, _rows(one))
    if output is not None:
        say(f"{output}: the results" + (f"; {responses}: the responses" if files else ""))
    first = next(iter(students.values()))
    if not _is_trained(first):
        words = ["train", "--student.model", first, "--data.train", "FILE.jsonl"]
        words += ["--data.evaluation", *options.files] if files else []
        say_next(*words, "--output", "runs/NAME", purpose="to train it and compare")


def _is_trained(student: str) -> bool:
    """Whether it is the student of a run."""
    run = RunFolder(Path(student).parent)
    return run.student == Path(student) and run.config.is_file()


def kept_students(options: Evaluate) -> str:
    """Says what the file of the results holds, which is written after each student; empty if it does not exist."""
    if options.output is None or not Path(options.output).exists():
        return ""
    count = len(read_json(options.output).get("students", [""]))
    return f"{options.output} holds the results of {number_of(count, 'student')}, which --overwrite would replace"


def check_student(config: StudentConfig) -> None:
    """Reports a name that is neither a folder nor a model on the Hub at once, before PyTorch is loaded."""
    if config.model != EMBEDDED_STUDENT:
        find_model("student.model", config.model)


def _evaluated(
    options: Evaluate,
    files: Mapping[str, Sequence[Question]],
    heldout: Sequence[Question] | None,
    before: Before,
    responses: Path | None,
    former: Iterable[Path],
) -> dict[str, Any]:
    """The results of one student, or of three that answer together; earlier results in `former` are removed after the
    checks and before the answers."""
    from mind.evaluation.engines import TransformersEngine, VLLMEngine
    from mind.evaluation.evaluate import engine_accuracy, evaluation_prompts, prompts_of
    from mind.evaluation.former import evaluation_digests

    asked = options.evaluation
    if options.engine == "vllm":
        engine = VLLMEngine(options.student, parse_object("engine_options", options.engine_options.encode()))
        for questions in files.values():
            prompts_of(engine.chat, engine.context, questions, asked, before)
        processes.by_main(lambda: _remove(former))
        return {"heldout": None, "files": engine_accuracy(engine, files, asked, responses, before, options.sampling)}
    model, tokenizer = _loaded(options.student)
    # Report faults before anything else.
    prompts = {label: evaluation_prompts(model, tokenizer, some, asked, before) for label, some in files.items()}
    others = [name for name in (options.lorid.knowledge, options.lorid.deep) if name is not None]
    loaded = [_loaded(dataclasses.replace(options.student, model=name)) for name in others]
    nll, tokenized, names = None, [], ()
    if heldout is not None:
        nll, tokenized, names = _heldout_nll(options, model, tokenizer, heldout)
    known_again = options.output is not None and not loaded and options.sampling.samples is None
    digests = {}
    if known_again or processes.count() > 1:  # otherwise all weights would be read for nothing
        digests = evaluation_digests(model, files, prompts, asked, tokenized, names)
        processes.check_same("what is evaluated", digests)
    processes.by_main(lambda: _remove(former))
    if loaded:
        from mind.evaluation.interaction import Students, interaction_accuracy

        students = Students((model, tokenizer), *loaded)
        return {"heldout": nll, "files": interaction_accuracy(students, files, asked, options.lorid, responses)}
    engine = TransformersEngine(model, tokenizer, asked.batch_size)
    accuracies = engine_accuracy(engine, files, asked, responses, before, options.sampling)
    return {"heldout": nll, "files": accuracies} | ({"digests": digests} if known_again else {})


def _loaded(config: StudentConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A student, loaded on the device of this process."""
    from mind.student.model import load_student

    model, tokenizer = load_student(config)
    model.to(processes.device())  # pyright: ignore[reportArgumentType]
    return model, tokenizer


def _remove(paths: Iterable[Path]) -> None:
    """Removes those of the files and folders that exist."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _told(options: Evaluate) -> dict[str, Any]:
    """How the students were asked, and by what engine, for the file of results."""
    sampling = dataclasses.asdict(options.sampling) if options.sampling.samples is not None else None
    asked = {**dataclasses.asdict(options.evaluation), "before": options.before, "sampling": sampling}
    asked |= {"engine": options.engine, "dtype": options.student.dtype}
    packages = ("mind-kernels", "torch", "transformers", *(("vllm",) if options.engine == "vllm" else ()))
    return {"asked": asked, "versions": versions(packages)}


def _outputs(options: Evaluate, students: Iterable[str]) -> tuple[Path | None, Path | None]:
    """The file of the results and the folder of the responses, after a check that they can be written."""
    from mind.evaluation.outcomes import is_responses

    if options.output is None:
        return None, None
    check_json_name(options.output, ".json")
    output = new_file(options.output, overwrite=options.overwrite)
    responses = output.with_suffix(".responses")
    require(responses != output, f"{output}: the ending .responses is that of the folder of the responses")
    check_new_folder(responses)
    require(options.overwrite or not responses.exists(), f"{responses}: exists already; add --overwrite")
    inputs = (*options.files, options.heldout, *students, options.student.chat_template)
    inputs += (options.lorid.knowledge, options.lorid.deep, options.knowledge_base)
    for place in (output, responses):
        check_apart(place, filter(None, inputs))
    check_replaceable(responses, is_responses, "move it away, or name another --output")
    return output, responses


def _knowledge_base(file: str) -> Before:
    from mind.data.questions import load_questions
    from mind.evaluation.retrieval import KnowledgeBase

    return KnowledgeBase(file, load_questions(file)).before


def _heldout_nll(
    options: Evaluate, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]
) -> tuple[dict[str, Any], Sequence[Any], Sequence[str]]:
    """The NLL, the questions as tokens, and the names of the perspectives."""
    from mind.batches.prompt_sharing import choose_pack_options
    from mind.evaluation.evaluate import heldout_nll
    from mind.student.model import attention_of, causal_lm
    from mind.student.tokenization import embedding_rows, tokenize

    names = options.perspectives or tuple(dict.fromkeys(r.perspective for q in questions for r in q.rationales))
    questions = questions[: options.evaluation.heldout_questions]
    tokenized = tokenize(questions, tokenizer, names, options.student.max_length, embedding_rows(model))
    attention = attention_of(causal_lm(model))
    pack_options = choose_pack_options(model, attention, tokenized, options.pack_length, "auto")
    return heldout_nll(model, tokenized, names, pack_options), tokenized, names


def _rows(results: Mapping[str, Any]) -> list[dict[str, str]]:
    rows = [row for name, result in results["files"].items() for row in _accuracy_rows(name, result)]
    if results["heldout"] is not None:
        rows.insert(0, {"what": "held-out NLL (nats per token)", "value": f"{results['heldout']['nll']:.4f}"})
    return rows


def _accuracy_rows(name: str, result: Mapping[str, Any]) -> list[dict[str, str]]:
    from mind.report.tables import accuracy_interval

    def shown(part: Mapping[str, Any]) -> str:
        return f"{percent(part['accuracy'])}; 95 % interval {accuracy_interval(part)}"

    lost = f"{result['unparsed']} unparsed, {result['cut_off']} cut off"
    if "samples" not in result:
        value = f"{result['correct']} of {result['total']} ({shown(result)}), {lost}{_together(result)}"
        return [{"what": f"{name}: accuracy", "value": value}]
    samples, vote = result["samples"], result["majority"]
    values = {
        f"mean accuracy of {samples} samples": f"{shown(result)}; of {result['total'] * samples}: {lost}",
        "majority vote": f"{vote['correct']} of {result['total']} ({shown(vote)}), {vote['unparsed']} without a vote",
    }
    values |= {f"pass@{k}": percent(result["pass_at"][k - 1]) for k in (samples,) if k > 1}
    return [{"what": f"{name}: {what}", "value": value} for what, value in values.items()]


def _together(result: Mapping[str, Any]) -> str:
    """How the students of method lorid found their answers, in words; empty for a single student."""
    if "agreed" not in result:
        return ""
    return f", {result['agreed']} agreed on in {result['rounds']:.1f} rounds, {result['generated']:,} tokens sampled"
