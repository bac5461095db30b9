"""A build for the Hub needs no installed package, lives beside one, and has the same losses. (clients/test_kernels.py
loads it by Hugging Face's `kernels`; here it is loaded as that does it.)"""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from build_tools import hub
from build_tools.settings import NotBuilt

LOSSES = Path(__file__).with_name("hub_losses.py")


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "repository"
    assert hub.main([str(folder)]) == 0
    return folder


@pytest.mark.parametrize("variant, beside, interpreter", [("torch-cuda", False, "1"), ("torch-cpu", True, "0")])
def test_losses_are_their_definitions_in_a_fresh_process(repository, variant, beside, interpreter):
    command = [sys.executable, "-W", "ignore", str(LOSSES), str(repository / "build" / variant)]
    environment = os.environ | {"TRITON_INTERPRET": interpreter}
    environment.pop("MIND_KERNELS_LIBRARIES", None)  # set by `make coverage`, and followed by the repository too
    done = subprocess.run([*command, *["--beside"] * beside], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name = json.loads((repository / "build" / variant / "metadata.json").read_text())["id"]
    line = next(line for line in done.stdout.splitlines() if line.startswith(name))
    assert "torch" in line.split() and "cpp" not in line.split()
    assert done.stdout.startswith("mind_kernels ") == beside


def test_no_name_is_that_of_the_package(repository):
    files = list(repository.rglob("*.py"))
    assert len(files) > 100 and not list(repository.rglob("integrations"))
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("mind") for alias in node.names), file
            elif isinstance(node, ast.ImportFrom):
                assert node.level or not str(node.module).startswith("mind"), file


@pytest.mark.parametrize("variant", ["torch-cpu", "torch-cuda"])
def test_metadata(repository, variant):
    folder = repository / "build" / variant
    metadata = json.loads((folder / "metadata.json").read_text())
    backend = variant.removeprefix("torch-")
    assert metadata["backend"] == {"type": backend} and metadata["version"] == 0
    assert metadata["id"].startswith(f"_mind_kernels_{backend}_") and metadata["id"].isidentifier()
    assert (folder / "namespace.py").read_text() == f'NAMESPACE = "{metadata["id"]}"\n'
    # Without what Python wrote when a test imported the package from there.
    there = [file for file in folder.rglob("*") if file.is_file() and file.suffix != ".pyc"]
    files = {str(file.relative_to(folder)) for file in there} - {"metadata.json"}
    digests = metadata["digest"]["files"]
    assert set(digests) == files
    for name in files:
        assert base64.b64decode(digests[name]) == hashlib.sha256((folder / name).read_bytes()).digest()


def test_a_change_is_another_namespace():
    files = {"a.py": "x = 1\n", "b.py": ""}
    plain, compiled = hub.Variant("torch-cpu", "cpu"), hub.Variant("torch-stable-abi211-cpu", "cpu", compiled=True)
    names = [hub.identifier(v, f) for v in (plain, compiled) for f in (files, files | {"a.py": "x = 2\n"})]
    names.append(hub.identifier(plain, {"a.py": "", "x = 1\nb.py": ""}))
    assert len(set(names)) == 5
    assert hub.identifier(plain, dict(files)) == names[0]


def test_relative_imports():
    source = (
        '"""from mind_kernels.a import b"""\nfrom mind_kernels import a, c\nfrom mind_kernels.a.b import (\n    d,\n)\n'
    )
    source += (
        "def f():\n    from mind_kernels.a import e  # and so on\nfrom mind_kernels_else import g\nfrom . import h\n"
    )
    expected = '"""from mind_kernels.a import b"""\nfrom {0} import a, c\nfrom {0}a.b import (\n    d,\n)\n'
    expected += "def f():\n    from {0}a import e  # and so on\nfrom mind_kernels_else import g\nfrom . import h\n"
    for file, dots in (("a.py", "."), ("b/a.py", ".."), ("b/_c/__init__.py", "...")):
        assert hub.relative_imports(source, Path(file)) == expected.format(dots)


@pytest.mark.parametrize(
    "source, message",
    [
        ("\nimport mind_kernels.head\n", r"x.py:2: import mind_kernels: expected from mind_kernels import"),
        ("from  mind_kernels.a import b\n", r"x.py:1: expected 'from mind_kernels.a import' in one line"),
    ],
)
def test_an_import_that_cannot_be_made_relative(source, message):
    with pytest.raises(ValueError, match=message):
        hub.relative_imports(source, Path("x.py"))


def test_a_folder_with_something_in_it_is_refused(tmp_path, capsys):
    (tmp_path / "mine").write_text("")
    with pytest.raises(SystemExit):
        hub.main([str(tmp_path)])
    assert "is not empty: expected a new folder" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["/proc/nowhere"], "/proc/nowhere: No such file or directory: expected a new folder"),
        ([__file__], f"{__file__}: File exists: expected a new folder"),
        (["new", "--repository", "no owner"], "--repository 'no owner': expected an owner and a name, such as org/"),
    ],
)
def test_bad_arguments_are_told_before_anything_is_written(arguments, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        hub.main(arguments)
    assert told in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_a_missing_compiler_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert hub.main([str(tmp_path / "new"), "--compile", "cpu"]) == 1
    assert "CXX is 'no-such-compiler', which is not on PATH" in capsys.readouterr().err
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(NotBuilt, match="which has no bin/nvcc"):
        hub.variants(["cuda"])


def test_the_card_and_the_command(repository, capsys, tmp_path):
    hub.main([str(tmp_path / "new"), "--repository", "me/losses"])
    assert capsys.readouterr().out == f"hf upload me/losses {tmp_path / 'new'} . --repo-type kernel --revision v0\n"
    card = (tmp_path / "new" / "README.md").read_text()
    assert 'get_kernel("me/losses", version=0' in card and "`linear_top_k`" in card and "`torch-cuda`" in card
