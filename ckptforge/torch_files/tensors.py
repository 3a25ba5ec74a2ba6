"""Tensors as torch's files describe them: strided views of storages.

Source: torch 2.13, `torch/_utils.py` (`_rebuild_tensor_v2` and its kin) and files that it wrote.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from ckptforge.dtypes import BY_NAME, DType
from ckptforge.errors import FormatError, shown
from ckptforge.formats.index import MAX_DIMS
from ckptforge.torch_files.pickle_data import Constructor, Inert, Named

_STORAGES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Char": "int8",
    "Short": "int16",
    "Int": "int32",
    "Long": "int64",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}
_DTYPES = {
    **{f"torch.{name}": name for name in BY_NAME},
    "torch.float8_e8m0fnu": "float8_e8m0",
    "torch.half": "float16",
    "torch.float": "float32",
    "torch.double": "float64",
    "torch.long": "int64",
    "torch.int": "int32",
    "torch.short": "int16",
}
_UNTYPED = "torch.storage.UntypedStorage"
_WRAPPER = "torch._utils._rebuild_wrapper_subclass"
_UNREADABLE = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_sparse_csr_tensor": "a sparse tensor",
    "torch._utils._rebuild_qtensor": "a quantised tensor of torch's",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without numbers (meta device)",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    _WRAPPER: "a tensor of a class of its own, such as DTensor",
    "torch._utils._rebuild_device_tensor_from_numpy": "a tensor of a device that wasn't torch's",
    "torch.storage._load_from_bytes": "a pickle within the pickle",
}
# Objects that stand beside tensors in training files, by their names or those of their modules.
_INERT = frozenset(
    (
        "argparse.Namespace",
        "types.SimpleNamespace",
        "signal.Signals",
        "pathlib.PosixPath",
        "pathlib.PurePosixPath",
        "pathlib.WindowsPath",
        "_codecs.encode",
        "copyreg._reconstructor",
        "builtins.object",
        "_io.BytesIO",
        "torch.Tensor",
        "torch.device",
        "torch.Size",
        "torch.nn.parameter.Parameter",
        "torch.nn.parameter.Buffer",
        "torch.serialization._get_layout",
        "torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING",
        "datetime.datetime",
        "datetime.timedelta",
        "builtins.set",
        "builtins.frozenset",
        "builtins.slice",
        "builtins.complex",
        "builtins.bytearray",
        "collections.deque",
        "collections.Counter",
    )
)
_INERT_MODULES = (
    "numpy.",
    "megatron.core.",
    "random.",
    "torch.distributed.tensor.",
    "torch.distributed._tensor.",
    "torch.distributed.device_mesh.",
    "torch.distributed._mesh_layout.",
)


class Storage(msgspec.Struct, frozen=True):
    """The numbers of one or more tensors: the member of the archive that holds them. `dtype` is
    None where each tensor says its own; `length` counts numbers, or bytes then."""

    key: str
    dtype: DType | None
    length: int


class View(msgspec.Struct, frozen=True):
    """A tensor: `offset` and `strides` count numbers of the storage."""

    storage: Storage
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def last(self) -> int:
        """The last number of the storage that it has, of a view that isn't empty."""
        steps = ((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        return self.offset + sum(steps)

    @property
    def copies(self) -> int:
        """How often each of its numbers is repeated, by axes of stride 0."""
        pairs = zip(self.shape, self.strides, strict=True)
        return math.prod(n for n, stride in pairs if n > 1 and stride == 0)


class Unreadable(msgspec.Struct, frozen=True):
    """A tensor that isn't a view of numbers, in words."""

    what: str


class Sharded(Unreadable, frozen=True):
    """The part that a rank has of a tensor of this shape (DTensor), cut along an axis; None where
    each has all of it."""

    local: View
    shape: tuple[int, ...]
    axis: int | None


def is_inert(name: str) -> bool:
    """Whether a name stands for data beside the tensors, of which nothing is needed."""
    return (
        name in _INERT
        or name in _DTYPES
        or name.removeprefix("torch.").removesuffix("Storage") in _STORAGES
        or name.startswith(_INERT_MODULES)
        or name in (_UNTYPED, "torch.storage.TypedStorage")
    )


def storage_of(where: str, said: Any) -> Storage:
    """The storage that a persistent id names. Raises `FormatError`."""
    if not isinstance(said, tuple) or len(said) < 5 or said[0] != "storage":
        raise FormatError(f"{where}: a persistent id is {shown(said)}, expected a storage.")
    _, kind, key, _, length = said[:5]
    name = kind.name if isinstance(kind, Named) else ""
    known = _STORAGES.get(name.removeprefix("torch.").removesuffix("Storage"))
    if (known is None and name != _UNTYPED) or not isinstance(key, str) or not _is_count(length):
        raise FormatError(f"{where}: a storage is {shown(said)}, which isn't one of torch's.")
    return Storage(key, BY_NAME[known] if known is not None else None, length)


def constructors(where: str) -> dict[str, Constructor]:
    """What may be called in a checkpoint's pickle, by name."""
    tensor = _rebuild(where)
    made: dict[str, Constructor] = {
        "torch._utils._rebuild_tensor": tensor,
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_tensor_v3": tensor,
        "torch._utils._rebuild_parameter": lambda arguments: arguments[0],
        "torch._utils._rebuild_parameter_with_state": lambda arguments: arguments[0],
        "collections.OrderedDict": _ordered,
        "collections.defaultdict": lambda arguments: {},
        "builtins.dict": lambda arguments: {},
        "torch.Size": lambda arguments: tuple(arguments[0]),
        "builtins.list": lambda arguments: list(arguments[0]) if arguments else [],
    }
    for name, what in _UNREADABLE.items():
        made[name] = lambda arguments, what=what: Unreadable(what)  # type: ignore[misc]

    def of_type(arguments: tuple[Any, ...]) -> Any:
        function, _, inner, *_ = arguments
        if isinstance(function, Named) and function.name == _WRAPPER:
            return _sharded(arguments)
        known = made.get(function.name) if isinstance(function, Named) else None
        return (
            Inert("torch._tensor._rebuild_from_type_v2", arguments)
            if known is None
            else known(inner)
        )

    return {**made, "torch._tensor._rebuild_from_type_v2": of_type}


def _sharded(arguments: tuple[Any, ...]) -> Unreadable:
    """A DTensor by its state: the part of this rank, and the placements of its spec."""
    other = Unreadable(_UNREADABLE[_WRAPPER])
    _, kind, inner, state = arguments
    if not isinstance(kind, Named) or not kind.name.endswith(".DTensor"):
        return other
    local, spec = _attribute(state, "_local_tensor"), _attribute(state, "_spec")
    placements = _attribute(spec.state, "placements") if isinstance(spec, Inert) else None
    shape = inner[2]
    if not isinstance(local, View) or not isinstance(shape, tuple) or len(shape) > MAX_DIMS:
        return other
    if not isinstance(placements, tuple) or len(placements) > MAX_DIMS:
        return other
    cut = [one for one in placements if not one.name.endswith(".Replicate")]
    if any(not one.name.endswith(".Shard") for one in cut) or len(cut) > 1:
        return Unreadable(f"{other.what}, cut in a way that isn't known")
    axis = _attribute(cut[0].state, "dim") if cut else None
    if not all(map(_is_count, shape)) or len(local.shape) != len(shape):
        return other
    if cut and (axis is None or not _is_count(axis) or axis >= len(shape)):
        return other
    return Sharded(what="a part of a tensor (DTensor)", local=local, shape=shape, axis=axis)


def _attribute(state: Any, name: str) -> Any:
    """An attribute in a state, which is a dictionary, or one of them and one of slots; None where
    there is none."""
    parts = state[:2] if isinstance(state, tuple) else (state,)
    return next((part[name] for part in parts if isinstance(part, dict) and name in part), None)


def _ordered(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    pairs = arguments[0] if arguments else ()
    return {key: value for key, value in pairs if isinstance(key, str | int)}


def _rebuild(where: str) -> Constructor:
    def rebuild(arguments: tuple[Any, ...]) -> View | Unreadable:
        storage, offset, shape, strides, *rest = arguments
        metadata = rest[2] if len(rest) > 2 else None
        if isinstance(metadata, dict) and any(metadata.values()):
            return Unreadable(f"a view of other numbers ({', '.join(map(shown, [*metadata][:4]))})")
        if not isinstance(storage, Storage):
            raise FormatError(f"{where}: a tensor of {shown(storage)}, expected a storage.")
        dtype = storage.dtype
        if dtype is None:
            named = metadata.name if isinstance(metadata, Named) else None
            dtype = BY_NAME.get(_DTYPES.get(named or "", ""))
            if dtype is None:
                return Unreadable(f"a tensor of the dtype {shown(named)}")
        return _checked(where, View(storage, dtype, offset, tuple(shape), tuple(strides)))

    return rebuild


def _checked(where: str, view: View) -> View:
    """Raises `FormatError` for a view of numbers that its storage doesn't have."""
    numbers = (view.offset, *view.shape, *view.strides)
    if not all(map(_is_count, numbers)) or len(view.shape) != len(view.strides):
        raise FormatError(
            f"{where}: a tensor has offset {shown(view.offset)}, shape {shown(view.shape)} and "
            f"strides {shown(view.strides)}, expected numbers from 0, a stride for each axis."
        )
    if len(view.shape) > MAX_DIMS:
        raise FormatError(f"{where}: a tensor has {len(view.shape)} axes, more than {MAX_DIMS}.")
    held = view.storage.length
    if view.storage.dtype is None:
        held //= view.dtype.itemsize
    if math.prod(view.shape) and view.last >= held:
        raise FormatError(
            f"{where}: a tensor of shape {list(view.shape)} ends at number {view.last} of storage "
            f"{shown(view.storage.key)}, which has {held}; damaged."
        )
    return view


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62
