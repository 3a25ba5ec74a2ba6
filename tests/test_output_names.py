"""Outputs whose names are those of something else are refused before anything is read; and steps
where there is none to choose."""

import json
import shutil

import pytest

import ckptforge
from ckptforge.cli.app import cli
from ckptforge.errors import CkptforgeError, InputNotFoundError, UsageError
from ckptforge.publish.output_name import refuse_name
from tests.helpers import HUB, MINDSPORE

FULL, RANKS, STRATEGY = (
    MINDSPORE / "full.ckpt",
    MINDSPORE / "sharded/mp8",
    MINDSPORE / "strategies/mp8",
)
NOWHERE = "no-such-input"
TO_FILE_OR_DIRECTORY = {
    "to-ms": [NOWHERE, "OUT"],
    "convert": [NOWHERE, "OUT", "--to", "gmm"],
    "merge": [NOWHERE, "OUT", "--strategy_dir", NOWHERE],
}
TO_DIRECTORY = {
    "to-ms": [NOWHERE, "OUT", "--strategy_dir", NOWHERE],
    "to-ms as unified": [NOWHERE, "OUT", "--format", "unified"],
    "convert": [NOWHERE, "OUT", "--to", "gmm", "--dst_parallel_config", NOWHERE],
    "to-torch": [NOWHERE, "OUT"],
    "split": [NOWHERE, "OUT", "--strategy_dir", NOWHERE],
    "reshard": [NOWHERE, "OUT", "--src_strategy_dir", NOWHERE, "--dst_strategy_dir", NOWHERE],
    "strategy": ["OUT", "--parallel_config", NOWHERE, "--like", NOWHERE],
    "convert-weight": ["--reversed", "--input_path", NOWHERE, "--output_path", "OUT"],
    "transform-ckpt": [
        "--src_ckpt_dir",
        NOWHERE,
        "--dst_ckpt_dir",
        "OUT",
        "--dst_ckpt_strategy",
        NOWHERE,
    ],
    "demo": ["OUT"],
}
ADDRESSES = [
    "hf://org/name",
    "https://host/x.safetensors",
    "file:///tmp/x.ckpt",
]
OTHER_FILES = [
    "x.PTH",
    "x.gguf",
    "x.npz",
    "dir/model.h5",
    "x.json",
]


