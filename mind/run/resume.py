"""Checks that a resumed run continues with the configuration and the inputs with which it began."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import mind_kernels
from mind.asking import SKIP
from mind.config import EMBEDDED_STUDENT, WORD_PROBLEMS, MindConfig, flat
from mind.data.questions import question_row
from mind.errors import MindError, require
from mind.evaluation.labels import evaluation_labels
from mind.files import require_file
from mind.hub import find_model
from mind.methods import load_run_config, method_class
from mind.methods.method import Method
from mind.provenance import NUMERIC_PACKAGES, text_digest, versions
from mind.records import TokenizedQuestion
from mind.report.reading import value_at
from mind.run.data import RunData
from mind.run.schedule import rate_factors
from mind.run_folder import RunFolder
from mind.student.fingerprint import fingerprint, settings
from mind.student.templates import PLAIN

KEYWORDS = (WORD_PROBLEMS, PLAIN, SKIP, "student")
"""Values of options that otherwise name files or folders."""
OF_STUDENT = ("settings", "weights")
"""The entries of `inputs_of` that describe the student at the start of a run."""


def saved_config(config: MindConfig, folder: RunFolder) -> MindConfig:
    """The configuration of the run in `folder`, with the present places of the folder and of its inputs.

    `config` may differ from the saved one in `output`, since a folder can be moved; in a larger `train.max_steps` or
    `train.epochs`; and, unless the run is finished and stays as it is, in the paths of inputs that `check_inputs`
    compares by content.
    Raises MindError, with the options, for other differences, and if config.json has changed since the run began.
    """
    saved = dataclasses.replace(load_run_config(folder.config), output=config.output)
    asked, kept = (flat(dataclasses.asdict(some)) for some in (config, saved))
    # Nothing is read, and so nothing compared, for a finished run that takes no more steps.
    compared = () if folder.finished and not _is_longer(config, saved) else _compared(folder)
    changed = [
        name
        for name in asked
        if asked[name] != kept.get(name) and not (name in compared and _are_places(asked[name], kept.get(name)))
    ]
    if config.method != saved.method:
        changed = ["method"]
    if changed and not (set(changed) <= {"train.max_steps", "train.epochs"} and _is_longer(config, saved)):
        raise MindError(
            f"--resume keeps the configuration of {config.output}; these options differ from it: "
            + ", ".join(f"{name} ({kept.get(name)} there)" for name in changed)
        )
    began = folder.read_inputs().get("options")
    # An absent field means its default, whether an older version lacked the field or somebody removed it.
    readings = [_options(saved, folder, names)["sha256"] for names in (None, flat(folder.read_config()))]
    require(
        began is None or any(reading in (began["sha256"], began.get("former")) for reading in readings),
        f"{folder.config} has changed since {folder.path} began, and --resume goes on with the same; restore it, or "
        "name another --output",
    )
    length = {name: getattr(saved.train, name) for name in ("max_steps", "epochs")}
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **length))  # with the present paths


def _compared(folder: RunFolder) -> set[str]:
    """The options that name files or folders whose content is compared when the run goes on."""
    known = folder.read_inputs().keys()
    names = {name for name in known if name != "options"}
    if "tokens" in known:  # covers the tokenizer and its template; weights and settings have entries of their own
        names |= {"student.model", "student.chat_template"}
    if any(name.startswith("data.evaluation ") for name in known):  # an entry per label
        names.add("data.evaluation")
    return names | {"evaluation.before"}  # an earlier evaluation has digests of its own


def check_there(config: MindConfig, folder: RunFolder, students: Iterable[str], *, files: bool) -> None:
    """Raises a MindError that names, each with its option, all inputs of the run that are not at their place any more.

    These are the `students` with which its remaining stages begin, its chat template and, with `files`, those of its
    questions.
    """
    data, template = config.data, config.student.chat_template
    named = [("data.train", data.train), ("data.heldout", data.heldout)] if files else []
    named += [("data.evaluation", file) for file in data.evaluation if files]
    gone: dict[str, list[str]] = {}
    for option, file in [*named, ("student.chat_template", template)]:
        if file is not None and file not in KEYWORDS:
            try:
                require_file(file)
            except MindError as error:
                gone.setdefault(option, []).append(f"{option} {error}")
    for name in dict.fromkeys(students):
        try:
            if name != EMBEDDED_STUDENT:
                find_model("student.model", name)
        except MindError as error:
            needed = "no checkpoint replaces it: it is compared, and what a method does before the first step needs it"
            gone.setdefault("student.model", []).append(f"{error} ({needed})")
    require(
        not gone,
        f"{folder.path}: --resume goes on with the files and the student that the run began with, and some are not at "
        f"their place: {'; '.join(chain(*gone.values()))}; name their present place by --{' and --'.join(gone)}",
    )


def _are_places(one: Any, other: Any) -> bool:
    """Whether both values name files or folders, absolute or not: texts that are no keywords, or lists of files with
    the same labels, by which results are named."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return list(evaluation_labels(one)) == list(evaluation_labels(other))
    return all(isinstance(value, str) and value not in KEYWORDS for value in (one, other))


