"""The formats, steps and kinds of directories that are ours do what all must."""

import json

import ml_dtypes
import numpy as np
import pytest
from msgspec.structs import replace
from safetensors import deserialize

from ckptforge.adapters import peft
from ckptforge.checkpoints import huggingface, mindspore
from ckptforge.checkpoints.kinds import KINDS
from ckptforge.dtypes import BY_NAME, BY_SAFETENSORS
from ckptforge.formats import mindspore_ckpt, safetensors
from ckptforge.formats.layout import TensorSpec
from ckptforge.mindformers import kind as iterations
from ckptforge.steps.counters import chances
from ckptforge.steps.grid import Grid
from ckptforge.steps.low_rank import Added, Product
from ckptforge.steps.masked import Masked
from ckptforge.steps.scaled import Scaled
from ckptforge.testing.checkpoints import DirectoryKindTests
from ckptforge.testing.formats import FormatTests, filled, made
from ckptforge.testing.steps import StepCase, StepTests
from ckptforge.torch_files import kind as torch_kind
from ckptforge.torch_files import torch_zip
from ckptforge.transfers import Transfer
from tests.helpers import FIXTURES, HUB, MINDSPORE, write_safetensors


class TestSafetensors(FormatTests):
    metadata = {"format": "pt"}  # noqa: RUF012
    examples = tuple(HUB.glob("*.safetensors"))

    @pytest.fixture
    def form(self):
        return safetensors

    def read_independently(self, path):
        return {
            name: (BY_SAFETENSORS[about["dtype"]].name, tuple(about["shape"]), bytes(about["data"]))
            for name, about in deserialize(path.read_bytes())
        }


class TestSafetensorsOfMindSpore(FormatTests):
    metadata = {"format": "ms"}  # noqa: RUF012
    examples = tuple((MINDSPORE / "misc").glob("*.safetensors"))

    @pytest.fixture
    def form(self):
        return safetensors


class TestMindSporeCheckpoint(FormatTests):
    examples = (
        *(MINDSPORE / "misc" / f"{name}.ckpt" for name in ("dtypes", "append", "order_unicode")),
        FIXTURES / "peer" / "peer_r1.3.0_dense_bf16.ckpt",
    )

    @pytest.fixture
    def form(self):
        return mindspore_ckpt


class TestTorchFile(FormatTests):
    @pytest.fixture
    def form(self):
        return torch_zip


RANDOM = np.random.default_rng(0)
FLOAT8 = ml_dtypes.float8_e4m3fn


def stored(directory, **tensors):
    """Arrays in a file, by their names."""
    names = {"float32": "F32", "float8_e4m3fn": "F8_E4M3", "int8": "I8", "bfloat16": "BF16"}
    write_safetensors(
        directory / "x.safetensors",
        {
            name: (names[array.dtype.name], list(array.shape), array.tobytes())
            for name, array in tensors.items()
        },
    )
    return safetensors.read_index(directory / "x.safetensors").tensors


class TestScaledInBlocks(StepTests):
    @pytest.fixture
    def case(self, tmp_path):
        codes = RANDOM.integers(0, 0x7F, (3, 7, 10), np.uint8).view(FLOAT8)
        scales, others = RANDOM.uniform(0.1, 2, (2, 3, 4, 3)).astype(np.float32)
        held = stored(tmp_path, w=codes, scale=scales, other=others)
        whole = scales.repeat(2, 1).repeat(4, 2)[:3, :7, :10]
        step = Scaled(scale=Grid(stored=held["scale"]), block=(1, 2, 4))
        return StepCase(
            step=step,
            stored=held["w"],
            expected=codes.astype(np.float32) * whole,
            others=[
                replace(step, scale=Grid(stored=held["other"])),
                replace(step, block=(1, 2, 5)),
                replace(step, offset=Grid(stored=held["other"])),
                replace(step, scale=Grid(stored=held["scale"], exponents=True)),
                replace(step, shift=8.0),
                replace(step, factor=0.5),
            ],
        )


class TestScaledWithOffsets(StepTests):
    @pytest.fixture
    def case(self, tmp_path):
        codes = RANDOM.integers(-128, 128, (5000, 4), np.int8)
        scales = RANDOM.uniform(0.1, 2, (5000, 1)).astype(ml_dtypes.bfloat16)
        offsets = RANDOM.integers(-8, 8, (5000, 1)).astype(np.float32)
        held = stored(tmp_path, w=codes, scale=scales, offset=offsets)
        scale, offset = Grid(stored=held["scale"]), Grid(stored=held["offset"])
        step = Scaled(scale=scale, offset=offset, block=(1, 4))
        return StepCase(
            step=step,
            stored=held["w"],
            expected=(codes.astype(np.float32) - offsets) * scales.astype(np.float32),
            others=[replace(step, offset=None), replace(step, offset=scale)],
        )