def refused(monkeypatch, tmp_path, command, words, out):
    """The message of a command line that must be refused as wrong usage."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        cli.main(
            [command.split()[0], *(out if word == "OUT" else str(word) for word in words)],
            standalone_mode=False,
        )
    assert not list(tmp_path.iterdir()) and error.value.exit_code == 2
    return str(error.value)


@pytest.mark.parametrize("command", TO_FILE_OR_DIRECTORY)
def test_what_is_no_output_is_refused_before_anything_is_read(monkeypatch, tmp_path, command):
    words = TO_FILE_OR_DIRECTORY[command]
    for out in ADDRESSES:
        message = refused(monkeypatch, tmp_path, command, words, out)
        assert message.startswith(out.replace(":///", "://")) and "name a path here" in message
    for out in OTHER_FILES:
        message = refused(monkeypatch, tmp_path, command, words, out)
        assert out in message and "name a file that ends in .bin, .ckpt" in message
    with pytest.raises(CkptforgeError) as error:
        cli.main(
            [command, *("Model-2.5" if word == "OUT" else word for word in words)],
            standalone_mode=False,
        )
    assert NOWHERE in str(error.value)


@pytest.mark.parametrize("command", TO_DIRECTORY)
def test_a_directory_has_no_ending_of_a_file(monkeypatch, tmp_path, command):
    for out in [*ADDRESSES[:2], *OTHER_FILES[:3], "x.ckpt", "x.safetensors", "x.SafeTensors"]:
        message = refused(monkeypatch, tmp_path, command, TO_DIRECTORY[command], out)
        assert out in message and (
            "name a directory, such as" in message or "name a path here" in message
        )


def test_a_layout_of_hugging_face_needs_a_directory_too(tmp_path):
    with pytest.raises(UsageError, match="name a directory"):
        ckptforge.convert(FULL, tmp_path / "x.safetensors", to="hub")
    assert not list(tmp_path.iterdir())


def test_a_directory_that_is_called_like_an_address_is_a_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:/d").mkdir(parents=True)
    ckptforge.to_ms(HUB, "s3:/d/x.ckpt")
    assert (tmp_path / "s3:/d/x.ckpt").is_file()
    with pytest.raises(UsageError, match="s4://b/x.ckpt: is an address"):
        refuse_name(tmp_path.__class__("s4://b/x.ckpt"), directory=False)


@pytest.mark.parametrize(
    "call",
    [
        lambda out: ckptforge.to_ms("ftp9://bucket/hub", out),
        lambda out: ckptforge.merge("ftp9://bucket/ranks", out, strategy_dir=STRATEGY),
        lambda out: ckptforge.merge(RANKS, out, strategy_dir="ftp9://bucket/strategy"),
        lambda out: ckptforge.to_ms(HUB, out / "d", parallel_config="ftp9://bucket/job.yaml"),
        lambda out: ckptforge.convert(FULL, out, to="gmm", config="ftp9://bucket/config.json"),
        lambda out: ckptforge.inspect("ftp9://bucket/x.ckpt"),
    ],
)
def test_addresses_of_no_store_are_not_read(tmp_path, call):
    with pytest.raises(
        InputNotFoundError,
        match="ftp9://bucket/.*address that ckptforge can't read: download it first",
    ):
        call(tmp_path / "out")


def job_of(tmp_path, *names):
    """A directory with the checkpoints of several steps."""
    (tmp_path / "job").mkdir()
    for name in names:
        shutil.copy(FULL, tmp_path / "job" / name)
    return tmp_path / "job"


def every_call(source, out, step):
    """All that take a step, with a source that is whole."""
    (out / "job.json").write_text(json.dumps({"model_parallel": 2}))
    yield lambda: ckptforge.convert(source, out / "c.ckpt", to="gmm", step=step)
    yield lambda: ckptforge.to_torch(source, out / "t", allow_no_config=True, step=step)
    yield lambda: ckptforge.split(source, out / "s", strategy_dir=STRATEGY, step=step)
    yield lambda: ckptforge.inspect(source, step=step)
    yield lambda: ckptforge.strategy(
        out / "st", parallel_config=out / "job.json", like=source, step=step
    )


def test_a_step_of_what_holds_one_checkpoint_is_refused(tmp_path):
    for call in every_call(FULL, tmp_path, 7):
        with pytest.raises(
            InputNotFoundError, match="is one file, where there is no step to choose: omit step=7"
        ):
            call()
    for source, what in (
        (HUB, "a Hugging Face directory"),
        (MINDSPORE / "unified", "a directory of unified safetensors"),
    ):
        with pytest.raises(InputNotFoundError, match=f"is {what}, where there is no step"):
            ckptforge.inspect(source, step=0)
    with pytest.raises(
        InputNotFoundError, match="a Hugging Face directory, where there is no step"
    ):
        ckptforge.to_ms(HUB, tmp_path / "x.ckpt", step=3)
    with pytest.raises(InputNotFoundError, match="no checkpoint of step 3"):
        ckptforge.inspect(job_of(tmp_path, "plain.ckpt"), step=3)


@pytest.mark.parametrize("step", [-3, True, "5"])
def test_a_step_that_can_not_be_is_wrong_usage(tmp_path, step):
    for source in (FULL, job_of(tmp_path, "m-1_2.ckpt", "m-1_5.ckpt")):
        for call in every_call(source, tmp_path, step):
            with pytest.raises(
                UsageError, match="step.*expected (the number of a training step|a whole number)"
            ):
                call()
    for call in (
        lambda: ckptforge.to_ms(HUB, tmp_path / "x.ckpt", step=step),
        lambda: ckptforge.merge(RANKS, tmp_path / "m.ckpt", strategy_dir=STRATEGY, step=step),
        lambda: ckptforge.reshard(
            RANKS, tmp_path / "r", src_strategy_dir=STRATEGY, dst_strategy_dir=STRATEGY, step=step
        ),
        lambda: ckptforge.inspect(RANKS, strategy_dir=STRATEGY, step=step),
        lambda: ckptforge.inspect(RANKS, step=step),
    ):
        with pytest.raises(UsageError, match="step(=| is )"):
            call()


def test_a_step_of_several_is_taken(tmp_path):
    job = job_of(tmp_path, "m-1_2.ckpt", "m-1_5.ckpt")
    assert ckptforge.inspect(job, step=2).files[0].file == "m-1_2.ckpt"
    assert ckptforge.inspect(job).files[0].file == "m-1_5.ckpt"
