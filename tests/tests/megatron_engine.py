"""Megatron's own engine and coordinator, unedited, on a CPU, for another client than Megatron's to drive.

usage: megatron_engine.py MODEL_DIRECTORY

Says `address tcp://...` when it can be asked, and ends when told a line. One rank; `goldens/generate` must be on the
path: its shims stand in for the GPU (see legacy_shim.py there).
"""

import asyncio
import os
import sys

import legacy_shim
import torch


async def serve(engine):
    """Listens until standard input says something."""
    from megatron.core.inference.engines.dynamic_engine import EngineState
    from megatron.core.inference.inference_client import InferenceClient

    address = await engine.start_listening_to_data_parallel_coordinator(
        hostname="127.0.0.1", launch_inference_coordinator=True
    )
    print("address", address, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    client = InferenceClient(address)
    client.start()
    client.pause_engines()
    await engine.wait_until(EngineState.PAUSED)
    client.stop_engines()
    await engine.wait_until(EngineState.STOPPED)
    client.shutdown_coordinator()
    client.stop()


def main():
    """One rank of gloo, one model, one engine."""
    torch.set_num_threads(1)
    legacy_shim.install_torch()
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "0"), ("RANK", "0"), ("WORLD_SIZE", "1")):
        os.environ[name] = value
    torch.distributed.init_process_group("gloo")
    from megatron.core import parallel_state

    legacy_shim.install_megatron()
    from legacy_model import Layout, build
    from legacy_worker import Tokenizer, dynamic_engine

    parallel_state.initialize_model_parallel()
    job = {
        "directory": sys.argv[1],
        "max_sequence_length": 512,
        "buffer_size_gb": 0.1,
        "block_size": 64,
        "options": {},
    }
    model, megatron_config, config = build(job["directory"], Layout(), job["max_sequence_length"])
    tokenizer = Tokenizer(job["directory"], config["vocab_size"], -1)
    asyncio.run(serve(dynamic_engine(model, job, tokenizer, megatron_config)))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
