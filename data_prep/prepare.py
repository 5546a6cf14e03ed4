"""``bert-pretrain prepare``: from corpora to shards."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bert_pretrain.options.entry_point import entry_point
from data_prep.options import PrepareConfig


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """While modules are loaded. What is there then lives as long as the process: no later collection looks at it."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@entry_point("prepare", PrepareConfig)
def main(config: PrepareConfig) -> None:
    """Make training shards from text: clean it, remove duplicates, train a tokenizer, write masked samples.

        bert-pretrain prepare corpus=text corpus.path=texts/ out_dir=data/mine

    The result depends on the corpora and the options only, not on the number of workers. A preparation that was
    stopped continues with the same command; a finished one is reused.
    """
    with _no_garbage_collection():
        from data_prep.corpus_check import check_corpora
        from data_prep.preparation import prepare  # slow to load: after the options are checked

    notes = check_corpora(config.corpora, Path(config.out_dir))
    for note in notes:
        print(note)
    prepare(config, notes)


if __name__ == "__main__":
    main()
