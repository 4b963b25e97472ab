"""A CUDA device that is none: its tensors are computed on the CPU and claim to be on a GPU.

It runs the code that a GPU would run, in its branches and its precision, and it finds what a GPU
would complain of or wait for: operations on tensors of two devices, a generator of the other
device, an index on the CPU, and every point at which the host waits for the device.

To C++ such a tensor is on the meta device, so whatever torch makes of it is there too; to Python it
is on cuda:0. Attention is computed by its plain formula, and autocast is emulated for the functions
that this package calls. What only a real GPU shows (its kernels, their precision, memory, time) is
not shown here.
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from alice_nnunet.model.encoders.windows import pack_grid

CUDA = torch.device("cuda", 0)
META = torch.device("meta")
CPU = torch.device("cpu")
REPOSITORY = f"{Path(__file__).parents[2]}/"
aten = torch.ops.aten

# Autocast Op Reference in PyTorch's documentation, as far as this package calls it
TO_LOWER = {
    *(F.linear, F.conv3d, F.conv_transpose3d, F.scaled_dot_product_attention),
    *(torch.matmul, torch.mm, torch.bmm, torch.einsum, Tensor.matmul, Tensor.__matmul__),
    *(torch.conv3d, torch.conv_transpose3d, Tensor.__rmatmul__),
}
TO_FLOAT32 = {
    *(F.layer_norm, torch.layer_norm, F.group_norm, F.softmax, F.log_softmax, F.cross_entropy),
    *(Tensor.softmax, Tensor.log_softmax, torch.softmax, Tensor.exp, Tensor.log, Tensor.pow),
    *(Tensor.rsqrt, Tensor.norm, Tensor.sum, Tensor.prod, Tensor.cumsum, torch.cdist),
    *(F.cosine_similarity, F.mse_loss, torch.norm, torch.sum, Tensor.__pow__),
}

WITHOUT_CONTENT = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty}

# The host waits for the result of these, or for its size.
WAITS = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten.unique_consecutive,
    aten.unique_dim,
    aten._unique2,
    aten.bincount,
    aten.equal,
    aten._linalg_check_errors,
}


class OnCuda(Tensor):
    """A tensor of the pretended device around one of the CPU."""

    inner: Tensor
    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor):
        outer = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=META,
        )
        outer.inner = inner
        return outer

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self, **_) -> str:
        return f"OnCuda({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, operation, types, arguments=(), keywords=None):
        raise RuntimeError("a tensor of the pretended device is used outside of it")


class CudaGenerator(torch.Generator):
    """torch.Generator that takes the pretended device, too."""

    device = property(lambda self: CUDA)  # type: ignore[assignment]

    def __new__(cls, device="cpu"):
        pretended = torch.device(device).type == "cuda"
        return super().__new__(cls) if pretended else torch._C.Generator(device)

    def __init__(self, device="cpu"):
        super().__init__()


class Operations(TorchDispatchMode):
    """Compute operations on the CPU, and hold them to the rules of a GPU.

    Attributes:
        counts: how often each operation ran on the device.
        launches: how many of them compute or move something, where a GPU starts a kernel: all but
            views of a tensor, and new tensors without content.
        attentions: calls of F.scaled_dot_product_attention.
        waits: where the host waited for the device, "file:line operation".
    """

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.launches = 0
        self.attentions = 0
        self.waits: list[str] = []

    def reset(self) -> None:
        """Count from 0 again."""
        self.counts.clear()
        self.launches = 0
        self.attentions = 0
        self.waits.clear()

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        keywords = dict(keywords or {})
        leaves = [x for x in tree_leaves((arguments, keywords)) if isinstance(x, Tensor)]
        ours = [x for x in leaves if isinstance(x, OnCuda)]
        others = [x for x in leaves if not isinstance(x, OnCuda)]
        target = keywords.get("device")
        on_device = bool(ours) if target is None else target.type == "meta"

        if not ours and not on_device:
            return operation(*arguments, **keywords)

        packet = operation.overloadpacket
        self.counts[str(packet)] += 1
        self.launches += not (is_view(operation) or packet in WITHOUT_CONTENT)
        self.check_devices(operation, packet, arguments, ours, others)
        self.note_wait(operation, packet, arguments, keywords, bool(ours), on_device)

        if target is not None:
            keywords["device"] = CPU
        result = operation(*tree_map(unwrapped, arguments), **tree_map(unwrapped, keywords))
        if packet in (aten._local_scalar_dense, aten.equal) or not on_device:
            return result
        return self.rewrapped(operation, result, arguments, keywords)

    def rewrapped(self, operation, result, arguments, keywords):
        """The result on the device; what was changed in place is the tensor that it was."""
        if result is None:
            return None

        known = {id(x.inner): x for x in tree_leaves((arguments, keywords)) if type(x) is OnCuda}

        def wrap(leaf):
            if not isinstance(leaf, Tensor):
                return leaf
            return known[id(leaf)] if id(leaf) in known else OnCuda(leaf)

        return tree_map(wrap, result)

    def check_devices(self, operation, packet, arguments, ours, others) -> None:
        if packet in (aten._to_copy, aten.copy_, aten.lift_fresh):
            return
        indices = packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
        if ours and [x for x in others if x.dim() > 0 or indices]:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"cuda:0 and cpu, in {operation}"
            )

    def note_wait(self, operation, packet, arguments, keywords, ours, on_device) -> None:
        waits = packet in WAITS
        if packet is aten._to_copy and ours != on_device:
            waits = not keywords.get("non_blocking", False)
        if packet is aten.copy_:
            crossing = isinstance(arguments[0], OnCuda) != isinstance(arguments[1], OnCuda)
            waits = crossing and not (len(arguments) > 2 and arguments[2])
        if packet is aten.index or (packet is aten.index_put_ and arguments[2].dim() > 0):
            waits = any(x is not None and x.dtype == torch.bool for x in arguments[1])
        if packet is aten.repeat_interleave:
            waits = keywords.get("output_size") is None

        if waits:
            self.waits.append(f"{place_in_package()} {packet}")


class Calls(TorchFunctionMode):
    """Turn cuda into the meta device in arguments, and emulate CUDA's autocast.

    Args:
        operations: where calls of attention are counted.
    """

    def __init__(self, operations: Operations):
        super().__init__()
        self.operations = operations

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = dict(keywords or {})

        check_generator(function, arguments, keywords)
        if function is F.scaled_dot_product_attention:
            self.operations.attentions += 1
        if function in (torch.tensor, torch.as_tensor) and is_cuda(keywords.get("device")):
            keywords["device"] = CPU
            made = function(*arguments, **keywords)
            return made.to(META)
        if function is Tensor.new_tensor and isinstance(arguments[0], OnCuda):
            keywords.setdefault("dtype", arguments[0].dtype)
            return torch.tensor(*arguments[1:], **keywords).to(META)
        if function is Tensor.cuda:
            return arguments[0].to(META, non_blocking=keywords.get("non_blocking", False))

        keywords = {
            name: META if name == "device" and is_cuda(value) else value
            for name, value in keywords.items()
        }
        if function is Tensor.to:
            arguments = tuple(META if is_cuda(value) else value for value in arguments)

        if torch.is_autocast_enabled("cuda"):
            if function in TO_LOWER:
                lower = torch.get_autocast_dtype("cuda")
                arguments, keywords = cast((arguments, keywords), lower)
            elif function in TO_FLOAT32:
                arguments, keywords = cast((arguments, keywords), torch.float32)
        return function(*arguments, **keywords)


def check_generator(function, arguments, keywords) -> None:
    """Raise RuntimeError if a function draws numbers for one device on the other."""
    generator = keywords.get("generator")
    if generator is None:
        return

    ours = any(isinstance(x, OnCuda) for x in tree_leaves(arguments))
    if isinstance(generator, CudaGenerator) != (ours or is_cuda(keywords.get("device"))):
        raise RuntimeError(
            f"Expected a generator of the tensor's own device, got {generator.device} in {function}"
        )


def is_view(operation) -> bool:
    """Whether the result of an operation is another view of the same memory."""
    aliases = (argument.alias_info for argument in operation._schema.arguments)
    return any(alias is not None and not alias.is_write for alias in aliases)


def unwrapped(leaf):
    return leaf.inner if isinstance(leaf, OnCuda) else leaf


def is_cuda(value) -> bool:
    """Whether a value names the CUDA device."""
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, str) and value.split(":")[0] == "cuda"


def cast(tree: tuple, dtype: torch.dtype) -> tuple:
    """Convert the device's floating-point tensors (but float64) in a tree of arguments."""

    def cast_leaf(leaf):
        if not isinstance(leaf, OnCuda) or not leaf.is_floating_point():
            return leaf
        return leaf if leaf.dtype == torch.float64 else leaf.to(dtype)

    return tree_map(cast_leaf, tree)


