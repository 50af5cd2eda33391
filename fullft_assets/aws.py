"""Clients of AWS: region, endpoint, profile and credentials are those of the environment or of the machine's
role, as for every program that speaks to AWS.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from fullft_assets.errors import FullftError
from fullft_assets.extras import require

_NOT_FOUND = {"404", "NoSuchKey", "NoSuchBucket"}
_DENIED = {"403", "AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId", "ExpiredToken"}


def aws_client(service: str, user: str, region: str | None = None) -> Any:
    """Return a client of a service; each environment gets one, which threads share.

    Args:
        service: its name, such as `s3`.
        user: what needs it, for the message where boto3 is not installed.
        region: that of the client. Default: that of the environment.
    """
    require("boto3", user)
    environment = tuple(sorted((name, os.environ[name]) for name in os.environ if name[:4] == "AWS_"))
    return _client(service, region, environment)


@contextmanager
def reporting_client(
    service: str, user: str, error_type: type[FullftError], region: str | None = None
) -> Iterator[Any]:
    """Yield an `aws_client`: an error of AWS, or of the way there, becomes one line that begins with the
    user.
    """
    require("boto3", user)
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield aws_client(service, user, region)
    except (BotoCoreError, ClientError) as error:
        raise error_type(f"{user}: {' '.join(str(error).split())}") from error


@contextmanager
def as_os_errors() -> Iterator[None]:
    """Turn answers of S3 that an object is not there or may not be read into Python's own errors."""
    from botocore.exceptions import ClientError

    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code in _NOT_FOUND:
            raise FileNotFoundError(str(error)) from error
        if code in _DENIED:
            raise PermissionError(str(error)) from error
        raise


@lru_cache(maxsize=32)
def _client(service: str, region: str | None, environment: tuple[tuple[str, str], ...]) -> Any:
    """Return a client for an environment, which is its name in the cache."""
    import boto3
    from botocore.config import Config

    # A session of its own: boto3's default one keeps the credentials that it met first.
    return boto3.Session().client(service, region_name=region, config=Config(max_pool_connections=32))
