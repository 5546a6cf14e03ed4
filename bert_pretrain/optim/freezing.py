"""``optimizer.freeze``: parameters that are not trained.

A frozen parameter has ``requires_grad`` False: autograd computes no gradient for it and stops below the lowest trained
layer, and no parameter group has it, so norms, clipping and trust ratios are taken over what is trained.
"""

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import groupby

from torch import nn

from bert_pretrain.errors import ConfigError

_TOP = "bert."  # the attribute of PretrainingModel that holds transformers' model


def freeze_parameters(model: nn.Module, patterns: Sequence[str]) -> None:
    """Set ``requires_grad`` of every parameter of ``model`` by its name in ``transformers``.

    ``patterns`` are shell patterns, applied in order: one freezes what it matches, one that starts with ``!`` trains
    it. A tied parameter goes by its first name. Raises ``ConfigError`` for a pattern that matches nothing, and if all
    parameters are frozen.
    """
    if not patterns:
        return
    params = dict(_named(model))
    frozen = dict.fromkeys(params, False)
    for pattern in patterns:
        matched = [name for name in params if fnmatchcase(name, pattern.removeprefix("!"))]
        if not matched:
            raise ConfigError(_no_match(pattern, model))
        frozen |= dict.fromkeys(matched, not pattern.startswith("!"))
    if all(frozen.values()):
        raise ConfigError(
            f"optimizer.freeze is {list(patterns)!r}, which freezes all {len(params)} parameters; leave at least one "
            "out, as in [*, !*.embeddings.*]"
        )
    for name, param in params.items():
        param.requires_grad_(not frozen[name])


def _named(model: nn.Module, tied: bool = False) -> list[tuple[str, nn.Parameter]]:
    """Parameters by their names in ``transformers``; a tied one once, or under ``tied`` with each of its names."""
    found = list(model.named_parameters(remove_duplicate=not tied))
    wrapped = all(name.startswith(_TOP) for name, _ in found)
    return [(name.removeprefix(_TOP) if wrapped else name, param) for name, param in found]


def frozen_names(model: nn.Module) -> frozenset[str]:
    """The parameters that are not trained, by their names in ``transformers``."""
    return frozenset(name for name, param in _named(model) if not param.requires_grad)


def tied_names(model: nn.Module) -> dict[str, str]:
    """The other names of tied parameters, each with the first name of its parameter."""
    first: dict[nn.Parameter, str] = {}
    return {name: first[p] for name, p in _named(model, tied=True) if first.setdefault(p, name) != name}


def _no_match(pattern: str, model: nn.Module) -> str:
    wanted = pattern.removeprefix("!")
    for name, first in tied_names(model).items():
        if fnmatchcase(name, wanted):
            return f"optimizer.freeze has {pattern!r}, but {name} is tied to {first}; give that name"
    names = [name for name, _ in _named(model)]
    groups = {name.rsplit(".", depth)[0] + ".*" for name in names for depth in range(1, name.count(".") + 1)}
    near = difflib.get_close_matches(wanted, [*names, *sorted(groups)], 3, 0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return (
        f"optimizer.freeze has {pattern!r}, which matches no parameter; {hint}"
        "allowed: shell patterns over transformers' names, such as bert.embeddings.*"
    )


def describe_frozen(model: nn.Module) -> str:
    """Lines on what is frozen: how much, which parts, and the tied weights; empty if nothing is."""
    params = _named(model)
    frozen = [(name, param) for name, param in params if not param.requires_grad]
    if not frozen:
        return ""
    whole, part = (Counter(_part(name) for name, _ in some) for some in (params, frozen))
    names = {
        name: f"{name} ({count})" if count == whole[name] else f"{name} ({count} of {whole[name]})"
        for name, count in part.items()
    }
    size = sum(param.numel() for _, param in frozen)
    lines = [f"  frozen        {len(frozen):,} of {len(params):,} layers, {size:,} parameters: {_ranges(names)}"]
    states = {name: "trained" if param.requires_grad else "frozen" for name, param in params}
    lines += [f"  {name} is tied to {first}: {states[first]}" for name, first in tied_names(model).items()]
    return "\n".join(lines)


def _part(name: str) -> str:
    """The part of BERT that a parameter belongs to: an encoder layer, or the first two words of its name."""
    layer = re.match(r"bert\.encoder\.layer\.\d+", name)
    return layer[0] if layer else ".".join(name.split(".")[:2])


def _ranges(names: dict[str, str]) -> str:
    """The parts in one line; consecutive encoder layers of which the same is frozen as ``layer.0-3 (16 each)``."""

    def kind(item: tuple[int, str]) -> tuple[str, str, int]:
        place, name = item
        head, _, number = name.rpartition(".")
        return (head, names[name].removeprefix(name), int(number) - place) if number.isdigit() else (name, "", 0)

    shown = []
    for (_, counts, _), group in groupby(enumerate(names), kind):
        run = [name for _, name in group]
        last = run[-1].rpartition(".")[2]
        shown.append(names[run[0]] if len(run) == 1 else f"{run[0]}-{last}{counts.removesuffix(')')} each)")
    return ", ".join(shown)
