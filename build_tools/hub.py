"""The losses as a repository of Hugging Face's Hub, for `kernels.get_kernel`.

    python -m build_tools.hub FOLDER [--compile cpu cuda]

writes one folder per build variant to FOLDER/build, and FOLDER/README.md. `torch-cpu` and `torch-cuda` have Python and
Triton code alone; each of --compile adds a variant with compiled libraries, which `kernels` prefers where it can run.

A process may load several versions of a kernel, beside an installed package too. A variant therefore has no global
name: its imports are relative, and its operators are in a namespace made from what the variant consists of.
"""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import record, toolchain
from .settings import CPP, CUDA, NotBuilt

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "mind_kernels"
NAMESPACE = Path("namespace.py")  # with the operators' namespace; written anew
# What the losses do not need: the commands of `python -m mind_kernels`, and what imports other trainers.
LEFT_OUT = ("__main__.py", "testing.py", "commands", "integrations")
RECORD = Path(record.FILE).name  # what mind_kernels/extension.py reads
NO_LIBRARY = "this variant for the Hub runs everywhere, and so it has no compiled code"

CARD = """---
library_name: kernels
license: apache-2.0
---
# MIND Kernels

Losses straight from hidden states and the LM head, which never materialize the N x V logits.

```python
from kernels import get_kernel

losses = get_kernel("{repository}", version={version}, trust_remote_code=True)
loss = losses.linear_cross_entropy(hidden, lm_head.weight, target)
```

It has {functions}. PyTorch 2.11 or later and Python 3.11 or later; the Triton kernels need a GPU, the others run
everywhere. Version {release}, variants: {variants}.
"""


@dataclass(frozen=True)
class Variant:
    """A folder of FOLDER/build: for whom it is, and with which libraries."""

    name: str
    backend: str
    compiled: bool = False


def variants(compiled: list[str]) -> list[Variant]:
    """Raises NotBuilt if nvcc is asked for and missing."""
    found = [Variant("torch-cpu", "cpu"), Variant("torch-cuda", "cuda")]
    system = f"{platform.machine()}-{platform.system().lower()}"
    abi = "torch-stable-abi" + "".join(map(str, toolchain.OLDEST_TORCH))
    for backend in compiled:
        version = f"cu{toolchain.find_nvcc().version.replace('.', '')}" if backend == "cuda" else backend
        found.append(Variant(f"{abi}-{version}-{system}", backend, compiled=True))
    return found


def sources() -> dict[str, str]:
    """The package's files in Python, by their path in a variant, with relative imports."""
    folder = ROOT / PACKAGE
    files = (path.relative_to(folder) for path in sorted(folder.rglob("*.py")))
    return {
        file.as_posix(): relative_imports((folder / file).read_text(), file)
        for file in files
        if file.parts[0] not in LEFT_OUT and file != NAMESPACE
    }


def relative_imports(source: str, file: Path) -> str:
    """The source of `file`, a path in the package, with relative imports in place of those by the package's name."""
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import) and any(_is_own(alias.name) for alias in node.names):
            raise ValueError(
                f"{file}:{node.lineno}: import {PACKAGE}: expected from {PACKAGE} import, which can be relative"
            )
        if isinstance(node, ast.ImportFrom) and node.level == 0 and _is_own(node.module or ""):
            line, start = lines[node.lineno - 1], node.col_offset  # an offset in bytes: what precedes is indentation
            statement, relative = (
                f"from {node.module} import",
                "." * len(file.parts) + (node.module or "")[len(PACKAGE) + 1 :],
            )
            if not line[start:].startswith(statement):
                raise ValueError(f"{file}:{node.lineno}: expected {statement!r} in one line")
            lines[node.lineno - 1] = f"{line[:start]}from {relative} import{line[start + len(statement) :]}"
    return "".join(lines)


def _is_own(module: str) -> bool:
    return module.partition(".")[0] == PACKAGE


def identifier(variant: Variant, files: dict[str, str]) -> str:
    """Of a variant with these files: another if any source changes, committed or not. Compiler flags do not count."""
    digest = hashlib.sha256(variant.name.encode())
    for name, text in files.items():
        digest.update(f"\0{name}\0{text}".encode())
    if variant.compiled:
        for path in sorted((ROOT / "csrc").rglob("*.*")):
            digest.update(path.read_bytes())
    return f"_{PACKAGE}_{variant.backend}_{digest.hexdigest()[:12]}"


