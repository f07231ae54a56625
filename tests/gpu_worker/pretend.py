"""A pretend accelerator: the CPU computes, under the rules of a device of its own.

torch lets Python stand in for a device (its "PrivateUse1"). A tensor on it wraps one of the CPU.
Mixing both in an operation raises, as on a GPU. What is copied and what would make the host wait is
counted. Copies that the host does not wait for arrive late: until somebody waits, the host reads
garbage. Memory can be made to run out.
"""

import functools
import threading
import weakref
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

from gpu_worker.host.accelerator import Accelerator

NAME = "pretend"
#: What the host reads of a copy that has not arrived.
GARBAGE = 0xA5
#: Operations whose result the host needs, so that it waits for the device.
WAITED_FOR = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::is_nonzero",
    "aten::equal",
    "aten::nonzero",
    "aten::masked_select",
    "aten::unique_dim",
    "aten::_unique2",
    "aten::allclose",
}


@dataclass
class State:
    """The one pretend device of the process.

    Attributes:
        counts: `syncs`, `uploads`, `uploaded_bytes`, `downloads`, `waits` (for an event),
            `operations`.
        limit: of the bytes that tensors take; None for no limit.
        dead: all operations fail.
    """

    device: torch.device | None = None
    accelerator: Accelerator | None = None
    counts: Counter = field(default_factory=Counter)
    limit: int | None = None
    dead: bool = False
    used: int = 0
    peak: int = 0
    landing: list = field(default_factory=list)
    departing: list = field(default_factory=list)
    pinned: set = field(default_factory=set)
    blocks: weakref.WeakValueDictionary = field(default_factory=weakref.WeakValueDictionary)
    threads: set = field(default_factory=set)

    def reset(self):
        """Begins anew; tensors that live are still counted."""
        self.counts.clear()
        self.threads.clear()
        self.landing.clear()
        self.departing.clear()
        self.limit, self.dead, self.peak = None, False, self.used

    def synchronize(self):
        """Lets all copies arrive."""
        with torch.inference_mode():
            for host, content in self.landing:
                host.copy_(content)
        self.landing.clear()
        for host, before in self.departing:
            assert torch.equal(host, before), "the host changed what was being copied"
        self.departing.clear()

    def block(self, host):
        """Returns the memory behind a tensor of the device; raises where there is none left."""
        place = host.untyped_storage().data_ptr()
        found = self.blocks.get(place)
        if found is None:
            found = Block(self, host.untyped_storage().nbytes())
            self.blocks[place] = found
        return found


class Block:
    """Some bytes of the device, free again when nobody holds them."""

    def __init__(self, state, size):
        if state.limit is not None and state.used + size > state.limit:
            self.size = 0
            raise torch.OutOfMemoryError("pretend: out of memory")
        self.state, self.size = state, size
        state.used += size
        state.peak = max(state.peak, state.used)

    def __del__(self):
        if self.size:
            self.state.used -= self.size


STATE = State()


@functools.cache
def pretend_device():
    """Returns the device; torch takes one such backend a process."""
    backend_registration._setup_privateuseone_for_python_backend(NAME)
    library = torch.library.Library("aten", "IMPL")
    library.impl("empty.memory_format", _empty, "PrivateUse1")
    library.impl("empty_strided", _empty_strided, "PrivateUse1")
    # Else `Module.to` changes what torch holds of a parameter, and not the tensor behind it.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    # A library that is collected takes its functions along.
    pretend_device.library = library
    return torch.device(NAME, 0)


def _empty(size, *, dtype=None, memory_format=None, **_):
    return OnDevice(torch.empty(size, dtype=dtype, memory_format=memory_format))


def _empty_strided(size, stride, *, dtype=None, **_):
    return OnDevice(torch.empty_strided(size, stride, dtype=dtype))


