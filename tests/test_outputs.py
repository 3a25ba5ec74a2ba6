"""Outputs appear whole or not at all; nothing that exists is lost."""

import errno
import os
import shutil

import pytest

import ckptforge
from ckptforge.errors import (
    CkptforgeError,
    FormatError,
    InputNotFoundError,
    OutputError,
    UsageError,
)
from ckptforge.storage.local import DISK
from ckptforge.storage.mounts import mounted
from ckptforge.storage.store import Room
from ckptforge.targets.huggingface import parse_size
from ckptforge.testing.stores import FailingStore, fail
from tests.helpers import HUB, WithRoom, contents, tiny_config, write_hub


def names(path):
    return sorted(entry.name for entry in path.iterdir())


def test_an_existing_output_is_refused_then_replaced(tmp_path):
    (tmp_path / "x.ckpt").write_bytes(b"old")
    with pytest.raises(OutputError, match="x.ckpt: exists already; give overwrite=True"):
        ckptforge.to_ms(HUB, tmp_path / "x.ckpt")
    assert (tmp_path / "x.ckpt").read_bytes() == b"old" and names(tmp_path) == ["x.ckpt"]
    ckptforge.to_ms(HUB, tmp_path / "x.ckpt", overwrite=True)
    assert (
        names(tmp_path) == ["x.ckpt", "x.ckpt.manifest.json"]
        and len(contents(tmp_path / "x.ckpt")) == 23
    )


def test_a_replaced_directory_keeps_what_is_not_a_checkpoint(tmp_path):
    ckptforge.to_ms(HUB, tmp_path / "x.ckpt")
    out = tmp_path / "hf"
    out.mkdir()
    ckptforge.to_torch(tmp_path / "x.ckpt", out)  # an empty directory is no output to lose
    (out / "notes.txt").write_text("mine")
    (out / "model-00009-of-00009.safetensors").write_bytes(b"stale")
    with pytest.raises(OutputError, match="exists already"):
        ckptforge.to_torch(tmp_path / "x.ckpt", out)
    with pytest.raises(
        OutputError,
        match=r"no manifest there names.*\n  "
        r"model-00009-of-00009.safetensors",
    ):
        ckptforge.to_torch(tmp_path / "x.ckpt", out, overwrite=True)
    assert (out / "model-00009-of-00009.safetensors").read_bytes() == b"stale"
    (out / "model-00009-of-00009.safetensors").unlink()
    ckptforge.to_torch(tmp_path / "x.ckpt", out, overwrite=True, max_shard_size="200KB")
    ckptforge.to_torch(tmp_path / "x.ckpt", out, overwrite=True, max_shard_size="5GB")
    assert (out / "notes.txt").read_text() == "mine"
    assert names(out) == [
        "ckptforge.manifest.json",
        "config.json",
        "model.safetensors",
        "notes.txt",
    ] and contents(out) == contents(HUB)
    assert names(tmp_path) == ["hf", "x.ckpt", "x.ckpt.manifest.json"]


def test_overwriting_ranks_loses_no_file_of_others(tmp_path):
    out = tmp_path / "o"
    (out / "rank_7").mkdir(parents=True)
    (out / "rank_7" / "z.ckpt").write_bytes(b"z")
    (out / "rank_table.json").write_text("{}")
    with pytest.raises(OutputError, match=r"rank_7/z.ckpt"):
        ckptforge.to_ms(HUB, out, overwrite=True)
    assert (out / "rank_7" / "z.ckpt").read_bytes() == b"z"
    (out / "rank_7" / "z.ckpt").rename(out / "rank_7" / "log.txt")
    ckptforge.to_ms(HUB, out, overwrite=True)
    ckptforge.to_ms(HUB, out, overwrite=True, format="safetensors")
    assert (out / "rank_7" / "log.txt").read_bytes() == b"z" and (out / "rank_table.json").exists()
    assert names(out / "rank_0") == ["checkpoint_0.safetensors"]


