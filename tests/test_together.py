"""Tensors that are made together of one reading: codes and their scales, wherever both are written
by one process, in whatever order; apart where they can't be."""

import pytest
from msgspec.structs import replace

import ckptforge
from ckptforge.dtypes import BY_NAME
from ckptforge.planning.assembly import Assembly
from ckptforge.run.together import together
from ckptforge.steps.encoded import CODES, Encoded
from ckptforge.storage.local import DISK
from ckptforge.storage.mounts import mounted
from ckptforge.testing.stores import FailingStore
from ckptforge.values import Place, Term
from tests.helpers import contents
from tests.test_quantising import KINDS, llama


class Reads:
    """Counts the bytes that are read below a directory."""

    def __init__(self, directory):
        self.directory, self.nbytes = directory, 0

    def __call__(self, call):
        self.nbytes += call.length if call.name == "read_into" else 0

    def during(self, command, *arguments, **options):
        with mounted(self.directory, FailingStore(DISK, self)):
            return command(*arguments, **options)


def counts(result):
    return {key: (one.values, one.rounded) for key, one in result.audit.counts.items()}


@pytest.mark.parametrize("shards", [None, "200KB"])
@pytest.mark.parametrize("kind", KINDS)
def test_codes_and_scales_are_made_of_one_reading(tmp_path, kind, shards):
    llama(tmp_path / "hub")
    size = (tmp_path / "hub" / "model.safetensors").stat().st_size
    options = {"to": "hub", "quantise": [kind]}
    whole = ckptforge.convert(tmp_path / "hub", tmp_path / "whole", **options)
    reads = Reads(tmp_path / "hub")
    result = reads.during(
        ckptforge.convert,
        tmp_path / "hub",
        tmp_path / "x",
        **options,
        max_shard_size=shards,
        no_hash=True,
    )
    assert size <= reads.nbytes < 1.2 * size
    assert contents(tmp_path / "x") == contents(tmp_path / "whole")
    assert counts(result) == counts(whole)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95])
def test_what_an_earlier_run_made_of_a_pair_is_not_made_again(tmp_path, share):
    llama(tmp_path / "hub")
    options = {"to": "hub", "quantise": ["mxfp8"], "workers": 1, "max_shard_size": "300KB"}
    whole = ckptforge.convert(tmp_path / "hub", tmp_path / "whole", **options)

    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done > total * share:
            raise Stopped

    with pytest.raises(Stopped):
        ckptforge.convert(tmp_path / "hub", tmp_path / "x", **options, progress=stop)
    result = ckptforge.convert(tmp_path / "hub", tmp_path / "x", **options, resume=True)
    assert contents(tmp_path / "x") == contents(tmp_path / "whole")
    assert counts(result) == counts(whole)


def made(name, part, shape=(4, 32), fill=1.0, code="mxfp8"):
    encoding = Encoded(code=CODES[code], part=part, shape=shape, source=BY_NAME["float32"])
    place = Place(
        path=f"{name}.safetensors",
        name=name,
        dtype=encoding.stored_dtype,
        shape=encoding.stored_shape,
        extents=(),
    )
    terms = (Term(fragments=(), fill=fill),)
    return Assembly(place=place, terms=terms, kind="w", encoding=encoding)


def test_what_is_made_of_the_same_numbers_is_made_together():
    codes, scales, other = made("a", "codes"), made("b", "scales"), made("c", "codes")
    plain = replace(codes, encoding=None)
    for found, groups in (
        ([codes, scales], [2]),
        ([plain, plain], [1, 1]),
        ([codes, plain, scales], [1, 1, 1]),
        ([codes, scales, other], [2, 1]),  # the same codes once more, in another file
        ([codes, made("b", "scales", fill=2.0)], [1, 1]),
        ([codes, made("b", "scales", shape=(8, 32))], [1, 1]),
        ([codes, made("b", "scales", code="mxfp4")], [1, 1]),
        ([], []),
    ):
        got = list(together(found))
        assert [len(group) for group in got] == groups
        assert [one for group in got for one in group] == found
