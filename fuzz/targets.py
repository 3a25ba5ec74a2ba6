"""One target for each reader: seeds from the tests' fixtures, how they are mutated, and what is
read."""

from __future__ import annotations

import ast
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from safetensors.numpy import load_file, save_file

import ckptforge
from ckptforge.adapters.adapter import open_adapter, read_adapter, read_kept
from ckptforge.checkpoints import huggingface
from ckptforge.checkpoints import mindspore as mindspore_dir
from ckptforge.checkpoints.manifest import written_names
from ckptforge.checkpoints.opening import open_checkpoint
from ckptforge.foreign.json import parse_object
from ckptforge.formats import mindspore_ckpt, safetensors
from ckptforge.formats.index import FileIndex
from ckptforge.formats.layout import specs_of
from ckptforge.mindformers.common import read_common
from ckptforge.model import Model
from ckptforge.parallel.compute import compute_strategy
from ckptforge.parallel.config_file import read_parallel_config
from ckptforge.parallel.strategy_files import read_strategy
from ckptforge.publish import journal as journals
from ckptforge.quantisation.method import MODEL_OPT
from ckptforge.quantisation.undo import undo, without_quantisation
from ckptforge.reading.known import Choices
from ckptforge.reading.source import bind_source
from ckptforge.run.audit import Audit, CastCount
from ckptforge.steps.scaled import Scaled
from ckptforge.storage.local import DISK
from ckptforge.tables.axes import in_parts
from ckptforge.tables.constants import Used, differing_constants
from ckptforge.tables.lengths import Lengths
from ckptforge.tables.parsing import load_table
from ckptforge.tables.shipped import shipped_tables
from ckptforge.torch_files import torch_zip
from ckptforge.verbs.check import check
from ckptforge.verbs.ranks import open_ranks, open_source
from ckptforge.verbs.synthetic import write_model
from fuzz import mutate, pickles, trees
from fuzz.mutate import Mutator
from fuzz.packings import packings
from fuzz.target import Target, safetensors_file

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
HUB, MINDSPORE = FIXTURES / "peer" / "hf_hub", FIXTURES / "mindspore"


def build(name: str, work: Path) -> Target:
    """The target of that name; it writes into the directory `work`."""
    return TARGETS[name](work)


def _small(pattern: str, limit: int = 1 << 15) -> list[bytes]:
    return [
        path.read_bytes() for path in sorted(FIXTURES.glob(pattern)) if path.stat().st_size <= limit
    ]


def _well_indexed(index: FileIndex) -> None:
    """What reading relies on: each tensor's bytes lie in the file, in order, and are as many as it
    needs."""
    for entry in index.tensors.values():
        at = 0
        for extent in entry.extents:
            assert extent.start == at and 0 <= extent.offset <= index.size - extent.length
            at += extent.length
        assert at == entry.nbytes


def _safetensors(work: Path) -> Target:
    path = work / "x.safetensors"
    short = [
        safetensors_file(
            {
                "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                "b": {"dtype": "U8", "shape": [], "data_offsets": [8, 9]},
            },
            bytes(9),
        )
    ]

    def read(data: bytes) -> None:
        path.write_bytes(data)
        _well_indexed(safetensors.read_index(path))

    mutator = mutate.mixed(mutate.safetensors, mutate.safetensors)
    return Target(
        "safetensors", [*short, *_small("mindspore/**/*.safetensors", 4096)], mutator, read
    )


def _torch(work: Path) -> Target:
    path, seeds = work / "x.pt", []
    for index in (1, 2):
        whole = ckptforge.open(HUB / f"model-0000{index}-of-00002.safetensors")
        smallest = sorted(whole, key=lambda name: whole[name].shape)[:3]
        whole.keep(*smallest).save(work / "seed.pt", overwrite=True)
        seeds.append((work / "seed.pt").read_bytes())

    def read(data: bytes) -> None:
        path.write_bytes(data)
        _well_indexed(torch_zip.read_index(path))

    mutator = mutate.mixed(mutate.mangle, pickles.headers, pickles.headers)
    return Target("torch", seeds, mutator, read)


