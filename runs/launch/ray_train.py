"""One run of fledge on the processes that Ray Train starts:

    python runs/launch/ray_train.py 4 runs/shakespeare-char.yaml train.rows=16

Ray starts the processes and says to each who it is, as torchrun does; what they do is `fledge pretrain`. Needs
`pip install "ray[train]"`, and a run folder on a file system that all machines see.
"""

from __future__ import annotations

import os
import sys
from typing import Any


def train_here(given: dict[str, Any]) -> None:
    """In each of Ray's processes: the command line of `fledge pretrain`."""
    import torch.distributed as dist

    from fledge.cli.main import main

    if dist.is_initialized():  # fledge makes the process group itself, beside where Ray's was
        dist.destroy_process_group()
        os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
    code = main(["pretrain", *given["words"]])
    if code:
        raise SystemExit(code)


def run(n_processes: int, words: list[str]) -> None:
    import torch
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    scaling = ScalingConfig(num_workers=n_processes, use_gpu=torch.cuda.is_available())
    TorchTrainer(train_here, train_loop_config={"words": words}, scaling_config=scaling).fit()


if __name__ == "__main__":
    run(int(sys.argv[1]), sys.argv[2:])
