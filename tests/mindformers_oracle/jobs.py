"""What MindFormers is to save or to load: a job's parameters, and how its ranks hold them."""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

DTYPES: dict[str, Any] = {
    "Float32": np.float32,
    "Float16": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Int32": np.int32,
    "Int64": np.int64,
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How ranks hold a tensor, in the words of mindspore.parallel.Layout: an entry of `tensor_map`
    is a mesh axis counted from the right, several of them with the most significant first, or -1.

    `shard` is for graph mode: into how many parts the parallel optimizer cuts a slice further, 0
    for none, -1 for as many as there are ranks that hold the same.
    """

    device_matrix: tuple[int, ...]
    tensor_map: tuple[int | tuple[int, ...], ...]
    rank_list: tuple[int, ...]
    alias_name: tuple[str, ...] = ()
    shard: int = 0


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A parameter of the network or, where `optimizer` is set, of its optimizer.

    `ranks` hold it: where there are none, those of the layout, and without one all. Without a
    layout each has it whole; with one of fewer ranks each stage has it alike.
    """

    dtype: str
    shape: tuple[int, ...]
    layout: Layout | None = None
    optimizer: bool = False
    ranks: tuple[int, ...] = ()

    def owners(self, ranks: int) -> tuple[int, ...]:
        return self.ranks or (self.layout.rank_list if self.layout else tuple(range(ranks)))

    def layout_on(self, rank: int) -> Layout | None:
        if self.layout is None or rank in self.layout.rank_list:
            return self.layout
        size = len(self.layout.rank_list)
        first = rank // size * size
        return replace(self.layout, rank_list=tuple(range(first, first + size)))


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training job's parameters by name, on so many ranks, in graph mode or in PyNative mode."""

    parameters: dict[str, Parameter]
    ranks: int = 1
    pynative: bool = False

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, job: dict[str, Any]) -> Job:
        def tuples(value: Any) -> Any:
            return tuple(map(tuples, value)) if isinstance(value, list) else value

        parameters = {}
        for name, fields in job.pop("parameters").items():
            fields = {key: tuples(value) for key, value in fields.items()}
            if fields["layout"]:
                layout = {key: tuples(value) for key, value in fields["layout"].items()}
                fields["layout"] = Layout(**layout)
            parameters[name] = Parameter(**fields)
        return cls(parameters=parameters, **job)


def full_tensor(name: str, parameter: Parameter) -> np.ndarray:
    """The whole tensor that every job has under this name: random numbers, seeded by the name."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    dtype = np.dtype(DTYPES[parameter.dtype])
    if dtype.kind == "i":
        return random.integers(0, 1 << 30, parameter.shape, dtype)
    return np.asarray(random.standard_normal(parameter.shape)).astype(dtype)


def bits(array: np.ndarray) -> np.ndarray:
    """An array's bits, as unsigned integers."""
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}").reshape(array.shape)
