"""The command line as its users script it, in processes of its own."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile

import pytest
from click.testing import CliRunner

import ckptforge
from ckptforge.cli import demo
from ckptforge.cli.app import cli
from tests.helpers import HUB, MINDSPORE, contents, tiny_config, with_default_signals, write_hub


def ckpt(*args, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "ckptforge", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        **kwargs,
    )


def test_a_conversion_prints_its_result_on_stdout_and_nothing_else(tmp_path):
    done = ckpt("to-ms", HUB, tmp_path / "x.ckpt", "--layout", "gmm", "--dtype", "fp16")
    assert done.returncode == 0 and done.stderr == ""
    assert (
        "mixtral: hub → gmm" in done.stdout
        and "wrote" in done.stdout
        and "underflowed" in done.stdout
    )
    assert len(contents(tmp_path / "x.ckpt")) == 23


def test_json_is_one_object(tmp_path):
    done = ckpt("to-ms", HUB, tmp_path / "x.ckpt", "--json")
    found = json.loads(done.stdout)
    assert (
        found["ok"] is True
        and found["tensors"] == 23
        and found["to"] == "dense"
        and found["left_out"] == {}
    )
    assert found["files"] == [str(tmp_path / "x.ckpt"), str(tmp_path / "x.ckpt.manifest.json")]
    again = ckpt("to-ms", HUB, tmp_path / "x.ckpt", "--json")
    failed = json.loads(again.stdout)
    assert (
        again.returncode == 1 and failed["ok"] is False and failed["error"]["type"] == "OutputError"
    )
    assert "--overwrite" in failed["error"]["message"]


def test_options_with_dashes_and_underscores(tmp_path):
    for dry, shard in (("--dry_run", "--max_shard_size"), ("--dry-run", "--max-shard-size")):
        ckpt("to-ms", HUB, tmp_path / "x.ckpt", "--overwrite")
        done = ckpt("to-torch", tmp_path / "x.ckpt", tmp_path / "hf", dry, shard, "200KB", "--json")
        found = json.loads(done.stdout)
        assert (
            found["dry_run"] is True
            and len([f for f in found["files"] if f.endswith(".safetensors")]) == 5
        )
        assert not (tmp_path / "hf").exists()
    assert ckpt("to_ms", HUB, tmp_path / "y.ckpt").returncode == 0


def test_quiet(tmp_path):
    done = ckpt("to-ms", HUB, tmp_path / "x.ckpt", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["to-ms", "none", "x.ckpt"], 1),
        (["to-ms", "none"], 2),
        (["to-ms", str(HUB), "x.ckpt", "--layout", "nonsense"], 2),
        (["to-ms", str(HUB), "x.ckpt", "--dtype", "int4"], 2),
        (["to-ms", str(HUB), "x.ckpt", "--memory", "lots"], 2),
        (["to-ms", str(HUB), "x.ckpt", "--nonsense"], 2),
        (["convert", str(HUB), "x.ckpt"], 2),
        (["nonsense"], 2),
        (["to-ms", str(HUB), "x.ckpt", "--model", "nonsense"], 2),
        (["to-ms", str(HUB), ""], 2),
        (["to-ms", str(HUB), "x.ckpt", "--steal"], 2),
        (["to-ms", str(HUB), "/proc/x.ckpt"], 1),
        (["average", "x", str(HUB), "--last", "0"], 2),
        (["stats", str(HUB), "--html", ""], 2),
        (["inspect", str(MINDSPORE / "bad" / "crc_mismatch.ckpt")], 1),
        (["inspect", str(MINDSPORE / "bad" / "truncated_mid.ckpt")], 1),
        (["to-torch", str(MINDSPORE / "bad" / "truncated_at_boundary.ckpt"), "hf"], 1),
    ],
)
def test_exit_codes_without_tracebacks(tmp_path, args, code):
    done = ckpt(*args, cwd=tmp_path)
    assert (
        done.returncode == code
        and done.stdout == ""
        and done.stderr
        and "Traceback" not in done.stderr
    )
    assert list(tmp_path.iterdir()) == []


def test_whether_a_directory_can_be_read_is_for_the_verbs_to_say(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    assert CliRunner().invoke(cli, ["inspect", str(tmp_path)]).exit_code == 1


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["to-ms"],
        ["to-torch"],
        ["convert"],
        ["merge"],
        ["split"],
        ["reshard"],
        ["strategy"],
        ["compare"],
        ["verify"],
        ["convert-weight"],
        ["transform-ckpt"],
        ["inspect"],
        ["demo"],
    ],
)
def test_every_help_has_an_example_and_needs_no_numpy(command):
    code = (
        "import sys\nfrom ckptforge.cli import main\ntry:\n main()\nexcept SystemExit as e:\n "
        "assert not e.code\n"
    )
    code += (
        "assert not {'numpy', 'msgspec', 'torch', 'mindspore'} & set(sys.modules), 'heavy import'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (
        f"ckptforge {command[0]}" in done.stdout.split("Examples:")[1]
        if command
        else "to-torch" in done.stdout
    )


def test_a_conversion_imports_neither_torch_nor_mindspore(tmp_path):
    code = "import sys, ckptforge; ckptforge.to_ms(*sys.argv[1:], dtype='fp16', layout='gmm'); "
    code += (
        "assert not {'torch', 'mindspore', 'transformers', 'google.protobuf'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(HUB), str(tmp_path / "x.ckpt")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signals_end_the_run_which_can_be_resumed(tmp_path, which, code):
    sizes = {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_local_experts": 8,
        "num_hidden_layers": 4,
        "vocab_size": 64,
    }
    write_hub(tmp_path / "hub", tiny_config(**sizes))
    script = (
        "import time, ckptforge.run.tasks as s\nfrom ckptforge.cli import main\nreal = "
        "s.write_exactly\n"
        "def slow(*a):\n print('writing', flush=True); time.sleep(0.05); real(*a)\ns.write_exactly "
        "= slow\nmain()\n"
    )
    call = [
        "to-ms",
        str(tmp_path / "hub"),
        str(tmp_path / "out" / "x.ckpt"),
        "--layout",
        "gmm",
        "--memory",
        "1MiB",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *call],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=with_default_signals,
    )
    assert process.stdout is not None
    for _ in range(8):
        process.stdout.readline()
    process.send_signal(which)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code, errors
    assert "Traceback" not in errors and re.search(
        r"\d+ of 43 tensors are finished and kept in "
        r".*/out/.x.ckpt.ckptforge",
        errors,
    )
    assert os.listdir(tmp_path / "out") == [".x.ckpt.ckptforge"]
    refused = ckpt(*call)
    assert refused.returncode == 1 and "continue with --resume" in refused.stderr
    assert ckpt(*call, "--resume").returncode == 0
    assert (
        ckpt("to-ms", str(tmp_path / "hub"), str(tmp_path / "y.ckpt"), "--layout", "gmm").returncode
        == 0
    )
    assert (tmp_path / "out" / "x.ckpt").read_bytes() == (tmp_path / "y.ckpt").read_bytes()
    assert sorted(os.listdir(tmp_path / "out")) == ["x.ckpt", "x.ckpt.manifest.json"]
    assert (
        "--resume"
        not in json.loads((tmp_path / "out" / "x.ckpt.manifest.json").read_text())["command"]
    )


def test_inspect_shows_what_is_there():
    done = ckpt("inspect", HUB)
    for text in (
        "hugging face directory",
        "mixtral",
        "hub",
        "447,808",
        "bfloat16: 65 tensors",
        "model-00001-of-00002.safetensors",
    ):
        assert text in done.stdout
    found = json.loads(ckpt("inspect", MINDSPORE / "full.ckpt", "--json").stdout)
    assert (
        found["layout"] == "dense"
        and found["tensors"] == 73
        and found["state"] == 50
        and found["axes"]["e"] == 4
    )
    assert found["parameters"] == 23 or found["parameters"] > 1000
    assert (
        "Float32" not in json.dumps(found["dtypes"])
        and found["dtypes"]["bfloat16"]["tensors"] == 16
    )
    listed = ckpt("inspect", MINDSPORE / "misc" / "dtypes.ckpt", "--tensors")
    assert (
        "not recognised" in listed.stdout
        and "t_bfloat16" in listed.stdout
        and "qint4x2" in listed.stdout
    )
    assert "stored crc32 is right" in ckpt("inspect", MINDSPORE / "misc" / "crc.ckpt").stdout


def test_inspect_counts_ranks(tmp_path):
    for rank in range(3):
        (tmp_path / f"rank_{rank}").mkdir()
        (tmp_path / f"rank_{rank}" / f"c_{rank}.ckpt").write_bytes(
            (MINDSPORE / "misc" / "append.ckpt").read_bytes()
        )
    found = ckptforge.inspect(tmp_path)
    assert [rank.rank for rank in found.ranks] == [0, 1, 2]
    assert found.ranks[2].file == "rank_2/c_2.ckpt"
    assert ckpt("to-torch", tmp_path, tmp_path / "hf").returncode == 1


def test_the_demo_does_what_it_says(tmp_path):
    done = ckpt("demo", tmp_path / "demo")
    assert (
        done.returncode == 0
        and done.stdout.count("ok: ") == 5 + ("$ ckptforge verify" in done.stdout)
        and "FAILED" not in done.stdout
    )
    assert ("skipped: ckptforge verify" in done.stdout) != (
        "passed: MindSpore computes" in done.stdout
    )
    assert (
        "is kept in" in done.stdout
        and len(done.stdout.splitlines()) < 36
        and max(map(len, done.stdout.splitlines())) < 100 + len(str(tmp_path))
    )
    assert (tmp_path / "demo" / "gmm.ckpt").is_file() and (
        tmp_path / "demo" / "job.json"
    ).read_text().strip() in done.stdout
    assert ckpt("demo", tmp_path / "demo").returncode == 1
    found = json.loads(ckpt("demo", tmp_path / "demo", "--overwrite", "--json").stdout)
    assert (
        found["ok"] is True
        and all(found["checks"].values())
        and found["directory"] == str(tmp_path / "demo")
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("")
    assert (
        ckpt("demo", tmp_path / "mine", "--overwrite").returncode == 1
        and (tmp_path / "mine" / "file").exists()
    )


@pytest.fixture
def without_verify(monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)


def test_the_commands_of_the_demo_are_those_that_it_ran_and_can_be_pasted(
    tmp_path, without_verify, monkeypatch
):
    lines = []
    found = demo.run_demo(tmp_path / "demo", False, lines.append)
    assert [line[2:] for line in lines if line.startswith("$ ")] == found["commands"]
    verbs = [command.split()[1] for command in found["commands"]]
    assert verbs == [
        "to-ms",
        "convert",
        "to-ms",
        "to-torch",
        "to-ms",
        "strategy",
        "merge",
        "compare",
    ]
    written = {
        name: (tmp_path / "demo" / name).read_bytes()
        for name in ("dense.ckpt", "gmm.ckpt", "merged.ckpt")
    }
    monkeypatch.chdir(tmp_path / "demo")
    for command in found["commands"]:
        program, *words = shlex.split(command)
        again = [] if words[0] == "compare" else ["--overwrite"]
        assert program == "ckptforge" and CliRunner().invoke(cli, words + again).exit_code == 0, (
            command
        )
    assert written == {name: (tmp_path / "demo" / name).read_bytes() for name in written}
    assert len("\n".join(lines).splitlines()) <= 28


def test_the_demo_without_a_directory_keeps_nothing_and_says_so(
    tmp_path, without_verify, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    lines = []
    found = demo.run_demo(None, False, lines.append)
    assert (
        "nothing is kept" in lines[0]
        and "`ckptforge demo DIR`" in lines[0]
        and found["directory"] is None
    )
    assert list(tmp_path.iterdir()) == []


def test_what_the_demo_lacks_is_said_in_words(monkeypatch):
    said = []
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name != "torch" else object())
    runner = demo._Demo.__new__(demo._Demo)
    assert runner.verify() is None
    said.append(runner.skipped)
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == "mindspore" else object())
    runner.verify()
    said.append(runner.skipped)
    hint = "(pip install '.[torch,mindspore]' in a clone of ckptforge)"
    assert said == [
        f"ckptforge verify: mindspore and transformers aren't installed {hint}",
        f"ckptforge verify: mindspore isn't installed {hint}",
    ]


def test_a_progress_bar_on_a_terminal_and_none_in_a_pipe(tmp_path):
    script = (
        "import os, pty, sys\nsys.exit(os.waitstatus_to_exitcode(pty.spawn([sys.executable, '-m', "
        "'ckptforge', 'to-ms', *sys.argv[1:]])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(HUB), str(tmp_path / "x.ckpt")],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0 and "copying" in done.stdout and "B/s" in done.stdout
    assert "copying" not in ckpt("to-ms", HUB, tmp_path / "y.ckpt").stderr


def test_merge_split_and_reshard(tmp_path):
    strategies, sharded = MINDSPORE / "strategies", MINDSPORE / "sharded"
    merged = ckpt(
        "merge",
        sharded / "mp8",
        tmp_path / "m.ckpt",
        "--strategy_dir",
        strategies / "mp8",
        "--check-replicas",
    )
    assert merged.returncode == 0 and "8 ranks → one" in merged.stdout
    assert (tmp_path / "m.ckpt").read_bytes() == (MINDSPORE / "full.ckpt").read_bytes()
    done = ckpt(
        "split",
        tmp_path / "m.ckpt",
        tmp_path / "s",
        "--strategy-dir",
        strategies / "pp2mp2",
        "--prefix",
        "ckpt_",
        "--json",
    )
    assert json.loads(done.stdout)["to"] == "4 ranks"
    args = [
        "--src_strategy_dir",
        strategies / "pp2mp2",
        "--dst_strategy_dir",
        strategies / "dp2mp2",
        "--prefix",
        "ckpt_",
    ]
    assert ckpt("reshard", tmp_path / "s", tmp_path / "r", *args).returncode == 0
    for rank in range(4):
        assert contents(tmp_path / "r" / f"rank_{rank}") == contents(
            sharded / "dp2mp2" / f"rank_{rank}"
        )
    wrong = ckpt(
        "merge", sharded / "mp8", tmp_path / "x.ckpt", "--strategy_dir", strategies / "dp2mp2"
    )
    assert (
        wrong.returncode == 1
        and "holds 8 ranks" in wrong.stderr
        and not (tmp_path / "x.ckpt").exists()
    )
    unsaid = ckpt("merge", sharded / "mp8", tmp_path / "x.ckpt")
    assert (
        unsaid.returncode == 1
        and "Give the strategy of their job with --strategy-dir" in unsaid.stderr
    )


def test_inspect_shows_which_rank_holds_what():
    done = ckpt(
        "inspect",
        MINDSPORE / "sharded" / "pp2mp2",
        "--strategy_dir",
        MINDSPORE / "strategies" / "pp2mp2",
    )
    assert done.returncode == 0 and "layout      dense" in done.stdout
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["lm_head.weight", "[80,", "32]", "[0:40,", "0:32]", "2"] in lines and [
        "[40:80,",
        "0:32]",
        "3",
    ] in lines
    assert ["global_step", "[1]", "[0:1]", "0", "1", "2", "3"] in lines
    found = ckptforge.inspect(
        MINDSPORE / "sharded" / "mp8", strategy_dir=MINDSPORE / "strategies" / "mp8"
    )
    (head,) = [part for part in found.parts if part.tensor == "lm_head.weight"]
    assert head.boxes[7] == [[70, 80], [0, 32]]
    assert found.layout == "dense" and found.tensors == 73
