"""Buckets of S3, and what fsspec knows: as inputs and as outputs."""

import json

import numpy as np
import pytest

import ckptforge
from ckptforge.errors import CkptforgeError, InputNotFoundError, UsageError
from ckptforge.remote import patience, store
from ckptforge.remote.parts import WINDOW
from ckptforge.tables.shipped import shipped_tables
from ckptforge.verbs.synthetic import write_model
from tests.helpers import HUB, MINDSPORE
from tests.test_remote import files_of, twice_read
from tests.web import buckets

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
    monkeypatch.setattr(store._PARTS, "limit", 6 * WINDOW)
    at, app = upload(server[1], large, "large"), server[2]
    app.clear()
    ckptforge.to_ms(at, tmp_path / "far.ckpt", layout=layout)
    size = sum(path.stat().st_size for path in large.iterdir())
    assert twice_read(app) == 0 and app.sent <= 1.2 * size, sorted(app.ranges)[:9]
    assert len(app.ranges) <= size / WINDOW + 16
    ckptforge.to_ms(large, tmp_path / "near.ckpt", layout=layout)
    assert (tmp_path / "far.ckpt").read_bytes() == (tmp_path / "near.ckpt").read_bytes()


@pytest.mark.parametrize("kind", ["busy", "reset", "truncated", "slow"])
def test_faults_of_a_service_that_pass_are_survived(tmp_path, server, large, kind):
    at, app = upload(server[1], large, "large"), server[2]
    app.clear()
    app.fault = lambda number, method, query: kind if number % 3 == 1 else None
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
