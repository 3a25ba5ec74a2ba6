"""The ranks of one job for another, and some of their experts as a Hugging Face directory:

python reshard_and_prune.py MS_DIR STRATEGY_DIR OUT_DIR JOB.yaml HF_DIR 0,2,5,7
"""

import sys
from pathlib import Path

import ckptforge


def main(ms_dir, strategy, out, job, hf_dir, experts):
    ranks, pruned = Path(out, "ranks"), Path(out, "pruned")
    ckptforge.reshard(
        ms_dir, ranks, src_strategy_dir=strategy, dst_parallel_config=job, resume=True
    )
    if not (found := ckptforge.compare(ms_dir, ranks, strategy_dir_a=strategy)):
        sys.exit(f"{ranks} differs from {ms_dir}: {found}")
    with ckptforge.open(ms_dir, strategy_dir=strategy, config=hf_dir) as model:
        kept = model.take(e=[int(one) for one in experts.split(",")]).as_layout("hub")
        kept.save(pruned, resume=True)
    if not ckptforge.check(pruned):
        sys.exit(f"{pruned} isn't what was written")


if __name__ == "__main__":
    main(*sys.argv[1:])
