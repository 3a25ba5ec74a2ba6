"""What torch calls dtypes, and the classes that its storages of a dtype have."""

from __future__ import annotations

from ckptforge.dtypes import BY_NAME

STORAGES = {  # torch.…Storage → the dtype of its numbers
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
DTYPES = {  # as torch's pickles name them → as this package does
    **{f"torch.{name}": name for name in BY_NAME},
    "torch.float8_e8m0fnu": "float8_e8m0",
    "torch.half": "float16",
    "torch.float": "float32",
    "torch.double": "float64",
    "torch.long": "int64",
    "torch.int": "int32",
    "torch.short": "int16",
}
