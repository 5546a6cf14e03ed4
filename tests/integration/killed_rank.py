"""Pretraining in which one rank kills itself at a random moment from a step on: ``RANK:STEP:SEED options``."""

import os
import random
import signal
import sys
import threading
from typing import Any

from bert_pretrain import pretrain
from bert_pretrain.training.trainer import Trainer


def main() -> None:
    rank, step, seed = (int(word) for word in sys.argv[1].split(":"))
    train_step, delay = Trainer.train_step, random.Random(seed).random() * 0.02

    def killed(trainer: Trainer, *args: Any) -> Any:
        if trainer.progress.step + 1 >= step:
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return train_step(trainer, *args)

    if int(os.environ["RANK"]) == rank:
        Trainer.train_step = killed  # type: ignore[method-assign]
    pretrain.main(sys.argv[2:])


if __name__ == "__main__":
    main()
