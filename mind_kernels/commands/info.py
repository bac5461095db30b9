"""`python -m mind_kernels [info]`: lists the backends of this installation, what is missing and how to get it.

pip does not show what a build left out; this command does. --json prints the same for programs.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from dataclasses import asdict
from typing import Any

import torch

from mind_kernels import __version__, backends, extension, tuning
from mind_kernels.backend import BACKENDS, PREFERRED, BackendUnavailableError, automatic, refusal
from mind_kernels.commands.options import Parser, fail


def report() -> dict[str, Any]:
    """The contents of the table, as a dictionary."""
    table = {
        name: {
            "available": found.available,
            "tensors": {"any": "any", "cpu": "CPU", "cuda": "CUDA"}[BACKENDS[name].tensors],
            "reason": found.reason,
            "remedy": found.remedy,
        }
        for name, found in backends().items()
    }
    return {
        "backends": table,
        "auto": _auto(),
        "tuning": _tuning(),
        "libraries": _libraries(),
        "versions": _versions(),
        "devices": _devices(),
    }


def _auto() -> dict[str, dict[str, list[str]]]:
    """For CPU and CUDA tensors, the backends that "auto" uses, each with its operations, also those in float64."""
    operations = sorted({operation for backend in BACKENDS.values() for operation in backend.kernels})
    taken: dict[str, dict[str, list[str]]] = {}
    for device, shown in (("cpu", "CPU"), ("cuda", "CUDA")):
        of_device = taken[shown] = {}
        for operation in operations:
            single, double = (_taken(device, wide, operation) for wide in (False, True))
            of_device.setdefault(single, []).append(operation)
            if double != single:
                of_device.setdefault(double, []).append(f"{operation} in float64")
    return taken


def _taken(device: str, double: bool, operation: str) -> str:
    try:
        return automatic(device, double, operation)
    except BackendUnavailableError:
        return "none"


def _auto_lines(taken: dict[str, dict[str, list[str]]]) -> list[str]:
    """A line per device; the backend of all remaining operations has no list there. Also says what is missing."""
    lines = []
    for device, found in taken.items():
        main, *others = sorted(
            found, key=lambda name: len([use for use in found[name] if " " not in use]), reverse=True
        )
        rest = [f"{name} for {', '.join(_shortened(found[name]))}" for name in others]
        lines.append(f"  {device + ' tensors':<20}{'; '.join([main, *rest])}")
        lines += [f"{'':<22}not {name}: {reason}" for name, reason in _missed(device.lower())]
    return lines


def _missed(device: str) -> list[tuple[str, str]]:
    """The backends that "auto" would prefer on a device type but cannot use, and why."""
    if os.environ.get(PREFERRED):
        return []
    found = [(name, backend.availability()) for name, backend in BACKENDS.items() if backend.fastest_on == device]
    return [(name, availability.reason) for name, availability in found if not availability.available]


def _shortened(uses: list[str]) -> list[str]:
    """Operations, with "float64 tensors" in place of a list of several operations in float64."""
    double = [use for use in uses if " " in use]
    return [use for use in uses if use not in double] + (["float64 tensors"] if len(double) > 1 else double)


def _tuning() -> dict[str, dict[str, Any]]:
    """For each device of this machine, its table of `tune`: path, why it is not used, and what "auto" uses because of
    it."""
    found = {}
    for device in ("cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))):
        table = tuning.read(torch.device(device))
        entries = [
            {**asdict(entry), "unusable": _unusable(entry, torch.device(device).type)} for entry in table.entries
        ]
        exists = table.path is not None and os.path.exists(table.path)
        found[device] = {"table": str(table.path) if exists else None, "problem": table.problem, "entries": entries}
    return found


def _unusable(entry: tuning.Entry, device: str) -> str:
    """Why "auto" does not use an entry; empty if it does."""
    if entry.use == tuning.STREAM_TILE:
        return ""  # for a tile that is no longer a candidate, the default is used
    known = {operation for backend in BACKENDS.values() for operation in backend.kernels}
    # If both "linear_pairwise_jsd" and "linear_pairwise_jsd, jeffreys" fit, the longer one.
    return refusal(entry.backend, device, max(filter(entry.use.startswith, known), key=len, default=entry.use))


def _tuning_lines(found: dict[str, dict[str, Any]]) -> list[str]:
    lines = []
    for device, table in found.items():
        overridden = f"; {PREFERRED} overrides it" if os.environ.get(PREFERRED) and table["entries"] else ""
        told = table["table"] or "none"
        lines.append(f"  {device:<20}{told}{overridden}")
        lines += [f"{'':<22}not used: {table['problem']}"] * bool(table["problem"])
        for entry in table["entries"]:
            sizes = f"{entry['dtype']}, V {entry['vocabulary']}, D {entry['hidden_size']}"
            not_used = f", not used: {entry['unusable']}" if entry["unusable"] else ""
            lines.append(f"{'':<22}{entry['backend']} for {entry['use']} ({sizes}){not_used}")
    return lines


def _libraries() -> dict[str, str]:
    """One line for each library that the installation tried to build."""
    lines = {}
    for module, facts in extension.build_record().get("libraries", {}).items():
        details = [
            f"{key.replace('_', ' ')} {' '.join(value) if isinstance(value, list) else value}"
            for key, value in facts.items()
            if key not in ("built", "reason", "flags")
        ]
        lines[module] = ", ".join(["built", *details]) if facts["built"] else f"not built: {facts['reason']}"
    return lines


def _versions() -> dict[str, str]:
    record = extension.build_record()
    return {
        "mind_kernels": __version__,
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "torch's CUDA": torch.version.cuda or "none",
        "triton": _version("triton"),
        "compiler": record.get("compiler") or "none at the build",
        "CPU kernels in use": _capability(),
        "CUDA kernels for": " ".join(extension.architectures()) or "none",
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _capability() -> str:
    if extension.unavailable("cpp"):
        return "none"
    try:
        return extension.capability()
    except RuntimeError as error:  # MIND_KERNELS_CPU_CAPABILITY asks for an instruction set that the processor lacks
        return f"none: {error}"


def _devices() -> list[str]:
    devices = [f"cpu: {platform.machine()}, {os.cpu_count()} processors, {torch.get_num_threads()} threads in torch"]
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        devices.append(f"cuda:{index}: {torch.cuda.get_device_name(index)}, compute capability {major}.{minor}")
    return devices


def text(found: dict[str, Any]) -> str:
    lines = [f"{'backend':<18}{'available':<11}{'tensors':<9}"]
    for name, backend in found["backends"].items():
        available = "yes" if backend["available"] else "no"
        lines.append(f"{name:<18}{available:<11}{backend['tensors']:<9}{backend['reason']}".rstrip())
        if backend["remedy"]:
            lines.append(f"{'':<38}to get it: {backend['remedy']}")
    preferred = os.environ.get(PREFERRED)
    lines += [
        "",
        f'what "auto" takes{f", by {PREFERRED}={preferred}" if preferred else ""}',
        *_auto_lines(found["auto"]),
        "",
        'tables of `python -m mind_kernels tune`, which "auto" follows first',
        *_tuning_lines(found["tuning"]),
    ]
    for title in ("libraries", "versions"):
        lines += ["", title, *(f"  {name:<20}{value}" for name, value in found[title].items())]
    return "\n".join([*lines, "", "devices", *(f"  {device}" for device in found["devices"])])


def main(arguments: list[str]) -> int:
    parser = Parser(
        prog="python -m mind_kernels",
        usage="python -m mind_kernels [info] [--help] [--version] [--json]",
        description='Which backends this installation has, which "auto" takes, what is missing and how to get it.',
        epilog="Other commands: `check` runs the backends and compares them with the definition; `tune` times them and "
        'writes what "auto" takes; `ahead` compiles the Triton kernels for GPUs that are not here.',
    )
    parser.add_argument("--version", action="version", version=f"mind_kernels {__version__}, torch {torch.__version__}")
    parser.add_argument("--json", action="store_true", help="the same as one JSON object")
    options = parser.parse_args(arguments)
    try:
        found = report()
    except ValueError as error:  # an unknown name in MIND_KERNELS_BACKEND
        fail(str(error))
    print(json.dumps(found, indent=1) if options.json else text(found))
    return 0
