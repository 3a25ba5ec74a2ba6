"""MindFormers' own commands with the script's name replaced: each runs and does what it says."""

import json
import shlex

import pytest

from tests.helpers import FIXTURES, HUB, MINDSPORE, contents
from tests.test_cli import ckpt

PEER = FIXTURES / "peer"


def again(done, overwritten):
    """Runs the command of ours that a drop-in printed, and gives back what it made."""
    line = next(line for line in done.stdout.splitlines() if line.startswith("the same as: "))
    words = shlex.split(line.removeprefix("the same as: "))
    assert words[0] == "ckptforge"
    assert ckpt(*words[1:], "--overwrite").returncode == 0
    return contents(overwritten)


def test_torch_to_mindspore(tmp_path):
    out = tmp_path / "ms/mixtral.ckpt"
    done = ckpt("convert-weight", "--model", "mixtral", "--input_path", HUB, "--output_path", out, "--dtype", "fp16")
    assert done.returncode == 0, done.stderr
    assert contents(out) == contents(PEER / "peer_r1.3.0_dense_fp16.ckpt") == again(done, out)


def test_without_dtype_the_unified_script_writes_fp32(tmp_path):
    out = tmp_path / "x.ckpt"
    assert ckpt("convert-weight", "--model", "mixtral", "--input_path", HUB, "--output_path", out).returncode == 0
    assert contents(out) == contents(PEER / "peer_r1.3.0_dense_fp32.ckpt")


def test_mindspore_to_torch_without_a_config(tmp_path):
    source = PEER / "peer_r1.3.0_dense_fp16.ckpt"
    out = f"{tmp_path}/torch/"
    done = ckpt("convert-weight", "--model", "mixtral", "--reversed", "--input_path", source, "--output_path", out, "--dtype", "fp16")
    assert done.returncode == 0 and "config.json isn't known" in done.stdout
    found = contents(tmp_path / "torch/model.safetensors")
    assert {name: shape for name, (_, shape, _) in found.items()} == {name: shape for name, (_, shape, _) in contents(HUB).items()}
    assert {dtype for dtype, _, _ in found.values()} == {"float16"}
    assert again(done, tmp_path / "torch/model.safetensors") == found


def test_distributed_mindspore_to_torch(tmp_path):
    flags = ["--input_path", MINDSPORE / "sharded/mp8", "--strategy_dir", MINDSPORE / "strategies/mp8"]
    done = ckpt("convert-weight", "--model", "mixtral", "--reversed", *flags, "--output_path", f"{tmp_path}/torch/", "--dtype", "fp32")
    assert done.returncode == 0, done.stderr
    whole = ckpt("to-torch", MINDSPORE / "full.ckpt", tmp_path / "whole", "--dtype", "fp32", "--allow-no-config")
    assert whole.returncode == 0
    assert contents(tmp_path / "torch/model.safetensors") == contents(tmp_path / "whole/model.safetensors")


def test_merge_reshard_and_split_of_a_training_job(tmp_path):
    src = ["--src_ckpt_dir", f"{MINDSPORE}/sharded/mp8/"]
    done = ckpt(
        "transform-ckpt",
        "--src_ckpt_strategy",
        f"{MINDSPORE}/strategies/mp8/",
        *src,
        "--dst_ckpt_dir",
        f"{tmp_path}/m/",
        "--prefix",
        "mixtral_",
    )
    assert done.returncode == 0 and "ckptforge merge" in done.stdout
    assert contents(tmp_path / "m/rank_0/mixtral_0.ckpt") == contents(MINDSPORE / "full.ckpt")
    both = ["--src_ckpt_strategy", f"{MINDSPORE}/strategies/mp8", "--dst_ckpt_strategy", f"{MINDSPORE}/strategies/dp2mp2/rank_0.ckpt"]
    assert "ckptforge reshard" in ckpt("transform-ckpt", *both, *src, "--dst_ckpt_dir", tmp_path / "r").stdout
    flags = ["--src_ckpt_strategy", "None", "--dst_ckpt_strategy", f"{MINDSPORE}/strategies/dp2mp2", "--src_ckpt_dir", tmp_path / "m"]
    assert "ckptforge split" in ckpt("transform-ckpt", *flags, "--dst_ckpt_dir", tmp_path / "s").stdout
    for rank in range(4):
        expected = contents(MINDSPORE / f"sharded/dp2mp2/rank_{rank}/ckpt_{rank}.ckpt")
        assert contents(tmp_path / f"r/rank_{rank}/checkpoint_{rank}.ckpt") == expected
        assert contents(tmp_path / f"s/rank_{rank}/checkpoint_{rank}.ckpt") == expected


