"""Entry: ``[torchrun ... -m] python -m bert_pretrain.finetune task=NAME model_dir=FOLDER_OR_HUB_NAME``."""

from bert_pretrain.finetune.run import main

if __name__ == "__main__":
    main()
