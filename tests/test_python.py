"""The package as a Python program uses it."""

import pytest

import ckptforge
from ckptforge.errors import OutputError
from ckptforge.spelling import command, command_line, flag, option
from tests.helpers import HUB
from tests.test_cli import ckpt


def test_options_are_spelled_as_keywords_and_on_the_command_line_with_dashes():
    def spelled():
        return [
            flag("allow_unmapped"),
            option("strategy_dir"),
            option("from_"),
            option("layout_b", "gmm"),
            option("memory", "12 potatoes"),
            option("workers", 0),
            command("merge"),
            command("to_torch", HUB, "DIR", layout="gmm", weights_only=True),
        ]

    assert spelled() == [
        "allow_unmapped=True",
        "strategy_dir",
        "from_",
        "layout_b='gmm'",
        "memory='12 potatoes'",
        "workers=0",
        "`ckptforge.merge`",
        f"`ckptforge.to_torch('{HUB}', 'DIR', layout='gmm', weights_only=True)`",
    ]
    with command_line():
        assert spelled() == [
            "--allow-unmapped",
            "--strategy-dir",
            "--from",
            "--layout-b gmm",
            "--memory '12 potatoes'",
            "--workers 0",
            "`ckptforge merge`",
            f"`ckptforge to-torch {HUB} DIR --layout gmm --weights-only`",
        ]
    assert flag("resume") == "resume=True"


def test_the_same_error_names_a_keyword_in_python_and_an_option_on_the_command_line(tmp_path):
    out = tmp_path / "x --overwrite=1.ckpt"  # what a user calls a file is never spelled anew
    ckptforge.to_ms(HUB, out)
    with pytest.raises(OutputError) as error:
        ckptforge.to_ms(HUB, out)
    assert str(error.value) == f"{out}: exists already; give overwrite=True to replace it."
    done = ckpt("to-ms", HUB, out)
    assert done.stderr == f"ckptforge: {out}: exists already; give --overwrite to replace it.\n"
