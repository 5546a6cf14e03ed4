"""``bert-pretrain finetune``: scores of a pretrained model on GLUE and SQuAD."""

from bert_pretrain.config_loading import entry_point
from bert_pretrain.finetune.options import FinetuneConfig


@entry_point("finetune", FinetuneConfig)
def main(config: FinetuneConfig) -> None:
    """Fine-tune a pretrained model on a GLUE task or SQuAD, with several seeds, and write the scores.

        bert-pretrain finetune task=mrpc model_dir=my-bert

    Under torchrun (-m bert_pretrain.finetune) a step is divided over the ranks.
    """
    from bert_pretrain.finetune.run import run  # loads torch, once the command is right

    run(config)


if __name__ == "__main__":
    main()
