"""What a model's folder contains: `config.json`, the headers of its safetensors files, and Python files that
run only where the use case's `trust_remote_code` allows it. Never loads a weight.
"""

import hashlib
import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fullft_assets.errors import SettingsError
from fullft_assets.settings import UseCaseSettings
from fullft_assets.store.manifest import is_inside


def read_config(folder: Path) -> dict[str, Any]:
    """Return a model's `config.json`.

    Raises:
        SettingsError: there is none, or it is not a transformers model's.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise SettingsError(f"{folder}: no config.json; this is not a model's folder") from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path}: not JSON ({error})") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise SettingsError(f"{path}: no `model_type`; this is not a transformers model")
    return config


@dataclass(frozen=True)
class TrustedFolder:
    """A model's folder whose Python code may run; it is used wherever a model's folder is.

    The right goes with the folder: what loads a model asks the folder that it is given, and refuses any
    other's code.
    """

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name


ModelFolder = Path | TrustedFolder


def with_rights(folder: Path, settings: UseCaseSettings) -> ModelFolder:
    """Return a folder of a use case's base model, or of a model that was made of it, with the right to run
    its code where that is given.
    """
    return TrustedFolder(folder) if settings.trust_remote_code else folder


def own_code(folder: Path) -> list[Path]:
    """Return the Python files in a model's folder, sorted, or nothing if `config.json` names no code. They
    may run if the model's code is trusted.

    Raises:
        SettingsError: `config.json` names classes that are not in them, as those of another repository, which
            no commit pins.
    """
    classes = read_config(folder).get("auto_map") or {}
    files = sorted(folder.rglob("*.py")) if classes else []
    for kind, reference in classes.items():
        # Tokenizers are read from tokenizer.json, and never run.
        if kind != "AutoConfig" and not kind.startswith("AutoModel"):
            continue
        if "--" in str(reference):
            raise SettingsError(
                f"{folder}/config.json: {kind} is code of another repository ({reference}), which base_model"
                " does not pin; copy its files into the folder and name them without"
                f" `{str(reference).split('--')[0]}--`"
            )
        file = re.fullmatch(r"((?:\w+/)*\w+)\.\w+", str(reference), re.ASCII)
        if file is None or not (folder / f"{file[1]}.py").is_file():
            problem = (
                f"{reference} is no class in a Python file of the folder"
                if file is None
                else f"{file[1]}.py is not in the folder"
            )
            raise SettingsError(
                f"{folder}/config.json: {kind}: {problem}; fetch the model's Python files too (*.py)"
            )
    return files


def copy_code(model: ModelFolder, target: Path) -> None:
    """Copy the code of a trusted model into the folder of a model that was trained from it, which cannot be
    loaded without the code. Other models have no code to copy.
    """
    if isinstance(model, TrustedFolder):
        for file in own_code(model.path):
            copy = target / file.relative_to(model.path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


#: File of a sentence-transformers folder with its parts in their order.
MODULES = "modules.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
#: transformers would load these on top of the weights that `revision` and the plan of memory cover.
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8",
    "F8_E5M2": "float8",
}
#: Endings of the names of architectures that predict the next token.
_CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
#: Bytes of each tensor that the revision covers.
SAMPLE_BYTES = 4096
#: These count positions from the padding id + 1, so the first rows of their position table are never used.
PADDING_OFFSET_TYPES = {
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "luke",
    "mluke",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}


@dataclass(frozen=True)
class BaseModelHeader:
    """A model's sizes and limits, read before a weight is loaded. None: its config does not give it."""

    folder: Path
    model_type: str
    architectures: tuple[str, ...]
    #: Floating-point weights in the files; buffers such as position ids are not counted.
    num_parameters: int
    dtype: str
    #: Longest input in tokens.
    max_positions: int | None
    weights_bytes: int
    #: Cheap content digest, see `read_header`.
    revision: str

    @property
    def may_predict_tokens(self) -> bool:
        """Whether the architectures that `config.json` names, or may not name, can go on with a text."""
        return not self.architectures or any(name.endswith(_CAUSAL) for name in self.architectures)


@dataclass(frozen=True)
class _WeightsFile:
    path: Path
    header: bytes
    tensors: Mapping[str, Any]
    bytes: int


