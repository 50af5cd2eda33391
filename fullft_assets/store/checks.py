"""Declarations of checks, beside the logic that computes their outcomes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckSpec:
    """One check of an asset: its name is the truth when it is green."""

    name: str
    description: str
    blocking: bool = False
