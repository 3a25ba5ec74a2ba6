"""What the program prints: counts, tables, colours."""

import pytest

from ckptforge.errors import counted, install_hint


@pytest.mark.parametrize(
    ("count", "words", "text"),
    [
        (1, ("tensor",), "1 tensor"),
        (2, ("tensor",), "2 tensors"),
        (0, ("file",), "0 files"),
        (1024, ("rank",), "1,024 ranks"),
        (3, ("rank directory",), "3 rank directories"),
        (1, ("axis",), "1 axis"),
        (2, ("axis",), "2 axes"),
        (2, ("box",), "2 boxes"),
        (1, ("tensor", "are"), "1 tensor is"),
        (2, ("tensor", "are"), "2 tensors are"),
        (1, ("tensor that", "aren't"), "1 tensor that isn't"),
        (7, ("parameter of x.ckpt", "aren't"), "7 parameters of x.ckpt aren't"),
        (1, ("key", "differ"), "1 key differs"),
    ],
)
def test_one_is_singular_and_all_else_plural(count, words, text):
    assert counted(count, *words) == text


def test_hints_name_the_clone_and_no_project_of_an_index():
    assert install_hint("torch", "mindspore") == "pip install '.[torch,mindspore]' in a clone of ckptforge"
