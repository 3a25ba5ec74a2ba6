"""What is shipped, and how the package hangs together."""

import ast
import re
import shutil
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import pytest

import ckptforge

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
ORDER = [
    "errors",
    "wording",
    "spelling",
    "validation",
    "version",
    "dtypes",
    "digits",
    "boxes",
    "covering",
    "transfers",
    "registry",
    "values",
    "composing",
    "kernels",
    "storage",
    "formats",
    "foreign",
    "model",
    "checkpoints",
    "torch_files",
    "tables",
    "planning",
    "run",
    "examine",
    "steps",
    "quantisation",
    "publish",
    "remote",
    "machines",
    "reading",
    "surgery",
    "targets",
    "parallel",
    "mindformers",
    "consolidated",
    "megatron",
    "adapters",
    "forward",
    "verbs",
    "pages",
    "cli",
    "testing",
]


def test_the_mappings_of_an_installed_package_are_those_of_the_tree():
    installed = resources.files("ckptforge") / "mappings"
    if not installed.is_dir():
        pytest.skip("running from the source tree")
    tree = {path.name: path.read_bytes() for path in (ROOT / "mappings").glob("*.toml")}
    assert {
        file.name: file.read_bytes() for file in installed.iterdir() if file.name.endswith(".toml")
    } == tree


def test_the_topics_of_an_installed_package_are_those_of_the_tree():
    installed = resources.files("ckptforge") / "topics"
    if not installed.is_dir():
        pytest.skip("running from the source tree")
    tree = {path.name: path.read_bytes() for path in (ROOT / "docs" / "topics").iterdir()}
    assert {file.name: file.read_bytes() for file in installed.iterdir()} == tree


def test_the_light_install_is_light():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=~ ]", requirement)[0] for requirement in project["dependencies"]}
    assert names == {
        "click",
        "ml_dtypes",
        "numpy",
        "msgspec",
        "pydantic",
        "pyyaml",
        "safetensors",
        "tomli",
        "tqdm",
        "xxhash",
    }


def test_the_image_is_built_of_pinned_packages_and_all_that_the_wheel_is_made_of():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pinned = (ROOT / "packaging" / "requirements.txt").read_text()
    blocks = re.split(r"^(?=\S)", pinned, flags=re.M)[2:]
    assert all("==" in one and "--hash=sha256:" in one for one in blocks)
    names = {re.split(r"[<>=~; ]", one)[0] for one in project["project"]["dependencies"]}
    assert {name.replace("_", "-") for name in names} <= {one.split("==")[0] for one in blocks}
    ignored = ROOT / ".dockerignore"
    if not ignored.is_file():
        pytest.skip("a copy of the tree without its hidden files")
    let_through = {line[1:] for line in ignored.read_text().splitlines() if line[:1] == "!"}
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], "packaging", "README.md", "LICENSE"}
    assert "custom" in wheel["hooks"]
    needed.add("hatch_build.py")
    assert needed <= let_through


def test_the_changelog_keeps_its_form():
    """https://keepachangelog.com/en/1.1.0/"""
    lines = re.findall(r"^##+ .*$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert lines[0] == "## [Unreleased]"
    parts = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    for line in lines[1:]:
        assert re.fullmatch(r"## \[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", line) or line[4:] in parts
    versions = [line for line in lines if line.startswith("## ")]
    for at, line in enumerate(lines):
        if line in versions:
            end = next((i for i in range(at + 1, len(lines)) if lines[i] in versions), len(lines))
            assert len(set(lines[at + 1 : end])) == end - at - 1, line


def test_the_version_is_that_of_the_package():
    try:
        installed = metadata.version("ckptforge")
    except metadata.PackageNotFoundError:
        pytest.skip("running from the source tree")
    assert installed == ckptforge.__version__


def test_imports_go_one_way():
    """A module imports only from those before it in the order of the architecture."""
    package = Path(ckptforge.__file__).parent
    for path in package.rglob("*.py"):
        own = path.relative_to(package).with_suffix("").parts[0]
        if own in ("__init__", "__main__"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.ImportFrom)
                and node.module
                and node.module.startswith("ckptforge.")
            ):
                other = node.module.split(".")[1]
                assert ORDER.index(other) <= ORDER.index(own), f"{path} imports {node.module}"