def write(variant: Variant, folder: Path, objects: Path) -> None:
    """Raises NotBuilt if a library of the variant cannot be compiled; `objects` keeps what was compiled."""
    files = sources()
    name = identifier(variant, files)
    for path, text in (files | {str(NAMESPACE): f'NAMESPACE = "{name}"\n'}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    backend: dict[str, object] = {"type": variant.backend}
    if variant.compiled:
        _compile(variant, name, folder, objects)
        if variant.backend == "cuda":
            backend["archs"] = _architectures(folder)
    else:
        missing = {module: {"built": False, "reason": NO_LIBRARY} for module in (CPP, CUDA)}
        (folder / RECORD).write_text(json.dumps({"libraries": missing}, indent=1) + "\n")
    metadata = {
        "name": PACKAGE.replace("_", "-"),
        "id": name,
        "version": int(release().partition(".")[0]),
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": backend,
        "digest": {"algorithm": "sha256", "files": dict(_digests(folder))},
    }
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=1) + "\n")


def _compile(variant: Variant, name: str, folder: Path, objects: Path) -> None:
    """By setup.py, whose list of sources, flags and record these are."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "setup.py", "--quiet", "build_ext", f"--namespace={name}", f"--build-lib={scratch}"]
        done = subprocess.run(
            [*command, f"--build-temp={objects}"],
            cwd=ROOT,
            env=os.environ | {"MIND_KERNELS_BUILD": variant.backend},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise NotBuilt(f"{variant.name}: setup.py ended with status {done.returncode}\n{done.stdout}")
        for file in (Path(scratch) / PACKAGE).iterdir():
            shutil.copy(file, folder)


def _architectures(folder: Path) -> list[str]:
    """Of the CUDA library, as `kernels` writes them: 9.0a, 10.0+PTX."""
    names = json.loads((folder / RECORD).read_text())["libraries"][CUDA]["architectures"]
    found = [re.fullmatch(r"(sm|compute)_(\d+)(\d)(\w?)", name) for name in names]
    return [f"{m[2]}.{m[3]}{m[4]}{'+PTX' if m[1] == 'compute' else ''}" for m in found if m]


def _digests(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        yield path.relative_to(folder).as_posix(), base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()


def release() -> str:
    """The package's version."""
    found = re.search(r'^__version__ = "(.+)"$', (ROOT / PACKAGE / "__init__.py").read_text(), re.MULTILINE)
    assert found, "mind_kernels/__init__.py has no __version__"
    return found[1]


def functions() -> list[str]:
    """The public functions, which `__all__` names in small letters."""
    for node in ast.parse((ROOT / PACKAGE / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [name for name in ast.literal_eval(node.value) if name.islower()]
    raise AssertionError("mind_kernels/__init__.py has no __all__")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m build_tools.hub", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a new or empty folder")
    parser.add_argument(
        "--compile", nargs="+", choices=("cpu", "cuda"), default=[], help="variants with compiled libraries too"
    )
    parser.add_argument("--repository", default="org/mind-kernels", help="its name on the Hub, for the README")
    options = parser.parse_args(arguments)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", options.repository):
        parser.error(f"--repository {options.repository!r}: expected an owner and a name, such as org/mind-kernels")
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"{options.folder}: {error.strerror}: expected a new folder")
    if any(options.folder.iterdir()):
        parser.error(f"{options.folder} is not empty: expected a new folder")
    try:
        chosen = variants(options.compile)
        for variant in chosen:
            write(variant, options.folder / "build" / variant.name, ROOT / "build" / "hub_objects")
    except NotBuilt as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    version = release().partition(".")[0]
    card = CARD.format(
        repository=options.repository,
        version=version,
        functions=", ".join(f"`{name}`" for name in functions()),
        release=release(),
        variants=", ".join(f"`{variant.name}`" for variant in chosen),
    )
    (options.folder / "README.md").write_text(card)
    print(f"hf upload {options.repository} {options.folder} . --repo-type kernel --revision v{version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
