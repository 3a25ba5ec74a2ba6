"""A quantisation: weights of eight-bit integers with a scale for each output channel.

with ckptforge.open("quantised") as model:
    model.apply(dequantised).save("plain")
"""

from msgspec import Struct
from msgspec.structs import replace

from ckptforge.dtypes import BY_NAME
from ckptforge.values import Fragment, Stored

FLOAT32, BFLOAT16 = BY_NAME["float32"], BY_NAME["bfloat16"]


class PerChannel(Struct, frozen=True):
    """A step: number · scale of its row."""

    scale: Stored

    @property
    def inputs(self):
        return (self.scale,)

    def gives(self, dtype):
        return FLOAT32

    def memory(self, stored):
        return 4 * self.scale.elements + self.scale.nbytes  # as numbers, and while it is read

    def identity(self):
        return b"per channel" + self.scale.identity()

    def prepare(self, stored, read):
        return Rows(read(self.scale, FLOAT32))


class Rows(Struct):
    """The scales of one tensor, in memory."""

    scales: object

    def apply(self, numbers, windows):
        for at, first, rows, start, stop in windows:
            part = numbers[at : at + rows * (stop - start)].reshape(rows, stop - start)
            part *= self.scales[first : first + rows, None]
        return 0  # became NaN


def _through(value, step):
    return value.map(lambda one: Fragment(one.stored, one.transfer, (*one.steps, step)))


def dequantised(model):
    """A model in which each int8 `NAME` with a `NAME_scale` beside it is what it stands for."""
    values = dict(model.values)
    for name, value in model.values.items():
        if value.dtype.name == "int8" and (scale := values.pop(f"{name}_scale", None)) is not None:
            values[name] = replace(_through(value, PerChannel(scale.origin)), dtype=BFLOAT16)
    return replace(model, values=values)
