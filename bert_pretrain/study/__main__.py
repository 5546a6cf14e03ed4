"""Entry: ``python -m bert_pretrain.study NAME scale=toy|base [option=value ...]``."""

from bert_pretrain.study.run import main

if __name__ == "__main__":
    main()
