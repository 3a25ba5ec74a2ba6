"""The ranks of a job as a Hugging Face directory:

python to_hugging_face.py MS_DIR STRATEGY_DIR OUT_DIR HF_DIR [dtype]

HF_DIR is the model that the training began with, for config.json and the tokenizer.
"""

import sys

import ckptforge


def main(ms_dir, strategy, out, hf_dir, dtype="keep"):
    result = ckptforge.to_torch(
        ms_dir, out, strategy_dir=strategy, config=hf_dir, dtype=dtype, resume=True
    )
    print(f"{result.tensors} tensors, {result.bytes:,} bytes")
    after = None if dtype == "keep" else dtype
    found = ckptforge.compare(ms_dir, out, strategy_dir_a=strategy, after_cast=after)
    if not found:
        sys.exit(f"{out} differs from {ms_dir}: {found}")


if __name__ == "__main__":
    main(*sys.argv[1:])
