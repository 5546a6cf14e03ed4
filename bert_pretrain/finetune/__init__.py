"""Fine-tuning and scoring an exported model on GLUE or SQuAD."""