@pytest.mark.parametrize("stop", [1, 2])
def test_a_replacement_that_fails_half_way_is_resumed_or_taken_back(tmp_path, stop):
    ckptforge.to_ms(HUB, tmp_path / "o")
    (tmp_path / "o" / "notes.txt").write_text("mine")
    before = (tmp_path / "o" / "rank_0" / "checkpoint_0.ckpt").read_bytes()
    third = fail(stop, KeyboardInterrupt(), {"rename"})

    def failing(call):
        if call.name == "exchange":  # as on file systems that can't swap two names
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        third(call)

    with mounted(tmp_path, FailingStore(DISK, failing)), pytest.raises(KeyboardInterrupt):
        ckptforge.to_ms(HUB, tmp_path / "o", layout="gmm", overwrite=True)
    assert (tmp_path / "o" / "rank_0" / "checkpoint_0.ckpt").read_bytes() == before
    copy = tmp_path.with_name(tmp_path.name + "-copy")
    shutil.copytree(tmp_path, copy)
    ckptforge.to_ms(HUB, tmp_path / "o", layout="gmm", overwrite=True, resume=True)
    assert (
        names(tmp_path) == ["o"]
        and (tmp_path / "o" / "rank_0" / "checkpoint_0.ckpt").read_bytes() != before
    )
    assert (tmp_path / "o" / "notes.txt").read_text() == "mine"
    ckptforge.clean(copy)
    assert (
        names(copy) == ["o"]
        and (copy / "o" / "rank_0" / "checkpoint_0.ckpt").read_bytes() == before
    )
    assert (copy / "o" / "notes.txt").read_text() == "mine"


def test_the_current_directory_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for out in (".", "..", str(tmp_path)):
        with pytest.raises(OutputError, match="name a directory in it"):
            ckptforge.to_ms(HUB, out, dry_run=True)


def test_only_a_models_files_are_taken_from_beside_a_mindspore_checkpoint(tmp_path):
    ckptforge.to_ms(HUB, tmp_path / "x.ckpt")
    (tmp_path / "x.ckpt.manifest.json").unlink()
    shutil.copy(HUB / "config.json", tmp_path / "config.json")
    for name in ("credentials.json", "train.log", "tokenizer.json"):
        (tmp_path / name).write_text(name)
    ckptforge.convert(tmp_path / "x.ckpt", tmp_path / "y.ckpt", to="gmm")
    ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "hf")
    assert names(tmp_path / "hf") == [
        "ckptforge.manifest.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_sources_without_an_index_come_back_loadable(tmp_path):
    shutil.copytree(HUB, tmp_path / "two")
    (tmp_path / "two" / "model.safetensors.index.json").unlink()
    ckptforge.to_ms(tmp_path / "two", tmp_path / "two.ckpt")
    ckptforge.to_torch(tmp_path / "two.ckpt", tmp_path / "back")
    assert "model.safetensors.index.json" in names(tmp_path / "back") and contents(
        tmp_path / "back"
    ) == contents(HUB)
    ckptforge.to_torch(tmp_path / "two.ckpt", tmp_path / "one", max_shard_size="1GB")
    (tmp_path / "one" / "model.safetensors").rename(tmp_path / "one" / "weights.safetensors")
    ckptforge.to_ms(tmp_path / "one", tmp_path / "one.ckpt")
    ckptforge.to_torch(tmp_path / "one.ckpt", tmp_path / "again")
    assert "model.safetensors" in names(tmp_path / "again")


def test_checkpoints_written_into_the_models_directory_do_not_hide_it(tmp_path):
    shutil.copytree(HUB, tmp_path / "hub")
    for layout in ("dense", "gmm"):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "hub" / f"{layout}.ckpt", layout=layout)
    assert ckptforge.inspect(tmp_path / "hub").layout == "hub"


def test_the_output_may_not_hold_the_input(tmp_path):
    shutil.copytree(HUB, tmp_path / "hub")
    with pytest.raises(OutputError, match="which is being read"):
        ckptforge.convert(tmp_path / "hub", tmp_path / "hub", to="fused", overwrite=True)
    ckptforge.to_ms(HUB, tmp_path / "x.ckpt")
    before = (tmp_path / "x.ckpt").read_bytes()
    with pytest.raises(OutputError, match="which is being read"):
        ckptforge.convert(tmp_path / "x.ckpt", tmp_path / "x.ckpt", to="gmm", overwrite=True)
    assert (tmp_path / "x.ckpt").read_bytes() == before


