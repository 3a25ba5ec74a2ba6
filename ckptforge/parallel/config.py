"""How a job is spread over devices, as MindFormers' YAML files say it, or a small file of the same
keys.

Source: MindFormers v1.0.2 … v1.7.0, `TransformerOpParallelConfig`, `LayerSetting` and the
`parallel` section of its configs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from ckptforge.errors import ConfigError, FormatError, counted, shown
from ckptforge.parallel.device_layout import MAX_DEVICES, MAX_STAGES
from ckptforge.storage.small_files import read_small
from ckptforge.storage.small_json import parse_object

_MAX_BYTES = 256 * 1024  # MindFormers' files have under 20 kB
_MAX_NODES = 5_000  # keys and values, those that aliases stand for counted each time

# Key of ours → its sections and spellings. Sections are those of MindFormers' files; a small file
# may omit them.
_KEYS: dict[str, tuple[str, ...]] = {
    "data_parallel": ("parallel_config.data_parallel", "parallel_config.dp", "dp"),
    "model_parallel": ("parallel_config.model_parallel", "parallel_config.mp", "mp"),
    "expert_parallel": ("parallel_config.expert_parallel", "parallel_config.ep", "ep"),
    "pipeline_stage": (
        "parallel_config.pipeline_stage",
        "parallel.pipeline_stages",
        "parallel_config.pp",
        "pp",
    ),
    "context_parallel": ("parallel_config.context_parallel", "parallel_config.cp", "cp"),
    "vocab_emb_dp": ("parallel_config.vocab_emb_dp",),
    "parallel_mode": ("parallel.parallel_mode",),
    "enable_parallel_optimizer": ("parallel.enable_parallel_optimizer",),
    "parallel_optimizer_threshold": (
        "parallel.parallel_optimizer_config.parallel_optimizer_threshold",
    ),
    "optimizer_weight_shard_size": (
        "parallel.parallel_optimizer_config.optimizer_weight_shard_size",
        "parallel.optimizer_weight_shard_size",
    ),
    "pipeline_interleave": ("parallel.pipeline_config.pipeline_interleave",),
    "pp_interleave_num": (
        "model.model_config.pp_interleave_num",
        "parallel_config.pp_interleave_num",
    ),
    "offset": ("model.model_config.offset",),
    "num_layers": ("model.model_config.num_layers", "model.model_config.num_hidden_layers"),
    "num_heads": ("model.model_config.num_heads", "model.model_config.num_attention_heads"),
    "n_kv_heads": ("model.model_config.n_kv_heads", "model.model_config.num_key_value_heads"),
    "parallel_optimizer": ("model.model_config.parallel_optimizer",),
    "expert_num": ("moe_config.expert_num", "model.model_config.moe_config.expert_num"),
}
_SECTIONS = ("parallel_config", "parallel", "moe_config", "model", "shard")
_DEGREES = (
    "data_parallel",
    "model_parallel",
    "expert_parallel",
    "pipeline_stage",
    "context_parallel",
)


class ParallelConfig(msgspec.Struct, frozen=True):
    """Degrees of data, model, expert and pipeline parallelism, and what else decides how weights
    are cut.

    `threshold` in KB, `optimizer_shards` -1 for as many parts as there are replicas, `flags` what
    [shard] rows may depend on, `offset` layers more or less by stage (an integer, one list, or one
    list for each interleave), `shard` rows that replace those of the table. The counts of the model
    are None where the file doesn't say them.
    """

    path: Path
    data: int = 1
    model: int = 1
    expert: int = 1
    pipeline: int = 1
    optimizer: bool = False
    threshold: int = 64
    optimizer_shards: int = -1
    offset: Any = 0
    interleave: int = 1
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    experts: int | None = None
    flags: Mapping[str, bool] = msgspec.field(default_factory=dict)
    shard: Mapping[str, Any] = msgspec.field(default_factory=dict)

    @property
    def devices(self) -> int:
        """Devices of a pipeline stage."""
        return self.data * self.model

    @property
    def ranks(self) -> int:
        """Devices of the job."""
        return self.devices * self.pipeline

    def degree(self, dimension: str) -> int:
        """The degree of `mp` or `ep`."""
        return {"mp": self.model, "ep": self.expert}[dimension]

    def layers_by_stage(self, layers: int) -> list[int]:
        """The stage of each layer. Raises `ConfigError` with the rule that the offsets break.

        Layers of (mini) stage k: layers // (stages · interleave) + offset[k]; the offsets sum to
        the remainder.
        """
        parts = self.pipeline * self.interleave
        rows = self._offsets()
        total = sum(map(sum, rows))
        if total != layers % parts:
            what = counted(self.pipeline, "stage") + (
                f" × {self.interleave} interleaved" if self.interleave > 1 else ""
            )
            raise ConfigError(
                f"{self.path}: the offsets sum to {total}, but {counted(layers, 'layer')} leave "
                f"{layers % parts} over {what}; "
                f"offset must sum to {layers % parts}."
            )
        counts = [[layers // parts + more for more in row] for row in rows]
        if any(count < 0 for row in counts for count in row) or any(
            not sum(column) for column in zip(*counts, strict=True)
        ):
            raise ConfigError(
                f"{self.path}: {counted(layers, 'layer')} with offset {shown(self.offset)} leave "
                "one of "
                f"{counted(self.pipeline, 'stage')} without layers."
            )
        return [stage for row in counts for stage, count in enumerate(row) for _ in range(count)]

    def _offsets(self) -> list[list[int]]:
        offset = self.offset
        if _is_integer(offset):
            return [[offset] * self.pipeline] * self.interleave
        rows = (
            offset
            if isinstance(offset, list) and offset and isinstance(offset[0], list)
            else [offset]
        )
        if not all(isinstance(row, list) and all(map(_is_integer, row)) for row in rows):
            raise ConfigError(
                f"{self.path}: offset is {shown(offset)}, expected an integer, a "
                "list of them, or a list of lists."
            )
        if any(len(row) != self.pipeline for row in rows):
            raise ConfigError(
                f"{self.path}: offset {shown(offset)} must hold a number for each of "
                f"{self.pipeline} pipeline stages."
            )
        if len(rows) not in (1, self.interleave):
            raise ConfigError(
                f"{self.path}: offset {shown(offset)} must hold a list for each of "
                f"{self.interleave} interleaved parts."
            )
        return rows if len(rows) == self.interleave else rows * self.interleave


def read_parallel_config(path: Path) -> ParallelConfig:
    """Reads MindFormers' YAML (sections parallel_config, parallel, moe_config, model), or a file of
    only these keys, with or without their sections, as YAML or JSON.

    Raises `InputNotFoundError`, and `ConfigError` with the key, its value and what was expected, or
    with the rule between keys that is broken.
    """
    content = _load(path)
    found = _values(path, content)

    def positive(key: str, default: int = 1) -> int:
        value = found.get(key, default)
        if not _is_integer(value) or not 0 < value < 2**20:
            raise ConfigError(f"{path}: {key} is {shown(value)}, expected a positive integer.")
        return int(value)

    def flag(key: str, default: bool) -> bool:
        value = found.get(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{path}: {key} is {shown(value)}, expected true or false.")
        return value

    _check_mode(path, found.get("parallel_mode", 1))
    if positive("context_parallel") > 1:
        raise ConfigError(
            f"{path}: context_parallel {found['context_parallel']} isn't supported; "
            "give the job's strategy files instead."
        )
    threshold, shards = (
        found.get("parallel_optimizer_threshold", 64),
        found.get("optimizer_weight_shard_size", -1),
    )
    if not _is_integer(threshold) or threshold < 0:
        raise ConfigError(
            f"{path}: parallel_optimizer_threshold is {shown(threshold)}, expected a "
            "number of KB from 0."
        )
    if not _is_integer(shards) or (shards != -1 and shards < 1):
        raise ConfigError(
            f"{path}: optimizer_weight_shard_size is {shown(shards)}, expected -1 or "
            "a positive integer."
        )
    model = positive("model_parallel")
    for key in ("num_heads", "n_kv_heads"):
        if found.get(key) is not None and positive(key) % model:
            raise ConfigError(f"{path}: model_parallel {model} does not divide {key} {found[key]}.")
    interleave = positive("pp_interleave_num") if flag("pipeline_interleave", False) else 1
    counts = {
        "layers": "num_layers",
        "heads": "num_heads",
        "kv_heads": "n_kv_heads",
        "experts": "expert_num",
    }
    config = ParallelConfig(
        path=path,
        data=positive("data_parallel"),
        model=model,
        expert=positive("expert_parallel"),
        pipeline=positive("pipeline_stage"),
        optimizer=flag("enable_parallel_optimizer", False),
        threshold=threshold,
        optimizer_shards=shards,
        offset=found.get("offset", 0),
        interleave=interleave,
        flags={
            "vocab_emb_dp": flag("vocab_emb_dp", True),
            "parallel_optimizer": flag("parallel_optimizer", False),
        },
        shard=_mapping(path, content.get("shard"), "shard"),
        **{name: positive(key) for name, key in counts.items() if found.get(key) is not None},
    )
    if not any(key in found for key in _DEGREES):
        raise ConfigError(
            f"{path}: says no degree of parallelism, so it would be a job of 1 rank; it has "
            f"{', '.join(found)}. Give one of "
            f"{', '.join(_DEGREES[:-1])}, in the section parallel_config or without sections."
        )
    if config.pipeline > MAX_STAGES or interleave > MAX_STAGES:
        raise ConfigError(
            f"{path}: pipeline_stage {config.pipeline} or pp_interleave_num "
            f"{interleave} is more than {MAX_STAGES}."
        )
    if config.ranks > MAX_DEVICES:
        raise ConfigError(
            f"{path}: data_parallel {config.data} × model_parallel {config.model} × pipeline_stage "
            f"{config.pipeline} are {config.ranks} "
            f"devices, more than {MAX_DEVICES}."
        )
    if shards > config.devices:
        raise ConfigError(
            f"{path}: optimizer_weight_shard_size {shards} is more than the "
            f"{counted(config.devices, 'device of a stage')}."
        )
    return config


def _check_mode(path: Path, mode: object) -> None:
    said = mode.lower() if isinstance(mode, str) else mode
    if said in (1, "semi_auto_parallel"):
        return
    advice = ""
    if said == "manual_parallel":
        advice = (
            " A job in manual parallel (MindFormers r1.6 and later, for inference) loads the hub's "
            "safetensors by itself and cuts them "
            "while it loads: name the Hugging Face directory in its pretrained_model_dir, and "
            "convert nothing."
        )
    raise ConfigError(
        f"{path}: parallel_mode is {shown(mode)}; weights are cut by the configuration only in "
        f"mode 1, semi_auto_parallel.{advice}"
    )


def _load(path: Path) -> dict[str, Any]:
    content = read_small(path, _MAX_BYTES, ConfigError)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: isn't text; expected a parallel configuration in YAML or JSON."
        ) from error
    found = _parse(path, text)
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ConfigError(f"{path}: expected keys and values, such as 'model_parallel: 8'.")
    return found


def _parse(path: Path, text: str) -> object:
    with suppress(FormatError):
        return parse_object(text.encode(), str(path))
    from ckptforge.parallel.bounded_yaml import parse_yaml  # not needed for JSON

    try:
        return parse_yaml(text, _MAX_NODES)
    except ValueError as error:
        raise ConfigError(f"{path}: isn't valid YAML: {error}.") from error


def _values(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Our keys with their values; a key that stands at two places must say the same."""
    found: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for key, spellings in _KEYS.items():
        for spelling in (*spellings, key):
            value = _at(path, content, spelling)
            if value is None:
                continue
            if key in found and found[key] != value:
                raise ConfigError(
                    f"{path}: {origin[key]} is {shown(found[key])}, but {spelling} "
                    f"is {shown(value)}; they mean the same."
                )
            found[key], origin[key] = value, spelling
    _refuse_unknown(path, content)
    if not found:
        raise ConfigError(
            f"{path}: has none of the keys of a parallel configuration, such as model_parallel."
        )
    return found


