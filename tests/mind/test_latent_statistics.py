"""Clusters, probes and what may be said, on simulated vectors whose truth is known."""

from __future__ import annotations

import dataclasses
import itertools
import warnings

import numpy as np
import pytest
from scipy.stats import ttest_ind, ttest_rel
from sklearn.metrics import normalized_mutual_info_score
from sklearn.model_selection import GroupKFold

from mind.errors import MindError
from mind.latent.claim import claim_of
from mind.latent.clusters import agreement, clusters_of, mixture_labels, permuted_within
from mind.latent.config import LatentConfig
from mind.latent.maps import maps_of
from mind.latent.preprocessing import centered, components_of
from mind.latent.probes import Difference, Probe, compared, probe_by_question, probe_new_students
from mind.latent.views import Measured

CONFIG = LatentConfig(("run",), "questions.jsonl", draws=20, permutations=20, mixture_seeds=2)
K, N, D = 8, 60, 64
QUICK = dataclasses.replace(CONFIG, draws=2, permutations=1)
LABELS = np.repeat(np.arange(K), N)


def simulated(rng, perspective=0.0, student=0.0, question=2.0, seeds=2, questions=N, noise=1.0):
    """(E, K, N, D): standard deviations of what all students of a perspective, each student and each question have."""
    shapes = [(1, K, 1), (seeds, K, 1), (1, 1, questions), (seeds, K, questions)]
    scales = (perspective, student, question, noise)
    return sum(scale * rng.normal(size=(*shape, D)) for shape, scale in zip(shapes, scales, strict=True))


def clusters_in(points, seed=0):
    return agreement(LABELS, mixture_labels(points, K, seed, starts=5))


def test_questions_hide_the_perspectives_unless_their_mean_is_taken_off():
    """Separation .6 of the noise, question variance 4 times it. The design found NMI .013 uncentered and .719 centered,
    with covariance "full"; "diag" finds nearly all."""
    found = []
    for seed in range(3):
        vectors = simulated(np.random.default_rng(seed), perspective=0.6, seeds=1)
        plain, own = (components_of(some.reshape(-1, D), 8, 0) for some in (vectors, centered(vectors)))
        found.append([clusters_in(plain)[1], clusters_in(own)[1]])
    plain, own = np.mean(found, 0)
    assert plain < 0.03 and own > 0.9, found


def test_the_mixture_finds_eight_clusters_where_they_are_and_one_where_they_are_too_weak():
    rng = np.random.default_rng(0)
    real = clusters_of(simulated(rng, perspective=1.0, seeds=1), QUICK)
    assert real.count.value == pytest.approx(8, abs=0.5) and real.nmi.value > 0.98 and real.silhouette.value > 0.5
    assert real.by_width["8"]["count"] == pytest.approx(8, abs=1) and real.by_width["8"]["nmi"] > 0.98
    weak = clusters_of(simulated(rng, perspective=0.1, seeds=1), dataclasses.replace(CONFIG, permutations=1))
    assert weak.count.value == 1 and weak.nmi.value == 0 and (weak.count.low, weak.count.high) == (1, 1)
    assert weak.nmi.high < 0.05, "a bootstrap would say .16 to .24"


def test_permuted_perspectives_give_what_chance_gives():
    rng = np.random.default_rng(0)
    found = clusters_of(simulated(rng, perspective=1.0, seeds=1), dataclasses.replace(CONFIG, draws=2))
    assert found.nmi.chance < 0.05 and abs(found.ari.chance) < 0.02 and abs(found.silhouette.chance) < 0.1
    assert found.nmi.p == found.silhouette.p == 1 / 21 and found.count.chance is found.count.p is None
    labels = permuted_within(K, N, rng)
    assert (np.sort(labels, 0) == np.arange(K)[:, None]).all() and (labels != np.arange(K)[:, None]).any()
    expected = normalized_mutual_info_score(LABELS, labels.ravel())
    assert agreement(LABELS, labels.ravel())[1] == expected < 0.1


def test_a_probe_by_question_is_fooled_by_students_and_one_of_new_students_is_not():
    """The vectors tell the student and nothing of its perspective: the design's confound, of all its views."""
    accuracies, claimed = [], []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        experts, null = (simulated(rng, student=0.6, questions=20) for _ in range(2))
        probe, control = (probe_new_students(some, QUICK) for some in (experts, null))
        accuracies += [probe.accuracy.value, control.accuracy.value]
        claimed.append(compared(probe, control, paired=False).positive)
    assert probe_by_question(experts, QUICK).accuracy.value > 0.9
    assert np.mean(accuracies) == pytest.approx(1 / K, abs=0.04)
    assert not any(claimed), "of 60 simulations 2"


def test_an_interval_of_few_draws_holds_its_value():
    vectors = simulated(np.random.default_rng(3), perspective=0.3, questions=6)
    for seed in range(4):
        found = probe_by_question(vectors, dataclasses.replace(QUICK, seed=seed)).accuracy
        assert found.low <= found.value <= found.high


