"""One rank of a legacy run; started by legacy.py through torch.distributed.run, never by hand.

usage: legacy_worker.py JOB.json

JOB.json: {directory, engine, tp, pp, ep, dtype, block_size, max_sequence_length, settings, options,
requests: [{prompt, prompt_ids}], out}.
Rank 0 writes {records, observed} to `out`, the records in the order of the requests.
"""

import asyncio
import json
import os
import sys
import time

import legacy_shim
import torch


class Tokenizer:
    """The few tokenizer methods that megatron-core's controller asks for, over a Hugging Face directory."""

    def __init__(self, directory, vocab_size, eod):
        from transformers import AutoTokenizer

        self.vocab_size, self.eod = vocab_size, eod
        self.bos = -1  # no id matches, so the controller never strips a BOS that belongs to the prompt
        self.inner = AutoTokenizer.from_pretrained(directory)

    def tokenize(self, text):
        """Ids of a text."""
        return self.inner(text).input_ids

    def detokenize(self, ids, **_):
        """Text of ids, without special tokens."""
        return self.inner.decode(ids, skip_special_tokens=True)

    def offsets(self, ids, _text):
        """Only used for segments, which nobody asks for here."""
        return [0] * len(ids)


def sampling_params(settings):
    """Greedy, with log-probabilities of prompt and generation and the two best tokens of each step."""
    from megatron.core.inference.sampling_params import SamplingParams

    params = SamplingParams(
        temperature=1.0,
        top_k=1,
        num_tokens_to_generate=settings["max_new_tokens"],
        return_log_probs=True,
        top_n_logprobs=2,
        termination_id=-1 if settings["ignore_eos"] else settings["eos_token_ids"][0],
    )
    if settings["ignore_eos"]:
        params.add_attributes({"no_early_termination": True})  # how the static engine says it
    return params


def plain(value):
    """Tensors as lists, everything else as it is."""
    return value.tolist() if isinstance(value, torch.Tensor) else value


def seconds_in_engine(request):
    """From entering the engine to the last event, by the engine's own time stamps."""
    stamps = [event.timestamp for event in request.events]
    return stamps[-1] - stamps[0] if stamps else None


def run_static(model, job, tokenizer):
    """StaticInferenceEngine with its own (legacy) loop, one request at a time."""
    from megatron.core.inference.contexts import StaticInferenceContext
    from megatron.core.inference.engines import StaticInferenceEngine
    from megatron.core.inference.inference_request import InferenceRequest, Status
    from megatron.core.inference.model_inference_wrappers.gpt.gpt_inference_wrapper import GPTInferenceWrapper
    from megatron.core.inference.text_generation_controllers.text_generation_controller import TextGenerationController

    context = StaticInferenceContext(max_batch_size=1, max_sequence_length=job["max_sequence_length"])
    controller = TextGenerationController(GPTInferenceWrapper(model, context), tokenizer)
    engine = StaticInferenceEngine(controller, max_batch_size=1, legacy=True)
    params, records = sampling_params(job["settings"]), []
    for number, request in enumerate(job["requests"]):
        asked = InferenceRequest(
            request_id=str(number),
            prompt=request["prompt"],
            prompt_tokens=request["prompt_ids"],
            sampling_params=params,
            arrival_time=time.time(),
            status=Status.ACTIVE_BUT_NOT_GENERATING_TOKENS,
        )
        started = time.time()
        (done,) = engine.generate(inference_requests=[asked])
        prompt_logprobs, generated = plain(done.prompt_log_probs) or [], plain(done.generated_log_probs) or []
        records.append(
            {
                "input_prompt": request["prompt"],
                "generated_text": done.generated_text,
                "generated_tokens": [int(t) for t in plain(done.generated_tokens)],
                "tpot": plain(done.tpot),
                "latency": time.time() - started,
                "logprobs": [*prompt_logprobs, *generated],
                "prompt_logprobs": prompt_logprobs,
                "generated_logprobs": generated,
                "generated_top_n_logprobs": done.generated_top_n_logprobs,
            }
        )
    return records


def dynamic_engine(model, job, tokenizer, megatron_config):
    """DynamicInferenceEngine over a paged KV cache, with the job's options (chunked prefill, prefix caching)."""
    from megatron.core.inference.config import InferenceConfig
    from megatron.core.inference.contexts import DynamicInferenceContext
    from megatron.core.inference.engines import DynamicInferenceEngine
    from megatron.core.inference.model_inference_wrappers.gpt.gpt_inference_wrapper import GPTInferenceWrapper
    from megatron.core.inference.text_generation_controllers.text_generation_controller import TextGenerationController

    inference_config = InferenceConfig(
        max_sequence_length=job["max_sequence_length"],
        buffer_size_gb=job["buffer_size_gb"],
        block_size_tokens=job["block_size"],
        max_requests=24,
        num_cuda_graphs=None,
        unified_memory_level=0,
        materialize_only_last_token_logits=False,
        **job["options"],
    )
    context = DynamicInferenceContext(model_config=megatron_config, inference_config=inference_config)
    controller = TextGenerationController(GPTInferenceWrapper(model, context), tokenizer)
    return DynamicInferenceEngine(controller=controller, context=context)


