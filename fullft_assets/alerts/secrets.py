"""Secrets of channels: a YAML says where one is, and never has the secret itself."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import StringConstraints

from fullft_assets.errors import SettingsError
from fullft_assets.extras import require

#: `env:NAME` (a variable of the environment) or `secret:ID` (AWS Secrets Manager).
SecretReference = Annotated[str, StringConstraints(pattern=r"^(env|secret):\S+$")]


def read_secret(reference: str) -> str:
    """Return the secret that a reference points to.

    Raises:
        SettingsError: there is none.
    """
    kind, name = reference.split(":", 1)
    if kind == "env":
        value = os.environ.get(name)
    else:
        require("boto3", reference)
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            value = boto3.client("secretsmanager").get_secret_value(SecretId=name)["SecretString"]
        except (BotoCoreError, ClientError) as error:
            raise SettingsError(
                f"{reference} cannot be read from AWS Secrets Manager ({type(error).__name__})"
            ) from error
    if not value:
        raise SettingsError(f"{reference} is not set; set it where the daemon runs")
    return value
