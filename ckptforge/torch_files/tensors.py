"""What a checkpoint's pickle may name: the constructors of torch's tensors, and data beside them.

Source: torch 2.13, `torch/_utils.py` (`_rebuild_tensor_v2` and its kin) and files that it wrote.
"""

from __future__ import annotations

import math
from typing import Any

from ckptforge.dtypes import BY_NAME
from ckptforge.errors import DamagedError, FormatError, shown
from ckptforge.formats.index import MAX_DIMS
from ckptforge.torch_files.dtypes import DTYPES, STORAGES
from ckptforge.torch_files.parts import part_of
from ckptforge.torch_files.pickle_data import SAVE_ALONE, Constructor, Inert, Named, refused
from ckptforge.torch_files.views import Storage, Unreadable, View, is_count

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
_MAX_CLASS = 256  # characters of the name of a class within a class
_INERT_MODULES = (
    "numpy.",
    "megatron.core.",
    "random.",
    "torch.distributed.tensor.",
    "torch.distributed._tensor.",
    "torch.distributed.device_mesh.",
    "torch.distributed._mesh_layout.",
    "torch.distributed._shard.",
    "torch.distributed.remote_device.",
)


def is_inert(name: str) -> bool:
    """Whether a name stands for data beside the tensors, of which nothing is needed."""
    return (
        name in _INERT
        or name in DTYPES
        or name.removeprefix("torch.").removesuffix("Storage") in STORAGES
        or name.startswith(_INERT_MODULES)
        or name in (_UNTYPED, "torch.storage.TypedStorage")
    )


def storage_of(where: str, said: Any) -> Storage:
    """The storage that a persistent id names. Raises `FormatError`."""
    if not isinstance(said, tuple) or len(said) < 5 or said[0] != "storage":
        raise DamagedError(f"{where}: a persistent id is {shown(said)}, expected a storage.")
    _, kind, key, _, length = said[:5]
    name = kind.name if isinstance(kind, Named) else ""
    known = STORAGES.get(name.removeprefix("torch.").removesuffix("Storage"))
    if (known is None and name != _UNTYPED) or not isinstance(key, str) or not is_count(length):
        raise DamagedError(f"{where}: a storage is {shown(said)}, which isn't one of torch's.")
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
        "builtins.getattr": _nested_class(where),
        "builtins.list": lambda arguments: list(arguments[0]) if arguments else [],
    }
    for name, what in _UNREADABLE.items():
        made[name] = lambda arguments, what=what: Unreadable(what)  # type: ignore[misc]

    def of_type(arguments: tuple[Any, ...]) -> Any:
        function, _, inner, *_ = arguments
        if isinstance(function, Named) and function.name == _WRAPPER:
            return part_of(arguments) or Unreadable(_UNREADABLE[_WRAPPER])
        known = made.get(function.name) if isinstance(function, Named) else None
        return (
            Inert("torch._tensor._rebuild_from_type_v2", arguments)
            if known is None
            else known(inner)
        )

    return {**made, "torch._tensor._rebuild_from_type_v2": of_type}


def _nested_class(where: str) -> Constructor:
    """What protocol 2 names a class within a class by: the name of that."""

    def nested(arguments: tuple[Any, ...]) -> Named:
        owner, name = arguments if len(arguments) == 2 else (None, None)
        if not isinstance(owner, Named) or not isinstance(name, str):
            raise refused(where, "builtins.getattr")
        if not owner.name.startswith(_INERT_MODULES):
            raise refused(where, "builtins.getattr")
        if len(owner.name) + len(name) > _MAX_CLASS:
            raise FormatError(
                f"{where}: names a class {shown(owner.name)} within others. {SAVE_ALONE}"
            )
        return Named(f"{owner.name}.{name}")

    return nested


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
            raise DamagedError(f"{where}: a tensor of {shown(storage)}, expected a storage.")
        dtype = storage.dtype
        if dtype is None:
            named = metadata.name if isinstance(metadata, Named) else None
            dtype = BY_NAME.get(DTYPES.get(named or "", ""))
            if dtype is None:
                return Unreadable(f"a tensor of the dtype {shown(named)}")
        return _checked(where, View(storage, dtype, offset, tuple(shape), tuple(strides)))

    return rebuild


def _checked(where: str, view: View) -> View:
    """Raises `FormatError` for a view of numbers that its storage doesn't have."""
    numbers = (view.offset, *view.shape, *view.strides)
    if not all(map(is_count, numbers)) or len(view.shape) != len(view.strides):
        raise DamagedError(
            f"{where}: a tensor has offset {shown(view.offset)}, shape {shown(view.shape)} and "
            f"strides {shown(view.strides)}, expected numbers from 0, a stride for each axis."
        )
    if len(view.shape) > MAX_DIMS:
        raise DamagedError(f"{where}: a tensor has {len(view.shape)} axes, more than {MAX_DIMS}.")
    held = view.storage.length
    if view.storage.dtype is None:
        held //= view.dtype.itemsize
    if math.prod(view.shape) and view.last >= held:
        raise DamagedError(
            f"{where}: a tensor of shape {list(view.shape)} ends at number {view.last} of storage "
            f"{shown(view.storage.key)}, which has {held}; damaged."
        )
    return view