def _refuse_unknown(path: Path, content: Mapping[str, Any]) -> None:
    """Raises `ConfigError` for a key that is nearly one that is read, and in a file without
    sections for any that isn't one: of those that MindFormers' files have, most say nothing of how
    weights are cut."""
    sections = _sections()
    flat = not any(section in content for section in _SECTIONS[:-1])
    for place, keys in _places(content, sections):
        prefix = f"{place}." if place else ""
        for key in keys:
            near = None if key in sections[place] else nearest(str(key), sections[place])
            if near is not None:
                raise ConfigError(
                    f"{path}: {prefix}{shown(str(key))[1:-1]} isn't a key of "
                    f"MindFormers; did you mean {prefix}{near}?"
                )
            if flat and not place and key not in sections[""]:
                raise ConfigError(
                    f"{path}: {shown(key)} isn't a key of a parallel configuration; "
                    f"there are {', '.join(_KEYS)}."
                )


def _sections() -> dict[str, set[str]]:
    """Section, as a path with dots, → the keys that are read of it; "" for the file itself."""
    found: dict[str, set[str]] = {"": {*_KEYS, *_SECTIONS}}
    for spelling in (spelling for spellings in _KEYS.values() for spelling in spellings):
        *outer, key = spelling.split(".")
        for depth in range(len(outer)):
            found.setdefault(".".join(outer[:depth]), set()).add(outer[depth])
        found.setdefault(".".join(outer), set()).add(key)
    return found


