"""Compiles the kernels for the wheel. Without a C compiler, or with CKPTFORGE_KERNELS=off, the
wheel has none and is for any processor: numpy does then what they do, to the same bytes."""

from __future__ import annotations

import os
import runpy
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS, NAME = Path("ckptforge", "kernels"), "kernels.so"
# Results are those of the C code as it stands: nothing is contracted or reordered, but where a sum
# says so. Nobody looks at floating-point exceptions.
FLAGS = [
    *("-std=gnu11", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-Wl,--build-id=none", "-s"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd"),
]


class KernelsHook(BuildHookInterface[Any]):
    """Puts `kernels.so` beside the Python that loads it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles into a directory of its own, so that the tree stays as it is; for an editable
        install into the tree."""
        editable = version == "editable"
        if editable:  # what an earlier install compiled is of other sources
            Path(self.root, KERNELS, NAME).unlink(missing_ok=True)
        if os.environ.get("CKPTFORGE_KERNELS", "").lower() == "off":
            return
        self._directory = tempfile.TemporaryDirectory(prefix="ckptforge-kernels-")
        made = Path(self.root, KERNELS) if editable else Path(self._directory.name)
        failure = compile_kernels(Path(self.root), made / NAME)
        if failure:
            self.app.display_warning(f"the kernels aren't compiled, numpy is used: {failure}")
        elif not editable:
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform}"  # of any Python: ctypes loads it
            build_data["force_include"][str(made / NAME)] = str(KERNELS / NAME)

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Removes what was compiled."""
        if hasattr(self, "_directory"):
            self._directory.cleanup()


def compile_kernels(root: Path, made: Path) -> str:
    """Compiles what lies in the tree. Returns why that failed, or nothing."""
    compiler = (os.environ.get("CC") or "cc").split()
    sources = [str(path.relative_to(root)) for path in sorted((root / KERNELS).glob("*.c"))]
    part = made.with_suffix(".part")
    try:
        done = subprocess.run(
            [*compiler, *FLAGS, "-o", str(part), *sources],
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        return f"{compiler[0]}: {error.strerror}"
    if done.returncode != 0:
        return f"{compiler[0]}: {done.stderr.strip()[-2000:]}"
    seal = runpy.run_path(str(root / KERNELS / "seal.py"))
    with part.open("ab") as file:
        file.write(seal["seal_of"](part.read_bytes(), seal["sources_of"](root / KERNELS)))
    part.rename(made)
    return ""
