"""Archives of torch, and pickles in them, made by hand."""

import pickle
import zipfile

import numpy as np


def archive(path, content, storages=None, method=zipfile.ZIP_STORED, root="archive"):
    with zipfile.ZipFile(path, "w", method) as made:
        made.writestr(f"{root}/data.pkl", content)
        for key, numbers in (storages or {}).items():
            made.writestr(f"{root}/data/{key}", numbers)
    return path


class Storage:
    """Pickles as torch does: a storage as a persistent id."""

    def __init__(self, key, length, kind="FloatStorage"):
        self.key, self.length, self.kind = key, length, kind


class Call:
    def __init__(self, name, *arguments):
        self.name, self.arguments = name, arguments


def pickled(value):
    """A pickle of protocol 2 with calls of functions by their names."""
    return b"\x80\x02" + encoded(value) + b"."


def encoded(value):
    if isinstance(value, Call):
        module, _, name = value.name.rpartition(".")
        return f"c{module}\n{name}\n".encode() + encoded(value.arguments) + b"R"
    if isinstance(value, Storage):
        kind = f"ctorch\n{value.kind}\n".encode()
        parts = (encoded(value.key), encoded("cpu"), encoded(value.length))
        return b"(" + encoded("storage") + kind + b"".join(parts) + b"tQ"
    if isinstance(value, dict):
        items = b"".join(encoded(key) + encoded(one) for key, one in value.items())
        return b"}(" + items + b"u"
    if isinstance(value, tuple | list):
        return b"(" + b"".join(map(encoded, value)) + (b"t" if isinstance(value, tuple) else b"l")
    return pickle.dumps(value, protocol=2)[2:-1].replace(b"q\x00", b"")


def view(storage, offset=0, shape=(4,), strides=(1,)):
    function = "torch._utils._rebuild_tensor_v2"
    hooks = Call("collections.OrderedDict")
    return Call(function, storage, offset, shape, strides, False, hooks)


FOUR = {"0": np.arange(4, dtype=np.float32).tobytes()}
