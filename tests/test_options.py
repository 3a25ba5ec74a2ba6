"""Records of options: one place for what Python, the command line, the help and the schema say."""

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import ckptforge
from ckptforge.cli.app import cli
from ckptforge.cli.parameters import help_of
from ckptforge.errors import UsageError
from ckptforge.verbs import options as records
from ckptforge.verbs.mindformers_flags import ConvertFlags, TransformFlags
from ckptforge.verbs.options import Compare, Convert, Options, Strategy, ToMs, Verify
from ckptforge.verbs.options.option import option, required
from ckptforge.verbs.options.record import fits, options_of, types_of, verb_of
from ckptforge.verbs.options.schema import schema
from tests.helpers import HUB
from tests.test_conversion import edit_hub

ALL = [
    one
    for one in (*vars(records).values(), ConvertFlags, TransformFlags)
    if isinstance(one, type) and issubclass(one, Options) and one is not Options
]
VERBS = [one for one in ALL if verb_of(one) in ckptforge.__all__]


def test_every_public_verb_has_a_record():
    functions = {name for name in ckptforge.__all__ if name.islower()} - {"__version__"}
    assert {verb_of(one) for one in VERBS} == functions - {"plan"}


@pytest.mark.parametrize("record", ALL, ids=lambda record: record.__name__)
def test_every_option_has_a_meaning_and_a_default_of_its_type(record):
    for name, one in options_of(record).items():
        assert one.meaning and not one.meaning.endswith("."), name
        assert one.meaning[0] == "`" or one.meaning[0].islower() or one.meaning[1].isupper(), name
        assert one.required or fits(one.default, types_of(record)[name]), name
        assert "`" not in help_of(one, record).replace("`ckptforge mapping list`", ""), name


@pytest.mark.parametrize("record", ALL, ids=lambda record: record.__name__)
def test_the_schema_has_every_option_with_description_type_and_default(record):
    found, options = schema(record), options_of(record)
    named = {name for name, one in options.items() if not one.hidden}
    assert set(found["properties"]) == named and not found["additionalProperties"]
    assert found["required"] == [name for name, one in options.items() if one.required]
    for name, about in found["properties"].items():
        assert about["description"].startswith(options[name].meaning)
        assert {"type", "enum", "anyOf"} & set(about)
        assert options[name].required == ("default" not in about)
    hidden = {name: types_of(record)[name] for name in options if name not in named}
    functions = {name for name, kind in types_of(record).items() if "Callable" in str(kind)}
    own = {"command", "edits", "executor", "others"}
    assert functions <= set(hidden) and set(hidden) - functions <= own


def test_schemas_say_what_the_types_are():
    found = schema(ToMs)["properties"]
    assert found["hf_dir"]["type"] == "string" and "default" not in found["hf_dir"]
    assert found["layout"]["type"] == ["string", "null"] and found["layout"]["default"] is None
    words = "ckpt safetensors unified mindformers megatron dcp pt pth bin"
    assert found["format"]["enum"] == [*words.split(" "), None]
    assert found["drop"] == {
        **found["drop"],
        "type": "array",
        "items": {"type": "string"},
        "default": [],
    }
    assert found["memory"]["type"] == ["integer", "string", "null"]
    assert (found["dtype"]["default"], found["resume"]["default"]) == ("keep", False)
    assert schema(Verify)["properties"]["generate"]["maximum"] == 1000
    assert {"type": "array", "items": {"type": "integer"}} in schema(Verify)["properties"][
        "tokens"
    ]["anyOf"]
    assert schema(Strategy)["required"] == ["out_dir", "parallel_config", "like"]


