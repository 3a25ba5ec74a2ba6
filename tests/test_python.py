"""The package as a Python program uses it."""

import inspect
import os
import pydoc
import re
import rlcompleter
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest

import ckptforge
from ckptforge.errors import OutputError, UsageError
from ckptforge.spelling import command, command_line, flag, option
from ckptforge.verbs.options import ToMs
from ckptforge.verbs.options.record import options_of
from tests.helpers import HUB
from tests.test_cli import ckpt


def test_options_are_spelled_as_keywords_and_on_the_command_line_with_dashes():
    def spelled():
        return [
            flag("allow_unmapped"),
            option("strategy_dir"),
            option("from_"),
            option("layout_b", "gmm"),
            option("memory", "12 potatoes"),
            option("workers", 0),
            command("merge"),
            command("to_torch", HUB, "DIR", layout="gmm", weights_only=True),
        ]

    assert spelled() == [
        "allow_unmapped=True",
        "strategy_dir",
        "from_",
        "layout_b='gmm'",
        "memory='12 potatoes'",
        "workers=0",
        "`ckptforge.merge`",
        f"`ckptforge.to_torch('{HUB}', 'DIR', layout='gmm', weights_only=True)`",
    ]
    with command_line():
        assert spelled() == [
            "--allow-unmapped",
            "--strategy-dir",
            "--from",
            "--layout-b gmm",
            "--memory '12 potatoes'",
            "--workers 0",
            "`ckptforge merge`",
            f"`ckptforge to-torch {HUB} DIR --layout gmm --weights-only`",
        ]
    assert flag("resume") == "resume=True"


def test_the_same_error_names_a_keyword_in_python_and_an_option_on_the_command_line(tmp_path):
    out = tmp_path / "x --overwrite=1.ckpt"  # what a user calls a file is never spelled anew
    ckptforge.to_ms(HUB, out)
    with pytest.raises(OutputError) as error:
        ckptforge.to_ms(HUB, out)
    assert str(error.value) == f"{out}: exists already; give overwrite=True to replace it."
    done = ckpt("to-ms", HUB, out)
    assert done.stderr == f"ckptforge: {out}: exists already; give --overwrite to replace it.\n"


FUNCTIONS = [
    "average",
    "check",
    "clean",
    "compare",
    "convert",
    "edit",
    "extract",
    "finish",
    "inspect",
    "merge",
    "open",
    "plan",
    "reshard",
    "split",
    "stats",
    "strategy",
    "to_ms",
    "to_torch",
    "verify",
]


def parameters(name):
    return inspect.signature(getattr(ckptforge, name)).parameters.values()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_unknown_keyword_is_refused_before_anything_is_done(name, tmp_path):
    """Neither the input nor the output is looked at: neither is there."""
    needed = [
        tmp_path / "none"
        for one in parameters(name)
        if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD
    ]
    if name == "plan":
        needed[0] = "to-ms"
    keywords = {
        one.name: "x"
        for one in parameters(name)
        if one.default is one.empty and one.kind is one.KEYWORD_ONLY
    }
    function = getattr(ckptforge, name)
    with pytest.raises(
        TypeError,
        match=rf"^{'to_ms' if name == 'plan' else name}\(\) has no "
        r"keyword 'nonsense'; it has ",
    ):
        function(*needed, **keywords, nonsense=1)
    for known in [
        one.name for one in parameters(name) if one.kind is one.KEYWORD_ONLY and len(one.name) > 4
    ]:
        misspelt = known[:2] + known[3] + known[2] + known[4:]  # two letters exchanged
        if misspelt != known:
            with pytest.raises(
                TypeError,
                match=rf"{name}\(\) has no keyword '{misspelt}'; did you "
                rf"mean '{known}'\?$",
            ):
                function(*needed, **keywords, **{misspelt: None})
    assert not any(tmp_path.iterdir())


