"""The YAML files behind the options: the program's own and a folder of the user's.

The program's own lie in ``configs/`` of the repository, and in ``bert_pretrain/configs`` of an installed package. A
user's folder has the same form (``recipe/mine.yaml``, ``model/small.yaml``) and adds to them.
"""

import os
from pathlib import Path

import yaml

from bert_pretrain.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent.parent
CONFIG_DIR = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"
USER_CONFIGS = "BERT_PRETRAIN_CONFIGS"
"""Environment variable that names the user's folder; ``--config-dir`` goes before it."""


def user_config_dir(option: str | None) -> Path | None:
    """The user's folder, from ``--config-dir`` or the environment, or None.

    Raises ``ConfigError`` where it cannot be read, or where a file of it has the name of one of ours.
    """
    given, origin = (option, "--config-dir") if option is not None else (os.environ.get(USER_CONFIGS), USER_CONFIGS)
    if given is None:
        return None
    folder = Path(given).expanduser()
    if not given or not folder.is_dir():
        raise ConfigError(f"{origin} is {given!r}, which is not a folder; give one with recipe/NAME.yaml in it")
    try:
        found = [path.relative_to(folder) for path in _yaml_files(folder)]
    except OSError as error:
        raise ConfigError(
            f"{origin} is {given!r}, in which {error.filename} cannot be read ({error.strerror}); check its permissions"
        ) from None
    for path in found:
        if (CONFIG_DIR / path).exists():
            raise ConfigError(
                f"{path.with_suffix('')} exists twice: {folder / path} has the name of one of ours; rename it"
            )
    return folder.resolve()


def _yaml_files(folder: Path) -> list[Path]:
    """All YAML files under ``folder``; ``rglob`` would pass over a folder that cannot be read."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            found += _yaml_files(path)
        elif path.suffix == ".yaml":  # the only ending that Hydra reads
            path.open().close()  # raises if it may not be read
            found.append(path)
    return found


def choices(group: str, user_dir: Path | None) -> list[str]:
    """The names that ``group=NAME`` may take."""
    folders = [folder / group for folder in (CONFIG_DIR, user_dir) if folder is not None]
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})


def groups_of(config_name: str) -> dict[str, str | None]:
    """The groups of the command with ``configs/<config_name>.yaml``, in order, and the choice that it makes of each.

    None: no choice is needed. ``???``: the user has to choose.
    """
    found: dict[str, str | None] = {}
    content = yaml.safe_load((CONFIG_DIR / f"{config_name}.yaml").read_text(encoding="utf-8"))
    for entry in content.get("defaults", []):
        if isinstance(entry, dict):
            found |= {name: choice for name, choice in entry.items() if not name.startswith("override")}
        elif (CONFIG_DIR / f"{entry}.yaml").exists():
            found |= groups_of(entry)
    return found
