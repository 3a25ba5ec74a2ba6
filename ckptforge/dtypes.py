"""One table of dtypes, with their names in safetensors, in MindSpore's `.ckpt` and in numpy
(`ml_dtypes` where numpy has none).

Sources: the safetensors format description (dtype strings), MindSpore `train/serialization.py`
(`tensor_to_ms_type`).
"""

from __future__ import annotations

import msgspec


class DType(msgspec.Struct, frozen=True):
    """One dtype: `itemsize` bytes per element, or a byte for `per_byte` of them; a name is None
    where that format has no such dtype."""

    name: str
    itemsize: int
    safetensors: str | None
    mindspore: str | None
    numpy: str | None
    floating: bool = False
    per_byte: int = 1

    @property
    def mindspore_loads(self) -> bool:
        """False for those that MindSpore's save_checkpoint writes and its load_checkpoint
        refuses."""
        return self.name not in _NOT_LOADED

    def __str__(self) -> str:
        return self.name


DTYPES: tuple[DType, ...] = (
    DType("float64", 8, "F64", "Float64", "float64", floating=True),
    DType("float32", 4, "F32", "Float32", "float32", floating=True),
    DType("bfloat16", 2, "BF16", "BFloat16", "bfloat16", floating=True),
    DType("float16", 2, "F16", "Float16", "float16", floating=True),
    DType("int64", 8, "I64", "Int64", "int64"),
    DType("int32", 4, "I32", "Int32", "int32"),
    DType("int16", 2, "I16", "Int16", "int16"),
    DType("int8", 1, "I8", "Int8", "int8"),
    DType("uint64", 8, "U64", "UInt64", "uint64"),
    DType("uint32", 4, "U32", "UInt32", "uint32"),
    DType("uint16", 2, "U16", "UInt16", "uint16"),
    DType("uint8", 1, "U8", "UInt8", "uint8"),
    DType("bool", 1, "BOOL", "Bool", "bool"),
    # qint4x2: one byte per stored element. MindSpore's safetensors hold it as I8 with a note in the
    # metadata.
    DType("qint4x2", 1, None, "Int4", "int8"),
    DType("complex64", 8, "C64", "Complex64", "complex64"),
    DType("complex128", 16, None, "Complex128", "complex128"),
    DType("float8_e4m3fn", 1, "F8_E4M3", "Float8E4M3FN", "float8_e4m3fn", floating=True),
    DType("float8_e5m2", 1, "F8_E5M2", "Float8E5M2", "float8_e5m2", floating=True),
    DType("float8_e8m0", 1, "F8_E8M0", None, "float8_e8m0fnu"),
    DType("hifloat8", 1, None, "HiFloat8", None),
    # A text, stored as UTF-32-LE in 4-byte code points.
    DType("str", 4, None, "str", None),
)

# Two in a byte, the first in the low bits. No format has them: bytes and words are read as such
# where something says what they hold. numpy's dtype is that of one in a byte.
FLOAT4 = DType("float4_e2m1", 1, None, None, "float4_e2m1fn", floating=True, per_byte=2)
UINT4 = DType("uint4", 1, None, None, "uint8", per_byte=2)

_NOT_LOADED = {"complex64", "complex128", "float8_e4m3fn", "float8_e5m2", "hifloat8"}

BY_NAME = {dtype.name: dtype for dtype in DTYPES}
BY_SAFETENSORS = {dtype.safetensors: dtype for dtype in DTYPES if dtype.safetensors}
BY_MINDSPORE = {dtype.mindspore: dtype for dtype in DTYPES if dtype.mindspore}


def holds(wide: DType, narrow: DType) -> bool:
    """Whether every number of one floating-point dtype is one of another."""
    wider = wide.floating and narrow.floating and wide.itemsize > narrow.itemsize
    return wide == narrow or wider
