"""Entry: ``python -m bert_pretrain.bench step|optimizer [option=value ...]``. Where the time goes, as ratios."""

import sys

from bert_pretrain.bench import optimizer, step


def main() -> None:
    """Dispatch on the first word of the command line."""
    kinds = {"step": step.main, "optimizer": optimizer.main}
    if len(sys.argv) < 2 or sys.argv[1] not in kinds:
        found = sys.argv[1] if len(sys.argv) > 1 else "nothing"
        sys.exit(
            f"error: bench was asked for {found!r}; allowed: {', '.join(kinds)}; python -m bert_pretrain.bench step"
        )
    kinds[sys.argv.pop(1)]()


if __name__ == "__main__":
    main()
