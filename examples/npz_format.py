"""A format: numpy's .npz, uncompressed, which is a zip with a .npy file for each tensor."""

import io
import struct
import zipfile

import numpy as np
from numpy.lib import format as npy

from ckptforge.dtypes import BY_NAME
from ckptforge.errors import PlanError
from ckptforge.foreign.stream import Stream, index_of, parsing
from ckptforge.formats.layout import OutputFile, Seal
from ckptforge.values import Extent, Stored

NAME, ENDINGS, ordered = "a NumPy archive", (".npz",), list
NUMPYS = {np.dtype(code).name for code in "?bhiqBHIQefdFD"}


def recognises(head):
    return head.startswith(b"PK\3\4")


def read_index(path):
    with Stream(path) as file, parsing(path, "an uncompressed archive of arrays"):
        members = zipfile.ZipFile(file).infolist()
        return index_of(path, "npz", file.status(), [_stored(path, file, one) for one in members])


def _stored(path, file, member):
    name = member.filename.removesuffix(".npy")
    file.seek(member.header_offset + 26)
    end = file.seek(sum(struct.unpack("<2H", file.read(4))), io.SEEK_CUR) + member.file_size
    shape, flip, dtype = getattr(npy, "read_array_header_{}_{}".format(*npy.read_magic(file)))(file)
    if dtype.byteorder == ">" or (flip and len(shape) > 1):
        raise ValueError(f"{name!r} is {dtype} {shape} otherwise than in rows")
    extents = (Extent(0, at := file.tell(), end - at),)
    return Stored(path=path, name=name, dtype=BY_NAME[dtype.name], shape=shape, extents=extents)


def lay_out(path, tensors, metadata):
    at, central, literals, places, seals = 0, b"", [], {}, []
    for one in tensors:
        if one.name in places or one.dtype.name not in NUMPYS or (at + one.nbytes) >> 32:
            raise PlanError(f"{path}: can't hold {one.name!r}, which is {one.dtype}, or not twice.")
        header, member = io.BytesIO(), zipfile.ZipInfo(f"{one.name}.npy")
        about = {"descr": np.dtype(one.dtype.numpy).str, "fortran_order": False, "shape": one.shape}
        npy.write_array_header_1_0(header, about)
        member.CRC, member.file_size, member.compress_size = 0, (n := header.tell() + one.nbytes), n
        local = member.FileHeader(zip64=False)
        seals.append((at + len(local), n, at + 14, len(central) + 16))
        central += b"PK\1\2\x14\0" + local[4:30] + struct.pack("<3H2I", 0, 0, 0, 0, at) + local[30:]
        literals.append((at, local + header.getvalue()))
        at += len(local) + n
        places[one.name] = one.placed(path, Extent(0, at - one.nbytes, one.nbytes))
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, len(places), len(places), len(central), at, 0)
    size, literals = at + len(central + end), (*literals, (at, central + end))
    seals = tuple(Seal(start=s, length=n, at=(a, at + b)) for s, n, a, b in seals)
    return OutputFile(path=path, size=size, literals=literals, places=places, seals=seals)
