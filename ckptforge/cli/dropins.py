"""The drop-ins: commands that take the flags of MindFormers' scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptforge.cli import progress as progressing
from ckptforge.cli.command import Command
from ckptforge.cli.console import this_command
from ckptforge.cli.shown import Shown
from ckptforge.cli.text import result_text
from ckptforge.verbs.mindformers_flags import (
    CONVERT_OTHERS,
    TRANSFORM_OTHERS,
    ConvertFlags,
    TransformFlags,
)
from ckptforge.verbs.options import Overflow, Running

if TYPE_CHECKING:
    from ckptforge.verbs.call import Call


def _convert_weight(
    shown: Shown, flags: ConvertFlags, overflow: Overflow, running: Running
) -> None:
    from ckptforge.verbs import dropins

    _carry_out(shown, dropins.convert_weight(flags), running, **vars(overflow))


def _transform_ckpt(shown: Shown, flags: TransformFlags, running: Running) -> None:
    from ckptforge.verbs import dropins

    _carry_out(shown, dropins.transform_ckpt(flags), running)


def _carry_out(shown: Shown, meant: Call, running: Running, **more: Any) -> None:
    """Carries out what a drop-in's flags mean, and says which command of ours that is."""
    with progressing.shown(shown.quiet, "copying") as progress:
        own = {"progress": progress, "command": this_command()}
        result = meant.run(**{**vars(running), **more, **own})
    shown.result(
        lambda: {**result.to_json(), "command": meant.command},
        lambda: f"the same as: {meant.command}\n{result_text(result)}",
    )


DROP_INS = (
    Command(
        "convert-weight", _convert_weight, ConvertFlags, Overflow, Running, others=CONVERT_OTHERS
    ).described("""
        MindFormers' convert_weight.py, with the same flags.

        Those of the unified script (--input_path, --output_path, --reversed, --strategy_dir) and of
        the scripts of one model (--torch_ckpt_dir, --pre_ckpt_path, --mindspore_ckpt_path,
        --use_gmm). Flags that aren't needed here, such as sizes, are taken with a note; those that
        can't be honoured are refused with the reason.

        Examples:
            ckptforge convert-weight --model NAME --input_path hf_dir --output_path model.ckpt --dtype fp16
            ckptforge convert-weight --model NAME --reversed --input_path model.ckpt --output_path hf_dir/ --dtype fp16
            ckptforge convert-weight --use_gmm=True --dtype=fp16 --torch_ckpt_dir=hf_dir --mindspore_ckpt_path=model.ckpt
        """),  # noqa: E501
    Command(
        "transform-ckpt", _transform_ckpt, TransformFlags, Running, others=TRANSFORM_OTHERS
    ).described("""
        MindFormers' transform_ckpt.py and transform_checkpoint.py, with the same flags.

        Merges, splits or reshards, by the strategies given. The arguments of
        transform_checkpoint.sh are taken too. One call writes all ranks, straight into DST:
        --rank_id, --world_size, --transform_process_num and the like are taken with a note.

        Examples:
            ckptforge transform-ckpt --src_ckpt_strategy output/strategy/ --src_ckpt_dir output/checkpoint/ --dst_ckpt_dir merged --prefix model_
            ckptforge transform-ckpt --src_checkpoint model.ckpt --dst_checkpoint sliced --dst_strategy output/strategy/
        """),  # noqa: E501
)