def _is_longer(config: MindConfig, saved: MindConfig) -> bool:
    if config.train.max_steps > 0:
        return saved.train.max_steps < config.train.max_steps
    return saved.train.max_steps < 0 and saved.train.epochs < config.train.epochs


def _options(config: MindConfig, folder: RunFolder, known: Collection[str] | None = None) -> dict[str, str]:
    """Digest of the options, without the paths of inputs that are compared by content. `known` are the options in a
    config.json; None: all options."""
    places = ["output", "student.model", "data.train", "data.heldout", "data.evaluation", "metanet.encoder"]
    places.append("evaluation.before")
    places += [f"options.{name}" for name in method_class(config.method).sources]
    options = flat(dataclasses.asdict(config))
    names = (name for name in sorted(options) if name not in places and (known is None or name in known))
    return input_entry(folder.config.name, [[name, options[name]] for name in names])


def input_places(config: MindConfig) -> list[str | None]:
    """The files and folders that a run may read; some entries are names that are no paths."""
    student, data, method = config.student, config.data, method_class(config.method)
    own = [getattr(method.options_in(config), name) for name in method.sources]
    common = [student.model, student.chat_template, data.train, data.heldout, *data.evaluation]
    former = None if config.evaluation.before == SKIP else config.evaluation.before
    return [*common, config.metanet.encoder, former, *own]


def check_extension(saved: MindConfig, method: Method) -> None:
    """Raises MindError unless the first steps of the longer run are exactly the steps of the `saved` one."""
    context, config = method.context, method.context.config
    before = method.plan(saved, context.tokenized)
    steps = len(before)
    name = "max_steps" if config.train.max_steps > 0 else "epochs"
    problem = f"train.{name} is {getattr(config.train, name)} and {getattr(saved.train, name)} in {config.output}: "
    remedy = f"; train its student further in a new run (--student.model {RunFolder(config.output).student})"
    require(
        not method.depends_on_length,
        f"{problem}the steps of method {config.method} that were taken depend on it{remedy}",
    )
    require(
        steps < len(context.steps) and list(context.steps[:steps]) == before,
        f"{problem}the {len(context.steps)} steps of the one do not begin with the {steps} of the other{remedy}",
    )
    rates = [rate_factors(some.train, count) for some, count in ((saved, steps), (config, len(context.steps)))]
    require(
        all(rates[0](step) == rates[1](step) for step in range(steps)),
        f"{problem}with train.lr_scheduler {config.train.lr_scheduler} and train.warmup_ratio "
        f"{config.train.warmup_ratio} the learning rates of the steps that were taken depend on it{remedy}",
    )
    require(
        steps % config.train.log_steps == 0,
        f"{problem}train.log_steps {config.train.log_steps} does not divide the {steps} steps that were taken, so that "
        f"the lines of metrics.jsonl would be others{remedy}",
    )