def _pickle(work: Path) -> Target:
    """The pickle of an archive, whose other members are as they should be."""
    path = work / "x.pt"
    made = sorted(FIXTURES.glob("mindspeed/*/*/*/*.pt"))[::9]
    files = [file.read_bytes() for file in made if file.stat().st_size < 1 << 14]
    seeds = [pickles.pickle_of(content) for content in files]
    held = max(files, key=len)

    def read(data: bytes) -> None:
        path.write_bytes(pickles.with_pickle(held, data))
        torch_zip.read_data(path)
        _well_indexed(torch_zip.read_index(path))

    return Target("pickle", seeds, _MUTATED_PICKLE, read)


_MUTATED_PICKLE = mutate.mixed(pickles.opcodes, pickles.opcodes, pickles.opcodes, mutate.mangle)


def _dcp(work: Path) -> Target:
    return _chunks(work, "torch_distributed/dcp_2x2")


def _torch_dist(work: Path) -> Target:
    return _chunks(work, "megatron_core/moe_ep2_grouped/iter_0000005")


def _chunks(work: Path, fixture: str) -> Target:
    directory = work / "dcp"
    shutil.copytree(FIXTURES / fixture, directory)
    seeds = [(directory / ".metadata").read_bytes()]
    open_checkpoint(directory)  # and the tables, once

    def read(data: bytes) -> None:
        (directory / ".metadata").write_bytes(data)
        for index in open_checkpoint(directory).files:
            _well_indexed(index)

    name = "dcp" if "dcp" in fixture else "torch-dist"
    return Target(name, seeds, _MUTATED_PICKLE, read)


def _fsdp(work: Path) -> Target:
    """A rank's pickle in place of that of DTensors, and of that of ShardedTensors."""
    runs = [work / name for name in ("fsdp_2x2", "sharded_2")]
    for run in runs:
        shutil.copytree(FIXTURES / "torch_distributed" / run.name, run)
    files = [next(iter(sorted(run.glob("*_rank_1.pt")))) for run in runs]
    held = [file.read_bytes() for file in files]

    def read(data: bytes) -> None:
        which = b"ShardedTensor" in data
        files[which].write_bytes(pickles.with_pickle(held[which], data))
        for index in open_checkpoint(runs[which]).files:
            _well_indexed(index)

    return Target("fsdp", [*map(pickles.pickle_of, held)], _MUTATED_PICKLE, read)


def _hub_shards(work: Path) -> Target:
    directory = work / "shards"
    shutil.copytree(FIXTURES / "torch_distributed" / "hub_shards_2", directory)
    first, second = sorted(directory.iterdir())
    seeds = [first.read_bytes(), second.read_bytes()]

    def read(data: bytes) -> None:
        second.write_bytes(data)
        for index in open_checkpoint(directory).files:
            _well_indexed(index)

    mutator = mutate.mixed(mutate.safetensors, mutate.words("json"))
    return Target("hub-shards", seeds, mutator, read)


def _megatron(work: Path) -> Target:
    run = work / "run"
    shutil.copytree(FIXTURES / "mindspeed" / "llama_tp2_pp2_vpp", run)
    file = next(iter(sorted(run.glob("*/*/*.pt"))))
    held = file.read_bytes()
    open_checkpoint(run)  # and the tables, once

    def read(data: bytes) -> None:
        file.write_bytes(pickles.with_pickle(held, data))
        open_checkpoint(run)

    return Target("megatron", [pickles.pickle_of(held)], _MUTATED_PICKLE, read)


def _ckpt(work: Path) -> Target:
    path = work / "x.ckpt"
    seeds = [
        *_small("mindspore/misc/*.ckpt"),
        *_small("mindspore/bad/[a-r]*.ckpt"),
        *_small("mindspore/bad/t*.ckpt", 1024),
    ]

    def read(data: bytes) -> None:
        path.write_bytes(data)
        _well_indexed(mindspore_ckpt.read_index(path))

    return Target(
        "ckpt",
        [seed for seed in seeds if seed],
        mutate.mixed(mutate.protobuf, mutate.protobuf),
        read,
    )


