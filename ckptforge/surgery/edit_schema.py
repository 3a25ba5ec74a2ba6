"""The recipe of edits, as people write it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from ckptforge.validation import Written, expected

Text = Annotated[str, expected("text")]
Indexes = list[int]
List = Annotated[
    str | Indexes | list[Indexes | None] | dict[str, Indexes],
    expected(
        "indexes such as '0,2,5', '0-23,8-31' or '@FILE.json', or a list of them, or of lists"
    ),
]
Size = Annotated[int | str, expected("a size, or a multiple such as 'multiple:128'")]
Group = Indexes | dict[str, float | int]
Groups = Annotated[list[Group], expected("a list of lists of indexes, or of weights by index")]
Texts = Annotated[list[Text], expected("a list of texts")]
Names = Annotated[dict[str, str], expected("old and new names")]
Count = Annotated[int, Field(ge=1), expected("a whole number, 1 or more")]


class Expand(Written):
    """Into which model with experts a dense one is made."""

    to: Text = Field(description="the mapping of a model with experts")
    experts: Count = Field(default=8, description="how many experts")
    active: Count = Field(default=2, description="how many are chosen for a token")
    pieces: Count = Field(
        default=1, description="how many pieces the network is cut into, one for an expert"
    )
    router: Text = Field(
        default="zero", description="how the router is filled: zero, normal:STD,SEED"
    )


class EditRow(Written):
    """One edit: one of these keys, or of an edit of another package; `fill` goes with `pad`."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Any]

    take: dict[str, List] | None = Field(
        default=None, description="axes made of some of their indexes"
    )
    merge: dict[str, Groups] | None = Field(
        default=None, description="axes of which groups of indexes become one each, their mean"
    )
    pad: dict[str, Size] | None = Field(default=None, description="axes that are lengthened")
    fill: Text = Field(
        default="zero", description="what pad fills with: zero, mean, copy:I or normal:STD,SEED"
    )
    expand: Expand | None = Field(
        default=None, description="a dense model becomes one with experts"
    )
    tie: bool = Field(default=False, description="the head is left out, as it is the embedding")
    untie: bool = Field(default=False, description="a head that is a copy of the embedding")
    drop: Texts | None = Field(default=None, description="kinds or names (globs) that are left out")
    keep: Texts | None = Field(default=None, description="kinds or names (globs) that alone stay")
    rename: Names | None = Field(default=None, description="names, one * in both for anything")
    set_dtype: dict[str, Text] | None = Field(
        default=None, description="dtypes of kinds or of names (globs)"
    )


class EditRecipe(Written):
    """Edits, in order."""

    edit: list[EditRow] = Field(min_length=1, max_length=1000, description="the edits, in order")
