"""Training losses computed from hidden states and the weight of the LM head, without the N x V logits."""

from mind_kernels.availability import Availability
from mind_kernels.backend import BackendUnavailableError, backends
from mind_kernels.head import Head
from mind_kernels.linear_cross_entropy import RowStats, linear_cross_entropy, threshold_for_error
from mind_kernels.linear_divergence import DivergenceStats, linear_divergence
from mind_kernels.linear_log_prob import RowLogProbs, linear_log_prob
from mind_kernels.linear_mind_loss import MindStats, linear_mind_loss
from mind_kernels.linear_pairwise_jsd import JeffreysStats, MixtureStats, PairStats, linear_pairwise_jsd
from mind_kernels.linear_top_k import TopK, linear_top_k

# The version is defined here only: pyproject.toml and build_tools/hub.py read it without importing the package.
__version__ = "0.2.0"

__all__ = [
    "Availability",
    "BackendUnavailableError",
    "DivergenceStats",
    "Head",
    "JeffreysStats",
    "MindStats",
    "MixtureStats",
    "PairStats",
    "RowLogProbs",
    "RowStats",
    "TopK",
    "backends",
    "linear_cross_entropy",
    "linear_divergence",
    "linear_log_prob",
    "linear_mind_loss",
    "linear_pairwise_jsd",
    "linear_top_k",
    "threshold_for_error",
]
