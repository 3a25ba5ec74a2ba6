"""MindFormers' own commands with the script's name replaced: each runs and does what it says."""

import json
import shlex

import pytest

import ckptforge
from ckptforge.cli.app import cli
from ckptforge.errors import InputNotFoundError, UsageError
from ckptforge.tables.shipped import shipped_tables
from ckptforge.verbs.dropins import convert_weight, transform_ckpt
from ckptforge.verbs.mindformers_flags import (
    CONVERT_NOT_NEEDED,
    CONVERT_REFUSED,
    TRANSFORM_NOT_NEEDED,
    ConvertFlags,
    TransformFlags,
)
from ckptforge.verbs.synthetic import write_model
from tests.helpers import FIXTURES, HUB, MINDSPORE, contents
from tests.test_cli import ckpt

PEER = FIXTURES / "peer"
pytestmark = pytest.mark.slow  # each runs commands in processes of their own


def again(done, overwritten):
    """Runs the command of ours that a drop-in printed, and gives back what it made."""
    line = next(line for line in done.stdout.splitlines() if line.startswith("the same as: "))
    words = shlex.split(line.removeprefix("the same as: "))
    assert words[0] == "ckptforge"
    assert ckpt(*words[1:], "--overwrite").returncode == 0
    return contents(overwritten)


def test_torch_to_mindspore(tmp_path):
    out = tmp_path / "ms/mixtral.ckpt"
    done = ckpt(
        "convert-weight",
        "--model",
        "mixtral",
        "--input_path",
        HUB,
        "--output_path",
        out,
        "--dtype",
        "fp16",
    )
    assert done.returncode == 0, done.stderr
    assert contents(out) == contents(PEER / "peer_r1.3.0_dense_fp16.ckpt") == again(done, out)


def test_without_dtype_the_unified_script_writes_fp32(tmp_path):
    out = tmp_path / "x.ckpt"
    assert (
        ckpt(
            "convert-weight", "--model", "mixtral", "--input_path", HUB, "--output_path", out
        ).returncode
        == 0
    )
    assert contents(out) == contents(PEER / "peer_r1.3.0_dense_fp32.ckpt")


def test_mindspore_to_torch_without_a_config(tmp_path):
    source = PEER / "peer_r1.3.0_dense_fp16.ckpt"
    out = f"{tmp_path}/torch/"
    done = ckpt(
        "convert-weight",
        "--model",
        "mixtral",
        "--reversed",
        "--input_path",
        source,
        "--output_path",
        out,
        "--dtype",
        "fp16",
    )
    assert done.returncode == 0 and "config.json isn't known" in done.stdout
    found = contents(tmp_path / "torch/model.safetensors")
    assert {name: shape for name, (_, shape, _) in found.items()} == {
        name: shape for name, (_, shape, _) in contents(HUB).items()
    }
    assert {dtype for dtype, _, _ in found.values()} == {"float16"}
    assert again(done, tmp_path / "torch/model.safetensors") == found


