"""base model: a reference in the YAML -> a folder of weights, and what its headers say. Never loads a weight.

A model of the Hugging Face hub is named by its commit and found in the hub's cache; nothing is downloaded here, as definitions
load often, and without a network. A base model is a folder with `config.json`, `tokenizer.json` and safetensors weights, in one file or in
shards with an index. It may bring Python code of its own, which runs where the use case's `trust_remote_code` allows it.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import math
import os
import pkgutil
import re
import shutil
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fullft_assets.errors import SettingsError
from fullft_assets.settings.use_case import locate

if TYPE_CHECKING:
    from fullft_assets.settings import UseCaseSettings

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8",
    "F8_E5M2": "float8",
}
MAX_HEADER_BYTES = 100 * 2**20
#: Bytes of each tensor that the revision covers.
SAMPLE_BYTES = 4096
#: These count positions from the padding id + 1, so the first rows of their position table are never used.
PADDING_OFFSET_TYPES = {
    "camembert", "data2vec-text", "ibert", "longformer", "luke", "mluke", "mpnet", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip


#: ORG/NAME as the hub allows it, with a revision or without.
_HUB_ID = re.compile(r"(?P<org>\w[\w.-]*)/(?P<name>\w[\w.-]*)(?:@(?P<revision>[^@\s]*))?", re.ASCII)


@dataclass(frozen=True)
class TrustedFolder:
    """A model's folder whose Python code may run; it stands wherever a model's folder does.

    The right goes with the folder: what loads a model asks the folder that it is given, and refuses any other's code.
    """

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name


ModelFolder = Path | TrustedFolder


@dataclass(frozen=True)
class BaseModelHeader:
    """What a model folder says about itself before a weight is loaded. None: its config does not say."""

    folder: Path
    model_type: str
    architectures: tuple[str, ...]
    #: Floating-point weights in the files; buffers such as position ids are not counted.
    num_parameters: int
    #: Those of `num_parameters` in tables of one row a vocabulary entry: looked up, or the output head.
    num_vocabulary_parameters: int
    dtype: str
    #: Longest input in tokens.
    max_positions: int | None
    hidden_size: int | None
    num_layers: int | None
    num_heads: int | None
    vocab_size: int | None
    weights_bytes: int
    #: Cheap content digest, see `read_header`.
    revision: str


@dataclass(frozen=True)
class _WeightsFile:
    path: Path
    header: bytes
    tensors: Mapping[str, Any]
    bytes: int


def find_base_model(settings: UseCaseSettings, project_root: Path) -> ModelFolder:
    """Return the folder of a use case's base model, with the right to run its code where the use case gives that.

    Raises:
        SettingsError: see `resolve_base_model`.
    """
    return with_rights(resolve_base_model(settings.base_model, project_root), settings)


def with_rights(folder: Path, settings: UseCaseSettings) -> ModelFolder:
    """Return a folder of a use case's base model, or of a model that was made of it, with the right to run its code where that is given."""
    return TrustedFolder(folder) if settings.trust_remote_code else folder


def resolve_base_model(reference: str, project_root: Path) -> Path:
    """Return the folder that a `base_model` reference names.

    Args:
        reference: a folder, relative to the project root or absolute; or `package:NAME/FOLDER`, a
            folder inside an installed Python package, which is not imported; or `ORG/NAME@COMMIT` of the hub.
        project_root: where relative references start.

    Raises:
        SettingsError: there is no such folder or package, or a model of the hub is not pinned or not in the cache.
    """
    if reference.startswith("package:"):
        return _resolve_in_package(reference)
    folder = locate(reference, project_root)
    if folder.is_dir():
        return folder
    named = _HUB_ID.fullmatch(reference)
    if named is not None and named["revision"] is not None:
        return _resolve_in_hub_cache(named["org"], named["name"], named["revision"])
    pinned = f"{reference if named else 'ORG/NAME'}@COMMIT, the 40 digits of a commit"
    hint = suggest_path(reference, project_root)
    hint = hint or f"; no model is downloaded: give a local folder, package:NAME/FOLDER, or pin a model of the hub: {pinned}"
    raise SettingsError(f"folder not found: {reference}{hint}")


def _resolve_in_hub_cache(org: str, name: str, revision: str) -> Path:
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise SettingsError(
            f"{org}/{name}@{revision} is not pinned (`{revision}` can move); write {org}/{name}@COMMIT with the 40 digits of a commit"
        )
    cache = hub_cache()
    folder = cache / f"models--{org}--{name}" / "snapshots" / revision
    if not folder.is_dir():
        raise SettingsError(
            f"{org}/{name}@{revision} is not in the hub's cache ({cache}); "
            f"`hf download {org}/{name} --revision {revision} --include '*.json' '*.txt' '*.safetensors'` fetches it"
        )
    return folder


