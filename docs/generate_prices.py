"""Update the prices of `fullft_assets/planning/instances.yaml` from a catalogue: `python
docs/generate_prices.py [--catalog FILE]`.

The catalogue is the table of on-demand prices that Karpenter's maintainers generate from the price list of
AWS every few weeks, with its date: a file, or its address. Which instances the plan compares, what their GPUs
have, and the range of spot prices, is said in instances.yaml itself.
"""

from __future__ import annotations

import argparse
import re
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

TABLE = Path(__file__).parents[1] / "fullft_assets" / "planning" / "instances.yaml"
CATALOG = (
    "https://raw.githubusercontent.com/aws/karpenter-provider-aws/main/pkg/providers/pricing/"
    "zz_generated.pricing_aws.go"
)
REGION = "us-east-1"
#: Why an entry of each list is there.
COMMENTS = {
    "source": "Where the prices were read on that date; docs/generate_prices.py reads them anew.",
    "spot": (
        "Share of the price on demand that spot instances of these GPUs were sold for in the zones of the"
        " region: tenth and ninetieth percentile; not in the catalogue."
    ),
    "instances": "memory_mib: of one GPU, as the catalogue or nvidia-smi gives it.",
    "price_only": (
        "Trainium runs no CUDA, and this project was not run on it: the price alone is shown. null: sold by"
        " capacity blocks."
    ),
    "cpus": (
        "Without a GPU: for the price of what runs there alone, such as data stages; no plan recommends them."
    ),
}


def updated(table: Mapping[str, Any], catalog: str, source: str) -> dict[str, Any]:
    """Return the table with the prices, in USD an hour, and the date of the text of a catalogue.

    Raises:
        ValueError: the catalogue has no date or no prices of the region, or lacks an instance that has a
            price.
    """
    date = re.search(r"generated at (\d{4}-\d\d-\d\d)T", catalog)
    region = re.search(rf'^\t"{REGION}": {{$(.*?)^\t}},$', catalog, re.MULTILINE | re.DOTALL)
    if date is None or region is None:
        raise ValueError(f"{source} has no date, or no prices of {REGION}; read another catalogue")
    prices = {name: float(usd) for name, usd in re.findall(r'"([\w.-]+)": ([\d.]+)', region[1])}
    lists = {
        name: [{**entry, "hourly_usd": _price(entry, prices)} for entry in table[name]]
        for name in ("instances", "price_only", "cpus")
    }
    return {**table, "date": date[1], "source": source, **lists}


def _price(entry: Mapping[str, Any], prices: Mapping[str, float]) -> float | None:
    if entry["name"] not in prices and entry["hourly_usd"] is not None:
        raise ValueError(
            f"{entry['name']} is not in the catalogue; remove it from {TABLE.name}, or read another catalogue"
        )
    return prices.get(entry["name"])


def render(table: Mapping[str, Any]) -> str:
    """Return the table as it is written: an entry a line, and why it is there."""
    lines = [
        "# GPU instances of Amazon EC2, on demand. Prices change: check them on the page below before you"
        " rent."
    ]
    for name, value in table.items():
        lines += [f"# {COMMENTS[name]}"] if name in COMMENTS else []
        if name in ("instances", "price_only", "cpus"):
            lines.append(f"{name}:")
            lines += [
                f"  - {yaml.safe_dump(each, default_flow_style=True, sort_keys=False, width=200).strip()}"
                for each in value
            ]
        else:
            lines.append(f"{name}: {value}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the catalogue and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--catalog", default=CATALOG, help="file or address (default: the newest)")
    parser.add_argument("--source", help="what the table names as its source (default: the catalogue)")
    asked = parser.parse_args()
    if "://" in asked.catalog:
        with urllib.request.urlopen(asked.catalog) as answer:
            text = answer.read().decode()
    else:
        text = Path(asked.catalog).read_text(encoding="utf-8")
    table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    TABLE.write_text(render(updated(table, text, asked.source or asked.catalog)), encoding="utf-8")


if __name__ == "__main__":
    main()