def test_distributed_mindspore_to_torch(tmp_path):
    flags = [
        "--input_path",
        MINDSPORE / "sharded/mp8",
        "--strategy_dir",
        MINDSPORE / "strategies/mp8",
    ]
    done = ckpt(
        "convert-weight",
        "--model",
        "mixtral",
        "--reversed",
        *flags,
        "--output_path",
        f"{tmp_path}/torch/",
        "--dtype",
        "fp32",
    )
    assert done.returncode == 0, done.stderr
    whole = ckpt(
        "to-torch",
        MINDSPORE / "full.ckpt",
        tmp_path / "whole",
        "--dtype",
        "fp32",
        "--allow-no-config",
    )
    assert whole.returncode == 0
    assert contents(tmp_path / "torch/model.safetensors") == contents(
        tmp_path / "whole/model.safetensors"
    )


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
    both = [
        "--src_ckpt_strategy",
        f"{MINDSPORE}/strategies/mp8",
        "--dst_ckpt_strategy",
        f"{MINDSPORE}/strategies/dp2mp2/rank_0.ckpt",
    ]
    assert (
        "ckptforge reshard"
        in ckpt("transform-ckpt", *both, *src, "--dst_ckpt_dir", tmp_path / "r").stdout
    )
    flags = [
        "--src_ckpt_strategy",
        "None",
        "--dst_ckpt_strategy",
        f"{MINDSPORE}/strategies/dp2mp2",
        "--src_ckpt_dir",
        tmp_path / "m",
    ]
    assert (
        "ckptforge split" in ckpt("transform-ckpt", *flags, "--dst_ckpt_dir", tmp_path / "s").stdout
    )
    for rank in range(4):
        expected = contents(MINDSPORE / f"sharded/dp2mp2/rank_{rank}/ckpt_{rank}.ckpt")
        assert contents(tmp_path / f"r/rank_{rank}/checkpoint_{rank}.ckpt") == expected
        assert contents(tmp_path / f"s/rank_{rank}/checkpoint_{rank}.ckpt") == expected


@pytest.mark.parametrize("spelling", ["--torch_ckpt_idr", "--torch_ckpt_dir"])
def test_for_inference(tmp_path, spelling):
    for gmm, expected in (
        ("True", "peer_r1.3.0_gmm_fp16.ckpt"),
        ("False", "peer_r1.3.0_dense_fp16.ckpt"),
    ):
        out = tmp_path / f"{gmm}.ckpt"
        done = ckpt(
            "convert-weight",
            f"--use_gmm={gmm}",
            f"{spelling}={HUB}",
            f"--mindspore_ckpt_path={out}",
        )
        assert done.returncode == 0, done.stderr
        assert contents(out) == contents(PEER / expected) == again(done, out)