def _strategy(work: Path) -> Target:
    path = work / "s.ckpt"
    whole = [
        *_small("mindspore/strategies/**/*.ckpt"),
        *_small("peer/real_strategy*.ckpt"),
        *_small("mindspore/bad/strategy*"),
    ]
    parsed = [fields for seed in whole if (fields := trees.parse(seed))]
    seeds = [
        trees.write(fields[at : at + 4])
        for fields in parsed
        for at in (0, len(fields) // 2, len(fields) - 3)
    ]

    def read(data: bytes) -> None:
        path.write_bytes(data)
        strategy = read_strategy(path)
        for stage in strategy.stages:
            for layout in list(stage.values())[:4]:
                full = layout.shape_of_whole((2,) * len(layout.tensor_map))
                assert full is not None
                layout.box(full, strategy.devices - 1)

    return Target(
        "strategy", [*seeds, *whole[-2:]], mutate.mixed(mutate.protobuf, mutate.protobuf), read
    )


def _strategy_json(work: Path) -> Target:
    path = work / "s.json"
    seeds = []
    for file in sorted(MINDSPORE.glob("strategies/*_json/*.json")):
        content = json.loads(file.read_bytes())
        content["parallel_layout_item"] = dict(list(content["parallel_layout_item"].items())[:3])
        content["parallel_strategy_item"] = dict(
            list(content["parallel_strategy_item"].items())[:2]
        )
        seeds.append(json.dumps(content).encode())

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_strategy(path)

    return Target(
        "strategy-json",
        seeds,
        mutate.mixed(mutate.json_tree, mutate.json_tree, mutate.words("json")),
        read,
    )


def _metadata(work: Path) -> Target:
    """Three tensors of a run, in files that hold nothing else."""
    (run,) = FIXTURES.glob("mindformers21/qwen3_dp2tp2_adamw/checkpoint/iteration_*")
    content = json.loads((run / "metadata.json").read_bytes())
    names = list(content["state_dict_metadata"])[:3]
    iteration = work / "run" / run.name
    iteration.mkdir(parents=True)
    for file in run.glob("*-model-*"):
        kept = {name: one for name, one in load_file(file).items() if name in names}
        save_file(kept, iteration / file.name)
    tensors = {name: content["state_dict_metadata"][name] for name in names}
    keys = [(key, ast.literal_eval(key)[0]) for key in content["storage_data"]]
    storage = {key: content["storage_data"][key] for key, name in keys if name in names}
    seed = json.dumps({"state_dict_metadata": tensors, "storage_data": storage}).encode()
    path = iteration / "metadata.json"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        open_checkpoint(work / "run")

    return Target(
        "metadata",
        [seed],
        mutate.mixed(mutate.json_tree, mutate.json_tree, mutate.words("json")),
        read,
    )


def _common(work: Path) -> Target:
    path = work / "common.json"
    seeds = [file.read_bytes() for file in sorted(FIXTURES.glob("mindformers21/*/*/*/common.json"))]

    def read(data: bytes) -> None:
        path.write_bytes(data)
        numbers, _ = read_common(path)
        assert all(value is None or math.isfinite(value) for value in numbers.values())

    return Target("common", seeds, mutate.mixed(mutate.json_tree, mutate.words("json")), read)


def _shards(directory: Path, names: Sequence[str]) -> None:
    directory.mkdir()
    for i, name in enumerate(names):
        header: dict[str, object] = {
            f"model.layers.{i}.w{j}": {"dtype": "U8", "shape": [1], "data_offsets": [j, j + 1]}
            for j in range(2)
        }
        (directory / name).write_bytes(safetensors_file(header, bytes(2)))


def _index(work: Path) -> Target:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    directory = work / "hub"
    _shards(directory, names)
    weight_map = {f"model.layers.{i}.w{j}": name for i, name in enumerate(names) for j in range(2)}
    seeds = [
        json.dumps({"metadata": {"total_size": 4}, "weight_map": weight_map}).encode(),
        (HUB / huggingface.INDEX).read_bytes(),
    ]

    def read(data: bytes) -> None:
        (directory / huggingface.INDEX).write_bytes(data)
        open_checkpoint(directory)

    return Target(
        "index",
        [seeds[0]] * 3 + seeds[1:],
        mutate.mixed(mutate.json_tree, mutate.json_tree, mutate.words("json")),
        read,
    )


def _unified_map(work: Path) -> Target:
    names = ["part0.safetensors", "part1.safetensors", "hyper_param.safetensors"]
    directory = work / "unified"
    _shards(directory, names)
    weight_map = {f"model.layers.{i}.w{j}": names[i] for i in range(2) for j in range(2)}
    seeds = [
        json.dumps({"metadata": {}, "weight_map": weight_map}).encode(),
        (MINDSPORE / "unified" / mindspore_dir.UNIFIED_MAP).read_bytes(),
    ]

    def read(data: bytes) -> None:
        (directory / mindspore_dir.UNIFIED_MAP).write_bytes(data)
        open_checkpoint(directory)

    return Target(
        "unified-map",
        [seeds[0]] * 3 + seeds[1:],
        mutate.mixed(mutate.json_tree, mutate.json_tree, mutate.words("json")),
        read,
    )


def _config(work: Path) -> Target:
    checkpoints = [_linked(work / "hub", HUB)]
    seeds = _small("peer/*/config.json") * 2
    for table in shipped_tables():
        if table.name in ("deepseek_v3", "qwen3_moe"):
            write_model(work / table.name, table, table.example)
            checkpoints.append(open_checkpoint(work / table.name))
            seeds.append(json.dumps(table.example).encode())

    def read(data: bytes) -> None:
        checkpoint = checkpoints[len(data) % len(checkpoints)]
        (checkpoint.path / "config.json").write_bytes(data)
        source = bind_source(checkpoint, Choices())
        if (constants := source.table.constants.of(source.config)) is not None:
            mine, theirs = (
                Used(constants=constants, config=config, layers=2)
                for config in (source.config, source.table.example)
            )
            differing_constants(mine, theirs)

    return Target(
        "config",
        seeds,
        mutate.mixed(mutate.json_tree, mutate.json_tree, mutate.words("json")),
        read,
    )


_DESCRIPTION = "quant_model_description.json"
_METHODS: tuple[dict[str, object], ...] = (
    {
        "quant_method": "fp8",
        "weight_block_size": [2, 3],
        "scale_fmt": "ue8m0",
        "modules_to_not_convert": ["head"],
    },
    {
        "quant_method": "compressed-tensors",
        "format": "naive-quantized",
        "config_groups": {
            "g": {
                "weights": {
                    "num_bits": 8,
                    "strategy": "group",
                    "group_size": 3,
                    "block_structure": "2x3",
                }
            }
        },
    },
    {"quant_method": "modelopt", "quant_algo": "FP8"},
    {"quant_method": "gptq", "bits": 4},
)


def _quantisation(work: Path) -> Target:
    """What says how weights are quantised: a byte that says which file, and its contents."""
    whole = {"c.weight": ("F8_E5M2", [4]), "c.weight_scale": ("F32", [])}
    blocks = {"a.weight": ("F8_E4M3", [4, 6]), "a.weight_scale": ("F32", [2, 2])}
    shifted = {
        "b.weight": ("I8", [4, 6]),
        "b.weight_scale": ("BF16", [4, 1]),
        "b.weight_offset": ("F32", [4, 1]),
    }
    checkpoints = {}
    for kind, tensors in ((b"\0", whole | blocks), (b"\1", shifted), (b"\2", whole)):
        header, at = {}, 0
        for name, (dtype, shape) in tensors.items():
            nbytes = math.prod(shape) * {"F32": 4, "BF16": 2}.get(dtype, 1)
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + nbytes]}
            at += nbytes
        (work / f"model{kind[0]}.safetensors").write_bytes(safetensors_file(header, bytes(at)))
        checkpoints[kind] = open_checkpoint(work / f"model{kind[0]}.safetensors")
    description = {"model_quant_type": "W8A8", "group_size": 3, "b.weight": "W8A16", "optional": {}}
    seeds = [
        b"\0" + json.dumps({"torch_dtype": "float16", "quantization_config": one}).encode()
        for one in _METHODS
    ]
    seeds += [b"\1" + json.dumps(description).encode()] * 2 + [
        b"\2" + json.dumps({"quantization": _METHODS[2]}).encode()
    ]
    inner = mutate.mixed(mutate.json_tree, mutate.json_tree, mutate.words("json"))

    def read(data: bytes) -> None:
        for name in (_DESCRIPTION, MODEL_OPT):
            (work / name).unlink(missing_ok=True)
        config = {}
        if data[:1] == b"\0":
            config = parse_object(data[1:], str(work / "config.json"), constants=True)
        else:
            (work / (_DESCRIPTION if data[:1] == b"\1" else MODEL_OPT)).write_bytes(data[1:])
        without_quantisation({"config.json": b"{}"}, config)
        undone = undo(
            checkpoints.get(data[:1], checkpoints[b"\0"]), config, str(work / "config.json")
        )
        for value in undone.model.values.values():
            for step in next(value.fragments).steps:
                assert isinstance(step, Scaled)
                assert len(step.block) == len(value.shape) and min(step.block) > 0

    def mutator(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
        return data[:1] + inner(data[1:], [other[1:] for other in others], random)

    return Target("quantisation", seeds, mutator, read)


def _linked(directory: Path, weights: Path) -> Model:
    """A directory with links to weights, in which files can be put beside them."""
    directory.mkdir()
    for path in weights.glob("model*"):
        (directory / path.name).symlink_to(path)
    return open_checkpoint(directory)


def _manifest(work: Path) -> Target:
    out = work / "x.ckpt"
    ckptforge.to_ms(HUB, out)
    manifest = work / "x.ckpt.manifest.json"
    content = json.loads(manifest.read_bytes())
    (output,) = content["outputs"]
    side = content["hugging_face"]
    for shard in side["shards"].values():
        shard["tensors"] = dict(list(shard["tensors"].items())[:2])
    side["files"] = {name: side["files"][name] for name in ("config.json",)}
    output["tensors"] = dict(list(output["tensors"].items())[:2])
    checkpoint = open_checkpoint(out)
    directory = work / "directory"
    directory.mkdir()
    as_directory = directory / "ckptforge.manifest.json"
    as_directory.symlink_to(manifest)
    ranks, cut = _ranks_manifest(work)

    def read(data: bytes) -> None:
        manifest.write_bytes(data)
        (ranks / as_directory.name).write_bytes(data)
        for reading in (
            lambda: bind_source(checkpoint, Choices()),
            lambda: written_names(directory),
            lambda: check(directory, workers=1, memory="64MB"),
            lambda: open_ranks(ranks, Choices()),
        ):
            try:
                reading()
            except ckptforge.CkptforgeError as error:
                last: ckptforge.CkptforgeError | None = error
            else:
                last = None
        if last is not None:
            raise last

    mutator = mutate.mixed(mutate.json_tree, mutate.json_tree, mutate.words("json"))
    return Target("manifest", [json.dumps(content).encode(), cut, cut], mutator, read)


def _ranks_manifest(work: Path) -> tuple[Path, bytes]:
    """Rank directories, and the manifest that says how they are cut, without what the other seed
    holds."""
    ranks, job = work / "ranks", work / "job.json"
    job.write_text('{"mp": 2, "pp": 2}')
    ckptforge.split(MINDSPORE / "full.ckpt", ranks, parallel_config=job, weights_only=True)
    content = json.loads((ranks / "ckptforge.manifest.json").read_bytes())
    for output in content["outputs"]:
        if "like" not in output:
            output["tensors"] = dict(list(output["tensors"].items())[:2])
        else:
            output["hashes"] = output["hashes"][:65]
    return ranks, json.dumps(content).encode()


def _journal(work: Path) -> Target:
    path = work / "journal"
    head = {
        "ckptforge": "1",
        "command": None,
        "plan": "0123",
        "sources": [{"path": "/a", "size": 1, "mtime_ns": 2, "index": "4567"}],
    }
    written = journals.Journal(path, DISK.create(path), head)
    written.add_line(head)
    audit = Audit({("w1", "float32", "float16"): CastCount(1, 2, 3, 4)})
    written.add_tensor(("x.ckpt", "a"), journals.Finished("89ab", audit))
    written.add_source(0, 0, bytes(16))
    written.add_publishing(7)
    written.close()
    seed = path.read_bytes()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        journal = journals.reopen(DISK, path)
        if journal is not None:
            journal.close()
            _ = journal.audit
            journals.differences(journal.head, head)

    def mutator(data: bytes, seeds: Sequence[bytes], random: Random) -> bytes:
        lines = data.split(b"\n")
        i = random.randrange(len(lines))
        # with a hash that is right, so that what it holds is read
        if random.random() < 0.7 and lines[i]:
            lines[i] = journals.journal_line(
                mutate.json_tree(lines[i].partition(b" ")[2], seeds, random)
            )[:-1]
        else:
            lines[i] = lines[random.randrange(len(lines))]
        return b"\n".join(lines)

    return Target("journal", [seed], mutate.mixed(mutator, mutator, mutate.words("json")), read)


def _table(work: Path) -> Target:
    path = work / "t.toml"
    toy = ROOT / "fuzz" / "toy.toml"
    table = load_table(toy)
    checkpoints = [_linked(work / "hub", HUB)]
    for layout in table.layouts:
        write_model(work / "toy" / layout, table, table.example, layout=layout)
        checkpoints.append(open_checkpoint(work / "toy" / layout))

    def read(data: bytes) -> None:
        path.write_bytes(data)
        table = load_table(path)
        fitting = checkpoints[1:] if table.name == "toy" else checkpoints[:1]
        bind_source(fitting[len(data) % len(fitting)], Choices(mapping=path))
        for layout in table.layouts.values():
            for pattern in layout.patterns:
                for tensor in pattern.tensors:
                    axes = [
                        part
                        for axis in table.tensors[tensor]
                        if axis not in pattern.name_axes
                        for part in (in_parts(axis) if axis in pattern.turns else (axis,))
                    ]
                    pattern.place(tensor, axes, lambda _, axis: 2)

    seeds = [toy.read_bytes()] * 4 + [
        (ROOT / "mappings" / f"{name}.toml").read_bytes() for name in ("mixtral", "qwen3_moe")
    ]
    return Target("table", seeds, mutate.mixed(mutate.words("toml"), mutate.words("toml")), read)


def _parallel_config(work: Path) -> Target:
    path = work / "p.yaml"
    source = open_source(MINDSPORE / "full.ckpt", Choices())
    tensors = [
        spec
        for spec in specs_of(source.model.values)
        if ".layers.0." in spec.name or "layers" not in spec.name
    ]
    seeds = sorted((ROOT / "fuzz" / "parallel").iterdir())

    def read(data: bytes) -> None:
        path.write_bytes(data)
        config = read_parallel_config(path)
        compute_strategy(config, source.table, source.binding.layout, source.binding.sizes, tensors)

    mutator = mutate.mixed(mutate.words("yaml"), mutate.words("yaml"), mutate.json_tree)
    return Target("parallel-config", [seed.read_bytes() for seed in seeds], mutator, read)


def _adapter(work: Path) -> Target:
    """adapter_config.json, and the names, shapes and types of factors in a header of
    safetensors."""
    table = next(
        table
        for table in shipped_tables()
        if table.lora
        and "hub" in table.lora.weights
        and not any("+" in p.template for p in table.layout("hub").patterns)
    )
    path = work / "lora"
    path.mkdir()
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "bias": "none",
        "use_rslora": False,
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 8},
        "modules_to_save": None,
        "init_lora_weights": True,
    }
    header = {}
    for weight in table.lora.weights["hub"][:2]:
        for pattern, shape in ((weight.a, [2, 1]), (weight.b, [1, 2])):
            at = 4 * len(header)
            header[pattern.name({"l": 0}, Lengths())] = {
                "dtype": "BF16",
                "shape": shape,
                "data_offsets": [at, at + 4],
            }
    weights = json.dumps(header).encode()
    files = {b"c": json.dumps(config).encode(), b"w": weights}

    def read(data: bytes) -> None:
        for kind, content in files.items():
            chosen = data[1:] if data[:1] == kind else content
            if kind == b"c":
                (path / "adapter_config.json").write_bytes(chosen)
            else:
                (path / "adapter_model.safetensors").write_bytes(
                    len(chosen).to_bytes(8, "little") + chosen + bytes(4 * len(header))
                )
        checkpoint = open_adapter(path)
        read_adapter(checkpoint, read_kept(checkpoint), table, Lengths(), None)

    def mutator(data: bytes, seeds: Sequence[bytes], random: Random) -> bytes:
        return data[:1] + mutate.mixed(mutate.json_tree, mutate.words("json"))(
            data[1:], [seed[1:] for seed in seeds], random
        )

    return Target("adapter", [kind + content for kind, content in files.items()], mutator, read)