def test_missing_parents_are_made_and_taken_back_on_failure(tmp_path):
    ckptforge.to_ms(HUB, tmp_path / "a" / "b" / "x.ckpt")
    assert (tmp_path / "a" / "b" / "x.ckpt").is_file()
    full = fail(1, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), {"write"}, ever=True)
    with (
        mounted(tmp_path, FailingStore(DISK, full)),
        pytest.raises(OutputError, match="No space left on device"),
    ):
        ckptforge.to_ms(HUB, tmp_path / "c" / "d" / "x.ckpt")
    assert names(tmp_path) == ["a"]


def test_an_output_that_cannot_be_written_is_said_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="isn't a directory"):
        ckptforge.to_ms(HUB, tmp_path / "file" / "x.ckpt")
    with pytest.raises(OutputError, match="exists and is a directory, but the output is a file"):
        (tmp_path / "d.ckpt").mkdir()
        ckptforge.to_ms(HUB, tmp_path / "d.ckpt", overwrite=True)
    with (
        mounted(tmp_path, WithRoom({tmp_path: Room(1 << 40, False, False)})),
        pytest.raises(OutputError, match="no permission to write"),
    ):
        ckptforge.to_ms(HUB, tmp_path / "x.ckpt")
    with (
        mounted(tmp_path, WithRoom({tmp_path: Room(1 << 40, True, True)})),
        pytest.raises(OutputError, match="is on a read-only file system"),
    ):
        ckptforge.to_ms(HUB, tmp_path / "x.ckpt")
    (tmp_path / "link.ckpt").symlink_to(tmp_path / "file")
    with pytest.raises(OutputError, match="symbolic link"):
        ckptforge.to_ms(HUB, tmp_path / "link.ckpt", overwrite=True)


def test_too_little_room_is_said_before_any_work(tmp_path):
    with mounted(tmp_path, WithRoom({tmp_path: Room(409600, False, True)})):
        with pytest.raises(
            OutputError, match=r"needs [\d,]+ bytes and [\d,]+ to spare, but only 409,600 are free"
        ):
            ckptforge.to_ms(HUB, tmp_path / "x.ckpt")
        assert any(
            "only 409,600 are free" in note
            for note in ckptforge.to_ms(HUB, tmp_path / "x.ckpt", dry_run=True).notes
        )
    assert names(tmp_path) == []


@pytest.mark.parametrize("layout", ["dense", "gmm"])
def test_a_source_cut_off_while_it_is_read(tmp_path, layout):
    shutil.copytree(HUB, tmp_path / "hub")
    victim = tmp_path / "hub" / "model-00002-of-00002.safetensors"

    def cut(call):
        if call.name == "lock":  # all that is refused before any work has been
            os.truncate(victim, 200_000)

    with (
        mounted(tmp_path, FailingStore(DISK, cut)),
        pytest.raises(FormatError, match=r"model-00002-of-00002.safetensors: ends at byte"),
    ):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt", layout=layout)
    assert names(tmp_path) == ["hub"]


