"""``bert-pretrain recipes``: list the recipes, copy one to change it, check one of your own."""

import re
import tempfile
from pathlib import Path

from bert_pretrain.config import PretrainConfig
from bert_pretrain.errors import ConfigError, did_you_mean
from bert_pretrain.options.command_line import split_flags
from bert_pretrain.options.config_files import CONFIG_DIR, choices, user_config_dir
from bert_pretrain.options.config_loading import load_config
from bert_pretrain.options.entry_point import exit_on_config_error

_HELP = """List the recipes, copy one to change it, check one of your own.

    bert-pretrain recipes ls                   all recipes, with their first line
    bert-pretrain recipes copy demo mine       write recipe/mine.yaml into your folder of configurations
    bert-pretrain recipes validate FILE        compose the recipe in FILE and check every option

Your folder is --config-dir DIR, or BERT_PRETRAIN_CONFIGS=DIR, or for copy ./my_configs if neither is given."""


@exit_on_config_error
def main(words: list[str]) -> None:
    """Dispatch on the first word."""
    flags, others = split_flags(words)
    verb, *rest = others or [""]
    if flags.help:
        return print(_HELP)
    if verb == "ls" and not rest:
        return print("\n".join(f"  {name:<34}{summary}" for name, summary in listed(user_config_dir(flags.config_dir))))
    if verb == "copy" and 1 <= len(rest) <= 2:
        new_folder = Path(flags.config_dir or "my_configs").expanduser()
        folder = new_folder if flags.config_dir and not new_folder.exists() else user_config_dir(flags.config_dir)
        folder = folder or new_folder
        return print(copied(rest[0], rest[1] if len(rest) == 2 else f"my_{rest[0]}", folder))
    if verb == "validate" and len(rest) == 1:
        return print(validated(Path(rest[0]), user_config_dir(flags.config_dir)))
    raise ConfigError(f"recipes was asked for {' '.join(words)!r}; {did_you_mean(verb, ['ls', 'copy', 'validate'])}")


def listed(user_dir: Path | None) -> list[tuple[str, str]]:
    """Every recipe with the first line of its comment."""
    return [(name, _summary(_path(name, user_dir))) for name in choices("recipe", user_dir)]


def _path(name: str, user_dir: Path | None) -> Path:
    own = CONFIG_DIR / "recipe" / f"{name}.yaml"
    return own if own.exists() or user_dir is None else user_dir / "recipe" / f"{name}.yaml"


def _summary(path: Path) -> str:
    comments = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return next((line for line in comments if line and not line.startswith("@package")), "")


def copied(name: str, new: str, folder: Path) -> str:
    """Write recipe ``name`` as ``new`` into ``folder``, with a ``run_dir`` of its own; what to do with it."""
    known = choices("recipe", None)
    if name not in known:
        raise ConfigError(f"there is no recipe {name!r}; {did_you_mean(name, known)}")
    if not re.fullmatch(r"[\w-]+", new):
        raise ConfigError(f"{new!r} is not a name for a recipe; use letters, digits, _ and -")
    if new in known:
        raise ConfigError(f"{new!r} is one of the program's own recipes; give the copy another name")
    target = folder / "recipe" / f"{new}.yaml"
    if target.exists():
        raise ConfigError(f"{target} exists; give the copy another name")
    text = _path(name, None).read_text(encoding="utf-8")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(re.sub(r"^run_dir: .*$", f"run_dir: runs/{new}", text, flags=re.M), encoding="utf-8")
    return f"wrote {target}; run it with: bert-pretrain pretrain recipe={new} --config-dir {folder}"


def validated(path: Path, user_dir: Path | None) -> str:
    """Compose the recipe in ``path`` and say what it is. Raises ``ConfigError`` for any fault of it."""
    if not path.is_file():
        raise ConfigError(f"{path} is not a file; give the YAML file of a recipe")
    if path.stem in choices("recipe", None):
        raise ConfigError(f"{path} has the name of one of the program's own recipes; rename it")
    with tempfile.TemporaryDirectory() as folder:
        groups = [] if user_dir is None else [path for path in user_dir.iterdir() if path.name != "recipe"]
        for group in groups:
            (Path(folder) / group.name).symlink_to(group)
        recipes = Path(folder) / "recipe"
        recipes.mkdir()
        for other in path.parent.glob("*.yaml"):  # a recipe may build on one beside it
            (recipes / other.name).write_text(other.read_text(encoding="utf-8"), encoding="utf-8")
        config = load_config("pretrain", [f"recipe={path.stem}"], PretrainConfig, Path(folder))
    return (
        f"{path} is valid: {config.schedule.total_steps:,} steps of {config.batch.global_batch_size:,} samples with "
        f"{config.optimizer.algorithm}, data in {config.data.dir}, run in {config.run_dir}"
    )