class TestAdded(StepTests):
    @pytest.fixture
    def case(self, tmp_path):
        weight, a, b, c = (
            RANDOM.normal(size=shape).astype(np.float32)
            for shape in ((70, 1500), (3, 1500), (40, 3), (30, 3))
        )
        held = stored(tmp_path, w=weight, a=a, b=b, c=c)
        first, last = (Transfer((rows,), 0, (1,), at, (1,)) for rows, at in ((40, 0), (30, 40)))
        one = Product(a=held["a"], b=held["b"], scale=0.5, rows=first)
        two = Product(a=held["a"], b=held["c"], scale=2.0, rows=last)
        step = Added(products=(one, two), box=((0, 70), (0, 1500)))
        return StepCase(
            step=step,
            stored=held["w"],
            others=[
                replace(step, products=(one,)),
                replace(step, products=(replace(one, scale=0.25), two)),
                replace(step, products=(replace(one, rows=last), two)),
                replace(step, products=(replace(one, turned=True), two)),
                replace(step, products=(replace(one, a_part=(0, 0, 1)), two)),
                replace(step, products=(replace(one, b_part=(0, 0, 1)), two)),
                replace(step, box=((0, 70), (1, 1501))),
            ],
        )


class TestMasked(StepTests):
    @pytest.fixture
    def case(self, tmp_path):
        weight = RANDOM.normal(size=(60, 2000)).astype(ml_dtypes.bfloat16)
        turned = Transfer((2000, 60), 0, (1, 2000), 7, (60, 1))
        step = Masked(key=(1, 2), density=0.25, transfer=turned)
        places = np.arange(60 * 2000).reshape(2000, 60).T + 7
        kept = chances(places.reshape(-1), (1, 2)).reshape(60, 2000) < 0.25
        return StepCase(
            step=step,
            stored=stored(tmp_path, w=weight)["w"],
            expected=np.where(kept, weight.astype(np.float32), np.float32(0)),
            others=[
                replace(step, key=(1, 3)),
                replace(step, density=0.5),
                replace(step, transfer=turned.ordered().reversed()),
            ],
        )


class KindTests(DirectoryKindTests):
    names = "layers.{}.w"

    @pytest.fixture
    def kind(self):
        assert self.one in list(KINDS)
        return self.one

    @pytest.fixture
    def directory(self, tmp_path, tensors):
        made = tmp_path / "model"
        made.mkdir()
        self.fill(made, tensors)
        return made

    @pytest.fixture
    def tensors(self):
        specs = [TensorSpec(self.names.format(i), BY_NAME["float32"], (3, i + 1)) for i in range(4)]
        return filled(specs)


def write(form, path, tensors):
    path.write_bytes(made(form, path, tensors, {"format": "pt"}))


def halves(tensors):
    items = list(tensors.items())
    return dict(items[:2]), dict(items[2:])


class TestUnifiedSafetensors(KindTests):
    one = mindspore.UNIFIED

    def fill(self, directory, tensors):
        weight_map = {}
        for i, part in enumerate(halves(tensors)):
            write(safetensors, directory / f"part{i}.safetensors", part)
            weight_map |= dict.fromkeys(part, f"part{i}.safetensors")
        (directory / mindspore.UNIFIED_MAP).write_text(json.dumps({"weight_map": weight_map}))


class TestOneRank(KindTests):
    one = mindspore.ONE_RANK

    def fill(self, directory, tensors):
        (directory / "rank_0").mkdir()
        write(mindspore_ckpt, directory / "rank_0" / "checkpoint_0.ckpt", tensors)


class TestOneFile(KindTests):
    one = mindspore.ONE_FILE

    def fill(self, directory, tensors):
        write(mindspore_ckpt, directory / "x-1_7.ckpt", tensors)


class TestHuggingFace(KindTests):
    one = huggingface.BY_FIXED_NAME

    def fill(self, directory, tensors):
        weight_map = {}
        for i, part in enumerate(halves(tensors), 1):
            name = f"model-{i:05d}-of-00002.safetensors"
            write(safetensors, directory / name, part)
            weight_map |= dict.fromkeys(part, name)
        (directory / huggingface.INDEX).write_text(json.dumps({"weight_map": weight_map}))


class TestHuggingFaceUnderOtherNames(KindTests):
    one = huggingface.BY_OTHER_NAMES

    def fill(self, directory, tensors):
        for name, part in zip("ab", halves(tensors), strict=True):
            write(safetensors, directory / f"{name}.safetensors", part)
        (directory / "config.json").write_text("{}")


class TestPeftAdapter(KindTests):
    one = peft.PEFT_ADAPTER
    names = "base_model.model.layers.{}.up.lora_A.weight"

    def fill(self, directory, tensors):
        write(safetensors, directory / peft.WEIGHTS, tensors)
        (directory / peft.CONFIG).write_text('{"peft_type": "LORA"}')


class TestTorchDirectory(KindTests):
    one = torch_kind.TORCH_DIRECTORY

    def fill(self, directory, tensors):
        weight_map = {}
        for i, part in enumerate(halves(tensors), 1):
            name = f"pytorch_model-{i:05d}-of-00002.bin"
            write(torch_zip, directory / name, part)
            weight_map |= dict.fromkeys(part, name)
        (directory / torch_kind.INDEX).write_text(json.dumps({"weight_map": weight_map}))


class TestIterations(KindTests):
    one = iterations.ITERATIONS

    def fill(self, directory, tensors):
        (directory / "iteration_00000007").mkdir()
        for kind, part in zip(("model", "opt"), halves(tensors), strict=True):
            name = f"checkpoint-{kind}-0000000-0000001.safetensors"
            write(safetensors, directory / "iteration_00000007" / name, part)
        (directory / "latest_checkpointed_iteration.txt").write_text("7")
