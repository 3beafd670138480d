"""Lets the unedited megatron-core package run on a machine without a GPU.

What stands in for what:
  * every torch.cuda call that the engines make means "the CPU": device, streams, events, memory queries, pinning;
  * gloo stands in for NCCL (split sizes become plain lists, CUDA-only asserts on pipeline tensors are dropped);
  * the two flash-attention entry points of the dynamic engine (paged prefill, paged decode) are short torch functions,
    and the Triton append to the KV cache is absent, which selects the package's own torch fallback.
Scheduling, batching, paging, parallel layers, communication pattern and log-probabilities are megatron-core's own code.

Call `install_torch()` before megatron is imported and `install_megatron()` after the process group exists.
"""

import collections
import contextlib
import copy

import torch
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")
PRETENDED_MEMORY = 8 << 30


class Event:
    """A CUDA event on a device where everything has already happened."""

    def __init__(self, *args, **kwargs):
        pass

    def record(self, *args):
        """Nothing to record."""

    wait = synchronize = record

    def query(self):
        """Always complete."""
        return True

    def elapsed_time(self, _other):
        """No device time passes."""
        return 0.0


class Stream:
    """A CUDA stream on a device with one implicit stream."""

    cuda_stream = 0

    def __init__(self, *args, **kwargs):
        pass

    def wait_stream(self, *args):
        """Nothing to wait for."""

    wait_event = synchronize = wait_stream

    def record_event(self, *args):
        """An event that is already complete."""
        return Event()


class DeviceProperties:
    """What the engine asks a device about itself."""

    total_memory, name, multi_processor_count, major, minor = PRETENDED_MEMORY, "cpu", 1, 8, 0