def hub_cache() -> Path:
    """Return the folder that the hub's libraries keep models in, as their environment variables say."""
    if (cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")) is not None:
        return Path(cache).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


def _resolve_in_package(reference: str) -> Path:
    match = re.fullmatch(r"package:([A-Za-z_][A-Za-z0-9_]*)/(.+)", reference)
    if match is None:
        raise SettingsError(f"`{reference}` is not of the form package:NAME/FOLDER")
    name, inside = match.groups()
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        near = difflib.get_close_matches(name, [m.name for m in pkgutil.iter_modules() if m.ispkg], n=1, cutoff=0.8)
        mend = f"did you mean `{near[0]}`?" if near else f"pip install {name.replace('_', '-')}"
        raise SettingsError(f"package not found: {name}; {mend}")
    root = Path(next(iter(spec.submodule_search_locations)))
    if not (root / inside).is_dir():
        raise SettingsError(f"folder not found: {inside} inside the package {name}{suggest_path(inside, root)}")
    return root / inside


def suggest_path(path: str, root: Path) -> str:
    """Return `; did you mean ...?` for a path that does not exist, or an empty string where nothing is near."""
    given = locate(path, root)
    found = Path(given.anchor)
    for part in given.parts[1:]:
        if not (found / part).exists():
            siblings = [p.name for p in found.iterdir() if not p.name.startswith(".")] if found.is_dir() else []
            near = difflib.get_close_matches(part, siblings, n=1, cutoff=0.6)
            if not near:
                return ""
            part = near[0]
        found /= part
    shown = found.relative_to(root) if found.is_relative_to(root) else found
    return f"; did you mean `{shown}`?"


def read_header(model: ModelFolder) -> BaseModelHeader:
    """Read `config.json` and the safetensors headers of a model folder.

    `revision` is a sha256 over config.json, tokenizer.json and, for each weights file, its name, size,
    header and 4 KiB from the middle of each tensor. Equal shapes alone would not tell a model from its
    own fine-tune; the sample does, for a few megabytes of reading. `weights_digest` covers every byte.
    Where its code may run, every Python file in the folder is covered as well.

    Raises:
        SettingsError: a file is missing, torn or pickled, or code may run that is not there; the message says which.
    """
    folder = Path(model)
    config = _read_config(folder)
    if not (folder / "tokenizer.json").is_file():
        raise SettingsError(f"{folder}: no tokenizer.json; save the model's fast tokenizer there")
    files = [_read_weights_file(path) for path in weights_files(folder)]
    tensors = [tensor for file in files for tensor in file.tensors.values() if tensor["dtype"] in DTYPES]
    sizes = Counter[str]()
    for tensor in tensors:
        sizes[DTYPES[tensor["dtype"]]] += math.prod(tensor["shape"])
    if not sizes:
        raise SettingsError(f"{folder}: its safetensors hold no floating-point weights")
    text = config.get("text_config", config)
    vocab_size = _first(text, "vocab_size")
    return BaseModelHeader(
        folder=folder,
        model_type=str(config["model_type"]),
        architectures=tuple(config.get("architectures") or ()),
        num_parameters=sizes.total(),
        num_vocabulary_parameters=sum(math.prod(t["shape"]) for t in tensors if t["shape"][:1] == [vocab_size]),
        dtype=sizes.most_common(1)[0][0],
        max_positions=_max_positions(text),
        hidden_size=_first(text, "hidden_size", "n_embd", "d_model", "dim"),
        num_layers=_first(text, "num_hidden_layers", "n_layer", "n_layers", "num_layers"),
        num_heads=_first(text, "num_attention_heads", "n_head", "n_heads", "num_heads"),
        vocab_size=vocab_size,
        weights_bytes=sum(file.bytes for file in files),
        revision=_revision(folder, files, own_code(folder) if isinstance(model, TrustedFolder) else []),
    )


def own_code(folder: Path) -> list[Path]:
    """Return the Python files in a model's folder, sorted: what may run where its code is trusted; none if transformers has its architecture.

    Raises:
        SettingsError: `config.json` names classes that are not in them, as those of another repository, which no commit pins.
    """
    named = _read_config(folder).get("auto_map") or {}
    files = sorted(folder.rglob("*.py")) if named else []
    for kind, reference in named.items():
        # Tokenizers are read from tokenizer.json, and never run.
        if kind != "AutoConfig" and not kind.startswith("AutoModel"):
            continue
        if "--" in str(reference):
            raise SettingsError(
                f"{folder}/config.json: {kind} is code of another repository ({reference}), which base_model does not pin; copy its "
                f"files into the folder and name them without `{str(reference).split('--')[0]}--`"
            )
        file = re.fullmatch(r"((?:\w+/)*\w+)\.\w+", str(reference), re.ASCII)
        if file is None or not (folder / f"{file[1]}.py").is_file():
            missing = f"{reference} is no class in a Python file of the folder" if file is None else f"{file[1]}.py is not in the folder"
            raise SettingsError(f"{folder}/config.json: {kind}: {missing}; fetch the model's Python files too (*.py)")
    return files


def copy_code(model: ModelFolder, target: Path) -> None:
    """Copy the code of a model, where it may run, into the folder of a model that was made of it, which cannot be loaded without."""
    if isinstance(model, TrustedFolder):
        for file in own_code(model.path):
            place = target / file.relative_to(model.path)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


def weights_digest(folder: Path) -> str:
    """Return the sha256 over every byte of the weights files (of their names and own sha256, sorted by name)."""
    whole = hashlib.sha256()
    for path in weights_files(folder):
        with path.open("rb") as file:
            whole.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def weights_files(folder: Path) -> list[Path]:
    """Return the safetensors files that a model folder is loaded from, sorted by name.

    Raises:
        SettingsError: there is none, only pickled ones, or a shard is missing.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        return _shards(folder)
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if pickled:
        raise SettingsError(
            f"{folder}: only pickled weights ({pickled[0]}), refused because a pickle can run code; save the model as safetensors"
        )
    raise SettingsError(f"{folder}: no {WEIGHTS} and no {INDEX}")


def _shards(folder: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise SettingsError(f"{folder / INDEX}: not an index of shards; save the model again") from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise SettingsError(f"{folder}: {len(missing)} of {len(names)} shards are missing: {', '.join(missing[:3])}")
    return [folder / name for name in names]


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise SettingsError(f"{folder}: no config.json; this is not a model's folder") from None
    except ValueError as error:
        raise SettingsError(f"{path}: not JSON ({error})") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise SettingsError(f"{path}: no `model_type`; this is not a transformers model")
    return config


def _read_weights_file(path: Path) -> _WeightsFile:
    # Layout: 8 bytes little-endian header length, a JSON header, the tensors' bytes without gaps.
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if start == b"version ":
            raise SettingsError(f"{path}: a Git LFS pointer, not the weights; run `git lfs pull`")
        if not 0 < length <= min(size - 8, MAX_HEADER_BYTES):
            raise SettingsError(f"{path}: not a safetensors file ({size:,} bytes)")
        header = file.read(length)
    try:
        tensors = {name: tensor for name, tensor in json.loads(header).items() if name != "__metadata__"}
        end = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise SettingsError(f"{path}: not a safetensors file (its header cannot be read)") from error
    if end != size:
        raise SettingsError(f"{path}: torn: {size:,} bytes where its header says {end:,}; fetch it again")
    return _WeightsFile(path, header, tensors, size)


def _revision(folder: Path, files: list[_WeightsFile], code: list[Path]) -> str:
    digest = hashlib.sha256()
    for name in ("config.json", "tokenizer.json"):
        digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    for path in code:
        digest.update(f"{path.relative_to(folder).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    for weights in files:
        digest.update(f"{weights.path.name} {weights.bytes} {len(weights.header)}\n".encode() + weights.header)
        with weights.path.open("rb") as file:
            for _, tensor in sorted(weights.tensors.items()):
                begin, end = tensor["data_offsets"]
                start = begin + max(0, (end - begin - SAMPLE_BYTES) // 2)
                file.seek(8 + len(weights.header) + start)
                digest.update(file.read(min(SAMPLE_BYTES, end - start)))
    return digest.hexdigest()


def _max_positions(config: Mapping[str, Any]) -> int | None:
    positions = _first(config, "max_position_embeddings", "n_positions", "n_ctx", "seq_length")
    if positions is None or config.get("model_type") not in PADDING_OFFSET_TYPES:
        return positions
    padding = _first(config, "pad_token_id")
    return positions - (1 if padding is None else padding) - 1


def _first(config: Mapping[str, Any], *keys: str) -> int | None:
    return next((config[key] for key in keys if isinstance(config.get(key), int)), None)