def read_header(model: ModelFolder) -> BaseModelHeader:
    """Read `config.json` and the safetensors headers of a model folder.

    `revision` is a sha256 over config.json, tokenizer.json, the `pooling_config` and, for each weights file,
    its name, size, header and 4 KiB from the middle of each tensor. Equal shapes alone would not distinguish
    a model from its own fine-tune; the sample does, for a few megabytes of reading. `weights_digest` covers
    every byte. Where its code may run, every Python file in the folder is covered as well.

    Raises:
        SettingsError: a file is missing, torn or pickled, code may run that is not there, other weights
            count, or `modules.json` is wrong.
    """
    folder = Path(model)
    config = read_config(folder)
    if adapter := next((name for name in _ADAPTER if (folder / name).exists()), None):
        raise SettingsError(
            f"{folder / adapter}: an adapter would change the weights; merge it into them, or remove it"
        )
    if config.get("transformers_weights") is not None:
        raise SettingsError(
            f"{folder}/config.json: transformers_weights names other weights; remove that line"
        )
    if not (folder / "tokenizer.json").is_file():
        raise SettingsError(f"{folder}: no tokenizer.json; save the model's fast tokenizer there")
    files = [_read_weights_file(path) for path in weights_files(folder)]
    tensors = [tensor for file in files for tensor in file.tensors.values() if tensor["dtype"] in DTYPES]
    sizes = Counter[str]()
    for tensor in tensors:
        sizes[DTYPES[tensor["dtype"]]] += math.prod(tensor["shape"])
    if not sizes:
        raise SettingsError(f"{folder}: its safetensors contain no floating-point weights")
    return BaseModelHeader(
        folder=folder,
        model_type=str(config["model_type"]),
        architectures=tuple(config.get("architectures") or ()),
        num_parameters=sizes.total(),
        dtype=sizes.most_common(1)[0][0],
        max_positions=_max_positions(config.get("text_config", config)),
        weights_bytes=sum(file.bytes for file in files),
        revision=_revision(folder, files, own_code(folder) if isinstance(model, TrustedFolder) else []),
    )


def pooling_config(folder: Path) -> Path | None:
    """Return the file that says how a folder of sentence-transformers pools, or None for other folders.

    Raises:
        SettingsError: `modules.json` is no list of parts, or the file is not in the folder.
    """
    path = folder / MODULES
    if not path.is_file():
        return None
    try:
        parts = json.loads(path.read_bytes())
        name = next((part["path"] for part in parts if part["type"].endswith(".Pooling")), None)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise SettingsError(f"{path}: not a list of the model's parts; save the model again") from error
    if name is None:
        return None
    config = f"{name}/config.json"
    if not is_inside(config) or not (folder / config).is_file():
        raise SettingsError(f"{path}: names {config}, which is not in the model's folder; copy it again")
    return folder / config


def weights_digest(folder: Path) -> str:
    """Return the sha256 over every byte of the weights files (of their names and own sha256, sorted by
    name).
    """
    digest = hashlib.sha256()
    for path in weights_files(folder):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def weights_files(folder: Path) -> list[Path]:
    """Return the safetensors files that a model folder is loaded from, sorted by name.

    Raises:
        SettingsError: there is none, only pickled ones, or a shard is missing.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        return _shards(folder)
    pickles = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if pickles:
        raise SettingsError(
            f"{folder}: only pickled weights ({pickles[0]}), refused because a pickle can run code; save the"
            " model as safetensors"
        )
    raise SettingsError(f"{folder}: no {WEIGHTS} and no {INDEX}")


def _shards(folder: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
        outside = [name for name in names if not is_inside(name)]
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise SettingsError(f"{folder / INDEX}: not an index of shards; save the model again") from error
    if outside:
        raise SettingsError(
            f"{folder / INDEX}: names {outside[0]!r}, which is outside of the model's folder; save the model"
            " again"
        )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise SettingsError(
            f"{folder}: {len(missing)} of {len(names)} shards are missing: {', '.join(missing[:3])}"
        )
    return [folder / name for name in names]


def _read_weights_file(path: Path) -> _WeightsFile:
    # Layout: 8 bytes little-endian header length, a JSON header, the tensors' bytes without gaps.
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            raise SettingsError(f"{path}: a Git LFS pointer, not the weights; run `git lfs pull`")
        try:
            with safe_open(path, framework="numpy"):
                header = file.read(int.from_bytes(start, "little"))
        except SafetensorError as error:
            raise SettingsError(
                f"{path}: not a safetensors file, or torn ({size:,} bytes): {error}; fetch it again"
            ) from error
    return _WeightsFile(
        path,
        header,
        {name: tensor for name, tensor in json.loads(header).items() if name != "__metadata__"},
        size,
    )


def _revision(folder: Path, files: list[_WeightsFile], code: list[Path]) -> str:
    digest = hashlib.sha256()
    # The last names the tokens that end an answer, where it is there.
    for path in (folder / "config.json", folder / "tokenizer.json", *folder.glob("generation_config.json")):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    # How a folder of sentence-transformers pools: a new head reads what it says.
    if (pooling := pooling_config(folder)) is not None:
        digest.update(pooling.read_bytes())
    for path in code:
        digest.update(
            f"{path.relative_to(folder).as_posix()} "
            f"{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode()
        )
    for weights in files:
        digest.update(
            f"{weights.path.name} {weights.bytes} {len(weights.header)}\n".encode() + weights.header
        )
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
