"""The commands of pages that show them without output run, on tiny models by the names that the
pages use."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

import ckptforge
from ckptforge.verbs.synthetic import write_model
from tests.helpers import FIXTURES
from tests.page_commands import in_this_process, words_of
from tests.test_edit import TABLES
from tests.test_lora import write_adapter

ROOT = Path(__file__).parents[1]
MM = FIXTURES / "mindspeed_mm"
MIXTRAL = "Mixtral-8x7B-v0.1"
MODELS = {MIXTRAL: ("mixtral", {}), "Qwen3-8B": ("qwen3", {})} | {
    "DeepSeek-V3": ("deepseek_v3", {"num_hidden_layers": 14, "first_k_dense_replace": 3})
}
EIGHT = {"data_parallel": 4, "model_parallel": 2, "expert_parallel": 4}
TWO = {"model_parallel": 2}
CONFIGS = {
    **dict.fromkeys(("finetune_mixtral-8x7b.yaml", "finetune_model.yaml"), EIGHT),
    **dict.fromkeys(("mp8.yaml", "tp8.yaml", "predict_mixtral-8x7b.yaml"), TWO),
    "pretrain.yaml": {"data_parallel": 2, "model_parallel": 2, "expert_parallel": 2},
    "pynative.yaml": {"data_parallel": 2, "model_parallel": 2},
}
WRITE = ("to-ms", "to-torch", "convert", "merge", "split", "reshard", "strategy", "edit", "average")
ITERATIONS = ("my-qwen3", "average merged")  # of the README, of a job that writes iterations
ADAPTERS = ("peft_dir", "base_checkpoint", "--from-main-params")  # tests/test_lora.py has these


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("how to") / "models"
    for name, (table, changes) in MODELS.items():
        write_model(root / name, TABLES[table], {**TABLES[table].example, **changes})
    for name, config in CONFIGS.items():
        (root / name).write_text(json.dumps(config))
    (root / "kept.json").write_text("[0, 2, 5, 7]")
    return root


def save_ranks(root, model, config):
    """Ranks as a job leaves them, and its strategy."""
    ckptforge.to_ms(model, root / "checkpoint", parallel_config=config)
    (root / "checkpoint" / "ckptforge.manifest.json").unlink()
    ckptforge.strategy(root / "strategy", like=model, parallel_config=config)


def save_iterations(root):
    """Iterations as MindFormers leaves them."""
    config = {"parallel_config": "pynative.yaml"}
    ckptforge.to_ms("Qwen3-8B", root, format="mindformers", iteration=12, **config)


def commands_of(page, but=()):
    text = (ROOT / page).read_text()
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.M):
        for line in re.sub(r"\\\n *", " ", block).splitlines():
            if line.startswith("ckptforge demo"):  # tests/test_tutorials.py has the tour
                return
            if line.startswith("ckptforge ") and not any(word in line for word in (*but, "…")):
                yield line


def run_all(commands, root):
    count = 0
    for line in commands:
        words = words_of(line)[1:]
        code, printed = in_this_process(words + ["--overwrite"] * (words[0] in WRITE), root)
        assert code == 0, (line, printed)
        count += 1
    assert count


@pytest.mark.parametrize("page", ["README.md", "docs/strategies.md", "docs/pages.md"])
def test_the_commands_for_ranks_run(models, tmp_path, monkeypatch, page):
    root = shutil.copytree(models, tmp_path / "desk")
    monkeypatch.chdir(root)
    save_ranks(root / "output", MIXTRAL, "finetune_mixtral-8x7b.yaml")
    ckptforge.strategy("mp4", parallel_config="mp8.yaml", like=MIXTRAL)
    for name in ("target_strategy.ckpt", "mp4_strategy.ckpt"):
        shutil.copy(next((root / "mp4").iterdir()), name)
    shutil.copytree(MIXTRAL, "hf_dir")
    for out in ("mixtral.ckpt", "model.ckpt"):
        ckptforge.to_ms("hf_dir", out)
    run_all(commands_of(page, but=ITERATIONS), root)


def test_the_commands_for_iterations_run(models, tmp_path, monkeypatch):
    root = shutil.copytree(models, tmp_path / "desk")
    monkeypatch.chdir(root)
    save_iterations(root / "output" / "checkpoint")
    save_ranks(root / "old", "Qwen3-8B", "pynative.yaml")
    but = (*ADAPTERS, "--strategy-dir output/strategy")
    run_all(commands_of("docs/mindformers.md", but=but), root)
    run_all((one for one in commands_of("README.md") if "my-qwen3" in one), root)


def test_the_commands_for_several_machines_run(models, tmp_path, monkeypatch):
    """Those for a cluster, buckets and processes of Dask have tests of their own."""
    shutil.copytree(models / MIXTRAL, tmp_path / "hf_dir")
    monkeypatch.chdir(tmp_path)
    text = re.sub(
        r"^\$ ckptforge", "ckptforge", (ROOT / "docs/machines.md").read_text(), flags=re.M
    )
    found = re.findall(r"^ckptforge (?!.*(?:/data|://|--dask)).*$", text, re.M)
    assert len(found) == 4 and "--consume" in found[-1]
    for line in found:
        code, printed = in_this_process(words_of(line)[1:], tmp_path)
        assert code == 0, (line, printed)
    assert ckptforge.check("model_dir") and ckptforge.check("model.ckpt")


def test_the_commands_for_codes_and_for_what_a_run_left_run(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models / MIXTRAL, "hf_dir")
    ckptforge.to_ms("hf_dir", "IN", layout="dense")
    quantised = [*commands_of("docs/quantised.md"), *commands_of("docs/compare.md")]
    resume = (ROOT / "docs/topics/resume.md").read_text()
    left = re.findall(r"^    (ckptforge .*?)(?:   .*)?$", resume, re.M)
    assert len(quantised) == 5 and len(left) == 3
    for line in (*quantised[:3], *left):
        words = words_of(line)[1:]
        more = ["--overwrite"] * (words[0] == "convert")
        code, printed = in_this_process(words + more, tmp_path)
        assert code == (1 if "--dequantise" in line else 0), (line, printed)


def test_the_code_of_the_page_on_python_runs(models, tmp_path, monkeypatch, capsys):
    shutil.copytree(models / MIXTRAL, tmp_path / "Mixtral")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "python.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.M)
    for code in blocks:
        exec(code, {})
    printed = capsys.readouterr().out
    assert len(blocks) > 1 and "the same\nmixtral gmm (" in printed and "cast" in printed


def table_commands(page):
    """The commands in the tables of a page."""
    text = (ROOT / page).read_text()
    rows = re.findall(r"^\|.*\|$", text, re.M)
    return [one for row in rows for one in re.findall(r"`(ckptforge \S+ [^`…]+)`", row)]


def test_the_commands_in_place_of_mindformers_scripts_run(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models / MIXTRAL, "HF")
    shutil.copy(models / "mp8.yaml", "mp8.yaml")
    ckptforge.to_ms("HF", "ranks", parallel_config="mp8.yaml", prefix="p_")
    ckptforge.to_ms("HF", "whole")
    for name in ("S", "D", "strategy"):
        ckptforge.strategy(name, parallel_config="mp8.yaml", like="HF")
    found = table_commands("docs/migrating.md")
    assert len(found) > 9
    run_all(found, tmp_path)


def test_the_commands_in_place_of_mindspeeds_converter_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = TABLES["qwen3_moe"]
    write_model(tmp_path / "HF", table, {**table.example, "num_hidden_layers": 4})
    job = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}
    job |= {"expert_model_parallel_size": 4, "expert_tensor_parallel_size": 1}
    for name in ("job.yaml", "other.yaml"):
        (tmp_path / name).write_text(json.dumps(job))
    (tmp_path / "pretrain.yaml").write_text(json.dumps(TWO))
    ckptforge.to_ms("HF", "output/checkpoint", layout="mcore", format="mindformers")
    found = table_commands("docs/megatron.md")
    assert len(found) == 8
    run_all(found[:1], tmp_path)
    (tmp_path / "OUT").rename("CKPT")
    run_all([f"{line} --overwrite" for line in found[1:5]], tmp_path)


def test_the_commands_in_place_of_mindspeed_mms_converter_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    there, back, run = table_commands("docs/megatron.md")[5:]
    shutil.copytree(MM / "qwen2_5_vl", "HF")
    job = re.findall(
        r"^```yaml\n(.*?)^```", (ROOT / "docs" / "megatron.md").read_text(), re.M | re.S
    )
    text = job[1].replace("[[12, 16]]", "[[1, 3]]").replace("[[32, 0]]", "[[3, 0]]")
    (tmp_path / "job.yaml").write_text(text)
    run_all([there], tmp_path)
    (tmp_path / "OUT").rename("CKPT")
    run_all([back], tmp_path)
    for name in ("HF", "OUT"):
        shutil.rmtree(name)
    shutil.copytree(MM / "qwen3_vl_moe", "HF")
    shutil.copytree(MM / "qwen3_vl_moe_dcp", "SAVE")
    run_all([run], tmp_path)


def test_the_commands_for_adapters_run(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "Llama", TABLES["llama"], TABLES["llama"].example)
    weights = ckptforge.inspect("Llama").entries
    adapted = ("q_proj.weight", "v_proj.weight")
    shapes = {name: one.shape for name, one in weights.items() if name.endswith(adapted)}
    write_adapter(tmp_path / "my-lora", shapes)
    text = (ROOT / "docs" / "lora.md").read_text()
    found = re.findall(r"^\$ (ckptforge .*)$", text, re.M)
    assert len(found) == 4
    run_all(found, tmp_path)


def test_the_commands_for_a_table_of_ones_own_run(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models / MIXTRAL, "DIR")
    shutil.copy(ROOT / "mappings" / "mixtral.toml", "my.toml")
    text = (ROOT / "docs" / "mappings.md").read_text()
    found = re.findall(r"`(ckptforge (?:inspect|mapping|convert) [^`]+)`", text)
    assert len(found) > 4
    run_all([re.sub(r"\bX\b", "gmm", one) for one in found if "toy" not in one], tmp_path)


def test_the_commands_for_buckets_run(models, tmp_path, monkeypatch):
    for name in ("boto3", "fsspec", "moto.server", "obstore"):
        pytest.importorskip(name, reason="of the extra [test]")
    from tests.web import buckets

    monkeypatch.chdir(tmp_path)
    config = {"parallel_config": models / "mp8.yaml"}
    ckptforge.to_ms(models / MIXTRAL, "ckpt", **config)
    ckptforge.strategy("strategy", like=models / MIXTRAL, **config)
    for key, value in buckets.KEYS.items():
        monkeypatch.setenv(key.upper(), value)
    text = (ROOT / "docs" / "machines.md").read_text()
    found = re.findall(r"^\$ (ckptforge .*(?:s3|obs)://.*)$", text, re.M)
    assert len(found) == 2
    with buckets.service() as (url, client, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        for bucket, name, root in (
            ("models", "Mixtral-8x7B", models / MIXTRAL),
            ("job", "ckpt", tmp_path / "ckpt"),
            ("job", "strategy", tmp_path / "strategy"),
        ):
            client.create_bucket(Bucket=bucket)
            for path in filter(Path.is_file, root.rglob("*")):
                client.upload_file(str(path), bucket, f"{name}/{path.relative_to(root)}")
        run_all([re.sub(r"https://\S+", url, line) for line in found], tmp_path)
