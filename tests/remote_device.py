"""An accelerator of another name, registered in this process when it is imported: its tensors are on a device
`lazy`, a kind that torch has a name and no kernels for, and are computed on the host. Any call of
`torch.cuda` from the package fails.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import safetensors.torch
import torch
from torch.utils._pytree import tree_map

NAME = "lazy"


class _Module:
    """What torch asks of a module of a kind of device."""

    is_available = is_initialized = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    _is_in_bad_fork = staticmethod(lambda: False)
    manual_seed_all = staticmethod(lambda seed: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])
    is_bf16_supported = staticmethod(lambda: False)
    # It draws from the host's generator.
    get_rng_state = staticmethod(lambda device=None: torch.zeros(1, dtype=torch.uint8))
    set_rng_state = staticmethod(lambda state, device=None: None)


class _Event:
    """All is computed at once."""

    def __init__(self, device: torch.device):
        assert device.type == NAME

    record = synchronize = lambda self: None


class Remote(torch.Tensor):
    """A tensor of the device; `host` has its values."""

    host: torch.Tensor

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> Remote:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=NAME,
        )
        made.host = host
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.host.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Any, args: Any, kwargs: Any) -> Any:
    """Return what an operation makes of the values on the host, on the device that was asked for."""
    asked = kwargs.get("device")
    to_host = asked is not None and torch.device(asked).type == "cpu"
    results = func(*tree_map(_host, args), **tree_map(_host, kwargs))
    written = [
        args[number] if number < len(args) else kwargs.get(argument.name)
        for number, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return (
        written[0]
        if written and len(func._schema.returns) == 1
        else results
        if to_host
        else tree_map(_remote, results)
    )


def _host(value: Any) -> Any:
    return (
        value.host
        if isinstance(value, Remote)
        else torch.device("cpu")
        if isinstance(value, torch.device) and value.type == NAME
        else value
    )


def _remote(value: Any) -> Any:
    return Remote(value) if type(value) is torch.Tensor else value


torch.lazy = _Module()
torch.Event = _Event
# It has no other precision than that of its tensors.
_autocast, _is_enabled = torch.autocast, torch.is_autocast_enabled
torch.autocast = lambda kind, **options: nullcontext() if kind == NAME else _autocast(kind, **options)
torch.is_autocast_enabled = lambda kind="cpu": kind != NAME and _is_enabled(kind)
_flat, _shared = safetensors.torch._flatten_as_ptr, safetensors.torch._remove_duplicate_names
safetensors.torch._remove_duplicate_names = lambda tensors, **more: _shared(tree_map(_host, tensors), **more)
safetensors.torch._flatten_as_ptr = lambda tensors, keep: _flat(tree_map(_host, tensors), keep)
torch.Tensor.pin_memory = lambda tensor: tensor
_LIBRARY = torch.library.Library("_", "IMPL")
_LIBRARY.fallback(lambda func, *args, **kwargs: computed(func, args, kwargs), "Lazy")
for name, answer in {
    "current_accelerator": lambda check_available=False: torch.device(NAME),
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "current_device_index": lambda: 0,
    "synchronize": lambda: None,
}.items():
    setattr(torch.accelerator, name, answer)
sys.modules["torch.optim.optimizer"]._get_fused_kernels_supported_devices = lambda: ["cpu", NAME]


def _refused(call: Callable[..., Any]) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1).f_globals["__name__"]
        assert not caller.startswith("fullft_assets"), f"{caller} calls torch.cuda.{call.__name__}"
        return call(*args, **kwargs)

    return refuse


for name, member in list(vars(torch.cuda).items()):
    if callable(member) and not isinstance(member, type):
        setattr(torch.cuda, name, _refused(member))
