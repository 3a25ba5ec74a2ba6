"""A Hugging Face model as the ranks of a MindFormers job:

python to_mindformers.py HF_DIR OUT_DIR JOB.yaml [layout]
"""

import sys

import ckptforge


def main(hf_dir, out, job, layout=None):
    result = ckptforge.to_ms(hf_dir, out, parallel_config=job, layout=layout, resume=True)
    print(f"{result.tensors} tensors, {result.bytes:,} bytes")
    found = ckptforge.compare(hf_dir, out)
    if not found:
        sys.exit(f"{out} differs from {hf_dir}: {found}")


if __name__ == "__main__":
    main(*sys.argv[1:])