class OnDevice(torch.Tensor):
    """A tensor on the pretend device."""

    @staticmethod
    def __new__(cls, host):
        block = STATE.block(host)
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            host.shape,
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=pretend_device(),
        )
        tensor.host, tensor.block = host, block
        return tensor

    def __repr__(self):
        return f"OnDevice({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if STATE.dead:
            raise RuntimeError("pretend: unspecified launch failure")
        kwargs = dict(kwargs or {})
        name = func._schema.name
        if name == "aten::_has_compatible_shallow_copy_type":
            return False
        STATE.counts["operations"] += 1
        STATE.threads.add(threading.get_ident())
        if name in WAITED_FOR:
            STATE.counts["syncs"] += 1
            STATE.synchronize()
        if name == "aten::copy_":
            return _copied(*args, **kwargs)
        device, args = _device_of(args, kwargs)
        if name in ("aten::to", "aten::_to_copy") and torch.device(device or NAME).type == "cpu":
            return _downloaded(args[0], kwargs)
        _refuse_mixed(name, (args, kwargs))
        _refuse_masks(name, args)
        made = func(*tree_map(_host, args), **tree_map(_host, kwargs))
        if func._schema.is_mutable:
            # The tensor that was changed comes back.
            return kwargs["out"] if "out" in kwargs else args[0]
        return tree_map(lambda x: OnDevice(x) if isinstance(x, torch.Tensor) else x, made)


def _device_of(args, kwargs):
    """Returns the device that an operation's result shall be on, and the arguments for the host."""
    named = [kwargs.pop("device", None), *(one for one in args if isinstance(one, torch.device))]
    host = tuple(torch.device("cpu") if isinstance(one, torch.device) else one for one in args)
    return next((one for one in reversed(named) if one is not None), None), host


def _host(value):
    return value.host if isinstance(value, OnDevice) else value


def _refuse_mixed(name, values):
    """Only single numbers may come from the host, as on a GPU."""
    for value in tree_leaves(values):
        if isinstance(value, torch.Tensor) and not isinstance(value, OnDevice) and value.dim() > 0:
            raise RuntimeError(f"{name}: tensors on the host and on the device")


def _refuse_masks(name, args):
    """An index of booleans has a result of a size that the host must wait for."""
    if name in ("aten::index", "aten::index_put_") and any(
        isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in tree_leaves(args)
    ):
        STATE.counts["syncs"] += 1


def _downloaded(tensor, options):
    dtype = options.get("dtype") or tensor.dtype
    made = torch.empty(tensor.shape, dtype=dtype)
    if options.get("non_blocking"):
        # torch lands such a copy in pinned memory of its own.
        STATE.pinned.add(made.untyped_storage().data_ptr())
    return _copied(made, tensor, options.get("non_blocking", False))


def _copied(to, source, non_blocking=False):
    if isinstance(to, OnDevice) and isinstance(source, OnDevice):
        to.host.copy_(source.host)
        return to
    waits = not (non_blocking and _is_pinned(source if isinstance(to, OnDevice) else to))
    # A single number travels with the operation that uses it.
    STATE.counts["uploads" if isinstance(to, OnDevice) else "downloads"] += 1
    STATE.counts["syncs"] += waits
    if isinstance(to, OnDevice):
        STATE.counts["uploaded_bytes"] += source.numel() * source.element_size()
    if isinstance(to, OnDevice):
        to.host.copy_(source)
        if not waits:
            STATE.departing.append((source, source.clone()))
    elif waits:
        STATE.synchronize()
        to.copy_(source.host)
    else:
        STATE.landing.append((to, source.host.clone()))
        to.view(torch.uint8).fill_(GARBAGE)
    return to


def _is_pinned(tensor):
    return tensor.untyped_storage().data_ptr() in STATE.pinned


class _Event:
    def synchronize(self):
        STATE.counts["waits"] += 1
        STATE.synchronize()


class PretendAccelerator(Accelerator):
    """What torch's own functions refuse a backend in Python: pinning, events, memory."""

    def pinned(self, count):
        made = torch.empty(count, dtype=torch.uint8)
        place = made.untyped_storage().data_ptr()
        STATE.pinned.add(place)
        weakref.finalize(made, STATE.pinned.discard, place)
        return made

    def record(self):
        return _Event()

    def synchronize(self):
        STATE.counts["syncs"] += 1
        STATE.synchronize()

    def free_bytes(self):
        return (STATE.limit or 1 << 40) - STATE.used

    def peak_bytes(self, work):
        before = STATE.peak = STATE.used
        work()
        return STATE.peak - before

    def recorded(self, work):
        made = work()
        return lambda: made.copy_(work()), made

    def release(self):
        pass

    def describe(self):
        return NAME

    def name(self):
        return NAME
