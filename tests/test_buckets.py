"""Buckets of S3, and what fsspec knows: as inputs and as outputs."""

import json
import os
import signal
import socket
import threading
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

import ckptforge
from ckptforge.errors import (
    CkptforgeError,
    InputNotFoundError,
    LeftError,
    OutputError,
    UsageError,
)
from ckptforge.remote import patience
from ckptforge.remote.held import WINDOW
from ckptforge.remote.parts import PARTS
from ckptforge.remote.service import service_of
from ckptforge.storage.endpoints import at_endpoints, endpoints_of, said_endpoints
from ckptforge.storage.mounts import store_of
from ckptforge.tables.shipped import shipped_tables
from ckptforge.verbs.synthetic import write_model
from tests.helpers import HUB, MINDSPORE, write_safetensors
from tests.test_remote import files_of, twice_read
from tests.web import buckets
from tests.web.faults import now_and_then

for name in ("boto3", "fsspec", "moto.server", "obstore"):
    pytest.importorskip(name, reason=f"{name} isn't installed (pip install '.[test]')")

RANKS, STRATEGY = MINDSPORE / "sharded" / "mp8", MINDSPORE / "strategies" / "mp8"


@pytest.fixture(scope="module")
def server():
    with buckets.service() as found:
        yield found


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, server):
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.001)
    for name in ("AWS_PROFILE", "AWS_REGION", "OBS_ENDPOINT", "OBS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    for key, value in buckets.KEYS.items():
        monkeypatch.setenv(key.upper(), value)
    url, client, app = server
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    client.create_bucket(Bucket="models")
    app.clear()


_numbers = iter(range(1000))


def upload(client, directory, name):
    """A directory into the bucket, where nothing was; its address."""
    key = f"{next(_numbers)}/{name}"
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            client.upload_file(str(path), "models", f"{key}/{path.relative_to(directory)}")
    return f"s3://models/{key}"


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A Mixtral of 40 MB, in shards."""
    hub = tmp_path_factory.mktemp("large") / "hub"
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_local_experts": 4}
    table = next(table for table in shipped_tables() if table.name == "mixtral")
    config = table.example | sizes | {"num_hidden_layers": 1, "vocab_size": 8000}
    write_model(hub, table, config, shard_bytes=15_000_000)
    return hub


def test_every_verb_reads_a_bucket(tmp_path, server):
    at = upload(server[1], HUB, "tiny")
    assert ckptforge.inspect(at).to_json()["tensors"] == ckptforge.inspect(HUB).to_json()["tensors"]
    ckptforge.to_ms(at, tmp_path / "far.ckpt", layout="gmm")
    ckptforge.to_ms(HUB, tmp_path / "near.ckpt", layout="gmm")
    assert (tmp_path / "far.ckpt").read_bytes() == (tmp_path / "near.ckpt").read_bytes()
    assert ckptforge.compare(at, tmp_path / "far.ckpt").equal
    with ckptforge.open(at) as far, ckptforge.open(HUB) as near:
        name = next(iter(near))
        assert np.array_equal(np.asarray(far[name][:]), np.asarray(near[name][:]))
    server[1].upload_file(str(tmp_path / "far.ckpt"), "models", "ms/far.ckpt")
    ckptforge.to_torch("s3://models/ms/far.ckpt", tmp_path / "far", config=at)
    ckptforge.to_torch(tmp_path / "near.ckpt", tmp_path / "near", config=HUB)
    assert files_of(tmp_path / "far") == files_of(tmp_path / "near")
    ckptforge.average(tmp_path / "a.ckpt", [at, HUB])
    ckptforge.edit(at, tmp_path / "cut", take=["e=0,1"])


def test_ranks_are_merged_from_a_bucket(tmp_path, server):
    ranks, strategy = upload(server[1], RANKS, "ranks"), upload(server[1], STRATEGY, "strategies")
    ckptforge.merge(ranks, tmp_path / "far.ckpt", strategy_dir=strategy)
    ckptforge.merge(RANKS, tmp_path / "near.ckpt", strategy_dir=STRATEGY)
    assert (tmp_path / "far.ckpt").read_bytes() == (tmp_path / "near.ckpt").read_bytes()


def test_obs_is_read_as_s3_is_where_it_is_said_to_be(server, monkeypatch):
    at = upload(server[1], HUB, "tiny").replace("s3:", "obs:")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    with pytest.raises(InputNotFoundError, match="variable OBS_ENDPOINT"):
        ckptforge.inspect(at)
    monkeypatch.setenv("OBS_ENDPOINT", server[0])
    assert ckptforge.inspect(at).model == "mixtral"
    monkeypatch.delenv("OBS_ENDPOINT")
    assert ckptforge.inspect(at, endpoint=server[0]).model == "mixtral"
    for endpoint in ("ftp://host", "https://word1:word2@host", "host"):
        with pytest.raises(UsageError, match="endpoint: expected https://") as error:
            ckptforge.inspect(at, endpoint=endpoint)
        assert "word1" not in str(error.value)


@pytest.mark.parametrize("layout", ["dense", "gmm"])
def test_no_range_of_an_object_is_read_twice(tmp_path, server, large, monkeypatch, layout):
    monkeypatch.setattr(PARTS, "limit", 6 * WINDOW)
    at, app = upload(server[1], large, "large"), server[2]
    app.clear()
    ckptforge.to_ms(at, tmp_path / "far.ckpt", layout=layout)
    size = sum(path.stat().st_size for path in large.iterdir())
    assert twice_read(app) == 0 and app.sent <= 1.2 * size, sorted(app.ranges)[:9]
    assert len(app.ranges) <= size / WINDOW + 16
    ckptforge.to_ms(large, tmp_path / "near.ckpt", layout=layout)
    assert (tmp_path / "far.ckpt").read_bytes() == (tmp_path / "near.ckpt").read_bytes()


def test_headers_between_tensors_bring_little(tmp_path, server, large):
    ckptforge.to_ms(large, tmp_path / "x.ckpt")
    _, client, app = server
    client.upload_file(str(tmp_path / "x.ckpt"), "models", "headers/x.ckpt")
    app.clear()
    assert ckptforge.inspect("s3://models/headers/x.ckpt").tensors
    assert 0 < app.sent < 2_000_000 < (tmp_path / "x.ckpt").stat().st_size


@pytest.mark.parametrize("kind", ["busy", "reset", "truncated", "slow"])
def test_faults_of_a_service_that_pass_are_survived(tmp_path, server, large, kind):
    at, app = upload(server[1], large, "large"), server[2]
    app.clear()
    app.fault = now_and_then(kind)
    ckptforge.edit(at, tmp_path / "far", set_dtype=["router=fp32"])
    # obstore keeps less than a MiB of what came before a body was cut off to itself
    assert app.faults[kind] > 1 and twice_read(app) <= (app.faults["truncated"] << 20)
    app.clear()
    ckptforge.edit(large, tmp_path / "near", set_dtype=["router=fp32"])
    assert files_of(tmp_path / "far") == files_of(tmp_path / "near")


def test_an_object_that_was_changed_is_an_error(tmp_path, server, large):
    at, client, app = upload(server[1], large, "large"), *server[1:]
    last = max(large.glob("*.safetensors"))

    def fault(number, method, query):
        if any(length > 1 << 20 for _, _, length in app.ranges):
            app.fault = lambda *_: None
            body = last.read_bytes()[:-1] + b"x"
            client.put_object(
                Bucket="models", Key=f"{at.partition('models/')[2]}/{last.name}", Body=body
            )

    app.fault = fault
    with pytest.raises(CkptforgeError, match="was changed while it was read|has changed since"):
        ckptforge.to_ms(at, tmp_path / "out.ckpt")
    assert not (tmp_path / "out.ckpt").exists()


def test_what_is_denied_and_what_stays_broken_names_the_address(tmp_path, server, large):
    at, app = upload(server[1], large, "large"), server[2]
    for kind, message in (("denied", "access is denied"), ("busy", "failed 7 times: the server")):
        app.fault = lambda number, method, query, kind=kind: kind if method == "GET" else None
        with pytest.raises(CkptforgeError, match=message) as error:
            ckptforge.to_ms(at, tmp_path / "out.ckpt")
        assert f"{at}/" in str(error.value) and "word" not in str(error.value)
        assert "\n" not in str(error.value)


def test_what_fsspec_knows_is_read(tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in HUB.iterdir():
        memory.pipe(f"/tiny/{path.name}", path.read_bytes())
    ckptforge.to_ms("memory://tiny", tmp_path / "far.ckpt")
    ckptforge.to_ms(HUB, tmp_path / "near.ckpt")
    assert (tmp_path / "far.ckpt").read_bytes() == (tmp_path / "near.ckpt").read_bytes()
    with pytest.raises(InputNotFoundError, match="read by fsspec, which needs a package"):
        ckptforge.inspect("abfs://x/y")
    with pytest.raises(InputNotFoundError, match="can't read: download it first"):
        ckptforge.inspect("nothing://x/y")


def test_nothing_that_is_written_or_said_holds_credentials(tmp_path, server):
    at = upload(server[1], HUB, "tiny")
    from click.testing import CliRunner

    from ckptforge.cli.entry import cli

    said = ""
    for words in (["--endpoint", server[0]], ["--dry-run", "--overwrite"]):
        found = CliRunner().invoke(cli, ["to-ms", at, str(tmp_path / "far.ckpt"), "--json", *words])
        assert found.exit_code == 0
        said += found.output
    manifest = (tmp_path / "far.ckpt.manifest.json").read_text()
    assert at in manifest and json.loads(manifest)["sources"]
    for word in buckets.KEYS.values():
        assert word not in said + manifest


# Outputs


def objects(client, address):
    """Name → contents of what lies below an address, or at it."""
    key = address.partition("models/")[2]
    found = client.list_objects_v2(Bucket="models", Prefix=key).get("Contents", ())
    return {
        one["Key"][len(key) :].strip("/"): client.get_object(Bucket="models", Key=one["Key"])[
            "Body"
        ].read()
        for one in found
    }


def uploads(client, address):
    """The uploads of objects beside an output that were begun."""
    found = client.list_multipart_uploads(Bucket="models").get("Uploads", [])
    beside = address.partition("models/")[2].partition("/")[0]
    return [one for one in found if one["Key"].startswith(f"{beside}/")]


def place(name):
    return f"s3://models/{next(_numbers)}/{name}"


@pytest.mark.parametrize("layout", ["dense", "gmm"])
def test_outputs_in_a_bucket_are_what_they_are_on_a_disk(tmp_path, server, large, layout):
    out, client = place("out.ckpt"), server[1]
    ckptforge.to_ms(large, tmp_path / "near.ckpt", layout=layout)
    ckptforge.to_ms(large, out, layout=layout, memory="32MB", workers=3)
    found = objects(client, out)
    assert found.pop("") == (tmp_path / "near.ckpt").read_bytes()
    far, near = (
        {**json.loads(text), "command": None}
        for text in (
            found.pop(".manifest.json"),
            (tmp_path / "near.ckpt.manifest.json").read_text(),
        )
    )
    for one in (far, near):
        one["outputs"][0].pop("mtime_ns"), one["outputs"][0].pop("file")
        assert one["outputs"][0]["tensors"]
    assert far == near and not found and not uploads(client, out)
    assert ckptforge.check(out).equal and ckptforge.compare(out, tmp_path / "near.ckpt").equal
    back = place("hub")
    ckptforge.to_torch(out, back)
    ckptforge.to_torch(tmp_path / "near.ckpt", tmp_path / "hub")
    found = {name: text for name, text in objects(client, back).items() if "manifest" not in name}
    assert found == files_of(tmp_path / "hub")


def test_every_verb_writes_to_a_bucket(tmp_path, server):
    client = server[1]
    ckptforge.merge(RANKS, place("merged.ckpt"), strategy_dir=STRATEGY)
    split = place("split")
    ckptforge.split(MINDSPORE / "full.ckpt", split, strategy_dir=STRATEGY)
    ckptforge.split(MINDSPORE / "full.ckpt", tmp_path / "split", strategy_dir=STRATEGY)
    near = {str(one.relative_to(tmp_path / "split")) for one in (tmp_path / "split").rglob("*.*")}
    assert set(objects(client, split)) == near
    out = place("resharded")
    ckptforge.reshard(split, out, src_strategy_dir=STRATEGY, dst_strategy_dir=STRATEGY)
    assert ckptforge.compare(out, RANKS, strategy_dir_a=STRATEGY, strategy_dir_b=STRATEGY).equal
    ckptforge.edit(HUB, place("edited"), take=["e=0,1"])
    ckptforge.average(place("mean.safetensors"), [HUB, HUB])
    ckptforge.convert(HUB, place("fused"), to="fused")
    with ckptforge.open(HUB) as model:
        model.cast("fp32").save(place("saved"))
    assert not uploads(client, split) and not uploads(client, out)


def test_nothing_is_replaced_without_being_asked(tmp_path, server):
    client, out = server[1], place("out.ckpt")
    ckptforge.to_ms(HUB, out)
    before = objects(client, out)
    with pytest.raises(OutputError, match=r"out\.ckpt: exists already; give overwrite=True"):
        ckptforge.to_ms(HUB, out, layout="gmm")
    assert objects(client, out) == before
    ckptforge.to_ms(HUB, out, layout="gmm", overwrite=True)
    assert objects(client, out) != before and ckptforge.check(out).equal
    hub = place("hub")
    ckptforge.edit(HUB, hub, take=["e=0,1"], max_shard_size="100KB")
    ckptforge.edit(HUB, hub, take=["e=0,1"], overwrite=True)
    assert len(objects(client, hub)) < 8 and ckptforge.check(hub).equal


def test_what_appears_meanwhile_is_not_replaced(server, large):
    _, client, app = server
    out, key = place("out.ckpt"), f"{int(next(_numbers)) - 1}/out.ckpt"

    def fault(number, method, query):
        if "partNumber=2" in query:
            app.fault = lambda *_: None
            client.put_object(Bucket="models", Key=key, Body=b"another's")

    app.fault = fault
    with pytest.raises(OutputError, match="can't be put in place: File exists"):
        ckptforge.to_ms(large, out)
    assert objects(client, out) == {"": b"another's"}
    assert ckptforge.clean(out).bytes > 0 and not uploads(client, out)


def test_writing_survives_faults_that_pass(tmp_path, server, large):
    _, client, app = server
    busy = now_and_then("busy", every=4)
    app.fault = lambda number, method, query: busy(number) if "partNumber" in query else None
    out = place("out.ckpt")
    ckptforge.to_ms(large, out)
    assert app.faults["busy"]
    ckptforge.to_ms(large, tmp_path / "near.ckpt")
    assert objects(client, out)[""] == (tmp_path / "near.ckpt").read_bytes()


def test_an_error_leaves_nothing(server, large):
    _, client, app = server
    app.fault = lambda number, method, query: "denied" if "partNumber=3" in query else None
    out = place("out.ckpt")
    with pytest.raises(OutputError, match="the service says 403") as error:
        ckptforge.to_ms(large, out)
    assert str(out) in str(error.value)
    app.clear()
    assert not objects(client, out.rpartition("/")[0]) and not uploads(client, out)


EDIT = {"set_dtype": ["router=fp32"], "max_shard_size": "15MB"}


def stopped_after(client, large, app, out, parts):
    """A run that loses its service after so many parts."""

    def fault(number, method, query):
        seen = len(app.queries("PUT", "partNumber"))
        return "denied" if method == "PUT" and "partNumber" in query and seen > parts else None

    app.fault = fault
    with pytest.raises(OutputError) as error:
        ckptforge.edit(large, out, workers=1, **EDIT)
    app.clear()
    return "".join(error.value.__notes__)


def test_a_run_that_stopped_is_resumed(tmp_path, server, large):
    _, client, app = server
    out = place("hub")
    note = stopped_after(client, large, app, out, 3)
    assert "file" in note and "resume=True" in note
    assert not [name for name in objects(client, out) if name.endswith(".safetensors")]
    with pytest.raises(LeftError, match="or stopped: it left"):
        ckptforge.edit(large, out, **EDIT)
    with pytest.raises(LeftError, match="another command"):
        ckptforge.edit(large, out, **{**EDIT, "set_dtype": ["router=fp16"]}, resume=True)
    app.clear()
    ckptforge.edit(large, out, **EDIT, resume=True)
    sent = len(app.queries("PUT", "partNumber"))
    ckptforge.edit(large, tmp_path / "near", **EDIT)
    found = {name: text for name, text in objects(client, out).items() if "manifest" not in name}
    assert found == files_of(tmp_path / "near") and not uploads(client, out)
    assert 0 < sent < sum(-(-len(text) // WINDOW) for text in found.values())
    manifest = json.loads(objects(client, out)["ckptforge.manifest.json"])
    near = json.loads((tmp_path / "near" / "ckptforge.manifest.json").read_text())
    assert manifest["sources"] == near["sources"]


def test_clean_aborts_what_was_left(server, large):
    _, client, app = server
    out = place("hub")
    stopped_after(client, large, app, out, 3)
    begun = uploads(client, out)
    assert begun
    for directory in (out, out.rpartition("/")[0]):
        found = ckptforge.clean(directory, dry_run=True)
        assert found.bytes > 0 and uploads(client, out) == begun
    assert ckptforge.clean(out).ok
    assert not uploads(client, out) and not objects(client, out.rpartition("/")[0])


def test_codes_and_scales_are_written_to_a_bucket_and_read_of_one_once(
    tmp_path, server, large, monkeypatch
):
    _, client, app = server
    at, out = upload(client, large, "large"), place("fp8")
    monkeypatch.setattr(PARTS, "limit", 6 * WINDOW)
    options = {"to": "hub", "quantise": ["fp8-block128"]}
    ckptforge.convert(large, tmp_path / "near", **options)
    app.clear()
    ckptforge.convert(at, tmp_path / "far", **options)
    size = sum(path.stat().st_size for path in large.iterdir())
    assert twice_read(app) == 0 and app.sent <= 1.2 * size
    assert files_of(tmp_path / "far") == files_of(tmp_path / "near")
    ckptforge.convert(at, out, **options)  # from front to back, the scales before all codes
    found = {name: text for name, text in objects(client, out).items() if "manifest" not in name}
    assert found == files_of(tmp_path / "near")


def test_what_is_turned_from_bucket_to_bucket_is_read_once(tmp_path, server, large, monkeypatch):
    _, client, app = server
    at, out = upload(client, large, "large"), place("out.ckpt")
    monkeypatch.setattr(PARTS, "limit", 4 * WINDOW)
    app.clear()
    ckptforge.to_ms(at, out, layout="gmm", memory="8MB")
    size = sum(path.stat().st_size for path in large.iterdir())
    assert twice_read(app) == 0 and app.sent <= 1.2 * size
    ckptforge.to_ms(large, tmp_path / "near.ckpt", layout="gmm")
    assert objects(client, out)[""] == (tmp_path / "near.ckpt").read_bytes()
    monkeypatch.setattr(PARTS, "limit", WINDOW // 8)
    with pytest.raises(OutputError, match="1572864 bytes of it are held .* memory of at least"):
        ckptforge.to_ms(at, place("out.ckpt"), layout="gmm", memory=1 << 20)


def test_what_cant_be_written_in_order_is_refused_before_anything_is_read(server):
    app = server[2]
    app.clear()
    with pytest.raises((OutputError, UsageError), match="from front to back: write it to a disk"):
        ckptforge.edit(HUB, place("x.pt"), take=["e=0,1"])
    assert not app.ranges


def test_sources_of_a_bucket_are_not_consumed_into_one(server):
    with pytest.raises(UsageError, match=r"isn't on a disk, which consume=True needs"):
        ckptforge.to_ms(HUB, place("out.ckpt"), consume=True)


# Several processes


SHARDS = {"set_dtype": ["router=fp32"], "max_shard_size": "8MB"}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, large):
    """What one process makes of `large` on a disk."""
    near = tmp_path_factory.mktemp("sharded") / "near"
    ckptforge.edit(large, near, **SHARDS)
    return files_of(near)


@pytest.fixture(scope="module")
def processes():
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield pool


def files_of_tensors(names):
    return [name for name in names if name.endswith(".safetensors")]


def tensors_at(client, out):
    return {name: text for name, text in objects(client, out).items() if "manifest" not in name}


def test_processes_write_to_a_bucket_what_one_writes_to_a_disk(
    tmp_path, server, large, sharded, processes, monkeypatch
):
    url, client, app = server
    at, out = upload(client, large, "large"), place("hub")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    told = []
    app.clear()
    ckptforge.edit(
        at, out, endpoint=url, executor=processes, progress=lambda *now: told.append(now), **SHARDS
    )
    assert told[-1] == (told[-1][1],) * 2 and told == sorted(told)
    assert tensors_at(client, out) == sharded and not uploads(client, out)
    assert len(app.queries("POST", "uploads")) == len(files_of_tensors(sharded))
    assert not [name for name in objects(client, out.rpartition("/")[0]) if "ckptforge/" in name]
    manifests = [json.loads(objects(client, out)["ckptforge.manifest.json"])]
    alone = place("hub")
    ckptforge.edit(at, alone, endpoint=url, **SHARDS)
    manifests.append(json.loads(objects(client, alone)["ckptforge.manifest.json"]))
    for one in manifests:
        for file in one["outputs"]:
            del file["mtime_ns"]
    assert manifests[0]["outputs"] == manifests[1]["outputs"]
    assert manifests[0]["sources"] == manifests[1]["sources"]


def test_one_file_and_ranks_are_written_to_a_bucket_by_an_executor(tmp_path, server):
    client, pool, config = server[1], ThreadPoolExecutor(2), tmp_path / "parallel.yaml"
    config.write_text("data_parallel: 2\nmodel_parallel: 2\npipeline_stage: 2\n")
    for name, options in (
        ("one.ckpt", {"layout": "gmm"}),
        ("ranks", {"parallel_config": config}),
    ):
        out = place(name)
        ckptforge.to_ms(HUB, out, executor=pool, **options)
        ckptforge.to_ms(HUB, tmp_path / name, **options)
        far, near = objects(client, out), tmp_path / name
        made = (path for path in (near, *near.rglob("*.ckpt")) if path.is_file())
        near = {str(path.relative_to(near)).strip("."): path.read_bytes() for path in made}
        assert {k: v for k, v in far.items() if "manifest" not in k} == near
        assert ckptforge.check(out).equal and not uploads(client, out)


def test_what_a_killed_worker_began_is_done_again_and_nothing_stays(server, large, sharded):
    _, client, app = server
    out, seen = place("hub"), []
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:

        def fault(number, method, query):
            if "partNumber=" in query:
                seen.append(query)
                if len(seen) == 3:
                    os.kill(next(iter(pool._processes)), signal.SIGKILL)

        app.fault = fault
        result = ckptforge.edit(large, out, executor=pool, **SHARDS)
    app.clear()
    assert "the executor broke" in result.notes[-1]
    assert tensors_at(client, out) == sharded and not uploads(client, out)


class Lost(Executor):
    """Of the calls for one file so many are lost when it was brought there."""

    def __init__(self, times):
        self.left, self.path = times, None

    def submit(self, call, /, *args, **kwargs):
        future = Future()
        report, path = call(), call.work.plan.files[0].path
        self.path = self.path or path
        if self.left and path == self.path:
            self.left -= 1
            future.set_exception(ConnectionError("gone"))
        else:
            future.set_result(report)
        return future


def test_uploads_of_units_that_were_lost_are_aborted(server, large, sharded):
    client, out = server[1], place("hub")
    result = ckptforge.edit(large, out, executor=Lost(2), **SHARDS)
    assert "2 units were lost with a worker and done again" in result.notes[-1]
    assert tensors_at(client, out) == sharded and not uploads(client, out)
    out = place("hub")
    with pytest.raises(OutputError, match="failed 3 times, at last with ConnectionError: gone"):
        ckptforge.edit(large, out, executor=Lost(3), **SHARDS)
    begun = [one["Key"] for one in uploads(client, out)]  # what can be gone on with
    assert len(set(begun)) == len(begun) == len(files_of_tensors(sharded)) - 1
    assert ckptforge.clean(out).ok and not uploads(client, out)


def test_what_workers_brought_there_is_resumed(server, large, sharded, processes):
    url, client, app = server
    out = place("hub")

    class Stopped(Exception):
        pass

    def stop(done, total):
        if done > total / 2:
            raise Stopped

    with pytest.raises(Stopped):
        ckptforge.edit(large, out, executor=ThreadPoolExecutor(1), progress=stop, **SHARDS)
    app.clear()
    assert not files_of_tensors(tensors_at(client, out))
    ckptforge.edit(large, out, endpoint=url, executor=processes, resume=True, **SHARDS)
    assert tensors_at(client, out) == sharded and not uploads(client, out)
    assert 0 < len(app.queries("POST", "uploads")) < len(files_of_tensors(sharded))


def test_what_a_killed_run_had_begun_is_aborted_when_it_is_resumed(server, large, sharded):
    _, client, app = server
    out = place("hub")
    stopped_after(client, large, app, out, 3)
    key = f"{out.partition('models/')[2]}/model-00003-of-00003.safetensors"
    client.create_multipart_upload(Bucket="models", Key=key)  # by a process that was killed
    client.create_multipart_upload(Bucket="models", Key=f"{key}.bak")  # another's
    ckptforge.edit(large, out, resume=True, **EDIT)
    assert [one["Key"] for one in uploads(client, out)] == [f"{key}.bak"]


def test_a_worker_leaves_nothing_where_the_run_was_given_up(server, large):
    _, client, app = server
    out = place("hub")

    class Late(Executor):
        def submit(self, call, /, *args, **kwargs):
            future, key = (
                Future(),
                f"{out.partition('models/')[2].partition('/')[0]}/.hub.ckptforge",
            )
            client.delete_object(Bucket="models", Key=f"{key}/run.json")
            try:
                call()
            except OutputError as error:
                future.set_exception(error)
            return future

    with pytest.raises(OutputError, match=r"run\.json: isn't there: the run was given up, or this"):
        ckptforge.edit(large, out, executor=Late(), **SHARDS)
    assert not uploads(client, out) and not app.queries("PUT", "partNumber")


@pytest.mark.slow
def test_dask_writes_to_a_bucket_when_a_worker_is_killed(server, large, sharded):
    distributed = pytest.importorskip("distributed")
    _, client, app = server
    out = place("hub")
    with distributed.LocalCluster(
        n_workers=3, threads_per_worker=1, dashboard_address=None
    ) as cluster:
        pids = [worker.process.pid for worker in cluster.workers.values()]

        def fault(number, method, query):
            if pids and "partNumber=" in query:
                os.kill(pids.pop(), signal.SIGKILL)
                pids.clear()

        app.fault = fault
        ckptforge.edit(large, out, dask=cluster.scheduler_address, **SHARDS)
    app.clear()
    assert tensors_at(client, out) == sharded and not uploads(client, out)


def test_a_file_without_a_byte_of_a_tensor_appears(tmp_path, server):
    source, out = tmp_path / "x.safetensors", place("out.safetensors")
    write_safetensors(source, {"a": ("F32", [0, 4], b"")})
    for executor in (None, ThreadPoolExecutor(1)):
        ckptforge.average(out, [source, source], executor=executor, overwrite=True)
        ckptforge.average(tmp_path / "near.safetensors", [source, source], overwrite=True)
        assert objects(server[1], out)[""] == (tmp_path / "near.safetensors").read_bytes()


def test_an_executor_writes_wherever_fsspec_writes(tmp_path):
    import fsspec

    memory, pool = fsspec.filesystem("memory"), ThreadPoolExecutor(2)
    ckptforge.edit(HUB, "memory://several/hub", take=["e=0,1"], executor=pool)
    ckptforge.edit(HUB, tmp_path / "hub", take=["e=0,1"])
    far = {name.rpartition("/")[2]: memory.cat_file(name) for name in memory.find("/several/hub")}
    assert {k: v for k, v in far.items() if "manifest" not in k} == files_of(tmp_path / "hub")
    assert memory.ls("/several", detail=False) == ["/several/hub"]


def test_outputs_go_wherever_fsspec_writes(tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    ckptforge.to_ms(HUB, "memory://far/x.ckpt", workers=3)
    ckptforge.to_ms(HUB, tmp_path / "x.ckpt")
    assert memory.cat_file("/far/x.ckpt") == (tmp_path / "x.ckpt").read_bytes()
    assert ckptforge.check("memory://far/x.ckpt").equal
    with pytest.raises(OutputError, match="exists already"):
        ckptforge.to_ms(HUB, "memory://far/x.ckpt")
    ckptforge.edit(HUB, "memory://far/hub", take=["e=0,1"])
    assert ckptforge.inspect("memory://far/hub").model == "mixtral"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, large):
    """`large` as ranks, with their configuration."""
    directory = tmp_path_factory.mktemp("ranks")
    (directory / "parallel.yaml").write_text(
        "data_parallel: 2\nmodel_parallel: 2\nexpert_parallel: 2\n"
    )
    ckptforge.to_ms(large, directory / "ranks", parallel_config=directory / "parallel.yaml")
    return directory / "ranks"


def test_ranks_that_go_back_are_read_once(tmp_path, server, large, ranks, monkeypatch):
    _, client, app = server
    at, out = upload(client, ranks, "ranks"), place("hub")
    options = {"parallel_config": ranks.parent / "parallel.yaml", "config": large / "config.json"}
    monkeypatch.setattr(PARTS, "limit", 3 * WINDOW)
    app.clear()
    ckptforge.to_torch(at, out, workers=1, **options)
    size = sum(path.stat().st_size for path in ranks.rglob("*.*"))
    assert twice_read(app) == 0 and app.sent <= size, sorted(app.ranges)
    ckptforge.to_torch(ranks, tmp_path / "hub", **options)
    assert tensors_at(client, out) == files_of(tmp_path / "hub")


def test_an_endpoint_is_of_the_call_in_which_it_is_said(tmp_path, server, monkeypatch):
    at = upload(server[1], HUB, "tiny")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:1")
    with ckptforge.open(at, endpoint=server[0]) as model:
        name = next(iter(model))
        model.save(tmp_path / "late")  # long after the call
        found = []

        def read():
            found.append(np.asarray(model[name][:]))

        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
        with ckptforge.open(HUB) as near:
            assert np.array_equal(found[0], np.asarray(near[name][:]))
            near.average(model).save(tmp_path / "mean")
    assert said_endpoints() == {}
    assert service_of(Path(at)).endpoint == "http://localhost:1"


def test_calls_in_two_threads_reach_their_own_services(server, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    asked = []
    monkeypatch.setattr(
        "ckptforge.storage.mounts.store_for", lambda scheme, endpoint=None: asked.append(endpoint)
    )
    both = threading.Barrier(2)

    def ask(endpoint):
        with at_endpoints(endpoints_of(endpoint, ["s3://models/x"])):
            both.wait()
            with suppress(AttributeError, CkptforgeError):
                store_of(Path("s3://models/x"))
            both.wait()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(ask, ["http://one", "http://two/"]))
    assert sorted(asked) == ["http://one", "http://two"]


def test_the_inputs_of_a_recipe_are_where_the_call_says(tmp_path, server, monkeypatch):
    at = upload(server[1], HUB, "tiny")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    rows = f"[[input]]\npath = '{at}'\nweight = 0.5\n[[input]]\npath = '{HUB}'\nweight = 0.5\n"
    (tmp_path / "r.toml").write_text(rows)
    made = ckptforge.average(tmp_path / "o", recipe=tmp_path / "r.toml", endpoint=server[0])
    assert made.tensors


def test_a_service_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr("ckptforge.remote.patience.TRIES", 1)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(InputNotFoundError, match=f"failed 1 times: .*, at {host}") as caught:
            ckptforge.inspect("s3://bucket/x", endpoint=f"http://{host}")
    assert "no such bucket" not in str(caught.value)


def test_a_bucket_alone_is_no_output_and_what_is_not_in_one_is_said(server):
    for out in ("s3://models", "s3://models/", "obs://models"):
        with pytest.raises(UsageError, match="is a whole bucket; name what is written in it"):
            ckptforge.to_ms(HUB, out, endpoint=server[0], overwrite=True)
    for at in ("s3://nowhere/x", "s3://models/nothing"):
        with pytest.raises(InputNotFoundError, match="no such bucket, or nothing of that name in"):
            ckptforge.inspect(at)
