"""Decides whether the name of a model or data set is a local folder or a name on the Hub, before anything is loaded."""

from __future__ import annotations

import functools
import os
import warnings
from pathlib import Path
from typing import Literal

from mind.display import one_line, path_meant
from mind.errors import MindError, require
from mind.files import read_object

TIMEOUT_S = 10
CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
_UNASKED = {
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


def send_nothing_unasked() -> None:
    """Keeps transformers from asking a service to convert a model's weights, and Ray and vLLM from reporting usage.

    Environment variables that the user has set are left alone. Must be called before the packages that read them are
    imported.
    """
    for name, value in _UNASKED.items():
        os.environ.setdefault(name, value)


def find_model(option: str, name: str) -> str:
    """What to load for `name`: the folder or the Hub's name itself, or the copy in the cache if the Hub does not
    answer.

    Asks the Hub once. Raises a MindError that names the option if it is neither; for the folder of a run, which has
    its student in a folder of its own; and for a folder of adapters whose model is not a folder here: transformers
    would ask the Hub for a name that the user did not give.
    """
    from huggingface_hub import try_to_load_from_cache

    send_nothing_unasked()
    if is_local(option, name):
        name = os.path.expanduser(name)
        _check_own(option, Path(name))
        if not any((Path(name) / file).is_file() for file in (CONFIG, ADAPTER_CONFIG, "modules.json")):
            raise MindError(f"{option} {name}: the folder has no {CONFIG}: expected one that save_pretrained wrote")
        _check_adapted(option, Path(name))
        return name
    error = require_on_hub(option, name, "model")
    if error is None:
        return name
    copy = try_to_load_from_cache(name, CONFIG)
    if not isinstance(copy, str):
        raise out_of_reach(option, name, error)
    warn_of_copy(option, name, error)
    return str(Path(copy).parent)


def _check_adapted(option: str, folder: Path) -> None:
    """Raises MindError for a folder of adapters alone whose model is not a folder here."""
    file = folder / ADAPTER_CONFIG
    if file.is_file() and not (folder / CONFIG).is_file():
        model = read_object(file).get("base_model_name_or_path")
        require(
            isinstance(model, str) and Path(model).is_dir(),
            f"{option} {folder}: holds adapters of the model {model!r:.100}, which is no folder here; the Hub is asked "
            f"only for names that you give: merge the adapters into their model, or name its folder in {file}",
        )


def _check_own(option: str, folder: Path) -> None:
    """Raises MindError for the folder of a run, whose student is a folder in it, and for the run's adapter beside the
    student, which has no tokenizer."""
    config, student = folder / CONFIG, folder / "student"
    whole = folder.resolve().parent / "student"
    if folder.resolve().name == "adapter" and not config.is_file() and (whole / CONFIG).is_file():
        beside = folder.parent / "student" if folder.name == "adapter" else whole
        raise MindError(f"{option} {folder} is the adapter of a run: name its student, {beside}, which has it merged")
    if (student / CONFIG).is_file():
        own = config.is_file() and "model_type" in read_object(config)
        require(own, f"{option} {folder} is the folder of a run: name its student, {student}")


def out_of_reach(option: str, name: str, error: Exception) -> MindError:
    """The error for a name that is not a folder, if the Hub does not answer (because of `error`) and no cache
    holds it."""
    return MindError(f"{option} {name}: no such folder here, and {_silence(error)}{path_meant(Path(name))}")


def warn_of_copy(option: str, name: str, error: Exception) -> None:
    """Warns that the cached copy is used because the Hub does not answer, unless the user chose to work offline."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    if not isinstance(error, OfflineModeIsEnabled):
        message = f"{option} {name}: {_silence(error)}: its copy in the cache is used"
        warnings.warn(message, RuntimeWarning, stacklevel=4)


def _silence(error: Exception) -> str:
    return f"the Hub does not answer ({one_line(str(error), 200)})"


def is_local(option: str, name: str) -> bool:
    """Whether `name` is a local folder. Raises MindError if it is not and cannot be a name on the Hub either."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    path = Path(os.path.expanduser(name))  # Path.expanduser would raise for an unknown user
    if os.path.isdir(path):
        return True
    if os.path.exists(path):
        raise MindError(f"{option} {name}: is a file: expected a folder, or a name on the Hub")
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise MindError(f"{option} {name}: no such folder{path_meant(path)}") from None
    return False


def require_on_hub(option: str, name: str, kind: Literal["model", "dataset"]) -> Exception | None:
    """Raises MindError if the Hub has no such model or data set, or gives access on request only.

    Returns the reason if the Hub does not answer: a cache may hold a copy.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    what, error = {"model": "model", "dataset": "data set"}[kind], _refusal(name, kind)
    if isinstance(error, GatedRepoError):
        raise MindError(f"{option} {name}: the Hub gives this {what} on request: ask there, then `hf auth login`")
    if isinstance(error, RepositoryNotFoundError):
        raise MindError(
            f"{option} {name}: neither a folder here nor a {what} on the Hub (or a private one: `hf auth login`)"
            f"{path_meant(Path(name))}"
        )
    return error


@functools.cache
def _refusal(name: str, kind: str) -> Exception | None:
    """The Hub's answer to one question per process about this name: None if it has such a model or data set, else its
    refusal."""
    import huggingface_hub

    try:
        huggingface_hub.HfApi().repo_info(name, repo_type=kind, timeout=TIMEOUT_S)
    except (huggingface_hub.errors.HTTPError, OSError) as error:
        return error
    return None