@pytest.mark.parametrize("spelling", ["--torch_ckpt_idr", "--torch_ckpt_dir"])
def test_for_inference(tmp_path, spelling):
    for gmm, expected in (("True", "peer_r1.3.0_gmm_fp16.ckpt"), ("False", "peer_r1.3.0_dense_fp16.ckpt")):
        out = tmp_path / f"{gmm}.ckpt"
        done = ckpt("convert-weight", f"--use_gmm={gmm}", f"{spelling}={HUB}", f"--mindspore_ckpt_path={out}")
        assert done.returncode == 0, done.stderr
        assert contents(out) == contents(PEER / expected) == again(done, out)


def test_from_mindspore_to_gmm_for_inference(tmp_path):
    source = f"--pre_ckpt_path={PEER / 'peer_r1.3.0_dense_bf16.ckpt'}"
    flags = ["--use_gmm=True", "--dtype=fp16", source, f"--mindspore_ckpt_path={tmp_path / 'g.ckpt'}"]
    done = ckpt("convert-weight", *flags)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "g.ckpt") == contents(PEER / "peer_r1.3.0_gmm_fp16.ckpt")
    kept = ckpt("convert-weight", source, f"--mindspore_ckpt_path={tmp_path / 'k.ckpt'}", "--json")
    assert json.loads(kept.stdout)["command"].endswith("--to gmm") and json.loads(kept.stdout)["dtype"] == "keep"
    twice = ckpt(
        "convert-weight", "--use_gmm=True", f"--pre_ckpt_path={tmp_path / 'g.ckpt'}", f"--mindspore_ckpt_path={tmp_path / 'h.ckpt'}"
    )
    assert twice.returncode == 0 and contents(tmp_path / "h.ckpt") == contents(tmp_path / "g.ckpt")  # where the script transposes back


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["convert-weight"], "needs --input_path"),
        (["convert-weight", "--input_path", "a"], "needs --input_path and --output_path"),
        (["convert-weight", "--input_path", "a", "--output_path", "b", "--torch_ckpt_dir", "c"], "use one's flags"),
        (["convert-weight", "--input_path", "a", "--output_path", "b", "--strategy_dir", "s"], "goes with --reversed"),
        (["convert-weight", "--torch_ckpt_dir", "a", "--pre_ckpt_path", "b", "--mindspore_ckpt_path", "c"], "one of"),
        (["convert-weight", "--reversed", "--input_path", "a", "--output_path", "b.safetensors"], "name a directory"),
        (["convert-weight", "--model", "gpt5", "--input_path", str(HUB), "--output_path", "b.ckpt"], "unknown"),
        (["convert-weight", "--use_gmm=maybe"], "maybe"),
        (["transform-ckpt", "--src_ckpt_dir", "a", "--dst_ckpt_dir", "b"], "needs --src_ckpt_strategy"),
        (["transform-ckpt", "--src_ckpt_strategy", "None", "--src_ckpt_dir", "a", "--dst_ckpt_dir", "b"], "needs --src_ckpt_strategy"),
    ],
)
def test_flags_that_do_not_go_together(tmp_path, args, message):
    done = ckpt(*args, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and not list(tmp_path.iterdir())
