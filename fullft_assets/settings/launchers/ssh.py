"""The keys of `kind: ssh`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator

from fullft_assets.settings.launchers.base import LauncherSettings, Retries


class SshLauncherSettings(LauncherSettings):
    """Keys of `kind: ssh`: a GPU machine of one's own, reached with the system's `ssh`."""

    kind: str = Field(default="ssh", description="Workloads run on another machine.")
    host: str = Field(
        pattern=r"^[^-\s]\S*$",
        description="Name or address of the machine, or a `Host` of your `~/.ssh/config`.",
    )
    user: str | None = Field(
        default=None,
        description="User there. Default: what `~/.ssh/config` says, else your own name.",
    )
    port: int | None = Field(
        default=None,
        ge=1,
        le=65_535,
        description="Port of its SSH server. Default: what `~/.ssh/config` says, else 22.",
    )
    key_file: str | None = Field(
        default=None,
        description=(
            "Private key without a passphrase: an absolute path, or one from `~`. Default: those that `ssh`"
            " finds, an agent's included."
        ),
    )
    known_hosts: str | None = Field(
        default=None,
        description=(
            "File with the machine's host key, which is always checked: an absolute path, or one from `~`."
            " Default: `~/.ssh/known_hosts`."
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
    rendezvous_address: str | None = Field(
        default=None,
        pattern=r"^[^-\s]\S*$",
        description=(
            "Name or address by which more_hosts reach `host`. Default: `host`, which must not be an alias of"
            " `~/.ssh/config` then."
        ),
    )
    rendezvous_port: int = Field(
        default=29_500,
        ge=1,
        le=65_535,
        description="Port of `host` on which the processes of more_hosts find those of `host`.",
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
