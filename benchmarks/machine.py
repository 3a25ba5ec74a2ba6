"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path


def describe(directory: Path) -> dict[str, str]:
    """Processor, memory, kernel, the disk that `directory` lies on, and versions."""
    return {
        "cores": str(os.cpu_count()),
        "processor": _value("/proc/cpuinfo", "model name"),
        "memory": f"{int(_value('/proc/meminfo', 'MemTotal').split()[0]) * 1024 / 1e9:.1f} GB",
        "kernel": f"{platform.system()} {platform.release()}",
        "disk": _disk(directory),
        "cp": _first_line(["cp", "--version"]),
        "python": platform.python_version(),
        **{
            name: _version(name)
            for name in ("ckptforge", "numpy", "ml_dtypes", "safetensors", "mindspore")
        },
    }


def _value(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        if line.split(":")[0].strip() == name:
            return line.split(":", 1)[1].strip()
    return "unknown"


def _disk(directory: Path) -> str:
    """Device, file system, and whether the kernel takes it for one that turns."""
    parts = _first_line(["findmnt", "-n", "-o", "SOURCE,FSTYPE", "-T", str(directory)]).split()
    if len(parts) != 2:
        return "unknown"
    block = Path("/sys/class/block") / Path(parts[0]).name / "queue" / "rotational"
    turns = (
        {"0": ", doesn't rotate", "1": ", rotates or is virtual"}.get(block.read_text().strip(), "")
        if block.exists()
        else ""
    )
    return f"{parts[0]}, {parts[1]}{turns}"


def _first_line(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split(
            "\n"
        )[0]
    except OSError:
        return "unknown"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
