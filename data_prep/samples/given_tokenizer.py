"""``prepare vocab=``: the tokenizer of an existing model, with the ids that ``AutoTokenizer`` gives.

``transformers`` decides what a tokenizer's folder means: for a ``BertTokenizer`` the flags of ``tokenizer_config.json``
count and the normalizer of ``tokenizer.json`` does not; beside a BERT's ``config.json`` a folder that names no class is
a ``BertTokenizer``. So the tokenizer is loaded with transformers once, before anything is read, and its files are
copied unchanged unless they would mean something else beside the shards or in an export.
"""

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bert_pretrain.data.tokenizer_files import (
    FILES,
    ROLES,
    TokenTable,
    has_tokenizer,
    is_lowercase,
    read_tokenizer,
    require_roles,
    token_table,
)
from bert_pretrain.errors import ConfigError
from bert_pretrain.files.hub_download import HUB_NAME, hub_folder
from data_prep.samples.tokenizer import LONGEST_SEQUENCE, Vocabulary, load_vocabulary, of_tokenizer

_ON_HUB = (*FILES, "config.json", "modules.json", *(f"*/{file}" for file in FILES))
_BERT = b'{"model_type": "bert"}'  # the config.json of an export, as far as it matters to the tokenizer


def given_vocabulary(name: str, lowercase: bool, strip_accents: bool | None = None) -> Vocabulary:
    """The tokenizer that ``vocab`` names: a ``vocab.txt``, a ``tokenizer.json``, a folder, or a name on the hub.

    ``lowercase`` and ``strip_accents`` (None: as ``lowercase``) are for a ``vocab.txt`` without
    ``tokenizer_config.json``. Raises ``ConfigError`` if there is none, or it cannot be used.
    """
    path = Path(name).expanduser()
    if path.is_file() and path.suffix != ".json":
        return _of_case(load_vocabulary(path, lowercase, strip_accents), name)
    if path.is_file():
        sources = {"tokenizer.json": _read(path)}
    else:
        folder = _find_folder(name, path)
        sources = {file: _read(folder / file) for file in (*FILES, "config.json") if (folder / file).is_file()}
        if not sources.keys() & {"tokenizer.json", "tokenizer_config.json"}:
            case = {"do_lower_case": lowercase, "strip_accents": strip_accents}
            config = {"tokenizer_class": "BertTokenizer", **case}
            sources["tokenizer_config.json"] = _json_bytes({**config, "model_max_length": LONGEST_SEQUENCE})
            return _of_case(resolve(sources, name), name)
    return resolve(sources, name)


def _of_case(vocabulary: Vocabulary, name: str) -> Vocabulary:
    """``vocabulary``; ``ConfigError`` if its words have capitals that ``lowercase`` would never let them match."""
    words = [token for token in vocabulary.tokens if len(token.removeprefix("##")) > 1]  # letters alone say nothing
    if vocabulary.lowercase and not is_lowercase(words):
        raise ConfigError(
            f"vocab {name} has words with capitals, and lowercase is true; give lowercase=false, or the model's folder "
            "with its tokenizer_config.json"
        )
    return vocabulary


def _find_folder(name: str, path: Path) -> Path:
    """The folder with the tokenizer's files: ``path``, or its part that holds the transformer, or one from the hub."""
    if not path.exists():
        if not HUB_NAME.fullmatch(name) or path.suffix in (".txt", ".json"):
            raise ConfigError(
                f"vocab is {name!r}, which does not exist; it takes a vocab.txt, a folder with a tokenizer, or a name "
                "on the hub"
            )
        path = hub_folder(name, "vocab", [_ON_HUB], lambda found: any(map(has_tokenizer, (found, *_parts(found)))))
    for folder in (path, *_parts(path)):
        if has_tokenizer(folder):
            return folder
    raise ConfigError(
        f"vocab is {name!r}; it takes a vocab.txt, or a folder with tokenizer.json or vocab.txt, and this has neither"
    )


def _parts(folder: Path) -> Iterator[Path]:
    """Folders within ``folder`` that may hold the transformer: of sentence-transformers, of a checkpoint."""
    modules = folder / "modules.json"
    if modules.is_file():
        try:
            paths = [Path(module["path"]) for module in json.loads(_read(modules)) if module["path"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{modules} cannot be read ({error!r})") from None
        yield from (folder / path for path in paths if not path.is_absolute() and ".." not in path.parts)
    yield folder / "model"


def resolve(sources: dict[str, bytes], name: str) -> Vocabulary:
    """The tokenizer that transformers makes of ``sources``, with files that mean the same everywhere."""
    with tempfile.TemporaryDirectory() as scratch:
        stated = _stated(sources, Path(scratch) / "source", name)
        roles = {f"{role}_token": stated.tokens[number] for role, number in stated.roles.items()}
        wanted = _load(sources, Path(scratch) / "source", name, **roles)
        vocab = wanted.get_vocab()
        for number, token in enumerate(stated.tokens):
            if vocab.get(token) != number:
                raise ConfigError(
                    f"vocab {name}: {token!r} has id {number} in its files, but transformers gives it "
                    f"{vocab.get(token)}; the files contradict each other"
                )
        special = {token.content for token in wanted.added_tokens_decoder.values() if token.special}
        state = json.loads(wanted.backend_tokenizer.to_str())
        table = token_table(vocab, {role: stated.tokens[n] for role, n in stated.roles.items()}, state, special, name)
        resolved = of_tokenizer(wanted.backend_tokenizer, table)
        files = {file: content for file, content in sources.items() if file != "config.json"}
        text = wanted.backend_tokenizer.to_str(pretty=True).encode()
        is_bert = type(wanted).__name__.startswith("Bert")
        for number, candidate in enumerate(_candidates(files, text, table, is_bert)):
            loaded = _reloaded(candidate, resolved, Path(scratch) / str(number), name)
            if loaded is not None:
                break
        else:
            raise ConfigError(
                f"vocab {name}: transformers gives other ids for its {type(wanted).__name__} when it is saved and "
                "loaded again; give a folder with a BertTokenizer or a PreTrainedTokenizerFast"
            )
    if candidate["tokenizer.json"] != _without_padding(files.get("tokenizer.json", candidate["tokenizer.json"])):
        print(
            f"vocab {name}: its tokenizer.json differs from what transformers makes of tokenizer_config.json; the "
            "shards have the ids of AutoTokenizer, and the tokenizer.json beside them too"
        )
    return Vocabulary(loaded.tokenizer, table, loaded.lowercase, candidate)


def _stated(sources: dict[str, bytes], folder: Path, name: str) -> TokenTable:
    """The tokens and roles as the files state them."""
    _write(folder, sources)
    try:
        table = read_tokenizer(folder)
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(folder), name)) from None
    require_roles(table, name)
    return table


