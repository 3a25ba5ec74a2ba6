"""MindFormers' convert_weight.py and transform_ckpt.py, with their flags, as calls of our own verbs.

Source: MindFormers v1.3.0, `convert_weight.py`, `research/*/convert_weight.py`, `mindformers/tools/transform_ckpt.py`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from ckptforge import resharding, verbs
from ckptforge.errors import UsageError
from ckptforge.result import Result


class Call(msgspec.Struct, frozen=True):
    """A call of a verb: the same as `ckptforge NAME ARGUMENTS --OPTION VALUE …` on the command line."""

    name: str
    verb: Callable[..., Result]
    arguments: tuple[str, ...]
    options: dict[str, Any] = msgspec.field(default_factory=dict)

    @property
    def command(self) -> str:
        """The command line, quoted for a shell."""
        words = ["ckptforge", self.name, *self.arguments]
        for option, value in self.options.items():
            if value is True:
                words.append(f"--{option}")
            elif value is not None:
                words += [f"--{option}", str(value)]
        return shlex.join(words)

    def run(self, **running: Any) -> Result:
        """Carries the call out, with the arguments of `Running`."""
        return self.verb(*self.arguments, **self.options, **running)


def convert_weight(
    *,
    model: str | None = None,
    input_path: str | None = None,
    output_path: str | None = None,
    dtype: str | None = None,
    reversed: bool = False,
    strategy_dir: str | None = None,
    torch_ckpt_dir: str | None = None,
    mindspore_ckpt_path: str | None = None,
    pre_ckpt_path: str | None = None,
    use_gmm: bool | None = None,
) -> Call:
    """The call that does what convert_weight.py does with these flags: the unified script's with `input_path`, else those of
    the script for inference.

    Without `dtype` the unified script writes fp32, the other fp16, and from `pre_ckpt_path` it keeps the dtype.
    Raises `UsageError` for flags that don't go together.
    """
    if input_path is not None or output_path is not None or reversed:
        given = {"torch_ckpt_dir": torch_ckpt_dir, "mindspore_ckpt_path": mindspore_ckpt_path, "pre_ckpt_path": pre_ckpt_path}
        if mixed := [name for name, value in given.items() if value is not None]:
            raise UsageError(
                f"--{mixed[0]} is of the script for inference, --input_path and --output_path of the unified one; use one's flags."
            )
        if input_path is None or output_path is None:
            raise UsageError("convert-weight needs --input_path and --output_path.")
        dtype = dtype or "fp32"
        if reversed:
            return _to_torch(model, input_path, output_path, dtype, strategy_dir)
        if strategy_dir not in (None, "None"):
            raise UsageError("--strategy_dir goes with --reversed; to write rank directories use `ckptforge to-ms --strategy_dir`.")
        return _to_ms(model, input_path, output_path, dtype, use_gmm or False)
    if mindspore_ckpt_path is None or (torch_ckpt_dir is None) == (pre_ckpt_path is None):
        raise UsageError(
            "convert-weight needs --input_path and --output_path, or --mindspore_ckpt_path and one of --torch_ckpt_dir and --pre_ckpt_path."
        )
    if strategy_dir not in (None, "None"):
        raise UsageError("--strategy_dir goes with --reversed.")
    if torch_ckpt_dir is not None:
        return _to_ms(model, torch_ckpt_dir, mindspore_ckpt_path, dtype or "fp16", use_gmm or False)
    assert pre_ckpt_path is not None
    options = {"to": "dense" if use_gmm is False else "gmm", "dtype": dtype, "model": model}
    return Call("convert", verbs.convert, (pre_ckpt_path, mindspore_ckpt_path), _given(options))


def _to_ms(model: str | None, source: str, out: str, dtype: str, use_gmm: bool) -> Call:
    options = {"layout": "gmm" if use_gmm else None, "dtype": dtype, "model": model}
    return Call("to-ms", verbs.to_ms, (source, out), _given(options))


def _to_torch(model: str | None, source: str, out: str, dtype: str, strategy_dir: str | None) -> Call:
    strategy = None if strategy_dir == "None" or Path(source).is_file() else strategy_dir  # of a whole checkpoint there is none
    options = {"strategy_dir": strategy, "dtype": dtype, "model": model, "allow_no_config": True}
    return Call("to-torch", verbs.to_torch, (source, out), _given(options))


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def transform_ckpt(
    *,
    src_ckpt_dir: str,
    dst_ckpt_dir: str,
    src_ckpt_strategy: str | None = None,
    dst_ckpt_strategy: str | None = None,
    prefix: str = "checkpoint_",
) -> Call:
    """The call that does what transform_ckpt.py does with these flags: merge, split or reshard, by the strategies that are
    given; "None" and an empty text are none. Raises `UsageError` when there is neither."""
    src, dst = (None if strategy in (None, "", "None") else strategy for strategy in (src_ckpt_strategy, dst_ckpt_strategy))
    if src is not None and dst is not None:
        options = {"src_strategy_dir": src, "dst_strategy_dir": dst, "prefix": prefix}
        return Call("reshard", resharding.reshard, (src_ckpt_dir, dst_ckpt_dir), options)
    if src is not None:
        return Call("merge", resharding.merge, (src_ckpt_dir, dst_ckpt_dir), {"strategy_dir": src, "prefix": prefix})
    if dst is not None:
        return Call("split", resharding.split, (src_ckpt_dir, dst_ckpt_dir), {"strategy_dir": dst, "prefix": prefix})
    raise UsageError("transform-ckpt needs --src_ckpt_strategy, --dst_ckpt_strategy or both.")