def test_without_copy_file_range_the_bytes_go_through_a_buffer(tmp_path, monkeypatch):
    # the same places in the file, so that the kernel may copy
    ckptforge.convert(HUB, tmp_path / "a", to="hub")
    calls = []

    def unsupported(*args):
        calls.append(args)
        raise OSError(errno.EXDEV, "cross-device")

    monkeypatch.setattr(os, "copy_file_range", unsupported)
    ckptforge.convert(HUB, tmp_path / "b", to="hub", no_hash=True)
    names = sorted(path.name for path in (tmp_path / "a").glob("*.safetensors"))
    assert calls and all(
        (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        for name in names
    )


def test_an_interrupt_leaves_nothing(tmp_path):
    def progress(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ckptforge.to_ms(HUB, tmp_path / "x.ckpt", progress=progress, no_hash=True)
    assert names(tmp_path) == []


def test_directory_outputs_and_names(tmp_path):
    ckptforge.to_ms(HUB, tmp_path / "ms", format="safetensors", prefix="mixtral_")
    assert names(tmp_path / "ms") == ["ckptforge.manifest.json", "rank_0"]
    assert names(tmp_path / "ms" / "rank_0") == ["mixtral_0.safetensors"]
    with pytest.raises(UsageError, match="contradicts the ending"):
        ckptforge.to_ms(HUB, tmp_path / "x.ckpt", format="safetensors")
    with pytest.raises(UsageError, match="prefix"):
        ckptforge.to_ms(HUB, tmp_path / "y", prefix="../evil")


def test_a_changed_checkpoint_does_not_get_the_manifest_of_another(tmp_path):
    ckptforge.to_ms(HUB, tmp_path / "x.ckpt", layout="gmm")
    ckptforge.to_ms(HUB, tmp_path / "y.ckpt", dtype="fp32")
    shutil.copy(tmp_path / "y.ckpt", tmp_path / "x.ckpt")
    with pytest.raises(ckptforge.CkptforgeError, match=r"config.json is missing"):
        ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "hf")


def test_a_broken_manifest_is_an_error(tmp_path):
    ckptforge.to_ms(HUB, tmp_path / "x.ckpt")
    for content, message in (
        ("{", "isn't valid JSON"),
        ("{}", "isn't a ckptforge manifest"),
        ('{"outputs": [{}]}', "isn't a ckptforge manifest"),
    ):
        (tmp_path / "x.ckpt.manifest.json").write_text(content)
        with pytest.raises(FormatError, match=message):
            ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "hf")


def test_checksums_are_checked_before_anything_is_published(tmp_path):
    """A crc tail that is wrong stops the conversion."""
    import zlib

    ckptforge.to_ms(HUB, tmp_path / "x.ckpt")
    data = (tmp_path / "x.ckpt").read_bytes()
    good = data + b"crc_num" + zlib.crc32(data).to_bytes(10, "big")
    (tmp_path / "good.ckpt").write_bytes(good)
    ckptforge.convert(tmp_path / "good.ckpt", tmp_path / "y.ckpt", to="gmm", config=HUB)
    bad = bytearray(good)
    bad[5000] ^= 1
    (tmp_path / "bad.ckpt").write_bytes(bad)
    with pytest.raises(FormatError, match="crc32"):
        ckptforge.convert(tmp_path / "bad.ckpt", tmp_path / "z.ckpt", to="gmm", config=HUB)
    assert not (tmp_path / "z.ckpt").exists()


def bad_directories():
    def missing_shard(path):
        (path / "model-00001-of-00002.safetensors").unlink()

    def missing_shard_without_index(path):
        missing_shard(path)
        (path / "model.safetensors.index.json").unlink()

    def wrong_file(path):
        index = path / "model.safetensors.index.json"
        text = index.read_text().replace(
            '"lm_head.weight": "model-00002', '"lm_head.weight": "model-00001'
        )
        index.write_text(text)

    def not_listed(path):
        index = path / "model.safetensors.index.json"
        lines = [line for line in index.read_text().splitlines() if "model.norm.weight" not in line]
        index.write_text("\n".join(lines).replace(",\n  }", "\n  }"))

    def truncated(path):
        os.truncate(path / "model-00001-of-00002.safetensors", 100_000)

    def outside(path):
        index = path / "model.safetensors.index.json"
        index.write_text(
            index.read_text().replace("model-00001-of-00002.safetensors", "../x.safetensors")
        )

    def index_not_json(path):
        (path / "model.safetensors.index.json").write_text("[1")

    def index_wrong(path):
        (path / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1}}')

    def config_not_json(path):
        (path / "config.json").write_text("{")

    def only_bin(path):
        for file in path.glob("*.safetensors*"):
            file.unlink()
        (path / "pytorch_model.bin").write_bytes(b"")

    return {
        missing_shard: "1 of 2 shards named by model.safetensors.index.json is missing:\n  "
        "model-00001-of-00002",
        missing_shard_without_index: "shards are missing:\n  model-00001-of-00002",
        wrong_file: "'lm_head.weight' should be in model-00001-of-00002.safetensors but lies in "
        "model-00002",
        not_listed: "isn't listed:\n  model.norm.weight in",
        truncated: "lie outside the|header should have",
        outside: "isn't the name of a file in this directory",
        index_not_json: "isn't valid JSON",
        index_wrong: "weight_map must map",
        config_not_json: "config.json.*isn't valid JSON",
        only_bin: r"pytorch_model.bin: is empty \(0 bytes\)",
    }


