"""`import mind`: light, with public names that need the extra `train`, and one line that says so."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mind
from mind.requirements import PACKAGES, MissingPackageError, application_packages
from tests.guide import block

ROOT = Path(__file__).resolve().parents[2]
# A finder before all others says that the packages of the extra are not there.
WITHOUT = """
import sys
from mind.requirements import PACKAGES
class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in PACKAGES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Nowhere())
"""


def python(code: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_the_package_is_light_and_its_names_are_there():
    code = "import sys, mind; print(set(sys.modules) & {'torch', 'numpy', 'transformers', 'tyro'}, dir(mind))"
    result = python(code)
    assert result.stdout.startswith("set()") and all(name in result.stdout for name in mind.__all__)
    assert mind.MindConfig().method == "mind" and {"mind", "sft"} <= set(mind.METHODS)
    assert mind.RunFolder("runs/x").config.name == "config.json" and callable(mind.train)
    with pytest.raises(AttributeError, match="module 'mind' has no attribute 'trian'"):
        mind.trian  # noqa: B018


def test_the_example_of_the_pages(monkeypatch):
    example = block(ROOT / "docs" / "tutorials" / "distil-from-a-teacher.md", "tests/mind/test_package.py")
    configs = []
    monkeypatch.setattr(mind, "train", lambda config: (configs.append(config), mind.RunFolder(config.output))[1])
    exec(example, {})
    (config,) = configs
    assert (config.data.train, config.data.evaluation) == ("mine.jsonl", ("test.jsonl",))
    assert (config.train.epochs, config.train.questions_per_step) == (5, 4)


@pytest.mark.parametrize("name", ["METHODS", "train"])  # the others need no package
def test_a_missing_package_is_named_in_one_line(name):
    result = python(WITHOUT + f"import mind\nmind.{name}")
    last = result.stderr.strip().splitlines()[-1]
    assert "MissingPackageError: mind needs the package " in last and "pip install 'mind-kernels[train]'" in last


def test_the_command_ends_with_that_line():
    result = python(WITHOUT + "import mind.cli\nsys.exit(mind.cli.main(['train']))")
    assert result.returncode == 2 and result.stdout == ""
    expected = "mind: error: mind needs the package tyro: pip install 'mind-kernels[train]'; "
    assert result.stderr == expected + "`mind doctor` shows what else is missing here\n"


def test_other_import_errors_keep_their_traceback():
    for name in ("mind.nowhere", "transformers.nowhere", "nowhere"):
        with pytest.raises(ModuleNotFoundError) as raised, application_packages():
            __import__(name)
        assert not isinstance(raised.value, MissingPackageError)
    with pytest.raises(ImportError, match="cannot import name"), application_packages():
        from transformers import nowhere  # noqa: F401


def test_the_packages_are_those_of_the_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"].get("train", project["dependencies"])
    names = {requirement.partition("[")[0].partition(">")[0].strip() for requirement in extra}
    assert set(PACKAGES.values()) == names - {"torch"}
