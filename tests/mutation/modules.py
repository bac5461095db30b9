"""The modules in which an error is silent (no failure, a wrong number, a lost file), and the tests of each of them."""

from __future__ import annotations

_ROWS = ("tests/kernels/test_row_kernels.py", "tests/kernels/test_linear_cross_entropy.py")
_NAMES = (
    "answers", "marks", "answer_line", "answer_comparison", "stated_answers", "by_hand", "units", "graded_responses",
    "number_text",
)  # fmt: skip
_RESPONSES = tuple(f"tests/mind/test_{name}.py" for name in _NAMES)

MODULES: dict[str, tuple[str, ...]] = {
    "mind_kernels.linear_cross_entropy.backend_torch": (*_ROWS, "tests/kernels/test_shard_kernels.py"),
    "mind_kernels.linear_cross_entropy.rows": (
        *_ROWS,
        "tests/kernels/test_sparse_gradient.py",
        "tests/kernels/test_gradient_error.py",
        "tests/kernels/test_linear_log_prob.py",
        "tests/kernels/test_chunk_plan.py",
        "tests/kernels/test_vocabulary_parallel.py",
    ),
    "mind_kernels.linear_cross_entropy.shard_rows": (
        "tests/kernels/test_shard_kernels.py",
        "tests/kernels/test_exact_shards.py",
        "tests/kernels/test_vocabulary_parallel.py",
    ),
    "mind_kernels.sparse_gradient": (
        "tests/kernels/test_sparse_limits.py",
        "tests/kernels/test_sparse_gradient.py",
        "tests/kernels/test_gradient_threshold.py",
    ),
    "mind_kernels.row_chunks": ("tests/kernels/test_row_chunks.py", "tests/kernels/test_chunk_plan.py"),
    "mind_kernels.linear_divergence.backend_torch": (
        "tests/kernels/test_divergence_kernels.py",
        "tests/kernels/test_linear_divergence.py",
        "tests/kernels/test_masked_divergences.py",
        "tests/kernels/test_vocabulary_parallel_divergence.py",
    ),
    "mind_kernels.linear_pairwise_jsd.backend_torch": (
        "tests/kernels/test_group_buffers.py",
        "tests/kernels/test_group_kernels.py",
        "tests/kernels/test_linear_pairwise_jsd.py",
        "tests/kernels/test_pairwise_zero_weights.py",
    ),
    "mind.methods.mind.objective": (
        "tests/mind/test_objective.py",
        "tests/mind/test_mind_ablations.py",
        "tests/mind/test_trainer.py",
    ),
    "mind.methods.mind.calibration": ("tests/mind/test_metanet.py", "tests/mind/test_mind_ablations.py"),
    "mind.methods.mind.scorers": ("tests/mind/test_mind_ablations.py", "tests/mind/test_scorers.py"),
    "mind.batches.packing": (
        "tests/mind/test_packing.py",
        "tests/mind/test_batches.py",
        "tests/mind/test_method_mcc_kd.py",
        "tests/mind/test_other_methods.py",
        "tests/mind/test_method_single.py",
        "tests/mind/test_normalize.py",
    ),
    "mind.batches.bin_packing": ("tests/mind/test_bin_packing.py",),
    "mind.batches.prompt_sharing": ("tests/mind/test_prompt_sharing.py", "tests/mind/test_condition.py"),
    "mind.batches.cross_entropy": ("tests/mind/test_cross_entropy.py", "tests/mind/test_objective.py"),
    "mind.grading.number": _RESPONSES,
    "mind.grading.quantity": _RESPONSES,
    "mind.grading.choice": _RESPONSES,
    "mind.grading.marks": _RESPONSES,
    "mind.grading.answers": _RESPONSES,
    "mind.grading.clock_time": _RESPONSES,
    "mind.grading.calendar_day": ("tests/mind/test_calendar_day.py",),
    "mind.grading.date": ("tests/mind/test_calendar_day.py",),
    "mind.grading.digit_groups": (*_RESPONSES, "tests/mind/test_calendar_day.py"),
    "mind.grading.latex_notation": (*_RESPONSES, "tests/mind/test_latex_equality.py"),
    "mind.grading.number_notation": ("tests/mind/test_number_notation.py", *_RESPONSES),
    "mind.grading.plain_text": ("tests/mind/test_number_notation.py", *_RESPONSES),
    "mind.grading.ratio": ("tests/mind/test_stated_answers.py", "tests/mind/test_answers.py"),
    "mind.grading.units": _RESPONSES,
    "mind.grading.words": _RESPONSES,
    "mind.grading.yes_no": _RESPONSES,
    "mind.comparison.difference": ("tests/mind/test_comparison_statistics.py",),
    "mind.comparison.bootstrap": ("tests/mind/test_comparison_statistics.py",),
    "mind.comparison.decisions": ("tests/mind/test_comparison_statistics.py",),
    "mind.intervals": ("tests/mind/test_intervals.py",),
    "mind.teacher.journal": ("tests/mind/test_journal.py", "tests/mind/test_teacher.py"),
    "mind.files": ("tests/mind/test_file_checks.py", "tests/mind/test_files.py"),
}
"""By name; the tests by file, the quickest first: the first one that fails ends a try."""
