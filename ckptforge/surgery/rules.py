"""What must hold in config.json between the lengths of axes and other keys, and the keys that count
layers one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ckptforge.errors import shown
from ckptforge.tables.per_layer import PER_LAYER

Config = Mapping[str, Any]
Rule = Callable[[Config], "str | None"]

_EXPERTS = ("num_local_experts", "n_routed_experts", "num_experts")
# keys that hold a value for each layer, and such as hold numbers of layers
_BY_LAYER = (
    *("layer_types", "mlp_layer_types", "no_rope_layers", "sliding_window_layers"),
    "compress_ratios",
    *_EXPERTS,
)
_DENSE, _STEP = "mlp_only_layers", "decoder_sparse_step"
_NUMBERS = (_DENSE,)
_TOKENS = "_token_id"


def broken(config: Config, before: Config | None = None) -> list[str]:
    """What doesn't hold, but for what didn't before."""
    held = [] if before is None else broken(before)
    found = [why for rule in RULES if (why := rule(config)) is not None]
    return [why for why in found if why not in held]


def _experts(config: Config) -> int | None:
    return next((config[key] for key in _EXPERTS if isinstance(config.get(key), int)), None)


def _enough_experts(config: Config) -> str | None:
    experts, chosen = _experts(config), config.get("num_experts_per_tok")
    if experts is None or not isinstance(chosen, int) or chosen <= experts:
        return None
    return f"num_experts_per_tok is {chosen}, more than the {experts} experts that are left"


def _groups(config: Config) -> str | None:
    experts, groups = _experts(config), config.get("n_group")
    if experts is None or not isinstance(groups, int) or groups < 1:
        return None
    if experts % groups:
        return f"n_group is {groups}, which doesn't divide the {experts} experts"
    taken, chosen = config.get("topk_group"), config.get("num_experts_per_tok")
    if isinstance(taken, int) and taken > groups:
        return f"topk_group is {taken}, more than n_group {groups}"
    if isinstance(taken, int) and isinstance(chosen, int) and chosen > taken * (experts // groups):
        return (
            f"num_experts_per_tok is {chosen}, more than the {taken * (experts // groups)} experts "
            f"in topk_group {taken} groups"
        )
    if groups > 1 and experts // groups < 2:
        return f"n_group {groups} leaves one expert in a group; routers add up the best two"
    return None


def _heads(config: Config) -> str | None:
    heads, groups = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if not isinstance(heads, int) or not isinstance(groups, int) or groups < 1:
        return None
    if heads % groups == 0:
        return None
    return f"num_attention_heads is {heads}, which isn't a multiple of num_key_value_heads {groups}"


def _layers(config: Config) -> str | None:
    layers = config.get("num_hidden_layers")
    if not isinstance(layers, int):
        return None
    more = config.get("num_nextn_predict_layers")
    lengths = (layers, layers + more) if isinstance(more, int) else (layers,)
    for key in _BY_LAYER:
        held = config.get(key)
        if isinstance(held, list) and len(held) not in lengths:
            return f"{key} has {len(held)} entries, for {layers} layers"
    for key in _NUMBERS:
        held = config.get(key)
        if isinstance(held, list) and any(isinstance(i, int) and i >= layers for i in held):
            return f"{key} is {shown(held)}, and there are {layers} layers"
    dense = config.get("first_k_dense_replace")
    if isinstance(dense, int) and dense > layers:
        return f"first_k_dense_replace is {dense}, more than the {layers} layers"
    return None


def _tokens(config: Config) -> str | None:
    size = config.get("vocab_size")
    if not isinstance(size, int):
        return None
    for key, held in config.items():
        if key.endswith(_TOKENS) and isinstance(held, int) and held >= size:
            return f"{key} is {held}, beyond vocab_size {size}"
    return None


RULES: tuple[Rule, ...] = (_enough_experts, _groups, _heads, _layers, _tokens)


def heads_following(config: Config, before: Config) -> dict[str, Any]:
    """Keys of a model in which every head has its own key and value, of which no axis stands for
    that: their number is that of the heads."""
    key, heads = "num_key_value_heads", before.get("num_attention_heads")
    if heads is None or before.get(key) != heads or config.get(key) != heads:
        return {}
    return {key: config.get("num_attention_heads")}


def by_layers(config: Config, layers: Sequence[int], before: int) -> dict[str, Any]:
    """Keys that hold something for each layer, for layers that are made of these old ones."""
    found: dict[str, Any] = {}
    for key in _BY_LAYER:
        held = config.get(key)
        if isinstance(held, list) and len(held) >= before:
            found[key] = [*(held[layer] for layer in layers), *held[before:]]
    for key in _NUMBERS:
        held = config.get(key)
        if isinstance(held, list) and held:
            found[key] = [new for new, old in enumerate(layers) if old in held]
    step = config.get(_STEP)
    if isinstance(step, int) and step > 1:  # which layers are dense follows from their numbers
        dense = found.get(_DENSE, [])
        added = [new for new, old in enumerate(layers) if (old + 1) % step]
        found |= {_STEP: 1, _DENSE: sorted({*dense, *added})}
    if isinstance(held := config.get(PER_LAYER), Mapping) and held:
        own = {new: held[str(old)] for new, old in enumerate(layers) if str(old) in held}
        found[PER_LAYER] = {str(new): values for new, values in own.items()}
    return found


def unsaid_of_layers(config: Config, layers: Sequence[int], before: int) -> Iterator[str]:
    """What config.json says of layers that these can't keep."""
    first = config.get("max_window_layers")
    if config.get("use_sliding_window") is True and isinstance(first, int) and first < before:
        full = [layer < first for layer in layers]
        if full != sorted(full, reverse=True) or sum(full) != min(first, len(full)):
            yield f"max_window_layers is {first}: the layers from that on have another window"


def tokens_moved(config: Config, tokens: Sequence[int] | range) -> tuple[dict[str, Any], list[str]]:
    """(keys with numbers of tokens as they are among `tokens`, the old numbers in their new order;
    sentences on those that aren't there)."""
    place = {old: new for new, old in reversed(list(enumerate(tokens)))}
    found: dict[str, Any] = {}
    lost = []
    for key, held in config.items():
        if not key.endswith(_TOKENS) or held is None:
            continue
        numbers = held if isinstance(held, list) else [held]
        if not all(isinstance(number, int) for number in numbers):
            continue
        if gone := [number for number in numbers if number not in place and number >= 0]:
            lost.append(f"{key} is {shown(held)}, and token {gone[0]} isn't kept")
            continue
        moved = [place.get(number, number) for number in numbers]
        new = moved if isinstance(held, list) else moved[0]
        if new != held:
            found[key] = new
    return found, lost
