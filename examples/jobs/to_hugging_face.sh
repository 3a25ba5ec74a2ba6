#!/usr/bin/env bash
# The ranks of a job as a Hugging Face directory:
#   bash to_hugging_face.sh MS_DIR STRATEGY_DIR OUT_DIR HF_DIR [dtype]
# HF_DIR is the model that the training began with, for config.json and the tokenizer.
set -euo pipefail
ms_dir=$1 strategy=$2 out=$3 hf_dir=$4 dtype=${5:-keep}

ckptforge to-torch "$ms_dir" "$out" --strategy-dir "$strategy" --config "$hf_dir" --dtype "$dtype" --resume
if [ "$dtype" = keep ]; then
    ckptforge compare "$ms_dir" "$out" --strategy-dir-a "$strategy"
else
    ckptforge compare "$ms_dir" "$out" --strategy-dir-a "$strategy" --after-cast "$dtype"
fi
