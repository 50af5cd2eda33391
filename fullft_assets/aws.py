"""Clients of AWS: region, endpoint, profile and credentials are those of the environment or of the machine's
role, as for every program that speaks to AWS; in `account_of` they are those of a resource of dagster_aws.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from threading import Lock
from typing import Any

from fullft_assets.errors import FullftError, SettingsError
from fullft_assets.extras import require

#: By field of a resource of dagster_aws: the variables that say the same.
_VARIABLES = {
    "region_name": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "profile_name": ("AWS_PROFILE", "AWS_DEFAULT_PROFILE"),
    "aws_access_key_id": ("AWS_ACCESS_KEY_ID",),
    "aws_secret_access_key": ("AWS_SECRET_ACCESS_KEY",),
    "aws_session_token": ("AWS_SESSION_TOKEN",),
    "max_attempts": ("AWS_MAX_ATTEMPTS",),
}
#: Variables that choose an account: where a resource has a profile or keys, no other one counts.
_ACCOUNT = {
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_CREDENTIAL_EXPIRATION",
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
}
_ENDPOINT = "AWS_ENDPOINT_URL"
_lock = Lock()
#: What the resource of each block in `account_of` says, and the environment before the first of them.
_open: list[tuple[dict[str, str], dict[str, str]]] = []


@contextmanager
def account_of(resource: Any) -> Iterator[None]:
    """Let this process, and the processes that it starts, use the account of a resource of dagster_aws.

    The fields of the resource become the AWS variables of the process, which boto3, buckets and launched
    processes read; a field without a value changes no variable. The endpoint of an `S3Resource` is for S3
    alone.

    Raises:
        SettingsError: it is no such resource, it has a field that no variable can express, or this process
            uses another resource.
    """
    variables = _variables_of(resource)
    with _lock:
        followed, before = _open[0] if _open else (variables, _environment())
        if followed != variables:
            raise SettingsError(
                "resource aws: this process follows another one; give it a code location of its own"
            )
        if not _open:
            _set(
                {
                    name: before[name]
                    for name in before
                    if _ACCOUNT.isdisjoint(variables) or name not in _ACCOUNT
                }
                | variables
            )
        _open.append((variables, before))
    try:
        yield
    finally:
        with _lock:
            _open.pop()
            if not _open:
                _set(before)


def _variables_of(resource: Any) -> dict[str, str]:
    if (
        not all(hasattr(resource, field) for field in (*_VARIABLES, "endpoint_url", "use_ssl", "verify"))
        or not resource.use_ssl
        or resource.verify is False
        or getattr(resource, "use_unsigned_session", False)
    ):
        raise SettingsError(
            f"resource aws: give one of dagster_aws, such as S3Resource, not {type(resource).__name__}, with"
            " use_ssl, verify and use_unsigned_session as they are by default; an endpoint_url may be"
            " http://, and AWS_CA_BUNDLE names certificates"
        )
    all_endpoints = [_ENDPOINT, *(name for name in os.environ if name.startswith(_ENDPOINT))]
    endpoints = [f"{_ENDPOINT}_S3"] if hasattr(resource, "use_unsigned_session") else all_endpoints
    fields = _VARIABLES | {"endpoint_url": endpoints}
    return {
        name: str(value) for field in fields if (value := getattr(resource, field)) for name in fields[field]
    }


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


def _set(variables: Mapping[str, str]) -> None:
    for name in _environment().keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)


def aws_client(service: str, user: str, region: str | None = None, **options: Any) -> Any:
    """Return a client of a service; each environment gets one, which threads share.

    Args:
        service: its name, such as `s3`.
        user: what needs it, for the message where boto3 is not installed.
        region: that of the client. Default: that of the environment.
        options: others that boto3 takes for a client.
    """
    require("boto3", user)
    return _client(service, region, tuple(sorted(options.items())), tuple(sorted(_environment().items())))


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


@lru_cache(maxsize=32)
def _client(
    service: str, region: str | None, options: tuple[tuple[str, Any], ...], _: tuple[tuple[str, str], ...]
) -> Any:
    """Return a client for an environment, which is part of its name in the cache."""
    import boto3
    from botocore.config import Config

    # A session of its own: boto3's default one keeps the credentials that it met first.
    settings: dict[str, Any] = {"config": Config(max_pool_connections=32)} | dict(options)
    return boto3.Session().client(service, region_name=region, **settings)
