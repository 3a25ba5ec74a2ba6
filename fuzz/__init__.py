"""Fuzzing of every reader: `python -m fuzz all --runs 1000000`. See docs/safety.md."""

# Target → its share in a run of all. Here, as coverage is seen only in what is imported after
# atheris.
SHARES = {
    "safetensors": 5,
    "ckpt": 5,
    "strategy": 4,
    "strategy-json": 4,
    "torch": 4,
    "pickle": 4,
    "dcp": 2,
    "torch-dist": 1,
    "fsdp": 1,
    "hub-shards": 1,
    "megatron": 1,
    "metadata": 4,
    "common": 1,
    "index": 3,
    "unified-map": 3,
    "config": 1,
    "quantisation": 2,
    "packings": 2,
    "manifest": 2,
    "journal": 1,
    "table": 2,
    "parallel-config": 2,
    "adapter": 1,
    "directory": 1,
}
