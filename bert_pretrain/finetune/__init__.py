"""Fine-tuning an exported model on GLUE or SQuAD, and what it scores."""