def inputs_of(data: RunData, heldout: Sequence[TokenizedQuestion], method: Method, student: str) -> dict[str, Any]:
    """What a run reads, by the option that names it: {"data.train": {"source": "mine.jsonl", "sha256": "..."}}.

    The digests are of what is used: questions as they were read, token ids, the settings and weights of the `student`
    (a folder or name, as it was loaded), and the method's own inputs.
    """
    context = method.context
    config = context.config
    files = evaluation_labels(config.data.evaluation)
    weights = dict(context.model.named_parameters())
    if config.student.lora:  # adapters start at random values, and a checkpoint holds them
        weights = {name: weight for name, weight in weights.items() if not weight.requires_grad}
    return {
        "options": _options(config, RunFolder(config.output)),
        "data.train": input_entry(config.data.train, map(question_row, data.train)),
        "data.heldout": input_entry(config.data.heldout or config.data.train, map(question_row, data.heldout)),
        **{
            f"data.evaluation {label}": input_entry(files.get(label, config.data.train), map(question_row, questions))
            for label, questions in data.evaluation.items()
        },
        "tokens": input_entry(student, map(_token_row, [*context.tokenized, *heldout])),
        "settings": input_entry(student, settings(context.model)),
        "weights": {"source": student, "sha256": fingerprint(weights)},
        **method.inputs(),
    }


def check_inputs(inputs: Mapping[str, Any], folder: RunFolder, *, new: Sequence[str] = ()) -> None:
    """Raises a MindError that names the first of the `inputs` that differs from what the run in `folder` began with.

    Inputs named in `new` are recorded if they are not known yet. A run of an older version has no record: then it
    warns, and records the present inputs. It also warns of other versions of packages than those of the latest start.
    """
    known, others = folder.read_inputs(), _other_versions(folder)
    if not known:
        warnings.warn(
            f"{folder.path}: an older version began this run and kept no digests of its data: nobody can check that "
            "they are the same",
            RuntimeWarning,
            stacklevel=3,
        )
        folder.write_inputs(inputs)
        return
    if missing := {name: inputs[name] for name in new if name in inputs and name not in known}:
        known |= missing
        folder.write_inputs(known)
    for name, entry in inputs.items():
        if name == "options":  # saved_config has compared these
            continue
        require(
            name in known and known[name]["sha256"] == entry["sha256"],
            f"{entry['source']} ({name}) has changed since {folder.path} began, and --resume goes on with the same; "
            f"restore it, or name another --output{f'; {others}' if others else ''}",
        )
    if others:
        warnings.warn(
            f"{folder.path}: {others}: its numbers may be others than without a stop", RuntimeWarning, stacklevel=3
        )


def numeric_versions() -> dict[str, str]:
    """Versions of the packages that a run's numbers may depend on."""
    return {"mind-kernels": mind_kernels.__version__} | versions(NUMERIC_PACKAGES)


def _other_versions(folder: RunFolder) -> str:
    """Which of these are others now than at the latest start of the run, in words; empty if none is, or if it has not
    begun."""
    latest = (folder.read_starts() or [{}])[-1]
    kept, here = value_at(latest, "versions") or {}, numeric_versions()
    changed = [name for name in kept if name in here and kept[name] != here[name]]
    told = ", ".join(f"{name} was {kept[name]} and is {here[name]} now" for name in changed)
    return f"at its latest start {told}" if told else ""


def input_entry(source: str, rows: Iterable[Any]) -> dict[str, str]:
    """The entry of inputs.json for the JSON `rows` read from `source`: that name, and a digest of the rows."""
    return {"source": source, "sha256": text_digest("".join(json.dumps(row) + "\n" for row in rows))}


def _token_row(question: TokenizedQuestion) -> list[Any]:
    return [question.prompt, sorted(question.rationales.items()), question.suffix]
