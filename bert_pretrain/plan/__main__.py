"""``python -m bert_pretrain.plan``."""

from bert_pretrain.plan.run import main

if __name__ == "__main__":
    main()