def place_in_package() -> str:
    """The innermost line of this package's own code that is being run."""
    frame: FrameType | None = sys._getframe()
    while frame:
        path = frame.f_code.co_filename
        if path.startswith(REPOSITORY) and path != __file__ and ".venv" not in path:
            return f"{path.removeprefix(REPOSITORY)}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


@contextlib.contextmanager
def pretended_cuda(monkeypatch) -> Iterator[Operations]:
    """Inside, torch.device("cuda") is the pretended device. Only for one thread."""
    monkeypatch.setattr(torch, "Generator", CudaGenerator)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: 0)
    graphs = "_accelerator_graph_capture_health_check"  # asks the driver; not in every torch
    monkeypatch.setattr(torch.optim.Optimizer, graphs, lambda self: None, raising=False)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)

    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    operations = Operations()
    calls = Calls(operations)
    run_backward = torch.autograd._engine_run_backward

    def run_backward_inside(*arguments, **keywords):
        with calls:  # which torch leaves for backward, but its Python code needs
            return run_backward(*arguments, **keywords)

    monkeypatch.setattr(torch.autograd, "_engine_run_backward", run_backward_inside)
    pack_grid.cache_clear()
    try:
        with calls, operations:
            yield operations
    finally:
        pack_grid.cache_clear()
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
