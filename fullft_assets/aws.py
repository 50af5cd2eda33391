"""Clients of AWS: region, endpoint, profile and credentials are those of the environment or of the machine's
role, as for every program that speaks to AWS.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from fullft_assets.extras import require

_NOT_FOUND = {"404", "NoSuchKey", "NoSuchBucket"}
_DENIED = {"403", "AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId", "ExpiredToken"}


def s3_client(user: str) -> Any:
    """Return a client of S3; each environment gets one, which threads share.

    Args:
        user: what needs it, for the message where boto3 is not installed.
    """
    require("boto3", user)
    return _s3_client(tuple(sorted((name, os.environ[name]) for name in os.environ if name[:4] == "AWS_")))


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
def _s3_client(environment: tuple[tuple[str, str], ...]) -> Any:
    """Return a client for an environment, which is its name in the cache."""
    import boto3
    from botocore.config import Config

    # A session of its own: boto3's default one keeps the credentials that it met first.
    return boto3.Session().client("s3", config=Config(max_pool_connections=32))
