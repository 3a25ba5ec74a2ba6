#!/usr/bin/env bash
# A Hugging Face model as the ranks of a MindFormers job:
#   bash to_mindformers.sh HF_DIR OUT_DIR JOB.yaml [layout]
set -euo pipefail
hf_dir=$1 out=$2 job=$3 layout=${4:-}

ckptforge to-ms "$hf_dir" "$out" --parallel-config "$job" ${layout:+--layout "$layout"} --dry-run  # the whole plan, checked
ckptforge to-ms "$hf_dir" "$out" --parallel-config "$job" ${layout:+--layout "$layout"} --resume   # goes on if it was interrupted
ckptforge compare "$hf_dir" "$out"
