"""``python -m bert_pretrain.report``."""

from bert_pretrain.report.run import main

if __name__ == "__main__":
    main()