def test_a_record_holds_paths_and_cannot_be_changed():
    made = ToMs("hf", out="x.ckpt", mapping="m.toml", workers=2)
    assert (made.hf_dir, made.out, made.mapping) == (Path("hf"), Path("x.ckpt"), Path("m.toml"))
    assert made.config is None and made.prefix == "checkpoint_" and made.drop == ()
    with pytest.raises(AttributeError, match="can't be changed"):
        made.workers = 3
    other = made.replace(workers=3)
    assert (other.workers, other.hf_dir, made.workers) == (3, made.hf_dir, 2)
    assert repr(made) == (
        f"ToMs(hf_dir={Path('hf')!r}, out={Path('x.ckpt')!r}, mapping={Path('m.toml')!r}, "
        "workers=2)"
    )
    with pytest.raises(TypeError, match=r"to_ms\(\) has no keyword 'wokers'; .* 'workers'"):
        made.replace(wokers=3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ToMs("a"), r"to_ms\(\) is missing a required argument: 'out'"),
        (lambda: Convert("a", "b"), r"convert\(\) is missing a required argument: 'to'"),
        (lambda: ToMs("a", "b", "c"), r"to_ms\(\) takes 2 positional arguments, but 3 were given"),
        (lambda: ToMs("a", "b", out="c"), r"to_ms\(\) got two values for 'out'"),
    ],
)
def test_what_python_refuses_of_a_signature(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_a_number_has_its_bounds():
    with pytest.raises(UsageError, match=r"generate=2000: expected 0 to 1,000\."):
        Verify("a", "b", generate=2000)


def test_an_option_said_anew_keeps_its_place():
    class Again(Compare):
        b = option("the other", kw_only=False)

    assert list(options_of(Again)) == list(options_of(Compare))
    assert Again("x").b is None and options_of(Compare)["b"].required


def test_help_spells_other_options_as_its_reader_writes_them():
    class Some(Options):
        ms_dir: str = required("where it is", kw_only=False)
        from_: str = option("the layout of `ms_dir`", default="", unset="that of `to_dir`")
        to_dir: str = option("another, with `from_` or `nothing`", default="")

    found = options_of(Some)
    assert help_of(found["from_"], Some) == "The layout of MS_DIR. [default: that of --to-dir]"
    assert help_of(found["to_dir"], Some) == "Another, with --from or `nothing`."
    assert found["from_"].text == "the layout of `ms_dir`; by default that of `to_dir`."


def test_strategy_drops_what_no_mapping_knows_as_its_message_says(tmp_path):
    edit_hub(tmp_path / "hub", lambda held: held.update({"model.extra": ("F32", [1], bytes(4))}))
    (tmp_path / "job.json").write_text('{"model_parallel": 2}')
    words = ["--parallel-config", tmp_path / "job.json", "--like", tmp_path / "hub"]
    for out, more in (("a", []), ("b", ["--allow-unmapped"]), ("c", ["--drop", "*.extra"])):
        done = CliRunner().invoke(cli, [*map(str, ("strategy", tmp_path / out, *words)), *more])
        assert (tmp_path / out).is_dir() == bool(more) == (done.exit_code == 0)
    with pytest.raises(UsageError, match="no tensor that the mapping .* has that name"):
        ckptforge.strategy(
            tmp_path / "d",
            parallel_config=tmp_path / "job.json",
            like=tmp_path / "hub",
            drop=["other"],
        )


def commands(group, path=()):
    for name, one in group.commands.items():
        yield from (
            commands(one, (*path, name)) if isinstance(one, click.Group) else [((*path, name), one)]
        )


def test_every_option_of_a_record_is_on_its_command_line():
    for path, command in commands(cli):
        if path in (("version",), ("mapping", "schema")):
            continue
        names = {one.name for one in command.get_params(click.Context(command))}
        for record in getattr(command, "records", ()):
            shown = {name for name, one in options_of(record).items() if not one.hidden}
            assert shown <= names, (path, shown - names)


@pytest.mark.parametrize("record", ALL, ids=lambda record: record.__name__)
def test_an_option_names_others_that_a_verb_has_and_is_refused_without_or_with_them(record):
    known = {name for one in ALL for name in options_of(one)}
    for name, one in options_of(record).items():
        assert {*one.needs, *one.clashes} <= known, name
        assert not one.required or not (one.needs or one.clashes), name


TOGETHER = [
    ("to-ms {hub} o.ckpt --steal", "--steal means nothing without --part"),
    ("to-ms {hub} o.ckpt --part 1/2 --steal-after 5", "--steal-after means nothing without --st"),
    ("to-ms {hub} o.ckpt --resume --no-hash", "--resume goes by the hashes.*--no-hash can't be"),
    ("to-ms {hub} o.ckpt --part 1/2 --no-hash", "--part needs hashes, so --no-hash can't be"),
    ("to-ms {hub} o.ckpt --consume --no-hash", "--consume needs hashes, so --no-hash can't"),
    ("to-ms {hub} o.ckpt --dask local:2 --part 1/2", "--dask spreads one run.*--part can't be"),
    ("to-ms {hub} o.ckpt --dask local:2 --consume", "--dask has several.*--consume can't be"),
    ("to-ms {hub} o.ckpt --prefix net_", "--prefix net_ has no effect on o.ckpt"),
    ("to-ms {hub} o --format unified --prefix net_", "--prefix net_ has no effect on o"),
    ("to-ms {hub} o --iteration 3", "of --format mindformers or --format megatron"),
    ("convert {hub} o --to fused --prefix net_", "--prefix net_ has no effect on a directory of"),
    ("convert {hub} o --to fused --format ckpt", "--format ckpt has no effect on a directory of"),
    ("convert {hub} o --to dense --max-shard-size 5MB", "--max-shard-size is of directories of H"),
    ("edit {hub} o --take e=0,1 --iteration 3", "--iteration 3 has no effect on a directory"),
    ("edit {hub} o --take e=0,1 --remove-redundancy", "--remove-redundancy has no effect"),
    ("edit {hub} o --take e=0,1 --fill mean", "--fill mean means nothing without --pad"),
    ("average o {hub} {hub} --src-strategy-dir s", "--src-strategy-dir s says how rank dir"),
    ("merge {hub} o.ckpt --layout dense", "--layout means nothing without --parallel-config"),
    ("reshard {hub} o --dst-strategy-dir s --config c", "without --src-parallel-config or --dst-p"),
    ("inspect {hub} --overwrite", "--overwrite means nothing without --html"),
    ("compare {hub} {hub} --overwrite", "--overwrite means nothing without --html"),
    ("demo --overwrite", "--overwrite means nothing without DIR"),
]


@pytest.mark.parametrize(("line", "message"), TOGETHER)
def test_what_means_nothing_without_another_or_contradicts_one_is_refused(
    monkeypatch, tmp_path, line, message
):
    monkeypatch.chdir(tmp_path)
    words = line.format(hub=HUB).split()
    result = CliRunner().invoke(cli, words)
    assert isinstance(result.exception, UsageError), result.output
    assert re.search(message, str(result.exception)), result.exception
    assert not list(tmp_path.iterdir())


def test_what_an_output_takes_is_heeded(tmp_path):
    ckptforge.convert(HUB, tmp_path / "o", to="dense", format="dcp", max_shard_size=300_000)
    assert len(list((tmp_path / "o").glob("*.distcp"))) > 1
    ckptforge.convert(HUB, tmp_path / "f", to="fused", format="safetensors")
    ckptforge.to_ms(HUB, tmp_path / "m", prefix="net_")
    assert (tmp_path / "m" / "rank_0" / "net_0.ckpt").is_file()