def _load(sources: dict[str, bytes], folder: Path, name: str, **roles: str) -> Any:
    """What ``AutoTokenizer`` makes of the files."""
    from transformers import AutoTokenizer, logging  # imports torch

    logging.set_verbosity_error()
    needs_class = not sources.keys() & {"tokenizer.json", "config.json"}  # a vocab.txt: of a BERT
    _write(folder, {**sources, **({"config.json": _BERT} if needs_class else {})})
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **roles)
    except Exception as error:  # the libraries raise many types
        reason = (" ".join(str(error).split()) or type(error).__name__).replace(str(folder), name)[:200]
        raise ConfigError(f"vocab {name}: transformers cannot load this tokenizer ({reason})") from None
    if not tokenizer.is_fast:
        raise ConfigError(f"vocab {name} is a {type(tokenizer).__name__}, which is not fast; give a tokenizer.json")
    return tokenizer


def _candidates(files: dict[str, bytes], state: bytes, table: TokenTable, is_bert: bool) -> Iterator[dict[str, bytes]]:
    """What to write, the least changed first: the files; with class and roles stated; with our own configuration.

    ``state``: the ``tokenizer.json`` that transformers would write.
    """
    roles = {f"{role}_token": table.tokens[number] for role, number in table.roles.items()}
    base = dict(files)
    if table.prefix is not None and not table.is_word_start and "vocab.txt" not in base:
        base["vocab.txt"] = "".join(f"{token}\n" for token in table.tokens).encode()
    config = {"model_max_length": LONGEST_SEQUENCE, **json.loads(files.get("tokenizer_config.json", b"{}"))}
    fast = {"tokenizer_class": "PreTrainedTokenizerFast", **roles}
    changes = [{"tokenizer_class": "BertTokenizer"}, {"tokenizer_class": "BertTokenizer", **roles}] if is_bert else []
    configs = [{**config, **change} for change in (*changes, {"tokenizer_class": fast["tokenizer_class"]}, fast)]
    for text in dict.fromkeys([_without_padding(files.get("tokenizer.json", state)), state]):
        if "tokenizer_config.json" in files:
            yield {**base, "tokenizer.json": text}
        for changed in configs:
            yield {**base, "tokenizer.json": text, "tokenizer_config.json": _json_bytes(changed)}
    kept = {file: content for file, content in base.items() if file == "vocab.txt"}
    limit = {"model_max_length": config["model_max_length"]}
    yield {**kept, "tokenizer.json": state, "tokenizer_config.json": _json_bytes({**limit, **fast})}


def _reloaded(candidate: dict[str, bytes], wanted: Vocabulary, folder: Path, name: str) -> Vocabulary | None:
    """The tokenizer that the files are, or None if they mean something else, alone or beside a BERT's config."""
    behaviour = _behaviour(wanted.tokenizer)
    for place, extra in (("export", {"config.json": _BERT}), ("alone", {})):
        try:
            loaded = _load({**candidate, **extra}, folder / place, name)
        except ConfigError:
            return None
        roles = {role: getattr(loaded, f"{role}_token_id") for role in ROLES}
        again = of_tokenizer(loaded.backend_tokenizer, wanted.table)
        if roles != wanted.roles or _behaviour(again.tokenizer) != behaviour:
            return None
    ours = load_vocabulary(folder / "alone")
    return ours if ours.table == wanted.table and _behaviour(ours.tokenizer) == behaviour else None


def _behaviour(tokenizer: Tokenizer) -> dict[str, Any]:
    """All that the ids of a text depend on."""
    state = json.loads(tokenizer.to_str())
    added = [token for token in state["added_tokens"] if not token["special"]]
    return {**{part: state[part] for part in ("normalizer", "pre_tokenizer", "model")}, "added": added}


def _without_padding(content: bytes) -> bytes:
    """``tokenizer.json`` without its padding and truncation, which are a state of use; unchanged otherwise."""
    text = content.decode("utf-8")
    for key in ("truncation", "padding"):
        found = re.search(rf'\A\s*{{.{{0,2000}}?"{key}"\s*:\s*(?={{)', text, re.DOTALL)
        if found and json.loads(text)[key] is not None:
            _, stop = json.JSONDecoder().raw_decode(text, found.end())
            text = f"{text[: found.end()]}null{text[stop:]}"
    return text.encode()


def _write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"vocab: {path} cannot be read ({error.strerror})") from None


def _json_bytes(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