def _directory(work: Path) -> Target:
    """An input is the seed of what is done to a directory: files mutated, removed, renamed, and
    made into other things."""
    hub, unified, ranks, strategies = (
        work / name for name in ("hub", "unified", "ranks", "strategies")
    )
    write_model(hub, shipped_tables()[0], shipped_tables()[0].example, seed=0)
    _shards(unified, ["part0.safetensors"])
    (unified / "param_name_map.json").write_text(
        '{"weight_map": {"model.layers.0.w0": "part0.safetensors"}}'
    )
    shutil.copytree(MINDSPORE / "sharded" / "dp2mp2", ranks)
    shutil.copytree(MINDSPORE / "strategies" / "dp2mp2", strategies)
    mutators: dict[str, Mutator] = {
        ".safetensors": mutate.safetensors,
        ".json": mutate.json_tree,
        ".ckpt": mutate.protobuf,
    }
    at = work / "at"
    strategy: list[Path | None] = [None]

    def prepare(data: bytes) -> None:
        random = Random(data)
        base = random.choice([hub, hub, unified, ranks])
        shutil.rmtree(at, ignore_errors=True)
        shutil.copytree(base, at / "in", symlinks=True, copy_function=os.link)
        shutil.copytree(strategies, at / "strategies", copy_function=os.link)
        for _ in range(random.choice([1, 1, 2])):
            _spoil(
                random.choice(
                    sorted(path for path in at.rglob("*") if not path.is_dir() or path.is_symlink())
                ),
                random,
                mutators,
            )
        strategy[0] = at / "strategies" if base is ranks and random.random() < 0.7 else None

    def read(data: bytes) -> None:
        ckptforge.inspect(at / "in", strategy_dir=strategy[0])

    return Target(
        "directory", [bytes(8)], lambda data, seeds, random: random.randbytes(8), read, prepare
    )


