"""How the command line speaks: suggestions, colours, --verbose, progress in logs, completion."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

import ckptforge
from ckptforge.cli import entry
from ckptforge.cli.app import cli
from ckptforge.cli.progress import Bars, Lines, duration
from ckptforge.cli.topics import topics
from tests.helpers import HUB, tiny_config, write_hub

ROOT = Path(__file__).parents[1]


def run(capsys, monkeypatch, *words):
    """(exit code, stdout, stderr) of a command in this process, errors as the entry point prints
    them."""
    monkeypatch.setattr(sys, "argv", ["ckptforge", *map(str, words)])
    monkeypatch.setattr(entry.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        entry.main()
    out, err = capsys.readouterr()
    return ended.value.code, out, err


@pytest.mark.parametrize(
    ("words", "suggested"),
    [
        (["tosm"], "'to-ms'"),
        (["to-mss", "a", "b"], "'to-ms'"),
        (["to-ms", "a", "b", "--layuot", "gmm"], "'--layout'"),
        (["to-ms", "a", "b", "--verbos"], "'--verbose'"),
        (["to-ms", HUB, "b", "--layout", "gm"], "'gmm'"),
        (["to-ms", HUB, "b", "--layout", "GMM"], "'gmm'"),
        (["to-ms", HUB, "b", "--dtype", "bfl16"], "'bf16'"),
        (["to-ms", HUB, "b", "--model", "mixtrl"], "'mixtral'"),
        (["convert", HUB, "b", "--to", "fussed"], "'fused'"),
        (["split", "a", "b", "--format", "ckp"], "'ckpt'"),
        (["mapping", "show", "mixtrall"], "'mixtral'"),
        (["mapping", "lst"], "'list'"),
    ],
)
def test_the_nearest_name_is_suggested_for_commands_options_and_values(
    tmp_path, capsys, monkeypatch, words, suggested
):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, monkeypatch, *words)
    assert (code, out) == (2, "") and err.rstrip().endswith(f"Did you mean {suggested}?")


@pytest.mark.parametrize(
    "option",
    [
        "--overwrit",
        "--over-write",
        "--allow-unmaped",
        "--alow-overflow",
        "--no-hsh",
        "--weights-onli",
    ],
)
def test_nothing_that_overwrites_or_allows_is_suggested(capsys, monkeypatch, option):
    code, _, err = run(capsys, monkeypatch, "to-ms", "a", "b", option)
    assert code == 2 and f"No such option '{option}'" in err
    assert not re.search("mean '--(overwrite|allow|no-|weights)", err)


def test_no_command_shows_the_help_and_version_the_version(capsys, monkeypatch):
    assert "Commands:" in "".join(run(capsys, monkeypatch)[1:])
    assert (
        run(capsys, monkeypatch, "version")[:2]
        == (0, "ckptforge 0.1.0\n")
        == run(capsys, monkeypatch, "--version")[:2]
    )


def test_help_ends_with_how_options_are_written():
    text = CliRunner().invoke(cli, ["--help"]).output
    assert text.rstrip().endswith(
        "Options are written with - or with _: --dry-run and --dry_run are the same."
    )


def test_help_texts_spell_options_with_dashes():
    def commands(group, path):
        for name in group.commands:
            command = group.commands[name]
            yield [*path, name]
            if hasattr(command, "commands"):
                yield from commands(command, [*path, name])

    for path in commands(cli, []):
        if path not in (["convert-weight"], ["transform-ckpt"]):  # MindFormers' own flags
            text = CliRunner().invoke(cli, [*path, "--help"]).output
            assert not re.search(r"--\w+_\w", text), (path, re.findall(r"--\w+_\w+", text))


@pytest.mark.parametrize(
    ("environment", "on_a_terminal", "red"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "0"}, False, False),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, True, False),
    ],
)
def test_errors_and_differences_are_red_on_a_terminal(
    tmp_path, capsys, monkeypatch, environment, on_a_terminal, red
):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: on_a_terminal)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: on_a_terminal)
    code, _, err = run(capsys, monkeypatch, "inspect", tmp_path / "none", "--quiet")
    assert code == 1 and err.startswith("\x1b[31mckptforge: ") == red and ("\x1b" in err) == red
    assert (
        run(capsys, monkeypatch, "nonsense")[2].splitlines()[-1].startswith("\x1b[31mError") == red
    )
    write_hub(tmp_path / "a", tiny_config(), seed=1)
    write_hub(tmp_path / "b", tiny_config(), seed=2)
    code, out, _ = run(capsys, monkeypatch, "compare", tmp_path / "a", tmp_path / "b")
    assert (
        code == 1
        and out.splitlines()[-1].startswith("\x1b[31mdifferent: ") == red
        and ("\x1b" in out) == red
    )


def test_verbose_says_what_is_found_and_why_on_stderr(tmp_path, capsys, monkeypatch):
    code, out, err = run(
        capsys, monkeypatch, "to-ms", HUB, tmp_path / "x.ckpt", "--verbose", "--json"
    )
    assert (
        code == 0
        and json.loads(out)["ok"]
        and all(re.match(r"\[ *\d+\.\d\d s\] ", line) for line in err.splitlines())
    )
    for word in (
        "opened",
        "hugging face directory",
        "65 tensors",
        "model mixtral",
        "model_type",
        "layout hub",
        "manifest",
        "plan",
        "workers",
        "copied",
    ):
        assert word in err, word
    code, _, err = run(capsys, monkeypatch, "inspect", tmp_path / "x.ckpt", "--verbose")
    assert "manifest" in err and "x.ckpt.manifest.json" in err and "layout dense" in err


def test_nothing_is_logged_unasked_and_libraries_see_the_logger(tmp_path, caplog):
    import ckptforge

    with caplog.at_level(logging.DEBUG, "ckptforge"):
        ckptforge.inspect(HUB)
    assert any("layout hub" in record.getMessage() for record in caplog.records)
    done = subprocess.run(
        [sys.executable, "-c", f"import ckptforge; ckptforge.inspect({str(HUB)!r})"],
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize(
    "words", [("to-ms", "a", "b", "--over"), ("demo", "--model"), ("inspect", "a", "--x")]
)
def test_options_are_alike_by_their_words_and_not_by_their_dashes(capsys, monkeypatch, words):
    code, out, err = run(capsys, monkeypatch, *words)
    assert (code, out) == (2, "") and err.rstrip().endswith(f"No such option '{words[-1]}'.")


def test_after_cast_is_spelled_with_dashes_and_has_no_keep(capsys, monkeypatch):
    _, _, err = run(capsys, monkeypatch, "compare", HUB, "--after-cast", "fp16")
    assert "--after-cast needs a second checkpoint" in err
    code, _, err = run(capsys, monkeypatch, "compare", HUB, HUB, "--after-cast", "fp61")
    assert code == 2 and "--after-cast 'fp61' is unknown: use bf16, fp16, fp32, fp64." in err


def test_inspect_says_once_that_a_file_is_one_shard(capsys, monkeypatch):
    _, out, _ = run(capsys, monkeypatch, "inspect", HUB / "model-00001-of-00002.safetensors")
    assert out.count("is one shard of 2") == 1


@pytest.mark.parametrize(
    "command", ["to-ms", "convert", "merge", "inspect", "compare", "verify", "clean", "strategy"]
)
def test_quiet_and_verbose_can_not_be_used_together(capsys, monkeypatch, command):
    for words in (["--quiet", "--verbose"], ["--verbose", "--quiet"]):
        code, out, err = run(capsys, monkeypatch, command, *words)
        assert (code, out) == (2, "") and "--quiet and --verbose can't be used together" in err


GB = 10**9


def test_a_log_gets_a_line_every_half_minute_and_short_runs_none():
    now, log = [100.0], io.StringIO()
    progress = Lines("copying", log, lambda: now[0])
    for second in range(30):
        now[0] = 100.0 + second
        progress(second * GB // 2, 94 * GB)
    assert log.getvalue() == ""
    for second in range(30, 100):
        now[0] = 100.0 + second
        progress(second * GB // 2, 94 * GB)
    assert log.getvalue().splitlines() == [
        "copying: 15 GB of 94 GB (15 %), 500 MB/s, 2 min 38 s left",
        "copying: 30 GB of 94 GB (31 %), 500 MB/s, 2 min 8 s left",
        "copying: 45 GB of 94 GB (47 %), 500 MB/s, 1 min 38 s left",
    ]
    progress(94 * GB, 94 * GB)
    assert len(log.getvalue().splitlines()) == 3


def test_a_log_says_how_far_the_file_is_that_is_being_written():
    now, log = [0.0], io.StringIO()
    progress = Lines("copying", log, lambda: now[0])
    one, other = Path("out/model-00001.safetensors"), Path("out/model-00002.safetensors")
    for second, begun in (
        (0, {one: (0, 40 * GB)}),
        (31, {one: (31 * GB, 40 * GB)}),
        (62, {other: (22 * GB, 40 * GB), one: (35 * GB, 40 * GB)}),
        (93, {}),
    ):
        now[0] = second
        progress.files(begun)
        progress(second * GB, 100 * GB)
    assert [line.partition("left")[2] for line in log.getvalue().splitlines()] == [
        "; model-00001.safetensors: 77 %, 9 s left",
        "; model-00002.safetensors (+1): 55 %",
        "",
    ]


def test_a_run_tells_which_files_are_begun_and_how_far(tmp_path):
    class Told:
        def __init__(self):
            self.seen, self.most = set(), 0

        def __call__(self, done, total):
            pass

        def files(self, begun):
            for path, (done, total) in begun.items():
                assert 0 < done < total
                self.seen.add(path.name)
            self.last = dict(begun)

    progress = Told()
    options = {"max_shard_size": 300_000, "workers": 1, "progress": progress}
    done = ckptforge.convert(HUB, tmp_path / "out", to="hub", **options)
    files = {path.name for path in done.files if path.suffix == ".safetensors"}
    assert len(files) > 2 and progress.seen <= files and len(progress.seen) > 1
    assert progress.last == {}


@pytest.mark.parametrize("columns", ["80", "40"])
def test_a_terminal_has_a_bar_for_the_whole_and_one_for_the_file(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)
    out = io.StringIO()
    bars = Bars("copying", out)
    path = Path("out/model-00001-of-00019.safetensors")
    other = Path("out/model-00002-of-00019.safetensors")
    for done in range(0, 40, 10):
        bars.files({path: (done * GB, 40 * GB), other: (GB, 40 * GB)})
        bars(done * GB, 100 * GB)
        time.sleep(0.12)
    bars.files({other: (20 * GB, 40 * GB)})
    bars.files({})
    bars.close()
    lines = re.split(r"[\r\n]", re.sub(r"\x1b\[[A-Z]", "", out.getvalue()))
    assert max(map(len, lines)) <= int(columns)
    whole = [line for line in lines if line.startswith("copying:")]
    one = [line for line in lines if line.startswith("model-")]
    for said in (whole, one):
        assert re.search(r"\d+%.*B/s.* \d\d:\d\d|\d+%.*\d\d:\d\d<\d\d:\d\d, .*B/s", said[-2])
    assert any("(+1)" in line for line in one) and "(+1)" not in one[-1]
    assert not any(re.search(r"<-| -\d", line) for line in lines)
    assert not lines[-1].strip()


def test_what_an_earlier_run_had_finished_does_not_count_as_speed():
    now, log = [0.0], io.StringIO()
    progress = Lines("comparing", log, lambda: now[0])
    progress(50 * GB, 100 * GB)
    now[0] = 100.0
    progress(60 * GB, 100 * GB)
    assert log.getvalue() == "comparing: 60 GB of 100 GB (60 %), 100 MB/s, 6 min 40 s left\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (160, "2 min 40 s"),
        (3600, "1 h"),
        (7261, "2 h 1 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def completed(*words, incomplete):
    return {
        item.value
        for item in ShellComplete(cli, {}, "ckptforge", "_X").get_completions(
            list(map(str, words)), incomplete
        )
    }


def test_values_are_completed():
    assert {"dense", "gmm", "gmm-v3"} <= completed(
        "to-ms", HUB, "x.ckpt", "--layout", incomplete=""
    )
    # MindSpore's of this model
    assert not {"hub", "legacy"} & completed("to-ms", HUB, "x.ckpt", "--layout", incomplete="")
    assert completed("convert", HUB, "x", "--to", incomplete="fu") == {"fused"}
    assert completed("to-ms", "x", "y", "--dtype", incomplete="f") == {"fp16", "fp32", "fp64"}
    assert completed("compare", "x", "y", "--after-cast", incomplete="b") == {"bf16"}
    found = completed("inspect", "x", "--model", incomplete="qwen3")
    assert {"qwen3", "qwen3_moe"} < found and all(name.startswith("qwen3") for name in found)
    assert completed("to-ms", "x", "y", "--model", "llama", "--layout", incomplete="m") == {"mcore"}
    assert "to-ms" in completed(incomplete="to")
    assert completed("convert", "x", "y", "--quantise", incomplete="mx") == {"mxfp4", "mxfp8"}
    assert completed("mapping", "show", incomplete="gpt") == {"gpt", "gpt_oss"}  # or a file
    assert completed("mapping", "show", "llama", "--layout", incomplete="m") >= {"mcore", "meta"}
    assert not completed("mapping", "show", "llama", "--layout", incomplete="mindspeed-mtp")
    table = ROOT / "mappings" / "qwen3.toml"
    assert completed("mapping", "show", table, "--layout", incomplete="hu") == {"hub"}
    # of which NAME is a tensor's
    assert completed("extract", HUB, "llama", "x.npy", "--layout", incomplete="gm") >= {"gmm"}


def test_completion_needs_no_numpy():
    code = (
        "import sys\nfrom click.shell_completion import ShellComplete\nfrom ckptforge.cli.app "
        "import cli\n"
        "found = ShellComplete(cli, {}, 'ckptforge', '_X').get_completions(['to-ms', 'a', 'b', "
        "'--layout'], 'gm')\n"
        "assert found and not {'numpy', 'torch', 'mindspore'} & set(sys.modules), "
        "sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


_IN_BASH = """
{source}
COMP_WORDS=({words})
COMP_CWORD=$(({count} - 1))
compopt() {{ :; }}
_ckptforge_completion ckptforge
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
_IN_ZSH = """
compdef() {{ :; }}
{source}
words=({words}) CURRENT={count}
compadd() {{ print -l -- "${{(@P)5}}"; }}
_describe() {{ local -a all=("${{(@P)3}}"); print -l -- "${{(@)all%%:*}}"; }}
_path_files() {{ :; }}
_ckptforge_completion
"""
_IN_FISH = """
{source}
complete -C '{line}' | string replace -r '\\t.*' ''
"""


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["to-ms", "--layout", "gmm-v"], ["gmm-v3"]),
        (["inspect", "--model", "glm4_"], ["glm4_moe"]),
        (["to-ms", "--dtype", "b"], ["bf16"]),
        (["mapping", "show", "mix"], ["mixtral"]),
        (["help", "lay"], ["layouts"]),
        (["resh"], ["reshard"]),
        (["to-ms", "--over"], ["--overwrite"]),
    ],
)
def test_a_shell_completes(tmp_path, shell, words, expected):
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} isn't here")
    ours = tmp_path / "bin" / "ckptforge"
    ours.parent.mkdir()
    ours.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ckptforge "$@"\n')
    ours.chmod(0o755)
    source = CliRunner().invoke(cli, ["completion", shell]).stdout
    line = " ".join(["ckptforge", *words])
    script = {"bash": _IN_BASH, "zsh": _IN_ZSH, "fish": _IN_FISH}[shell].format(
        source=source, words=line, count=len(words) + 1, line=line
    )
    path = os.pathsep.join([str(ours.parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run(
        [program, "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert [line for line in done.stdout.splitlines() if line] == expected, done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_what_a_shell_needs(shell):
    done = CliRunner().invoke(cli, ["completion", shell])
    assert done.exit_code == 0 and f"_CKPTFORGE_COMPLETE={shell}_complete" in done.stdout


def test_the_list_of_commands_says_what_each_does_in_a_sentence():
    for words in (["--help"], ["mapping", "--help"]):
        out = CliRunner().invoke(cli, words).stdout
        assert "..." not in out.partition("Commands:")[2] and "Commands:" in out
        assert max(map(len, out.splitlines())) <= 80


def test_examples_fit_the_terminal_and_can_be_pasted():
    for width in (80, 60):
        words = ["transform-ckpt", "--help"]
        out = CliRunner().invoke(cli, words, terminal_width=width).stdout
        examples = out.partition("Examples:")[2]
        assert max(map(len, examples.splitlines())) <= width
        whole = re.sub(r"\\\n\s+", "", examples)
        assert (
            "--src_ckpt_strategy output/strategy/ --src_ckpt_dir output/checkpoint/ --dst" in whole
        )
        assert CliRunner().invoke(cli, words, terminal_width=200).stdout.count("\\\n") == 0


def test_help_of_a_command_is_that_of_its_option():
    for words in ([], ["to-ms"], ["mapping", "show"]):
        one, other = (
            CliRunner().invoke(cli, each, prog_name="ckptforge")
            for each in (["help", *words], [*words, "--help"])
        )
        assert one.exit_code == 0 and one.stdout == other.stdout
    assert CliRunner().invoke(cli, ["help", "nothing"]).exit_code == 2


def test_topics_are_listed_by_help_and_printed_without_marks():
    listed = CliRunner().invoke(cli, ["help"]).stdout
    assert len(topics()) > 8 and not set(topics()) & set(cli.commands)
    for name in topics():
        done = CliRunner().invoke(cli, ["help", name])
        assert done.exit_code == 0 and name in listed
        lines = done.stdout.splitlines()
        assert len(lines) <= 40 and max(map(len, lines)) <= 90
        assert "](" not in done.stdout and not lines[0].startswith("#")
        for path in re.findall(r"docs/\S+\.md|README\.md", done.stdout):
            assert (ROOT / path).is_file()
    spelled = [["help", name] for name in ("exit-codes", "exit_codes")]
    assert len({CliRunner().invoke(cli, words).stdout for words in spelled}) == 1


def test_the_nearest_topic_is_suggested(capsys, monkeypatch):
    code, _, err = run(capsys, monkeypatch, "help", "strategie")
    assert code == 2 and "No such command or topic 'strategie'" in err
    assert err.rstrip().endswith("Did you mean 'strategies'?")


def test_what_help_can_be_asked_for_is_completed():
    assert completed("help", incomplete="str") == {"strategy", "strategies"}
    assert completed("help", "mapping", incomplete="s") == {"show", "schema"}
    assert completed("help", "layouts", incomplete="") == set()


def test_a_plan_is_a_dry_run(capsys, monkeypatch):
    code, _, err = run(capsys, monkeypatch, "plan", "in", "out")
    assert code == 2 and "`--dry-run` of the command that writes" in err