def _places(
    content: Mapping[str, Any], sections: Mapping[str, set[str]]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(section, what stands in it), for those that are read of."""
    for place in sections:
        inner: Any = content
        for section in place.split(".") if place else ():
            inner = inner.get(section) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            yield place, inner


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The one of some words that another is a slip of the pen from: one letter too many, too few,
    wrong or changed with the next, two such slips in long words; dashes and capitals don't
    count."""
    plain = word.lower().replace("-", "_")
    distances = {
        other: _slips(plain, other)
        for other in words
        if len(other) > 3 and abs(len(other) - len(plain)) <= 2
    }
    near = [
        other for other, slips in distances.items() if slips <= (2 if len(other) >= _LONG else 1)
    ]
    return min(near, key=lambda other: (distances[other], other), default=None)


_LONG = 12  # letters


def _slips(a: str, b: str) -> int:
    """The distance of Damerau and Levenshtein, of neighbours that change places once."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        before, above, row = row, before, [i]
        for j, other in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other))
            if i > 1 and j > 1 and (letter, a[i - 2]) == (b[j - 2], other):
                cost = min(cost, above[j - 2] + 1)
            row.append(cost)
    return row[-1]


def _at(path: Path, content: Mapping[str, Any], spelling: str) -> Any:
    *sections, key = spelling.split(".")
    inner: Any = content
    for depth, section in enumerate(sections):
        inner = _mapping(path, inner.get(section), ".".join(sections[: depth + 1]))
    return inner.get(key)


def _mapping(path: Path, value: object, name: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {name} is {shown(value)}, expected keys and values.")
    return value


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


def stage_of_layers(config: ParallelConfig, layers: int | None) -> Sequence[int]:
    """The stage of each layer of a model. Raises `ConfigError`, also where the file says another
    number of layers."""
    if layers is None:
        return ()
    if config.layers not in (None, layers):
        raise ConfigError(
            f"{config.path}: num_layers is {config.layers}, but the model has "
            f"{counted(layers, 'layer')}."
        )
    return config.layers_by_stage(layers)