def test_a_keyword_of_another_function_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"to_ms\(\) has no keyword 'check_replicas'"):
        ckptforge.to_ms(HUB, tmp_path / "x.ckpt", check_replicas=True)
    with pytest.raises(
        TypeError,
        match=r"merge\(\) has no keyword 'check_replica'; did you mean "
        r"'check_replicas'\?",
    ):
        ckptforge.merge(HUB, tmp_path / "x.ckpt", strategy_dir="s", check_replica=True)
    for keyword in ("merge_lora", "allow_unmapped", "lora_alpha"):
        with pytest.raises(TypeError, match="has no keyword"):
            ckptforge.merge(HUB, tmp_path / "x.ckpt", strategy_dir="s", **{keyword: None})
    with pytest.raises(TypeError, match=r"strategy\(\) has no keyword 'weights_only'"):
        ckptforge.strategy(tmp_path / "s", parallel_config="p.yaml", like=HUB, weights_only=True)
    with pytest.raises(TypeError, match=r"to_torch\(\) has no keyword 'prefix'"):
        ckptforge.plan("to-torch", HUB, tmp_path / "x", prefix="a")
    with pytest.raises(TypeError, match="missing a required .*argument: 'to'"):
        ckptforge.plan("convert", HUB, tmp_path / "x")


@pytest.mark.parametrize(
    ("keyword", "value", "expected"),
    [
        ("workers", "two", "workers is 'two', expected a whole number or None."),
        ("workers", True, "workers is True, expected a whole number"),
        ("workers", 1.5, "workers is 1.5, expected a whole number"),
        ("workers", -1, "workers=-1: at least one is needed"),
        ("memory", "12 potatoes", "memory='12 potatoes': expected a size"),
        ("memory", 1e6, "memory is 1000000.0, expected a whole number or a string or None"),
        ("overwrite", "no", "overwrite is 'no', expected True or False."),
        (
            "format",
            "pickle",
            "format is 'pickle', expected 'ckpt', 'safetensors', 'unified', 'mindformers', "
            "'megatron', 'dcp', 'pt', 'pth', 'bin' or None.",
        ),
        ("prefix", None, "prefix is None, expected a string."),
        ("prefix", "a/b", "prefix='a/b': must be the beginning of a file name"),
        ("layout", 3, "layout is 3, expected a string or None."),
        ("config", 3, "config is 3, expected a path or None."),
        ("step", "7", "step is '7', expected a whole number or None."),
        ("lora_alpha", "16", "lora_alpha is '16', expected a number or None."),
        ("drop", 5, "drop is 5, expected a list of strings."),
        ("progress", 5, "progress is 5, expected a function or None."),
        ("dtype", 16, "dtype is 16, expected a string or None."),
        ("dtype", "int4", "dtype 'int4' is unknown"),
    ],
)
def test_a_value_of_a_wrong_type_is_refused_by_its_keyword(tmp_path, keyword, value, expected):
    with pytest.raises(UsageError) as error:
        ckptforge.to_ms(HUB, tmp_path / "x.ckpt", **{keyword: value})
    assert str(error.value).startswith(expected) and not any(tmp_path.iterdir())


def test_values_of_numpy_and_other_paths_are_fine(tmp_path):
    class Place:
        def __fspath__(self):
            return str(tmp_path / "x.ckpt")

    ckptforge.to_ms(
        str(HUB), Place(), workers=np.int64(1), overwrite=np.bool_(True), memory=np.int32(2**21)
    )
    assert (tmp_path / "x.ckpt").is_file()
    with pytest.raises(UsageError, match="hf_dir is b'x', expected a path"):
        ckptforge.to_ms(b"x", tmp_path / "y.ckpt")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_keyword_is_in_the_docstring_with_what_it_means(name):
    function = getattr(ckptforge, name)
    text = pydoc.plain(pydoc.render_doc(function))
    shown = text[: text.index("Arguments:")]
    for one in parameters(name):
        if one.kind is not one.VAR_KEYWORD:
            assert re.search(rf"\b{one.name}: ", shown), "in the signature"
            assert re.search(rf"^ +{one.name}: \S", text, re.M), one.name
    assert "Raises" in text and "Unpack" not in shown


