"""The short help of each command, which fits a screen: the options that most people need, and examples.

It is written by hand, because the descriptions of the options are made for a page, and it can be read without loading
anything. tests/mind/test_help.py compares it with the options themselves.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

COLUMNS = 80
WIDEST = 30
"""Columns for an option; if the option is longer, its description is on the next line."""


@dataclass(frozen=True)
class Brief:
    """The text of `mind COMMAND --help`."""

    does: str
    options: dict[str, str]
    """An option as it is typed -> what it does, ending with its default in parentheses if that is informative."""
    examples: tuple[str, ...]
    """Commands to copy; a line that begins with "#" explains the next command."""
    arguments: str = ""
    """The arguments after the command that are not options, as they are typed."""


GENERAL = {
    "--quiet": "print results, warnings and errors alone",
    "--help-all": "show all options, described in full",
}

BRIEFS = {
    "data check": Brief(
        "Count what a file of questions holds, and list everything that is wrong with it.",
        {
            "FILE": "JSON, JSON lines, CSV, Parquet; a folder; a name on the Hub",
            "--evaluation FILE ...": "test questions: count those that are in FILE too",
            "--question-column NAME": "column of the question (default question)",
            "--answer-column NAME": "column of the gold answer (default answer)",
            "--choices-column NAME": "column of the choices",
            "--split NAME": "of a folder or a data set on the Hub (default train)",
            "--limit N": "read the first N questions only",
        },
        ("mind data check questions.jsonl", "mind data check train.jsonl --evaluation test.jsonl"),
        "FILE",
    ),
    "data generate": Brief(
        "Ask a teacher model for rationales: questions x perspectives x samples. Started again with the same --output, "
        "it asks only for what is missing.",
        {
            "--output FOLDER": "of the data set (required)",
            "--questions.path FILE": "questions (required)",
            "--teacher.model NAME": "the name that the endpoint knows (required)",
            "--teacher.base-url URL": "endpoint (default https://api.openai.com/v1)",
            "--teacher.api-key-env VARIABLE": "environment variable that holds its key",
            "--teacher.engine ENGINE": "openai, vllm or ray (default openai)",
            "--teacher.temperature T": "of the samples (default 0.7)",
            "--teacher.max-tokens N": "longest answer, in tokens (default 1024)",
            "--perspectives NAME ...": "which to ask for (the paper's eight)",
            "--prompts FILE": "JSON {name: prompt}: your own perspectives",
            "--samples N": "per question and perspective (default 1)",
            "--traffic.concurrency N": "requests at a time (default 32)",
            "--budget.tokens N": "limit of the whole job",
            "--config FILE": "JSON file that the options default to",
        },
        (
            "# a server on this machine, as `vllm serve` or llama.cpp starts one:",
            "mind data generate --output data/mine --questions.path questions.jsonl \\\n"
            "    --teacher.model NAME --teacher.base-url http://localhost:8000/v1",
        ),
    ),
    "data judge": Brief(
        "Judge each rationale of a data set: by rules and, if a model is named, by that model if the rules find no "
        "answer.",
        {
            "FOLDER": "what `mind data generate` wrote",
            "--model NAME": "model that judges if the rules find no answer",
            "--base-url URL": "its endpoint (default https://api.openai.com/v1)",
            "--api-key-env VARIABLE": "environment variable that holds its key",
            "--price IN OUT": "price per million prompt and per million reply tokens",
            "--budget.cost X": "stop before the judge costs more than this",
        },
        ("mind data judge data/mine", "mind data judge data/mine --model NAME --base-url http://localhost:8000/v1"),
        "FOLDER",
    ),
    "data filter": Brief(
        "Choose the rationales to train on from a judged data set; write them, a report and a data card.",
        {
            "FOLDER": "what `mind data generate` and `mind data judge` wrote",
            "--output FILE": "records to train on, .jsonl or .parquet (required)",
            "--also FOLDER ...": "further data sets of the same questions",
            "--evaluation FILE ...": "test questions: the card counts those given away",
            "--keep N": "rationales per question, at most (default 8)",
            "--minimum N": "drop questions with fewer rationales (default 2)",
            "--keep-wrong N": "wrong rationales to keep beside them (default 0)",
            "--max-characters N": "longest rationale (default 4000)",
            "--easy-fraction X": "share of the easy questions to keep (default 1.0)",
            "--student-grades FILE": "what `mind grade` wrote: tells which questions are easy",
            "--license NAME": "of this data set, for its card",
            "--overwrite": "replace an earlier output",
        },
        (
            "mind data filter data/mine --output mine.jsonl",
            "mind data filter data/mine --output mine.jsonl --evaluation test.jsonl",
        ),
        "FOLDER",
    ),
    "data import": Brief(
        "Turn rationales without perspectives, such as ten samples per question, into training records: the right ones "
        "are named path-1, path-2, and so on; the others are dropped.",
        {
            "FILE": 'JSON lines of {"id", "question", "answer", "rationales": [text, ...]}',
            "--output FILE": "records to train on, .jsonl or .parquet (required)",
            "--keep N": "rationales per question, at most (default 8)",
            "--minimum N": "drop questions with fewer right rationales (default 2)",
            "--keep-wrong N": "wrong rationales to keep beside them (default 0)",
            "--overwrite": "replace an earlier output",
        },
        ("mind data import samples.jsonl --output train.jsonl",),
        "FILE",
    ),
    "data word-problems": Brief(
        "Write word problems, each with a rationale in several perspectives. No teacher is needed.",
        {
            "--output FILE": "file to write, .jsonl or .parquet (required)",
            "--count N": "questions (default 100)",
            "--seed N": "of the random choices (default 0)",
            "--levels LEVEL ...": "one-step, two-step, multi-step (default multi-step)",
            "--perspectives NAME ...": "which, if not all eight",
            "--validation N": "write N questions to validate by, too",
            "--test N": "write three tests of N questions each, too",
            "--overwrite": "replace an earlier output",
        },
        (
            "mind data word-problems --output problems.jsonl --count 500",
            "mind data word-problems --output p.jsonl --levels one-step two-step --test 100",
        ),
    ),
    "train": Brief(
        "Train a student by MIND or another method, or continue a run that was stopped.",
        {
            "--output FOLDER": "run folder; it must be new (default runs/mind)",
            "--method NAME": "mind, sft, kd, redi, ... (default mind); with --help, "
            "the options of that method are shown too",
            "--student.model NAME": "folder, or name on the Hub (default smollm2-135m-instruct)",
            "--student.lora": "train LoRA adapters (needs peft)",
            "--data.train FILE": "records with rationales (default word-problems)",
            "--data.evaluation FILE ...": "test questions, answered before and after",
            "--data.perspectives NAME ...": "names in the data, if not the paper's eight",
            "--train.epochs X": "passes over the questions (default 1.0)",
            "--train.max-steps N": "steps, in place of epochs",
            "--train.learning-rate X": "the student's (the method's own, mostly 3e-5)",
            "--train.tokens-per-step N": "tokens of an optimizer step (default 4096)",
            "--train.bf16": "bfloat16 autocast",
            "--train.seed N": "of all random choices (default 0)",
            "--resume": "go on with the run in --output",
            "--overwrite": "replace the run in --output",
            "--config FILE": "JSON file that the options default to",
        },
        (
            "# on built-in word problems:",
            "mind train --output runs/first",
            "# on your own data; then, after a stop:",
            "mind train --output runs/mine --data.train mine.jsonl \\\n    --data.evaluation test.jsonl",
            "mind train --output runs/mine --resume",
        ),
    ),
    "experiment": Brief(
        "Train and evaluate a student per method and seed of a plan, at equal budgets. Started again with the same "
        "--output, it does what is missing.",
        {
            "PLAN": "JSON file, or a plan of the package: word-problems, svamp-smollm2, paper",
            "--output FOLDER": "of the experiment (default experiments/experiment)",
            "--set NAME=VALUE": "what ${NAME} in the plan stands for; once per name",
            "--jobs N": "runs at a time (default 1)",
            "--stop-after MINUTES": "stop then; started again, the experiment goes on",
            "--ray ADDRESS": "spread the runs over a Ray cluster",
        },
        (
            "# the questions are made as bench/testbed/README.md says:",
            "mind experiment word-problems --set STUDENT=bench/testbed/student \\\n"
            "    --set DATA=. --output experiments/first --jobs 2",
            "mind compare experiments/first",
        ),
        "PLAN",
    ),
    "compare": Brief(
        "Say which methods of an experiment are better, how certain that is, and what may be claimed. Writes "
        "comparison.html, .md and .json into its folder.",
        {
            "FOLDER": "of `mind experiment`, complete or not",
            "--reference LABEL": "method that a claim is made of (the plan's, or mind)",
            "--baselines LABEL ...": "methods that it has to beat (the plan's)",
            "--draws N": "of the bootstrap (default 10000)",
            "--seed N": "of its random numbers (default 0)",
        },
        ("mind compare experiments/first", "mind compare experiments/first --reference mind --baselines sft"),
        "FOLDER",
    ),
    "evaluate": Brief(
        "Measure the accuracy of a model on files of questions, and its NLL (nats per token) on held-out rationales.",
        {
            "--student.model NAME": "folder, or name on the Hub (default smollm2-135m-instruct)",
            "--students NAME ...": "several models, one after the other; LABEL=FOLDER names one",
            "--files FILE ...": "questions to answer",
            "--heldout FILE": "rationales for the NLL",
            "--evaluation.questions N": "of each file, from its start (default 50)",
            "--evaluation.max-new-tokens N": "longest answer, in tokens (default 200)",
            "--evaluation.last-line TEXT": "instruction that ends each prompt",
            "--samples N": "sample so many answers per question",
            "--engine ENGINE": "transformers or vllm (default transformers)",
            "--output FILE": "write results (JSON) and answers",
            "--overwrite": "replace an earlier output",
        },
        (
            "mind evaluate --student.model runs/first/student --files test.jsonl",
            "mind evaluate --students before=NAME after=runs/first/student \\\n"
            "    --files test.jsonl --output results.json",
        ),
    ),
    "lm-eval-tasks": Brief(
        "Write tasks for lm-evaluation-harness: the paper's sets of questions, graded by this package.",
        {
            "DIR": "folder to write; it must be new",
            "--gsm8k FILE": "questions of GSM8K; at least one set is needed",
            "--math500 FILE": "of MATH-500",
            "--svamp FILE": "of SVAMP",
            "--commonsense-qa FILE": "of CommonsenseQA",
            "--strategy-qa FILE": "of StrategyQA",
            "--gpqa-diamond FILE": "of GPQA Diamond",
            "--questions N": "of each set, from its start, if not all",
            "--overwrite": "replace what an earlier call wrote there",
        },
        ("mind lm-eval-tasks tasks --gsm8k gsm8k.jsonl",),
        "DIR",
    ),
    "grade": Brief(
        "Grade responses of any model by rules, and print the accuracy.",
        {
            "FILE": 'JSON lines of {"id", "answer", "response"}, with "choices" if there are any',
            "--output FILE": 'each row with "correct" and "extracted" (required)',
            "--overwrite": "replace an earlier output",
        },
        ("mind grade responses.jsonl --output graded.jsonl",),
        "FILE",
    ),
    "report": Brief(
        "Write the report of a run, report.html, again.",
        {"RUN": "folder that `mind train --output` named"},
        ("mind report runs/first",),
        "RUN",
    ),
    "latent": Brief(
        "Say what the hidden states of students hold that learned one perspective each: the perspective, its wording, "
        "or the student.",
        {
            "RUN ...": "runs of `mind train --method single`",
            "--questions FILE": "new questions with a rationale in each perspective (required)",
            "--output FOLDER": "to write into (default runs/latent)",
            "--coverage RUN ...": "runs of any method: which perspectives do they sample?",
            "--encoder NAME": "a sentence-transformers model, for the view V6",
            "--samples N": "per question and run of --coverage (default 16)",
            "--seed N": "of samples, draws and pictures (default 0)",
        },
        ("mind latent runs/single-* --questions test.jsonl --output runs/latent",),
        "RUN [RUN ...]",
    ),
    "doctor": Brief(
        "Show what is installed, which backends the losses have, what is missing, and the command that installs it. "
        "The exit status is 1 if `mind train` cannot work.",
        {},
        ("mind doctor", "# compare what each backend computes with the definition:", "python -m mind_kernels check"),
    ),
    "completion": Brief(
        "Print a script by which the shell completes commands, options and their values on the tab key.",
        {"SHELL": "bash, zsh or fish"},
        (
            "# bash; this line in ~/.bashrc keeps it:",
            'eval "$(mind completion bash)"',
            "# zsh, into a folder of $fpath:",
            "mind completion zsh > FOLDER/_mind",
            "# fish:",
            "mind completion fish > ~/.config/fish/completions/mind.fish",
        ),
        "SHELL",
    ),
}


def brief(command: str) -> str:
    """The short help of a command: at most 40 lines of 80 columns."""
    found = BRIEFS[command]
    general = GENERAL if found.options else {}
    lines = [
        " ".join(filter(None, ["usage: mind", command, found.arguments, "[options]" if found.options else ""])),
        "",
        *textwrap.wrap(found.does, COLUMNS, break_on_hyphens=False),
    ]
    lines += ["", *_table(found.options | general)] if found.options else []
    lines += ["", "examples:"]
    lines += [f"  {line}" for example in found.examples for line in example.splitlines()]
    return "\n".join(lines)


def _table(rows: dict[str, str]) -> list[str]:
    column = min(max(map(len, rows)), WIDEST) + 2
    lines = []
    for option, text in rows.items():
        wrapped = textwrap.wrap(text, COLUMNS - 2 - column, break_on_hyphens=False)
        if len(option) > column - 2:
            lines.append(f"  {option}")
            option = ""
        lines += [f"  {option if not place else '':<{column}}{line}" for place, line in enumerate(wrapped)]
    return lines
