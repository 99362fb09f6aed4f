"""The options of `colony worker` about containers and about Slurm, each as one value."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click


@dataclass(frozen=True)
class ContainerOptions:
    """What the owner of a worker says about its containers."""

    container: tuple[str, ...]
    engine: str | None
    container_network: bool
    container_user: str | None
    image_allow: tuple[str, ...]
    mount_at: tuple[str, ...]
    gpus: int
    pull: str


@dataclass(frozen=True)
class SlurmOptions:
    """What the owner of a worker says about its batch jobs."""

    slurm: bool
    slurm_partition: str | None
    slurm_account: str | None
    slurm_qos: str | None
    slurm_option: tuple[str, ...]
    slurm_spool: Path | None


_CONTAINERS = (
    click.option(
        "--container",
        multiple=True,
        metavar="NAME='IMAGE WORDS'",
        help="Function that runs in a container; repeat. IMAGE * is the spec's.",
    ),
    click.option(
        "--engine",
        type=click.Choice(["podman", "docker", "nspawn"]),
        default=None,
        help="[the first that is installed]",
    ),
    click.option("--container-network", is_flag=True, help="Containers reach the network."),
    click.option(
        "--container-user",
        metavar="UID[:GID]",
        default=None,
        help="[the worker's; nobody for root]",
    ),
    click.option(
        "--image-allow",
        multiple=True,
        metavar="PATTERN",
        help="Images that a spec may name where IMAGE is *; no * matches a slash. Repeat.",
    ),
    click.option(
        "--mount-at",
        multiple=True,
        metavar="PATH",
        help="Directory of containers where a spec may mount files [/cfs]; repeat.",
    ),
    click.option(
        "--gpus", type=click.IntRange(0, 64), default=0, help="GPUs that a container may have [0]."
    ),
    click.option(
        "--pull",
        type=click.Choice(["never", "missing", "always"]),
        default="missing",
        show_default=True,
        help="When to fetch images.",
    ),
)


_SLURM = (
    click.option("--slurm", is_flag=True, help="Run each command as a batch job of Slurm."),
    click.option("--slurm-partition", default=None, metavar="NAME", help="Partition of all jobs."),
    click.option("--slurm-account", default=None, metavar="NAME", help="Account of all jobs."),
    click.option(
        "--slurm-qos", default=None, metavar="NAME", help="Quality of service of all jobs."
    ),
    click.option(
        "--slurm-option",
        multiple=True,
        metavar="--NAME=VALUE",
        help="Option of sbatch for all jobs; repeat. Conditions of a process override it.",
    ),
    click.option(
        "--slurm-spool",
        type=click.Path(path_type=Path),
        default=None,
        metavar="DIR",
        help="Directory for the jobs' files, which all nodes see [below --state].",
    ),
)


def container_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options about containers, as its parameter `containers`."""
    return _as_one(function, _CONTAINERS, "containers", ContainerOptions)


def slurm_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options about Slurm, as its parameter `slurm`."""
    return _as_one(function, _SLURM, "slurm", SlurmOptions)


def _as_one(
    function: Callable[..., Any],
    options: tuple[Callable[..., Any], ...],
    parameter: str,
    kind: type[ContainerOptions] | type[SlurmOptions],
) -> Callable[..., Any]:
    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        own = kind(**{each.name: kwargs.pop(each.name) for each in fields(kind)})
        return function(*args, **{parameter: own}, **kwargs)

    for option in reversed(options):
        called = option(called)
    return called
