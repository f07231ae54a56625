"""Real-ESRGAN's two networks, from the `realesrgan` and `basicsr` distributions themselves.

Only the modules of the architectures are imported, past the packages' own `__init__`: those import
training code, a part of torchvision that is gone, and compiled operators. Which network a file is
of follows from its tensors.
"""

import contextlib
import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

_PACKAGES = ("basicsr", "basicsr.utils", "basicsr.archs", "realesrgan", "realesrgan.archs")


def network_of(state: Mapping[str, torch.Tensor]) -> tuple[nn.Module, int]:
    """Returns the network that a state dict is of, with it loaded, in float32; and the factor by
    which it enlarges.

    It maps (n, 3, h, w) R'G'B' of 0 to 1 to (n, 3, h·factor, w·factor), about 0 to 1.

    Raises:
        ValueError: it is of no network known here.
    """
    if "conv_first.weight" in state:
        module, factor = _dense(state)
    elif "body.0.weight" in state:
        module, factor = _compact(state)
    else:
        raise ValueError("neither SRVGGNetCompact nor RRDBNet")
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return module.eval().requires_grad_(False), factor


def _compact(state: Mapping[str, torch.Tensor]) -> tuple[nn.Module, int]:
    convolutions = sorted(
        int(name.split(".")[1])
        for name, tensor in state.items()
        if name.endswith(".weight") and tensor.dim() == 4
    )
    last = state[f"body.{convolutions[-1]}.weight"]
    factor = round((last.shape[0] / 3) ** 0.5)
    return compact_class()(
        num_feat=last.shape[1], num_conv=len(convolutions) - 2, upscale=factor, act_type="prelu"
    ), factor


def _dense(state: Mapping[str, torch.Tensor]) -> tuple[nn.Module, int]:
    first = state["conv_first.weight"]
    factor = {3: 4, 12: 2, 48: 1}.get(first.shape[1], 0)
    if not factor:
        raise ValueError(f"an RRDBNet with {first.shape[1]} input channels")
    blocks = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("body."))
    growth = state["body.0.rdb1.conv1.weight"].shape[0]
    return dense_class()(
        3, 3, scale=factor, num_feat=first.shape[0], num_block=blocks, num_grow_ch=growth
    ), factor


@functools.cache
def compact_class() -> type[nn.Module]:
    """`SRVGGNetCompact`, the small one."""
    with bare_packages():
        return _class("realesrgan.archs.srvgg_arch", "SRVGGNetCompact")


@functools.cache
def dense_class() -> type[nn.Module]:
    """`RRDBNet`, the large one."""
    with bare_packages():
        return _class("basicsr.archs.rrdbnet_arch", "RRDBNet")


def _class(module: str, name: str) -> type[nn.Module]:
    found: type[nn.Module] = getattr(importlib.import_module(module), name)
    return found


@contextlib.contextmanager
def bare_packages() -> Iterator[None]:
    """Lets modules of the two packages be imported without their `__init__`s; afterwards no trace
    of that is left.
    """
    before = _taken_out()
    for name in _PACKAGES:
        root, *rest = name.split(".")
        package = types.ModuleType(name)
        package.__path__ = [
            str(Path(sys.modules[root].__path__[0], *rest) if rest else _folder(root))
        ]
        sys.modules[name] = package
    sys.modules["basicsr.archs.arch_util"] = _arch_util()
    try:
        yield
    finally:
        _taken_out()
        sys.modules.update(before)


def _taken_out() -> dict[str, types.ModuleType]:
    """Removes the two packages' modules from those that are imported, and returns them."""
    names = [name for name in sys.modules if name.split(".")[0] in ("basicsr", "realesrgan")]
    return {name: sys.modules.pop(name) for name in names}


def _folder(distribution: str) -> Path:
    spec = importlib.util.find_spec(distribution)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"the distribution {distribution} is not installed: pip install --no-deps "
            f"{distribution}"
        )
    return Path(spec.submodule_search_locations[0])


def _arch_util() -> types.ModuleType:
    """Stands for the three functions of `basicsr.archs.arch_util` that RRDBNet needs; that module
    itself wants torchvision.
    """
    module: Any = types.ModuleType("basicsr.archs.arch_util")
    module.make_layer = lambda block, count, **how: nn.Sequential(
        *(block(**how) for _ in range(count))
    )
    module.pixel_unshuffle = lambda x, scale: nn.functional.pixel_unshuffle(x, scale)
    # Weights are loaded right afterwards.
    module.default_init_weights = lambda *_: None
    return module  # type: ignore[no-any-return]