def test_from_mindspore_to_gmm_for_inference(tmp_path):
    source = f"--pre_ckpt_path={PEER / 'peer_r1.3.0_dense_bf16.ckpt'}"
    flags = [
        "--use_gmm=True",
        "--dtype=fp16",
        source,
        f"--mindspore_ckpt_path={tmp_path / 'g.ckpt'}",
    ]
    done = ckpt("convert-weight", *flags)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "g.ckpt") == contents(PEER / "peer_r1.3.0_gmm_fp16.ckpt")
    kept = ckpt("convert-weight", source, f"--mindspore_ckpt_path={tmp_path / 'k.ckpt'}", "--json")
    assert (
        json.loads(kept.stdout)["command"].endswith("--to gmm")
        and json.loads(kept.stdout)["dtype"] == "keep"
    )
    twice = ckpt(
        "convert-weight",
        "--use_gmm=True",
        f"--pre_ckpt_path={tmp_path / 'g.ckpt'}",
        f"--mindspore_ckpt_path={tmp_path / 'h.ckpt'}",
    )
    # where the script transposes back
    assert twice.returncode == 0 and contents(tmp_path / "h.ckpt") == contents(tmp_path / "g.ckpt")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["convert-weight"], "needs --input_path"),
        (["convert-weight", "--input_path", "a"], "needs --input_path and --output_path"),
        (
            ["convert-weight", "--input_path", "a", "--output_path", "b", "--torch_ckpt_dir", "c"],
            "use the flags of one",
        ),
        (
            ["convert-weight", "--input_path", "a", "--output_path", "b", "--strategy_dir", "s"],
            "goes with --reversed",
        ),
        (
            [
                "convert-weight",
                "--torch_ckpt_dir",
                "a",
                "--pre_ckpt_path",
                "b",
                "--mindspore_ckpt_path",
                "c",
            ],
            "one of",
        ),
        (
            ["convert-weight", "--reversed", "--input_path", "a", "--output_path", "b.safetensors"],
            "name a directory",
        ),
        (
            [
                "convert-weight",
                "--model",
                "gpt5",
                "--input_path",
                str(HUB),
                "--output_path",
                "b.ckpt",
            ],
            "unknown",
        ),
        (["convert-weight", "--use_gmm=maybe"], "maybe"),
        (["transform-ckpt"], "needs --src_checkpoint"),
        (["transform-ckpt", "a", "None", "b", "s"], "transform_checkpoint.sh SRC_CKPT"),
        (
            ["transform-ckpt", "--src_ckpt_dir", "a", "--dst_ckpt_dir", "b"],
            "needs --src_ckpt_strategy",
        ),
        (
            [
                "transform-ckpt",
                "--src_ckpt_strategy",
                "None",
                "--src_ckpt_dir",
                "a",
                "--dst_ckpt_dir",
                "b",
            ],
            "needs --src_ckpt_strategy",
        ),
    ],
)
def test_flags_that_do_not_go_together(tmp_path, args, message):
    done = ckpt(*args, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and not list(tmp_path.iterdir())


TABLES = {table.name: table for table in shipped_tables()}


@pytest.mark.parametrize("name", [n for n, t in TABLES.items() if t.names_of("mindspore")])
def test_every_model_goes_to_mindspore_and_back_in_any_layout(tmp_path, name):
    table = TABLES[name]
    write_model(tmp_path / "hub", table, table.example)
    ckptforge.convert(tmp_path / "hub", tmp_path / "fp32", to="hub", dtype="fp32")
    meant = contents(tmp_path / "fp32")
    layouts = [layout.name for layout in table.layouts.values() if layout.family == "mindspore"]
    for layout in (None, layouts[-1]):
        out, back = tmp_path / f"{layout}.ckpt", f"{tmp_path}/{layout}/"
        made = convert_weight(
            ConvertFlags(
                model=name, input_path=str(tmp_path / "hub"), output_path=str(out), layout=layout
            )
        ).run()
        assert made.facts["to"] == layout or (layouts[0] and contents(out))
        flags = ConvertFlags(
            model=name,
            reversed=True,
            input_path=str(out),
            output_path=back,
            layout=made.facts["to"],
        )
        convert_weight(flags).run()
        assert contents(tmp_path / str(layout)) == meant


@pytest.mark.parametrize("alias", ["qwen2_5", "deepseekv3", "qwen3-moe"])
def test_models_have_the_names_that_convert_weight_has_for_them(tmp_path, alias):
    (table,) = (table for table in TABLES.values() if alias in table.aliases)
    write_model(tmp_path / "hub", table, table.example)
    call = convert_weight(
        ConvertFlags(
            model=alias,
            input_path=str(tmp_path / "hub"),
            output_path=str(tmp_path / "x.ckpt"),
            dtype="bf16",
        )
    )
    assert f"--model {table.name}" in call.command and call.run().facts["model"] == table.name


def flags_of(**flags):
    return ConvertFlags(input_path="a", output_path="b.ckpt", **flags)


def test_flags_that_name_a_layout_agree():
    assert convert_weight(flags_of(use_gmm=True)).options["layout"] == "gmm"
    assert convert_weight(flags_of(use_gmm=True, layout="gmm-v3")).options["layout"] == "gmm-v3"
    assert convert_weight(flags_of(use_gmm=False, layout="mcore")).options["layout"] == "mcore"
    assert "layout" not in convert_weight(flags_of(use_gmm=False)).options
    joined = convert_weight(flags_of(qkv_concat=True, layout="dense-qkv-r1.4"))
    assert joined.name == "convert" and joined.options == {"to": "dense-qkv-r1.4"}
    inference = ConvertFlags(pre_ckpt_path="a", mindspore_ckpt_path="b.ckpt", layout="gmm-v3")
    assert convert_weight(inference).options == {"to": "gmm-v3"}
    for wrong in (
        {"use_gmm": True, "layout": "dense"},
        {"use_gmm": False, "layout": "gmm-v3"},
        {"use_gmm": True, "layout": "mcore"},
    ):
        with pytest.raises(UsageError, match="--use_gmm=.* contradicts --layout"):
            convert_weight(flags_of(**wrong))
    for wrong in (
        {"qkv_concat": True, "layout": "dense"},
        {"qkv_concat": False, "layout": "dense-qkv-r1.3"},
    ):
        with pytest.raises(UsageError, match="--qkv_concat=.* contradicts --layout"):
            convert_weight(flags_of(**wrong))
    with pytest.raises(UsageError, match="Name the layout of your version with --layout"):
        convert_weight(flags_of(qkv_concat=True))


def test_joined_rows_are_written_from_mindspore_too(tmp_path):
    source, out = PEER / "peer_r1.3.0_dense_bf16.ckpt", tmp_path / "x.ckpt"
    flags = {
        "model": "mixtral",
        "qkv_concat": True,
        "layout": "dense-qkv-r1.4",
        "input_path": str(source),
        "output_path": str(out),
    }
    convert_weight(ConvertFlags(**flags, config=str(HUB))).run()
    ckptforge.convert(HUB, tmp_path / "y.ckpt", to="dense-qkv-r1.4")
    assert contents(out) == contents(tmp_path / "y.ckpt") != contents(source)


def test_the_flags_of_convert_reversed(tmp_path):
    source = PEER / "peer_r1.3.0_dense_fp16.ckpt"
    call = convert_weight(
        ConvertFlags(
            reversed=True,
            mindspore_ckpt_path=str(source),
            torch_ckpt_dir=str(tmp_path / "t"),
            dtype="fp16",
            strategy_dir="None",
        )
    )
    call.run()
    ckptforge.to_torch(source, tmp_path / "u", allow_no_config=True)
    assert contents(tmp_path / "t") == contents(tmp_path / "u")


@pytest.mark.parametrize("flag", CONVERT_NOT_NEEDED)
def test_flags_that_are_not_needed_are_taken_with_a_note(flag):
    command = [
        "convert-weight",
        f"--{flag}",
        "8",
        "--input_path",
        "no-such-input",
        "--output_path",
        "x.ckpt",
    ]
    with pytest.raises(InputNotFoundError, match="no-such-input"):
        cli.main(command, standalone_mode=False)
    (note,) = convert_weight(flags_of(others={flag: "8"})).notes
    assert note == f"--{flag} isn't needed: {CONVERT_NOT_NEEDED[flag]}."


@pytest.mark.parametrize("flag", CONVERT_REFUSED)
def test_flags_that_are_not_honoured_are_refused_with_the_reason(flag):
    command = [
        "convert-weight",
        f"--{flag}=True",
        "--input_path",
        "no-such-input",
        "--output_path",
        "x.ckpt",
    ]
    with pytest.raises(UsageError) as error:
        cli.main(command, standalone_mode=False)
    assert str(error.value) == f"--{flag} isn't taken: {CONVERT_REFUSED[flag]}."


def test_notes_of_flags_stand_in_the_result(tmp_path):
    flags = ConvertFlags(
        torch_ckpt_dir=str(HUB),
        mindspore_ckpt_path=str(tmp_path / "x.ckpt"),
        others={"n_head": "4", "layers": "2"},
    )
    assert (
        "--layers and --n_head aren't needed: sizes are read from the tensors and config.json."
        in convert_weight(flags).run().notes
    )


SPLIT = {
    "r1.0": ["--src_ckpt_dir", "SRC", "--dst_ckpt_dir", "OUT", "--dst_ckpt_strategy", "STRATEGY"],
    "guide": [
        "--src_checkpoint",
        "SRC",
        "--dst_checkpoint",
        "OUT",
        "--dst_strategy",
        "STRATEGY",
        "--src_strategy",
        "None",
    ],
    "directories": [
        "--src_checkpoint_dir",
        "SRC",
        "--dst_checkpoint_dir",
        "OUT",
        "--dst_strategy",
        "STRATEGY",
        "--src_strategy=",
    ],
    "sh's python": [
        *(
            "--src_checkpoint=SRC",
            "--src_strategy=",
            "--dst_checkpoint_dir=OUT",
            "--dst_strategy=STRATEGY",
            "--prefix=checkpoint_",
        ),
        *(
            "--rank_id=2",
            "--world_size=4",
            "--transform_process_num=2",
            "--transform_by_rank=True",
            "--npu_num_per_node=4",
        ),
    ],
    "sh": ["SRC", "None", "OUT", "STRATEGY", "4", "2"],
}


@pytest.mark.parametrize("version", SPLIT)
@pytest.mark.parametrize("source", ["full.ckpt", "whole"])
def test_transform_ckpt_takes_the_flags_of_every_version(tmp_path, capsys, version, source):
    (tmp_path / "whole/rank_0").mkdir(parents=True)
    (tmp_path / "whole/rank_0/full.ckpt").symlink_to(MINDSPORE / "full.ckpt")
    places = {
        "SRC": tmp_path / "whole" if source == "whole" else MINDSPORE / "full.ckpt",
        "OUT": tmp_path / "out",
        "STRATEGY": MINDSPORE / "strategies/dp2mp2/rank_0.ckpt",
    }
    words = list(SPLIT[version])
    for place, path in places.items():
        words = [word.replace(place, str(path)) if word.endswith(place) else word for word in words]
    cli.main(["transform-ckpt", *words], standalone_mode=False)
    for rank in range(4):
        expected = contents(MINDSPORE / f"sharded/dp2mp2/rank_{rank}/ckpt_{rank}.ckpt")
        assert contents(tmp_path / f"out/rank_{rank}/checkpoint_{rank}.ckpt") == expected
    printed = capsys.readouterr().out
    assert ("needed: one call writes everything" in printed) == ("sh" in version)


def transform_flags(**flags):
    places = {"src_ckpt_dir": str(MINDSPORE / "full.ckpt"), "dst_ckpt_dir": "out"}
    return TransformFlags(
        **{**places, "dst_ckpt_strategy": str(MINDSPORE / "strategies/dp2mp2/rank_0.ckpt"), **flags}
    )


def test_transform_ckpt_writes_where_and_what_the_scripts_write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = transform_ckpt(transform_flags(dst_ckpt_dir=None, save_format="safetensors")).run()
    assert (tmp_path / "transformed_checkpoint/rank_3/checkpoint_3.safetensors").is_file()
    assert any("transformed_checkpoint" in note for note in result.notes)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"others": {"world_size": "8"}}, "is the strategy of a 4-rank job"),
        (
            {"others": {"world_size": "4", "transform_process_num": "3"}},
            "doesn't divide --world_size 4",
        ),
        ({"others": {"world_size": "4", "rank_id": "4"}}, "the last is 3"),
        ({"others": {"transform_process_num": "0"}}, "at least 1"),
        ({"others": {"rank_id": "-1"}}, "at least 0"),
        ({"others": {"lora_scaling": "2.0"}}, "--merge-lora MERGED --lora-alpha ALPHA"),
        (
            {"src_ckpt_strategy": "s"},
            "is one file, but a source strategy describes rank directories",
        ),
    ],
)
def test_flags_of_transform_ckpt_that_can_not_be(flags, message):
    with pytest.raises(UsageError, match=message):
        transform_ckpt(transform_flags(**flags))


def test_every_flag_about_processes_is_an_option():
    for flag in TRANSFORM_NOT_NEEDED:
        with pytest.raises(InputNotFoundError):
            cli.main(
                [
                    "transform-ckpt",
                    f"--{flag}",
                    "1",
                    "--src_checkpoint",
                    "no-such",
                    "--dst_strategy",
                    "no-such",
                ],
                standalone_mode=False,
            )
