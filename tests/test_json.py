"""What --json prints is what docs/json.md says: the same fields, of the same types."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from ckptforge.cli.app import cli
from ckptforge.cli.console import SCHEMA, json_text
from ckptforge.forward.checks import EndCheck, LayerCheck
from ckptforge.verbs.verify import Verification
from tests.helpers import HUB, MINDSPORE, tiny_config, write_hub
from tests.test_command_line import run

PAGE = (Path(__file__).parents[1] / "docs" / "json.md").read_text()
TYPES = {
    "string": str,
    "integer": int,
    "number": (int, float, str),
    "boolean": bool,
    "object": dict,
    "any": object,
    "null": type(None),
}


def documented(section):
    """path → (types, whether it is always there) of a section of the page."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?`) \| (.*?) \| (.*?) \|$", text, re.M)
    return {
        path: (types.split(" or "), not meaning.startswith("Only "))
        for paths, types, meaning in rows
        for path in re.findall("`(.*?)`", paths)
    }


WRITING = (
    "to-ms, to-torch, convert, merge, split, reshard, strategy, extract, average, edit, "
    "convert-weight, transform-ckpt"
)
COMMON = documented("Every object")


def observed(value, path, maps, found):
    """Adds every leaf, and every object and array that is empty, as path → values; objects with
    names as keys have `*`."""
    if isinstance(value, dict) and (value or path in maps):
        for key, inner in value.items():
            observed(
                inner, f"{path}.*" if path in maps else f"{path}.{key}".lstrip("."), maps, found
            )
    elif isinstance(value, list):
        for inner in value:
            observed(inner, f"{path}[]", maps, found)
    else:
        found.setdefault(path, []).append(value)
    if isinstance(value, (dict, list)):
        found.setdefault(path, [])


def check(section, content):
    assert content["schema"] == SCHEMA and content["ok"] is (
        content["result"] in ("done", "same", "passed")
    )
    expected = {**COMMON, **documented(section)}
    maps = {path.split(".*")[0] for path in expected if ".*" in path}
    containers = {path[:i] for path in expected for i in range(len(path)) if path[i] in ".["}
    anything = tuple(path for path, (types, _) in expected.items() if "any" in types)
    found = {}
    observed(content, "", maps, found)
    extra = {
        path
        for path in found
        if path
        and path not in expected
        and path not in containers
        and not path.startswith(anything)
    }
    assert not extra, "fields that the page doesn't have"
    fields = {path: re.split(r"[.\[]", path)[0] for path in expected}
    sometimes = {fields[path] for path, (_, always) in expected.items() if not always}
    for path, (types, _) in expected.items():
        assert fields[path] in found or fields[path] in sometimes, (
            f"{path} is on the page, but isn't printed"
        )
        for value in found.get(path, ()):
            fitting = any(
                isinstance(value, TYPES[name])
                and (name in ("boolean", "any") or not isinstance(value, bool))
                for name in types
            )
            assert fitting, (path, value, types)
    return content


def invoke(*words, code=0):
    done = CliRunner().invoke(cli, [*map(str, words), "--json"])
    assert done.exit_code == code, (done.output, done.exception)
    return json.loads(done.stdout, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))


def test_verbs_that_write(tmp_path):
    strategies, sharded = MINDSPORE / "strategies", MINDSPORE / "sharded"
    (tmp_path / "job.json").write_text('{"data_parallel": 2}')
    for words in (
        ["to-ms", HUB, tmp_path / "x.ckpt", "--dtype", "fp16"],
        ["to-ms", HUB, tmp_path / "y.ckpt", "--dtype", "fp16", "--dry-run"],
        ["to-ms", HUB, tmp_path / "p.ckpt", "--part", "1/2", "--dry-run"],
        ["to-ms", HUB, tmp_path / "p.ckpt", "--part", "1/2"],
        ["to-torch", MINDSPORE / "full.ckpt", tmp_path / "hf", "--allow-no-config"],
        ["convert", tmp_path / "x.ckpt", tmp_path / "g.ckpt", "--to", "gmm"],
        ["merge", sharded / "mp8", tmp_path / "m.ckpt", "--strategy-dir", strategies / "mp8"],
        ["split", tmp_path / "m.ckpt", tmp_path / "s", "--strategy-dir", strategies / "pp2mp2"],
        [
            "reshard",
            sharded / "mp8",
            tmp_path / "r",
            "--src-strategy-dir",
            strategies / "mp8",
            "--dst-strategy-dir",
            strategies / "pp2mp2",
        ],
        ["extract", HUB, "lm_head.weight", tmp_path / "head.npy"],
        ["edit", HUB, tmp_path / "ed", "--take", "e=0,1"],
        ["average", tmp_path / "av", HUB, HUB],
        ["strategy", tmp_path / "st", "--parallel-config", tmp_path / "job.json", "--like", HUB],
        [
            "convert-weight",
            "--model",
            "mixtral",
            "--input_path",
            HUB,
            "--output_path",
            tmp_path / "w.ckpt",
        ],
        [
            "transform-ckpt",
            "--src_ckpt_strategy",
            strategies / "mp8",
            "--src_ckpt_dir",
            sharded / "mp8",
            "--dst_ckpt_dir",
            tmp_path / "t",
        ],
    ):
        check(WRITING, invoke(*words))
    check("inspect", invoke("inspect", tmp_path / "x.ckpt"))
    assert check("compare OUT", invoke("compare", tmp_path / "x.ckpt"))["result"] == "same"
    assert (
        check("compare A B", invoke("compare", HUB, tmp_path / "x.ckpt", "--after-cast", "fp16"))[
            "result"
        ]
        == "same"
    )
    check("clean", invoke("clean", tmp_path))