class CudaMeansCpu(TorchFunctionMode):
    """Turns device="cuda" literals and pin_memory arguments into their CPU meaning."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if "cuda" in str(kwargs.get("device", "")):
            kwargs["device"] = CPU
        kwargs.pop("pin_memory", None)
        args = tuple(CPU if isinstance(a, torch.device) and a.type == "cuda" else a for a in args)
        return function(*args, **kwargs)


def _always(value):
    """A new function that ignores its arguments (torch.compile keeps a table that wants distinct objects)."""
    return lambda *args, **kwargs: value


def install_torch():
    """Replace the torch.cuda surface that megatron-core touches."""
    cuda = torch.cuda
    for name in ("set_device", "synchronize", "empty_cache"):
        setattr(cuda, name, _always(None))
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated"):
        setattr(cuda, name, _always(0))
    cuda.current_device = _always(CPU)
    cuda.Event, cuda.Stream = Event, Stream
    cuda.current_stream, cuda.default_stream = _always(Stream()), _always(Stream())
    cuda.stream = lambda *a, **k: contextlib.nullcontext()
    cuda.memory_stats = lambda *a, **k: collections.defaultdict(int)
    cuda.mem_get_info = _always((PRETENDED_MEMORY, PRETENDED_MEMORY))
    cuda.is_current_stream_capturing = _always(False)
    cuda.get_device_properties = _always(DeviceProperties)
    cuda.get_device_capability = _always((8, 0))
    torch.Tensor.pin_memory = lambda self, *a, **k: self
    torch.Tensor.cuda = lambda self, *a, **k: self
    torch.Tensor.is_pinned = lambda self, *a, **k: False
    torch.nn.Module.cuda = lambda self, *a, **k: self
    CudaMeansCpu().__enter__()


def _install_gloo_all_to_all():
    """gloo wants split sizes as lists of int; megatron keeps them as tensors on the CPU."""
    original = torch.distributed.all_to_all_single

    def as_list(sizes):
        return sizes if sizes is None or isinstance(sizes, list) else [int(size) for size in sizes]

    def all_to_all_single(output, source, output_split_sizes=None, input_split_sizes=None, **kwargs):
        return original(
            output,
            source,
            output_split_sizes=as_list(output_split_sizes),
            input_split_sizes=as_list(input_split_sizes),
            **kwargs,
        )

    torch.distributed.all_to_all_single = all_to_all_single


def _install_random_tracker():
    """No dropout anywhere, so forking the CUDA random state is doing nothing."""
    from megatron.core.tensor_parallel import random as megatron_random

    class NullTracker(megatron_random.CudaRNGStatesTracker):
        """A tracker whose fork is empty."""

        @contextlib.contextmanager
        def fork(self, name=None):
            """Run the body unchanged."""
            yield

    megatron_random._CUDA_RNG_STATE_TRACKER = NullTracker()
    megatron_random._CUDA_RNG_STATE_TRACKER_INITIALIZED = True


def _install_norm():
    """The local norm asserts against sequence parallelism, which the engine itself turns off outside MoE layers."""
    from megatron.core.transformer import torch_norm

    original = torch_norm.WrappedTorchNorm.__new__

    def new(cls, config, hidden_size, eps=1e-5, **kwargs):
        config = copy.copy(config)
        config.sequence_parallel = False
        return original(cls, config, hidden_size, eps, **kwargs)

    torch_norm.WrappedTorchNorm.__new__ = new


def _attend(query, key, value, scale):
    """Causal attention of n queries over m keys in f32; the last query sees the last key.

    query [n, heads, d]; key and value [m, kv heads, d].
    """
    queries, heads, _ = query.shape
    keys, group = key.shape[0], heads // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = torch.einsum("nhd,mhd->hnm", query.float(), key.float()) * scale
    last_visible = torch.arange(queries)[:, None] + (keys - queries)
    scores = scores.masked_fill(torch.arange(keys)[None] > last_visible, float("-inf"))
    return torch.einsum("hnm,mhd->nhd", scores.softmax(-1), value.float()).to(query.dtype)


def _gather_blocks(cache, table, length):
    """The first `length` cached rows of one request, from its block table."""
    blocks = table[: -(-length // cache.shape[1])].long()
    return cache[blocks].flatten(0, 1)[:length]


def _paged_prefill(q, k, v, cu_q, cu_k, max_q, max_k, softmax_scale=None, block_table=None, **_):
    """Stands in for flash_attn_varlen_func over paged K and V."""
    out = torch.zeros_like(q)
    for row in range(len(cu_q) - 1):
        first, end, length = int(cu_q[row]), int(cu_q[row + 1]), int(cu_k[row + 1] - cu_k[row])
        if end > first and length > 0:
            keys, values = (_gather_blocks(cache, block_table[row], length) for cache in (k, v))
            out[first:end] = _attend(q[first:end], keys, values, softmax_scale)
    return out


def _paged_decode(q, k_cache, v_cache, cache_seqlens=None, softmax_scale=None, block_table=None, **_):
    """Stands in for flash_attn_with_kvcache."""
    out = torch.zeros_like(q)
    for row in range(q.shape[0]):
        length = int(cache_seqlens[row])
        if length > 0:
            keys, values = (_gather_blocks(cache, block_table[row], length) for cache in (k_cache, v_cache))
            out[row] = _attend(q[row], keys, values, softmax_scale)
    return out


def install_megatron():
    """Apply the stand-ins that live inside megatron-core's modules. The process group must exist."""
    import megatron.core.inference.communication_utils as communication
    import megatron.core.inference.contexts.dynamic_context as dynamic_context
    import megatron.core.transformer.attention as attention

    _install_gloo_all_to_all()
    _install_random_tracker()
    _install_norm()
    communication._is_cuda = communication._is_cuda_contiguous = lambda tensor: None
    attention.flash_attn_varlen_func, attention.flash_attn_with_kvcache = _paged_prefill, _paged_decode
    attention.is_fa_min_version = lambda *a, **k: True
    dynamic_context.triton_append_key_value_cache = None