@pytest.mark.parametrize(
    ("damage", "message"), bad_directories().items(), ids=lambda item: getattr(item, "__name__", "")
)
def test_bad_hugging_face_directories(tmp_path, damage, message):
    shutil.copytree(HUB, tmp_path / "hub")
    damage(tmp_path / "hub")
    with pytest.raises((FormatError, InputNotFoundError), match=message):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt")
    assert names(tmp_path) == ["hub"]


def test_missing_and_empty_inputs(tmp_path):
    (tmp_path / "empty").mkdir()
    for path, message in ((tmp_path / "none", "No such file"), (tmp_path / "empty", "is empty")):
        with pytest.raises(InputNotFoundError, match=message):
            ckptforge.to_ms(path, tmp_path / "x.ckpt")
    with pytest.raises(FormatError, match="is a JSON file: name a file of tensors"):
        ckptforge.to_ms(HUB / "config.json", tmp_path / "x.ckpt")
    os.mkfifo(tmp_path / "pipe.ckpt")
    with pytest.raises(InputNotFoundError, match="neither a file nor a directory"):
        ckptforge.convert(tmp_path / "pipe.ckpt", tmp_path / "x.ckpt", to="gmm")


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("1GiB", 2**30), ("512mb", 512 * 10**6), ("1.5k", 1500), ("7", 7), (7, 7)],
)
def test_sizes(text, size):
    assert parse_size(text, "--x") == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "0", "1XB", "five", "9" * 400])
def test_bad_sizes(text):
    with pytest.raises(UsageError, match="--x"):
        parse_size(text, "--x")


def test_too_little_memory_and_no_workers_are_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match="memory"):
        ckptforge.to_ms(HUB, tmp_path / "x.ckpt", memory="10KB")
    with pytest.raises(UsageError, match="workers=0"):
        ckptforge.to_ms(HUB, tmp_path / "x.ckpt", workers=0)


def test_a_checkpoint_renamed_with_its_manifest_keeps_it(tmp_path):
    ckptforge.to_ms(HUB, tmp_path / "x.ckpt")
    (tmp_path / "x.ckpt").rename(tmp_path / "y.ckpt")
    (tmp_path / "x.ckpt.manifest.json").rename(tmp_path / "y.ckpt.manifest.json")
    ckptforge.to_torch(tmp_path / "y.ckpt", tmp_path / "back")
    assert (tmp_path / "back/config.json").read_bytes() == (HUB / "config.json").read_bytes()
    write_hub(tmp_path / "other", tiny_config())
    ckptforge.to_ms(tmp_path / "other", tmp_path / "z.ckpt")
    (tmp_path / "z.ckpt").replace(tmp_path / "y.ckpt")  # another checkpoint under that name
    with pytest.raises(CkptforgeError, match="config.json"):
        ckptforge.to_torch(tmp_path / "y.ckpt", tmp_path / "other_back")


def test_what_is_not_carried_along_is_said(tmp_path):
    shutil.copytree(HUB, tmp_path / "hub")
    (tmp_path / "hub/original").mkdir()
    (tmp_path / "hub/consolidated.00.pth").write_bytes(b"x")
    notes = ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt").notes
    assert any("original/ isn't carried along" in note for note in notes) and any(
        "consolidated.00.pth isn't" in note for note in notes
    )


def test_a_config_for_weights_that_lack_one(tmp_path):
    shutil.copytree(HUB, tmp_path / "hub")
    (tmp_path / "hub/config.json").unlink()
    with pytest.raises(CkptforgeError, match="config"):
        ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt", layout="dense-qkv-r1.4")
    ckptforge.to_ms(tmp_path / "hub", tmp_path / "x.ckpt", layout="dense-qkv-r1.4", config=HUB)
    ckptforge.to_torch(tmp_path / "x.ckpt", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(HUB)
