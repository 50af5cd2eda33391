"""The keys of `kind: ssh`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from fullft_assets.settings.launchers.base import LauncherSettings, Retries

SshOption = Literal["User", "Port", "ProxyJump", "IdentityFile", "UserKnownHostsFile"]


class SshLauncherSettings(LauncherSettings):
    """Keys of `kind: ssh`: a GPU machine of one's own, reached with the system's `ssh`."""

    REMOVED: ClassVar[Mapping[str, str]] = {
        **LauncherSettings.REMOVED,
        "user": "set options: {User: ...}",
        "port": "set options: {Port: ...}",
        "key_file": "set options: {IdentityFile: ...}",
        "known_hosts": "set options: {UserKnownHostsFile: ...}",
        "rendezvous_address": "set rendezvous: ADDRESS",
        "rendezvous_port": "set rendezvous: ADDRESS:PORT",
    }

    kind: str = Field(default="ssh", description="Workloads run on another machine.")
    host: str = Field(
        pattern=r"^[^-\s]\S*$",
        description="Name or address of the machine, or a `Host` of your `~/.ssh/config`.",
    )
    options: dict[SshOption, str | int] = Field(
        default_factory=dict,
        description=(
            "Options of `ssh` by their names in `~/.ssh/config`: User, Port, ProxyJump, IdentityFile (a "
            "private"
            " key without a passphrase) and UserKnownHostsFile (the machine's host key, which is always"
            " checked). Default: what `~/.ssh/config` says."
        ),
    )
    python: str = Field(
        default="python3",
        description=(
            "Python there that has fullft_assets in the same version, such as `/srv/fullft/.venv/bin/python`."
        ),
    )
    folder: str | None = Field(
        default=None,
        description=(
            "The project's folder there: where relative paths of this YAML start, such as `base_model`."
            " Default: the same path as here."
        ),
    )
    environment: dict[str, str] = Field(
        default_factory=dict,
        description=(
            "Variables of the workload there, such as AWS_ENDPOINT_URL or CUDA_VISIBLE_DEVICES; no secrets,"
            " which belong to that machine."
        ),
    )
    more_hosts: list[Annotated[str, Field(pattern=r"^[^-\s]\S*$")]] = Field(
        default_factory=list,
        max_length=63,
        description=(
            "More machines that share a training with `host`, the first of them; each starts as many of"
            " launcher.processes as the others. The keys of this section hold for all of them. Other"
            " workloads run on `host` alone."
        ),
    )
    rendezvous: str | None = Field(
        default=None,
        pattern=r"^[^-\s:][^\s:]*(:[0-9]{1,5})?$",
        description=(
            "Name or address by which more_hosts reach `host`, with a port of it (`ADDRESS:PORT`) where "
            "29500 is"
            " taken. Default: `host`, which must not be an alias of `~/.ssh/config` then."
        ),
    )
    max_retries: Retries = 2

    @property
    def target(self) -> dict[str, Any]:
        """The machine that plans run on; how it is reached from here is no part of a plan."""
        return {"kind": self.kind, "host": self.host}

    @field_validator("more_hosts")
    @classmethod
    def _share_processes(cls, hosts: list[str], info: ValidationInfo) -> list[str]:
        processes, num_hosts = info.data.get("processes", 1), len(hosts) + 1
        if len({*hosts, info.data.get("host")}) < num_hosts:
            raise ValueError("names a machine twice, or `host` again")
        if hosts and processes % num_hosts:
            raise ValueError(
                f"launcher.processes ({processes}) must be a multiple of the {num_hosts} machines, as each"
                " starts as many"
            )
        return hosts

    @property
    def pool(self) -> str:
        """One pool for each machine."""
        return f"ssh/{self.host}"