def test_pydantic_is_imported_only_where_a_file_that_people_wrote_is_read():
    """Importing it takes longer than inspecting most checkpoints."""
    package = Path(ckptforge.__file__).parent
    names = [
        ".".join(("ckptforge", *path.relative_to(package).with_suffix("").parts))
        for path in package.rglob("*.py")
        if path.stem not in ("__init__", "__main__", "validation")
        and not path.stem.endswith("_schema")
    ]
    code = f"""
import importlib, sys
for name in {names}:
    importlib.import_module(name)
assert len(sys.modules["ckptforge.tables.shipped"].shipped_tables()) > 3
sys.exit("pydantic" in sys.modules)
"""
    assert len(names) > 100
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_public_names_exist():
    for name in ckptforge.__all__:
        assert getattr(ckptforge, name) is not None
    with pytest.raises(AttributeError):
        ckptforge.nonsense  # noqa: B018


def test_messages_below_the_command_line_spell_no_option_themselves():
    """They are read by Python callers, too: `ckptforge.spelling` says how an option or a command is
    called there."""
    package = Path(ckptforge.__file__).parent
    # --local-dir is hf's
    literal = re.compile(r"(?<![\w-])--(?!local-dir)[a-z][a-z]|`ckptforge (?!mapping list)[a-z]")
    found = []
    for path in package.rglob("*.py"):
        # The drop-ins have MindFormers' own flags, the demo shows command lines.
        if "cli" in path.relative_to(package).parts or path.name in (
            "spelling.py",
            "dropins.py",
            "mindformers_flags.py",
        ):
            continue
        tree = ast.parse(path.read_text())
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        docs = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, documented) and ast.get_docstring(node)
        }
        found += [
            f"{path.relative_to(package)}:{node.lineno}: {node.value}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in docs
            and literal.search(node.value)
        ]
    assert not found, "\n".join(found)


# What knows the file system of this machine: the store of its disks; what isn't about files that
# users name (tables in the package, a terminal's standard output); and the demo with its model.
_NO_STORE = ("storage", "remote", "testing")
_NOT_OF_USERS = (
    "kernels/library.py",
    "kernels/seal.py",
    "tables/shipped.py",
    "cli/entry.py",
    "cli/completion.py",
    "cli/demo.py",
    "cli/topics.py",
    "verbs/synthetic.py",
    "pages/document.py",
)
_OF_OS = {
    "access", "chdir", "chmod", "chown", "close", "copy_file_range", "fdatasync", "fdopen", "fstat",
    "fsync", "ftruncate", "link", "listdir", "lseek", "lstat", "makedirs", "mkdir", "open", "pread",
    "preadv", "pwrite", "pwritev", "read", "readlink", "remove", "removedirs", "rename", "renames",
    "replace", "rmdir", "scandir", "sendfile", "stat", "statvfs", "symlink", "sync", "truncate",
    "unlink", "utime", "walk", "write",
}  # fmt: skip
_OF_OS_PATH = {
    "abspath", "exists", "getmtime", "getsize", "isdir", "isfile", "islink", "ismount", "lexists",
    "realpath", "samefile", "samestat",
}  # fmt: skip
_OF_A_PATH = {
    "absolute", "chmod", "exists", "glob", "hardlink_to", "is_dir", "is_file", "is_mount",
    "is_symlink", "iterdir", "lchmod", "lstat", "mkdir", "read_bytes", "read_text", "readlink",
    "resolve", "rglob", "rmdir", "samefile", "symlink_to", "touch", "write_bytes", "write_text",
}  # fmt: skip
_MODULES = {"fcntl", "shutil", "tempfile", "mmap", "glob"}


