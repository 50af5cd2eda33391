"""Packages of others as pip installs one: a module, and metadata with entry points. One of them is that of
docs/extending.md.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: An optimizer, a gate and a drift test of another package, as its modules.
OPTIMIZER = '''
from fullft_assets.settings.optimizers import Optimizer, bytes_per_weight


class Momentum(Optimizer):
    """Gradient descent with momentum."""

    def state_bytes(self, weights):
        return bytes_per_weight(weights)

    def build(self, groups, weights, seed):
        import torch

        return torch.optim.SGD(groups, momentum=0.9)


MOMENTUM = Momentum()
'''
GATE = """
from fullft_assets.evaluation.gates import Gate
from fullft_assets.settings.base import Settings


class Options(Settings):
    most: int


class FewLabels(Gate):
    name = "labels_are_few"
    description = "There are few labels."
    advice = "merge labels"
    options = Options

    def judge(self, context):
        most, number = self.options_of(context.settings).most, len(context.evaluation.labels)
        return self.result(number <= most, f"{number} labels, at most {most}", {"num_labels": number})


GATE = FewLabels()
"""
#: The share of documents whose length is above that of the held-out rows.
DRIFT_TEST = """
import numpy as np

from fullft_assets.monitoring import DriftTest, Outcome


class Longer(DriftTest):
    name = "longer"
    arrays = ("usual_length",)

    def fit(self, held_out, num_labels):
        return {"usual_length": np.median(held_out.num_tokens)}

    def coordinates(self, fitted, features):
        return (features.num_tokens > fitted["usual_length"])[:, None].astype(float)

    def compare(self, reference, current):
        before, now = (np.mean([window.means["longer"] for window in side]) for side in (reference, current))
        return Outcome(abs(now - before), 0.001, len(current) == 1, effect=now - before)

    def in_words(self, reference, current, labels):
        return "texts are longer than the held-out rows"
"""
_PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


def files() -> dict[str, str]:
    return dict(
        re.findall(r'^```\w+ title="([\w.]+)"\n(.*?)^```', _PAGE.read_text(), re.MULTILINE | re.DOTALL)
    )


def install_shown(site: Path) -> None:
    """Write the package of the page into a folder of modules."""
    shown = files()
    project: dict[str, Any] = tomllib.loads(shown.pop("pyproject.toml"))["project"]
    install(site, project["name"], shown, project["entry-points"])


def install(
    site: Path, name: str, modules: Mapping[str, str], entry_points: Mapping[str, Mapping[str, str]]
) -> Path:
    """Write a package into a folder of modules as pip does: its files by name, and its entry points by group;
    return its metadata.
    """
    metadata = site / f"{name.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [
        line
        for group, points in entry_points.items()
        for line in (f"[{group}]", *(f"{point} = {at}" for point, at in points.items()))
    ]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for file, source in modules.items():
        (site / file).write_text(source)
    return metadata
