"""Entry: ``python -m bert_pretrain.bench step|optimizer [option=value ...]``. Where the time goes, as ratios."""

import sys

from bert_pretrain.bench import optimizer, step
from bert_pretrain.config_loading import print_error
from bert_pretrain.errors import ConfigError


def main() -> None:
    """Dispatch on the first word of the command line."""
    kinds = {"step": step.main, "optimizer": optimizer.main}
    if len(sys.argv) < 2 or sys.argv[1] not in kinds:
        found = sys.argv[1] if len(sys.argv) > 1 else "nothing"
        example = "python -m bert_pretrain.bench step recipe=demo"
        print_error(ConfigError(f"bench was asked for {found!r}; allowed: {', '.join(kinds)}; {example}"))
        sys.exit(2)
    kinds[sys.argv.pop(1)]()


if __name__ == "__main__":
    main()