def _file_calls(tree):
    """(line, call) of what looks like a call of the file system of this machine."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of = ast.unparse(node.func.value)
            name = node.func.attr
            if (
                (of == "os" and name in _OF_OS)
                or (of == "os.path" and name in _OF_OS_PATH)
                or (name in _OF_A_PATH and of not in ("os", "os.path"))
            ):
                yield node.lineno, f"{of}.{name}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "open":
            yield node.lineno, "open"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in _MODULES:
                    yield node.lineno, f"import {alias.name}"
        elif isinstance(node, ast.ImportFrom) and node.module in ("os", "os.path", *_MODULES):
            yield node.lineno, f"from {node.module}"


def test_files_are_reached_by_way_of_a_store():
    """Or they couldn't lie anywhere else, and nothing could fail there in tests."""
    package = Path(ckptforge.__file__).parent
    allowed = {("run/memory.py", "import mmap")}  # memory
    allowed |= {(f"cli/{name}.py", "import shutil") for name in ("progress", "table")}  # a width
    found = []
    for path in package.rglob("*.py"):
        name = path.relative_to(package).as_posix()
        if name.split("/")[0] in _NO_STORE or name in _NOT_OF_USERS:
            continue
        found += [
            f"{name}:{line}: {call}"
            for line, call in _file_calls(ast.parse(path.read_text()))
            if (name, call) not in allowed
        ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "path", ["peer/hf_hub", "mindspore/full.ckpt", "mindspore/unified", "mindspore/sharded/mp8"]
)
def test_what_is_in_a_checkpoint_is_said_without_numpy_and_pydantic(path):
    """They take longer to import than most checkpoints to inspect."""
    code = (
        "import sys, ckptforge\nckptforge.inspect(sys.argv[1])\n"
        "assert not {'numpy', 'pydantic', 'click', 'torch'} & set(sys.modules)"
    )
    path = ROOT / "tests" / "fixtures" / path
    assert path.exists()
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, cwd=ROOT)


def test_bytes_are_moved_without_numpy(tmp_path):
    code = (
        "import sys, ckptforge\nckptforge.to_ms(*sys.argv[1:], layout='dense')\n"
        "assert not {'numpy', 'pydantic', 'click', 'torch'} & set(sys.modules)"
    )
    source = ROOT / "tests" / "fixtures" / "peer" / "hf_hub"
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "out")]
    subprocess.run(command, check=True, cwd=ROOT)


NEEDS = {"forward", "testing"}  # torch, mindspore or pytest, which may not be there
LEAVES = {
    "adapters": ["adapters"],
    "clean": ["publish/clean.py"],
    "consolidated files": ["consolidated"],
    "drop-ins": ["verbs/dropins.py", "verbs/mindformers_flags.py", "cli/dropins.py"],
    "forward": ["forward"],
    "mindformers": ["mindformers"],
    "megatron": ["megatron"],
    "pages": ["pages"],
    "parallel": ["parallel", "mindformers", "megatron"],  # iterations are of ranks
    "remote": ["remote"],
    "testing": ["testing"],
    "torch files": ["torch_files", "megatron"],
}


@pytest.mark.parametrize("leaf", LEAVES)
def test_without_a_leaf_the_rest_can_be_imported(tmp_path, leaf):
    source, copy = Path(ckptforge.__file__).parent, tmp_path / "ckptforge"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for part in LEAVES[leaf]:
        shutil.rmtree(copy / part) if (copy / part).is_dir() else (copy / part).unlink()
    code = (
        "import importlib, sys\nsys.path.insert(0, sys.argv[1])\n"
        "for name in sys.argv[2:]:\n    importlib.import_module(name)\n"
        "assert importlib.import_module('ckptforge').__file__.startswith(sys.argv[1])"
    )
    modules = [
        ".".join(path.relative_to(tmp_path).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(copy.rglob("*.py"))
        if path.name != "__main__.py" and NEEDS.isdisjoint(path.relative_to(copy).parts)
    ]
    run = [sys.executable, "-P" if sys.version_info >= (3, 11) else "-s", "-c", code]
    done = subprocess.run(
        [*run, str(tmp_path), *modules], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-1000:]
