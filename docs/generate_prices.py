"""Update the prices of `fullft_assets/planning/instances.yaml` from a catalogue: `python
docs/generate_prices.py [--catalog CSV] [--date DAY]`.

The catalogue is the table of EC2 instances that the project SkyPilot keeps: a file, or its address. Which
instances the plan compares, and what their GPUs have, is said in instances.yaml itself.
"""

from __future__ import annotations

import argparse
import csv
import io
import urllib.request
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import quantiles
from typing import Any

import yaml

TABLE = Path(__file__).parents[1] / "fullft_assets" / "planning" / "instances.yaml"
CATALOG = "https://raw.githubusercontent.com/skypilot-org/skypilot-catalog/master/catalogs/v8/aws/vms.csv"
REGION = "us-east-1"
#: Why an entry of each list is there.
COMMENTS = {
    "source": "Where the prices were read on that date; docs/generate_prices.py reads them anew.",
    "spot": (
        "Share of the price on demand that spot instances of these GPUs were sold for in the zones of the"
        " region: tenth and ninetieth percentile."
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


def updated(
    table: Mapping[str, Any], rows: Iterable[Mapping[str, str]], date: str, source: str
) -> dict[str, Any]:
    """Return the table with the prices of the catalogue's rows.

    Raises:
        ValueError: the catalogue lacks an instance that has a price, or gives it another number of GPUs.
    """
    here = [row for row in rows if row["Region"] == REGION and row["Price"]]
    found = {row["InstanceType"]: row for row in here}
    lists = {
        name: [_priced(entry, found.get(entry["name"])) for entry in table[name]]
        for name in ("instances", "price_only", "cpus")
    }
    names = {entry["name"] for entry in lists["instances"]}
    shares = [
        float(row["SpotPrice"]) / float(row["Price"])
        for row in here
        if row["InstanceType"] in names and row["SpotPrice"]
    ]
    tenths = quantiles(shares, n=10, method="inclusive")
    return {
        **table,
        "date": date,
        "source": source,
        "spot": [round(tenths[0], 2), round(tenths[-1], 2)],
        **lists,
    }


def _priced(entry: Mapping[str, Any], row: Mapping[str, str] | None) -> dict[str, Any]:
    if row is None:
        if entry["hourly_usd"] is None:
            return dict(entry)
        raise ValueError(
            f"{entry['name']} is not in the catalogue; remove it from {TABLE.name}, or read another catalogue"
        )
    number = entry.get("gpus", entry.get("chips", 0))
    if number != float(row["AcceleratorCount"] or 0):
        raise ValueError(
            f"{entry['name']} has {row['AcceleratorCount']} accelerators in the catalogue, {number} in"
            f" {TABLE.name}"
        )
    return {**entry, "hourly_usd": float(row["Price"])}


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
    parser.add_argument(
        "--date",
        default=f"{datetime.now(UTC):%Y-%m-%d}",
        help="day on which the catalogue had these prices (default: today)",
    )
    parser.add_argument("--source", help="what the table names as its source (default: the catalogue)")
    asked = parser.parse_args()
    if "://" in asked.catalog:
        with urllib.request.urlopen(asked.catalog) as answer:
            text = answer.read().decode()
    else:
        text = Path(asked.catalog).read_text(encoding="utf-8")
    table, rows = yaml.safe_load(TABLE.read_text(encoding="utf-8")), csv.DictReader(io.StringIO(text))
    TABLE.write_text(
        render(updated(table, rows, asked.date, asked.source or asked.catalog)), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