def test_inspect(tmp_path):
    check("inspect", invoke("inspect", HUB))
    check(
        "inspect",
        invoke(
            "inspect",
            MINDSPORE / "sharded" / "mp8",
            "--strategy-dir",
            MINDSPORE / "strategies" / "mp8",
        ),
    )
    assert check("inspect", invoke("inspect", MINDSPORE / "sharded" / "mp8"))["ranks"]


def test_different_and_unreadable_have_one_exit_code_and_two_results(tmp_path, capsys, monkeypatch):
    write_hub(tmp_path / "a", tiny_config(), seed=1)
    write_hub(tmp_path / "b", tiny_config(rms_norm_eps=1e-3), seed=2)
    different = check("compare A B", invoke("compare", tmp_path / "a", tmp_path / "b", code=1))
    assert (
        different["result"] == "different"
        and different["error"]["type"] == "Different"
        and different["differences"][0]["count"]
    )
    code, out, _ = run(capsys, monkeypatch, "compare", tmp_path / "a", tmp_path / "none", "--json")
    error = json.loads(out)
    assert (
        code == 1
        and set(error) == {"schema", "ok", "result", "error"}
        and error["result"] == "error"
        and error["ok"] is False
    )
    assert error["error"]["type"] == "InputNotFoundError" and set(error["error"]) == {
        "type",
        "message",
    }
    code, out, _ = run(capsys, monkeypatch, "compare", "--nonsense", "--json")
    assert (
        code == 2 and json.loads(out)["result"] == "error" and json.loads(out)["schema"] == SCHEMA
    )


def test_what_was_left(tmp_path):
    left = tmp_path / ".x.ckpt.ckptforge"
    (left / "out").mkdir(parents=True)
    (left / "lock").touch()
    assert len(check("clean", invoke("clean", tmp_path, "--dry-run"))["left"]) == 1


def test_stats():
    check("stats", invoke("stats", HUB))
    check("stats", invoke("stats", MINDSPORE / "full.ckpt", "--layout", "gmm"))


def test_mapping_commands():
    check("mapping list", invoke("mapping", "list"))
    check("mapping show", invoke("mapping", "show", "mixtral"))
    check("mapping check", invoke("mapping", "check", "mixtral"))
    check("mapping check", invoke("mapping", "check", "mixtral", "--config", HUB))


def test_demo(monkeypatch):
    monkeypatch.setattr("ckptforge.cli.demo.find_spec", lambda name: None)
    check("demo", invoke("demo"))


def test_verify():
    layer = LayerCheck(
        layer=0,
        worst=1e-6,
        router=math.inf,
        gate=2e-5,
        flips_within=0,
        flips_beyond=0,
        least_margin=0.1,
        reached=[1, 2],
    )
    end = EndCheck(relative_l2=math.nan, gate=1e-4, noise=None, top1=1.0, kl=0.0)
    found = Verification("hf", "ms", "gmm", "CPU", "fp32", 3, [layer], end, [], [[1], [1]], [])
    content = json.loads(
        json_text({**found.to_json(), "schema": SCHEMA, "ok": False, "result": "failed"})
    )
    check("verify", content)
    assert content["end"]["relative_l2"] == "NaN" and content["layers"][0]["router"] == "Infinity"


def test_a_name_that_is_no_text_and_a_number_that_is_not_finite_are_still_json():
    text = json_text({"a": [-math.inf, {"b": math.nan}], "c": (1.5, "\udc80")})
    assert json.loads(text.encode("utf-8", "backslashreplace")) == {
        "a": ["-Infinity", {"b": "NaN"}],
        "c": [1.5, "\udc80"],
    }
