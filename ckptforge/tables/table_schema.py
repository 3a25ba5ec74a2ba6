"""The pydantic models of a table's file: those of its records (`table_file.py`), and of [layout].

The JSON schema for editors comes from here, and so do the messages for what doesn't fit it. The
rules between rows are in the modules that make the sections' records.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field

from ckptforge.tables.table_file import TableFile
from ckptforge.validation import Written, expected, model_of
from ckptforge.wording import alternatives

_Family = Literal["huggingface", "mindspore", "consolidated", "megatron"]
FAMILIES: tuple[_Family, ...] = get_args(_Family)
Family = Annotated[_Family, expected(alternatives(FAMILIES), FAMILIES)]
_Told = Literal["by name only", "by names and shapes"]
Told = Annotated[_Told, expected("'by name only', or nothing", get_args(_Told))]
_Files = Literal["one", "eight"]
Files = Annotated[_Files, expected("'eight', or nothing", get_args(_Files))]
NotKnown = Annotated[Literal["not known"], expected("'not known', or nothing", ("not known",))]


class LayoutSection(Written):
    """How one layout stores the logical tensors: a row for each stored tensor. A row that holds one
    logical tensor has its name, one that holds several any other."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, str]

    family: Family | None = Field(
        default=None,
        description="whose layout it is; that of the layout which it extends, if omitted",
    )
    extends: str | None = Field(
        default=None, description="a layout whose rows it has, too, unless it redefines them"
    )
    told: Told = Field(
        default="by names and shapes",
        description="'by name only' if names and shapes are those of another layout, which is "
        "meant unless this one is named",
    )
    files: Files = Field(
        default="one",
        description="of releases: 'eight' if its tensors are spread over consolidated.00.pt to "
        "consolidated.07.pt, whose params.json has keys of config.json, too",
    )
    sharding: NotKnown | None = Field(
        default=None,
        description="'not known' if its network doesn't spread it as that of the layout which it "
        "extends",
    )


class _Titled(Written):
    model_config = ConfigDict(title="Mapping table")


WrittenTable = model_of(
    TableFile, _Titled, layout=Annotated[dict[str, LayoutSection], Field(min_length=1)]
)


def table_schema() -> dict[str, Any]:
    """The JSON schema of a table's file."""
    draft = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": draft, **WrittenTable.model_json_schema()}
