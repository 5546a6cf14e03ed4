"""Pretraining that prints the peak of its memory in KiB."""

import resource
import sys

from bert_pretrain import pretrain

if __name__ == "__main__":
    pretrain.main(sys.argv[1:])
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