def merged(record):
    """The finished request of a record (an evicted one has several parts)."""
    return record.merge() if hasattr(record, "merge") else record


def run_dynamic(engine, job, observed):
    """All requests at once through `generate`: continuous batching. Notes in `observed` what shows that a feature ran."""
    finished = engine.generate([r["prompt_ids"] for r in job["requests"]], sampling_params(job["settings"]))
    finished, records = [merged(record) for record in finished], []
    observed["engine_steps"] = engine.context.step_count
    observed["prompt_tokens"] = sum(len(r["prompt_ids"]) for r in job["requests"])
    observed["prompt_tokens_from_prefix_cache"] = sum(done.num_cached_tokens for done in finished)
    for request, done in zip(job["requests"], finished, strict=True):
        prompt_logprobs, generated = plain(done.prompt_log_probs) or [], plain(done.generated_log_probs) or []
        records.append(
            {
                "input_prompt": request["prompt"],
                "generated_text": done.generated_text,
                "generated_tokens": [int(t) for t in done.generated_tokens],
                "latency": seconds_in_engine(done),
                "ttft": done.ttft,
                "cuda_graph_request_count_map": None,
                "step_count": engine.context.step_count,
                "top_n_logprobs": done.generated_top_n_logprobs,
                "prompt_top_n_logprobs": done.prompt_top_n_logprobs,
                "prompt_logprobs": prompt_logprobs,
                "generated_logprobs": generated,
                "logprobs": [*prompt_logprobs, *generated],
            }
        )
    return records


async def run_coordinator(engine, job):
    """All requests at once through InferenceClient and the ZeroMQ data-parallel coordinator, as a served deployment does."""
    from megatron.core.inference.engines.dynamic_engine import EngineState
    from megatron.core.inference.inference_client import InferenceClient

    address = await engine.start_listening_to_data_parallel_coordinator(
        hostname="127.0.0.1", launch_inference_coordinator=True
    )
    leader, finished, client = torch.distributed.get_rank() == 0, [], None
    if leader:
        client = InferenceClient(address, deserialize=True)
        client.start()
        params = sampling_params(job["settings"])
        finished = await asyncio.gather(*[client.add_request(r["prompt_ids"], params) for r in job["requests"]])
        client.pause_engines()
    await engine.wait_until(EngineState.PAUSED)
    if leader:
        client.stop_engines()
    await engine.wait_until(EngineState.STOPPED)
    if leader:
        client.shutdown_coordinator()
        client.stop()
    return [
        {
            "input_prompt": request["prompt"],
            "generated_text": done.generated_text.replace("\n", "\\n"),
            "generated_tokens": [int(t) for t in done.generated_tokens],
            "latency": done.latency,
            "logprobs": [*(plain(done.prompt_log_probs) or []), *(plain(done.generated_log_probs) or [])],
        }
        for request, done in zip(job["requests"], map(merged, finished))
    ]


def main():
    """Join the group, build this rank's model, run, and let rank 0 write."""
    job = json.load(open(sys.argv[1], encoding="utf-8"))
    torch.set_num_threads(1)
    legacy_shim.install_torch()
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29511"), ("RANK", "0"), ("WORLD_SIZE", "1")):
        os.environ.setdefault(name, value)
    torch.distributed.init_process_group("gloo")
    from megatron.core import parallel_state

    legacy_shim.install_megatron()
    from legacy_model import Layout, build

    layout = Layout(job["tp"], job["pp"], job["ep"])
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        expert_model_parallel_size=layout.ep,
        expert_tensor_parallel_size=1 if layout.ep > 1 else None,
    )
    model, megatron_config, config = build(
        job["directory"], layout, job["max_sequence_length"], getattr(torch, job.get("dtype", "float32"))
    )
    eod = -1 if job["settings"]["ignore_eos"] else job["settings"]["eos_token_ids"][0]
    tokenizer = Tokenizer(job["directory"], config["vocab_size"], eod)
    observed = {}
    if job["engine"] == "static":
        records = run_static(model, job, tokenizer)
    elif job["engine"] == "coordinator":
        records = asyncio.run(run_coordinator(dynamic_engine(model, job, tokenizer, megatron_config), job))
    else:
        records = run_dynamic(dynamic_engine(model, job, tokenizer, megatron_config), job, observed)
    if torch.distributed.get_rank() == 0:
        json.dump({"records": records, "observed": observed}, open(job["out"], "w", encoding="utf-8"))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
