"""``bert-pretrain finetune``."""

from bert_pretrain.finetune.options import FinetuneConfig
from bert_pretrain.options.entry_point import entry_point


@entry_point("finetune", FinetuneConfig)
def main(config: FinetuneConfig) -> None:
    """Fine-tune a pretrained model on a GLUE task or SQuAD with several seeds, and write the scores.

        bert-pretrain finetune task=mrpc model_dir=my-bert

    Writes the scores of each seed, their median and spread to out_dir/results.json, and predictions in the format
    that the benchmark accepts. The data comes from the hub, or from files with data.dir. On several GPUs:
    torchrun --nproc-per-node=N -m bert_pretrain.finetune task=mrpc model_dir=my-bert
    """
    from bert_pretrain.finetune.run import run  # imports torch; by now the options are known to be valid

    run(config)


if __name__ == "__main__":
    main()
