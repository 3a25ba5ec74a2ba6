"""A kind of directory: a .npy file for each tensor, in a tree whose directories are the parts of
the tensors' names (`model/layers/0/mlp/up.npy`), beside a file `npy_tree`, by which it is known.

    with KINDS.registered(NPY_TREE):  # or announced by an entry point of "ckptforge.checkpoints"
        ckptforge.to_ms("tree", "model.ckpt")
"""

from numpy.lib import format as npy

from ckptforge.checkpoints.files import model_of
from ckptforge.checkpoints.kinds import refuse_step
from ckptforge.dtypes import BY_NAME
from ckptforge.foreign.files import is_there
from ckptforge.foreign.stream import Stream, index_of, parsing
from ckptforge.publish.tree import names_in
from ckptforge.storage.mounts import store_of
from ckptforge.values import Extent, Stored

MARK = "npy_tree"


class NpyTree:
    def recognises(self, directory):
        return is_there(directory / MARK)

    def open(self, directory, step, check_replicas=False):
        refuse_step(step, directory, "a tree of .npy files")
        names = names_in(store_of(directory), directory)
        paths = [directory / name for name in sorted(names) if name.endswith(".npy")]
        return model_of(directory, [_file(directory, path) for path in paths], format="npy tree")


NPY_TREE = NpyTree()


def _file(directory, path):
    name = ".".join(path.relative_to(directory).with_suffix("").parts)
    with Stream(path) as file, parsing(path, "a plain array"):
        read = getattr(npy, "read_array_header_{}_{}".format(*npy.read_magic(file)))
        shape, flip, dtype = read(file)
        if dtype.byteorder == ">" or (flip and len(shape) > 1):
            raise ValueError(f"{dtype} {shape} otherwise than in rows")
        at, status = file.tell(), file.status()
        stored = Stored(
            path=path,
            name=name,
            dtype=BY_NAME[dtype.name],
            shape=shape,
            extents=(Extent(0, at, status.size - at),),
        )
        return index_of(path, "npy", status, [stored])