def test_what_students_of_a_perspective_share_is_told():
    rng = np.random.default_rng(0)
    found = probe_new_students(
        simulated(rng, perspective=0.6, student=0.6, seeds=3, questions=5), dataclasses.replace(CONFIG, permutations=9)
    )
    assert found.accuracy.value > 0.6 and found.accuracy.p == 1 / 10 and found.accuracy.low > 0.3
    assert found.accuracy.chance == pytest.approx(1 / K, abs=0.1)
    assert np.mean(found.by_perspective) == pytest.approx(found.accuracy.value)


def test_probes_by_an_independent_way():
    """The same students and questions through scikit-learn's own splits and pipeline."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    vectors = simulated(np.random.default_rng(3), perspective=0.25, student=0.3, questions=20)
    points = vectors - vectors.mean(1, keepdims=True)
    rows = [(e, k, n) for e in range(2) for k in range(K) for n in range(20)]
    x, y = np.array([points[row] for row in rows]), np.array([k for _, k, _ in rows])
    seed, group = np.array([e for e, _, _ in rows]), np.array([n % 5 for _, _, n in rows])
    right = {"new": [], "same": []}
    for (train, test), e in itertools.product(GroupKFold(5).split(x, y, group), range(2)):
        for kind, seen in (("new", seed[train] != e), ("same", seed[train] == e)):
            model = make_pipeline(StandardScaler(), PCA(16, random_state=0), LogisticRegression(max_iter=2000))
            chosen = test[seed[test] == e]
            right[kind] += list(model.fit(x[train[seen]], y[train[seen]]).predict(x[chosen]) == y[chosen])
    assert probe_new_students(vectors, QUICK).accuracy.value == pytest.approx(np.mean(right["new"]))
    assert probe_by_question(vectors, QUICK).accuracy.value == pytest.approx(np.mean(right["same"]))


def probe(accuracies, p=0.01):
    from mind.latent.clusters import Estimate

    return Probe(Estimate(float(np.mean(accuracies)), p=p), list(accuracies))


def test_intervals_are_those_of_t_tests():
    one, two = [0.5, 0.7, 0.4, 0.9], [0.2, 0.5, 0.3, 0.3]
    for paired, test in ((True, ttest_rel(one, two)), (False, ttest_ind(one, two, equal_var=False))):
        found, ends = compared(probe(one), probe(two), paired=paired), test.confidence_interval()
        assert dataclasses.astuple(found) == pytest.approx((0.3, ends.low, ends.high))
    assert compared(probe([1.0] * 3), probe([1.0] * 3), paired=False) == Difference(0, 0, 0)


def test_the_claim_needs_every_control():
    def measured(*accuracies, p=0.01):
        return Measured(100, None, None, probe(accuracies, p))

    high, low = (0.9, 0.8, 0.85, 0.95), (0.3, 0.2, 0.25, 0.2)
    texts = {view: measured(*low) for view in ("V3", "V3 own", "V5", "V5 own")}
    experts, null = {"V1": measured(*high), "V4": measured(*high)} | texts, {"V4": measured(*low)}
    found = claim_of(experts, null)
    assert found.allowed and all(one.holds for one in found.conditions)
    assert found.sentence.startswith("The perspectives are internalised, not surface")
    faults = {
        "null experts": (experts, {"V4": measured(*high)}),
        "dealt out among the students": (experts | {"V4": measured(*high, p=0.2)}, null),
        "V3 own": (experts | {"V3 own": measured(*high)}, null),
        "V5 (": (experts | {"V5": measured(*high)}, null),
    }
    for words, case in faults.items():
        found = claim_of(*case)
        assert not found.allowed and words in found.sentence and "cannot be said" in found.sentence
        assert [words in one.name for one in found.conditions if not one.holds] == [True]
    full = claim_of(experts | {"V3": measured(1.0, 1.0, 0.99, 1.0)}, null)
    assert not full.allowed and "V3 (99.8 %): V1 could not show more" in full.sentence
    without = claim_of(experts, {})
    assert not without.allowed and without.conditions[0].holds is None
    assert "no control, and so not known: V4: the experts' perspectives" in without.sentence


def test_counts_that_no_machine_finishes_are_refused():
    for name, most in {"samples": "10,000", "draws": "1,000,000", "permutations": "1,000,000"}.items():
        with pytest.raises(MindError, match=f"^{name} is 99999999999: expected at most {most}"):
            dataclasses.replace(CONFIG, **{name: 99999999999})


def test_a_run_that_comes_twice_is_named():
    for again in ("r/a", "r/a/", "./r/../r/a"):
        with pytest.raises(MindError, match=f"^{again}: the same run comes twice"):
            LatentConfig(("r/a", "r/b", again), "questions.jsonl")


def test_students_that_all_write_the_same_are_not_told_apart():
    """All vectors of a view are equal: principal components and t-SNE have nothing to divide by."""
    vectors = np.tile(np.random.default_rng(0).normal(size=(2, 1, 12, 5)), (1, 3, 1, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        maps = maps_of({"V1": vectors, "V4": vectors}, {}, QUICK)
        clusters = clusters_of(vectors, QUICK)
    assert len(maps) == 4 and all(one.points == [[(0.0, 0.0)] * 12] * 3 for one in maps)
    assert (clusters.count.value, clusters.nmi.value) == (1, 0)
    assert probe_by_question(vectors, QUICK).accuracy.value == pytest.approx(1 / 3)
