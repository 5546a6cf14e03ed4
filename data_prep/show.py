"""``bert-pretrain show``: documents of a corpus, before anything is prepared."""

from bert_pretrain.errors import ConfigError
from bert_pretrain.options.entry_point import entry_point
from data_prep.options import ShowConfig


@entry_point("show", ShowConfig)
def main(config: ShowConfig) -> None:
    """Print random documents of a corpus, cleaned and split into sentences as prepare would do it.

        bert-pretrain show corpus=wikipedia corpus.path=dump.xml.bz2

    Also prints what the cleaning rules dropped. Of a large corpus only a few pieces are read.
    """
    from data_prep.corpus import no_text  # slow to load
    from data_prep.corpus_check import check_corpora
    from data_prep.random_documents import random_documents
    from data_prep.sources.cleaning import Dropped

    for note in check_corpora({"corpus": config.corpus}):
        print(note)
    dropped = Dropped()
    shown = 0
    for name, sentences in random_documents(config, dropped):
        print(f"=== {name} ({len(sentences):,} sentences)")
        print("\n".join(sentences[: config.sentences]), end="\n\n")
        shown += 1
        if shown == config.documents:
            break
    if shown == 0:
        raise ConfigError(no_text(config.corpus, dropped.counts))
    for rule, count in sorted(dropped.counts.items()):
        print(f"dropped by rule {rule.replace('_', ' ')}: {count:,}; for example {dropped.samples[rule][0]!r}")


if __name__ == "__main__":
    main()