def test_options_of_the_command_line_are_keywords_of_the_same_name():
    from ckptforge.cli.app import cli

    # how the command line shows results
    ours = {"html", "json", "quiet", "tensors", "report", "verbose", "_click_default_help"}
    for name in FUNCTIONS:
        command = cli.commands.get(name.replace("_", "-"))
        if command is None:  # plan is --dry-run, check is compare with one argument
            assert name in ("plan", "check", "open")
            continue
        params = command.get_params(click.Context(command))
        options = {one.name for one in params if one.param_type_name == "option"} - ours
        if name in ("compare", "inspect", "stats", "verify"):
            options.remove("overwrite")  # of the page
        known = {one.name for one in parameters(name)}
        assert options <= known, options - known
        own = {"command", "edits", "executor", "progress", "say"}
        assert known - options - {one.name for one in params} <= own


def test_tab_completion_shows_what_is_public_and_nothing_else():
    found = rlcompleter.Completer({"ckptforge": ckptforge})
    shown = []
    while (one := found.complete("ckptforge.", len(shown))) is not None:
        shown.append(one.removeprefix("ckptforge.").rstrip("("))
    errors = [
        name
        for name, one in vars(ckptforge.errors).items()
        if isinstance(one, type) and issubclass(one, Exception)
    ]
    types = ["Check", "Cleaned", "Comparison", "Inspection", "OpenedModel", "Plan", "Result"]
    types += ["SideBySide", "Statistics", "Verification"]
    assert sorted(name for name in shown if not name.startswith("_")) == sorted(
        [*FUNCTIONS, *types, *errors]
    )
    assert sorted(dir(ckptforge)) == sorted(ckptforge.__all__)


def test_help_shows_every_function_with_its_keywords():
    code = "import ckptforge, pydoc; print(pydoc.plain(pydoc.render_doc(ckptforge)))"
    text = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    functions = text[text.index("\nFUNCTIONS") :]
    for name in FUNCTIONS:
        assert re.search(rf"^    {name}\(\n?.*{next(iter(parameters(name))).name}", functions, re.M)
    assert (
        "class UsageError(CkptforgeError)" in text
        and "check_replicas: compare all replicas" in functions
    )


def test_exceptions_and_results_are_exported_and_importing_stays_light():
    code = (
        "import sys, ckptforge\nfor name in dir(ckptforge):\n if name.endswith('Error'): assert "
        "issubclass(getattr(ckptforge, name), "
        "ckptforge.CkptforgeError)\nassert not {'numpy', 'msgspec', 'click', 'inspect'} & "
        "set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-S", "-c", code], check=True, cwd=Path(ckptforge.__file__).parents[1]
    )
    assert ckptforge.OutputError is OutputError and ckptforge.UsageError is UsageError


def test_mypy_sees_real_types_and_a_misspelt_keyword(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "mine.py").write_text(
        "import ckptforge\n"
        'result = ckptforge.to_ms("hf", "x.ckpt", layout="gmm", workers=2)\n'
        "reveal_type(result.bytes)\n"
        'same = ckptforge.compare("hf", "x.ckpt")\n'
        "reveal_type(same.differences[0].max_abs)\n"
        'ckptforge.merge("ranks", "m.ckpt", strategy_dir="s", check_replica=True)\n'
        'ckptforge.to_ms("hf", "x.ckpt", wokers=2)\n'
        'ckptforge.to_ms("hf", "x.ckpt", workers="two")\n'
        "try:\n    pass\nexcept ckptforge.OutputError as error:\n    reveal_type(error)\n"
    )
    here = Path(ckptforge.__file__).parents[1]
    # What `verify` imports is large, and not needed here.
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = True\nfollow_imports = silent\n"
        "[mypy-torch.*,transformers.*,mindspore.*,tomli.*]\nfollow_imports = "
        "skip\nignore_missing_imports = True\n"
    )
    # mypy finds an installed package by itself, and refuses to be told of site-packages.
    env = {key: value for key, value in os.environ.items() if key != "MYPYPATH"} | (
        {} if here.name == "site-packages" else {"MYPYPATH": str(here)}
    )
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", tmp_path / "cache", "mine.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=env,
    )
    found = ran.stdout
    assert not ran.stderr and ran.returncode == 1, ran.stderr
    errors = [
        line for line in found.splitlines() if ": error:" in line and line.startswith("mine.py")
    ]
    assert (
        'mine.py:3: note: Revealed type is "' in found
        and "int" in found.split("mine.py:3:")[1].split("\n")[0]
    )
    assert (
        "float" in found.split("mine.py:5:")[1].split("\n")[0]
        and "OutputError" in found.split("mine.py:12:")[1].split("\n")[0]
    )
    assert [int(line.split(":")[1]) for line in errors] == [6, 7, 8], found
    assert "check_replica" in errors[0] and "wokers" in errors[1] and "workers" in errors[2]