def _spoil(path: Path, random: Random, mutators: dict[str, Mutator]) -> None:
    kind = random.randrange(8)
    if kind == 0 or path.is_symlink() or not path.is_file():
        path.unlink()
        made = random.randrange(6)
        if made == 0:
            os.mkfifo(path)
        elif made == 1:
            path.symlink_to(
                random.choice(["nowhere", path.name, "/dev/zero", "/proc/self/mem", ".", ".."])
            )
        elif made == 2:
            path.mkdir()
        elif made == 3:
            path.touch()
    elif kind == 1:
        names = [
            "config.json",
            "model.safetensors",
            "model.safetensors.index.json",
            "rank_1",
            "x.ckpt",
            "rank_99999999999999",
            "ckptforge.manifest.json",
        ]
        target = path.with_name(
            random.choice([*names, "a\nb", "\udcff.safetensors", path.name + ".x"])
        )
        if not os.path.lexists(target):
            path.rename(target)
    else:
        content = path.read_bytes()
        path.unlink()  # it is a link to the seed
        path.write_bytes(mutators.get(path.suffix, mutate.mangle)(content, [content], random))


TARGETS: dict[str, Callable[[Path], Target]] = {
    "safetensors": _safetensors,
    "ckpt": _ckpt,
    "torch": _torch,
    "pickle": _pickle,
    "dcp": _dcp,
    "torch-dist": _torch_dist,
    "fsdp": _fsdp,
    "hub-shards": _hub_shards,
    "megatron": _megatron,
    "strategy": _strategy,
    "strategy-json": _strategy_json,
    "metadata": _metadata,
    "common": _common,
    "index": _index,
    "unified-map": _unified_map,
    "config": _config,
    "quantisation": _quantisation,
    "packings": packings,
    "manifest": _manifest,
    "journal": _journal,
    "table": _table,
    "parallel-config": _parallel_config,
    "adapter": _adapter,
    "directory": _directory,
}
