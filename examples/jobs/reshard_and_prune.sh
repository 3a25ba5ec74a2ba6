#!/usr/bin/env bash
# The ranks of one job for another, and some of their experts as a Hugging Face directory:
#   bash reshard_and_prune.sh MS_DIR STRATEGY_DIR OUT_DIR JOB.yaml HF_DIR 0,2,5,7
set -euo pipefail
ms_dir=$1 strategy=$2 out=$3 job=$4 hf_dir=$5 experts=$6

ckptforge reshard "$ms_dir" "$out/ranks" --src-strategy-dir "$strategy" --dst-parallel-config "$job" --resume
ckptforge compare "$ms_dir" "$out/ranks" --strategy-dir-a "$strategy"
ckptforge edit "$ms_dir" "$out/pruned" --src-strategy-dir "$strategy" --config "$hf_dir" --take "e=$experts" --to hub --resume
ckptforge compare "$out/pruned"