def test_the_types_are_shipped():
    assert (Path(ckptforge.__file__).parent / "py.typed").is_file()


def test_results_are_true_where_all_is_well_and_their_reprs_are_short(tmp_path):
    out = tmp_path / ("long" * 20) / "x.ckpt"
    out.parent.mkdir()
    result = ckptforge.to_ms(HUB, out)
    same, found = ckptforge.compare(HUB, out), ckptforge.inspect(out)
    checked, plan = ckptforge.check(out), ckptforge.plan("to-ms", HUB, tmp_path / "y.ckpt")
    content = bytearray(out.read_bytes())
    content[-1] ^= 1
    out.write_bytes(content)
    other, changed = ckptforge.compare(HUB, out), ckptforge.check(out)
    assert same and checked and not other and not changed
    assert repr(same).endswith(": equal>") and repr(other).endswith(": different, 1 tensor of 23>")
    assert repr(changed).endswith(": different, 1 problem, 23 tensors>")
    assert (
        repr(plan)
        == f"<Plan of to-ms: …{str(tmp_path / 'y.ckpt')[-59:]}, 23 tensors, {plan.nbytes} bytes>"
        or len(str(tmp_path)) < 52
    )
    cleaned = ckptforge.clean(tmp_path)
    for one in (result, same, other, found, checked, changed, plan, cleaned):
        assert (
            repr(one).startswith(f"<{type(one).__name__} ")
            and len(repr(one)) < 200
            and "\n" not in repr(one)
        )
    assert f"mixtral dense, 23 tensors, {found.bytes} bytes>" in repr(found)


def test_a_tensor_of_an_inspection_has_dtype_and_shape():
    found = ckptforge.inspect(HUB)
    name = "model.layers.0.block_sparse_moe.gate.weight"
    assert found.entries[name].dtype == "bfloat16" and found.entries[name].shape == (8, 64)
    assert found.to_json()["entries"][name] == ["bfloat16", [8, 64]]


def test_the_page_on_python_names_all_that_is_public():
    page = Path(__file__).parents[1] / "docs" / "python.md"
    if not page.is_file():
        pytest.skip("running without the docs")
    text = page.read_text()
    rows = {
        line.split("(")[0].removeprefix("| `"): line
        for line in text.splitlines()
        if re.match(r"\| `\w+\(", line)
    }
    shared = re.findall(
        r"^\| `(\w+)` \|", text[text.index("## Shared") : text.index("## Results")], re.M
    )
    assert set(rows) == set(FUNCTIONS)
    for name, row in rows.items():
        known = [one.name for one in parameters(name) if one.kind is not one.VAR_KEYWORD]
        named = re.findall(r"\w+", row)
        if "all shared" in row:
            but = re.findall(r"`(\w+)`", row.partition("all shared")[2].partition("|")[0])
            named = [one for one in [*named, *shared] if one not in but]
        assert set(known) <= set(named), set(known) - set(named)
    for name in ckptforge.__all__:
        assert name.startswith("_") or name in text, name


def test_the_page_on_python_says_what_the_options_mean():
    page = Path(__file__).parents[1] / "docs" / "python.md"
    if not page.is_file():
        pytest.skip("running without the docs")
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", page.read_text(), re.M)
    said = {name: one.text for name, one in options_of(ToMs).items()}
    shown = {name: meaning for name, meaning in rows if name in said}
    assert len(shown) == 28 and shown == {name: said[name] for name in shown}
