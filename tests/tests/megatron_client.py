"""Drives a coordinator with megatron-core's own InferenceClient, unedited, and says what came back.

usage: megatron_client.py ADDRESS JOB.json

JOB.json: {cases: [{prompt_ids, prompt or null, tokens}]}. Says lines, each a word and JSON:
    version V        of megatron-core
    vanished         a client has left with requests in flight
    paused           all engines should be; goes on when told a line (twice)
    result {...}     one list for each scene, see `main`
"""

import asyncio
import importlib.metadata
import json
import os
import sys

import msgpack
from megatron.core.inference.inference_client import InferenceClient
from megatron.core.inference.sampling_params import SamplingParams


def say(word, value=None):
    """One line for the test."""
    print(word, "" if value is None else json.dumps(value), flush=True)


def greedy(tokens, **options):
    """Greedy decoding that goes past end tokens."""
    return SamplingParams(top_k=1, num_tokens_to_generate=tokens, termination_id=-1, **options)


def shown(request):
    """What the test compares of a finished request, deserialised by megatron-core."""
    return {
        "status": request.status.name,
        "tokens": request.generated_tokens,
        "text": request.generated_text,
        "logprobs": request.generated_log_probs,
        "prompt_logprobs": request.prompt_log_probs,
        "top": request.generated_top_n_logprobs,
        "latency": request.latency,
        "events": [str(event.payload) for event in request.events],
    }


def vanish(address, case):
    """A client in a process of its own that ends without a word while its requests are under way."""

    async def leave():
        client = InferenceClient(address)
        client.start()
        answers = [client.add_request(case["prompt_ids"], greedy(60)) for _ in range(20)]
        await answers[0]
        os._exit(0)

    if os.fork() == 0:
        asyncio.run(leave())
        os._exit(1)
    _, status = os.wait()
    assert status == 0, "the vanishing client met an error"


async def several(address, cases):
    """Three clients at once, each with all cases."""
    clients = [InferenceClient(address, deserialize=True) for _ in range(3)]
    for client in clients:
        client.start()
    answers = [[client.add_request(c["prompt_ids"], greedy(c["tokens"])) for c in cases] for client in clients]
    finished = [await asyncio.gather(*mine) for mine in answers]
    for client in clients:
        client.stop()
    return [[shown(request) for request in mine] for mine in finished]


async def paused(client, case):
    """A request that is sent while the engines are paused comes back after they go on."""
    client.pause_engines()
    answer = client.add_request(case["prompt_ids"], greedy(case["tokens"]))
    say("paused")
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    early = answer.done()
    client.unpause_engines()
    return {"early": early, **shown(await answer)}


def by_hand(client, case):
    """What this version's client has no method for, over its own socket: tokens as they come, and an abort."""
    client.listener_task.cancel()
    send = lambda *items: client.socket.send(msgpack.packb(list(items), use_bin_type=True))
    streamed = greedy(case["tokens"]).serialize() | {"streaming": True, "streaming_interval": 4}
    send(20, 1000, case["prompt_ids"], streamed)
    messages = []
    while not messages or messages[-1][0] != 21:
        messages.append(msgpack.unpackb(client.socket.recv(), raw=False))
    send(40)
    say("paused")
    sys.stdin.readline()
    send(20, 1001, case["prompt_ids"], greedy(case["tokens"]).serialize())
    send(23, 1001)
    aborted = msgpack.unpackb(client.socket.recv(), raw=False)
    send(41)
    return {
        "partials": [[m[1], m[2]["new_tokens"]] for m in messages[:-1]],
        "answer": messages[-1][2]["generated_tokens"],
        "aborted": [aborted[0], aborted[1], aborted[2]["status"], aborted[2]["generated_tokens"]],
    }


async def main(address, job):
    """All scenes."""
    cases = job["cases"]
    client = InferenceClient(address, deserialize=True)
    client.start()
    options = dict(return_log_probs=True, top_n_logprobs=2)
    answers = [client.add_request(c["prompt_ids"], greedy(c["tokens"], **options)) for c in cases]
    result = {"golden": [shown(r) for r in await asyncio.gather(*answers)]}
    texts = [c for c in cases if c["prompt"]]
    answers = [client.add_request(c["prompt"], greedy(c["tokens"], add_BOS=True)) for c in texts]
    result["texts"] = [shown(r) for r in await asyncio.gather(*answers)]
    refused = [client.add_request(p, SamplingParams(**o)) for p, o in [([], {}), ([3], dict(top_k=5, top_p=2.0))]]
    result["refused"] = [shown(r) for r in await asyncio.gather(*refused)]
    result["several"] = await several(address, cases)
    result["paused"] = await paused(client, cases[1])
    result["by_hand"] = by_hand(client, cases[1])
    say("result", result)
    client.shutdown_coordinator()
    sys.stdin.readline()
    client.stop()


if __name__ == "__main__":
    say("version", importlib.metadata.version("megatron-core"))
    with open(sys.argv[2], encoding="utf-8") as file:
        read = json.load(file)
    vanish(sys.argv[1], read["cases"][0])
    say("vanished")
    asyncio.run(main(sys.argv[1], read))
