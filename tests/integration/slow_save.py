"""Pretraining whose disk takes SECONDS to flush the first checkpoint: ``SECONDS options``."""

import os
import sys
import threading
import time

from bert_pretrain import pretrain


def main() -> None:
    fsync, waits = os.fsync, [float(sys.argv[1])]

    def slow(descriptor: int) -> None:
        if waits and threading.current_thread().name == "checkpoint":
            time.sleep(waits.pop())
        fsync(descriptor)

    os.fsync = slow
    pretrain.main(sys.argv[2:])


if __name__ == "__main__":
    main()
