"""The prompts: which questions are put to which model.

`core` generates exactly 64 tokens per case (generation goes on past EOS), with prompts of one token, around
one KV block, over several blocks, in several languages, code, and chat. `stops` lets generation end by itself.
Long prompts are stories from the same grammar as the training corpus, under another seed.
"""

import random
import sys

from golden import GOLDENS

sys.path.insert(0, str(GOLDENS / "models" / "recipe"))
from make_corpus import make_story  # noqa: E402

NEW_TOKENS = 64

CODE = """def fibonacci(n):
    \"\"\"Return the n-th Fibonacci number.\"\"\"
    a, b = 0,  1
    for i in range(n):
        a, b = b, a + b
    return a


def is_prime(n):
"""

CHAT = [{"role": "user", "content": "Name three fruits."}]
CHAT_LONGER = [
    {"role": "system", "content": "You answer in one short sentence."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "The capital of France is Paris."},
    {"role": "user", "content": "And how many people live there? Give a number, for example 1 234 567."},
]

LANGUAGES = {
    "french": "Il était une fois une petite fille qui vivait près de la forêt. Un jour, elle trouva",
    "german": "Es war einmal ein Müller, der wohnte am Fluß und hatte drei Söhne. Der jüngste",
    "chinese-japanese": "从前有一个小女孩，她住在森林旁边。昔々あるところに、おじいさんと",
    "russian-arabic": "Жил-был старик у самого синего моря. كان يا ما كان في قديم الزمان",
    "emoji-and-numbers": "Weather ☀️ 🌧️ 👩‍🚀:  12,  345 and   6.78e9 (x² ≈ π)…\n\n\tRow  1:",
}

SMALL_TEXTS = {
    "short-english": "Once there was a girl named",
    "story-opening": "In a house near the river lived a young baker named Otto. "
    "He liked smooth stones and silver fish most of all. One",
    "story-middle": '"Whose lantern is this?" asked Rosa. A wise owl came out and said, "The lantern',
}
LARGE_TEXTS = {
    "short-english": "The capital of France is",
    "explanation": "Water boils at a lower temperature on a high mountain because",
    "list": "The days of the week are Monday, Tuesday,",
}
SMALL_STOPS = {
    "near-the-end": "So Nora handed the key to the hare with a smile. The hare was happy. \"Thank you, Nora,\" said the hare.",
    "last-line": "When the day was over, Ivan went home and",
    "whole-story": "Nora was a",
    "other-story": "Near the harbour there lived a boy",
}
LARGE_STOPS = {
    "smollm2-135m": {
        "fruits": CHAT,
        "capital": [{"role": "user", "content": "What is the capital of France?"}],
        "greeting": [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "Say hello."}],
        "sum": [{"role": "user", "content": "What is 2 + 2? Answer with the number only."}],
        "open-ended": [{"role": "user", "content": "Tell me a long story about a lighthouse."}],
    },
    "gemma3-270m": {
        "list": "The days of the week are Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and",
        "alphabet": "Question: What is the capital of France?\nAnswer: Paris\n\nQuestion: What is the capital of Italy?\nAnswer:",
        "c-program": '#include <stdio.h>\n\nint main(void) {\n    printf("Hello, world!\\n");\n',
        "c-last-line": "    return 0;\n}\n",  # ends at once: the first token is EOS
        "module-end": "import App from './App';\n\nfunction start() {\n    return App();\n",
    },
}


def long_text(count=12, seed=7):
    """Stories that the models were not trained on, one after another."""
    rng = random.Random(seed)
    return "\n".join(make_story(rng) for _ in range(count))


def core_suite(subject, tokenizer):
    """The prompts that every model with a tokenizer answers."""
    block, large = subject.block_size, subject.context > 512
    story = tokenizer(long_text()).input_ids
    cases = [{"id": "one-token", "kind": "ids", "prompt_ids": story[:1]}]
    cases += [{"id": k, "kind": "text", "prompt": v} for k, v in (LARGE_TEXTS if large else SMALL_TEXTS).items()]
    for name, length in (("block-minus-one", block - 1), ("block-exact", block), ("block-plus-one", block + 1)):
        cases.append({"id": name, "kind": "ids", "prompt_ids": story[:length]})
    cases.append({"id": "over-two-blocks", "kind": "ids", "prompt_ids": story[: 2 * block + block // 3]})
    if large:
        cases.append({"id": "long-text", "kind": "text", "prompt": long_text(5, seed=11)})
    else:
        cases.append({"id": "fills-context", "kind": "ids", "prompt_ids": story[: subject.context - NEW_TOKENS]})
    cases += [{"id": k, "kind": "text", "prompt": v} for k, v in LANGUAGES.items()]
    cases.append({"id": "code", "kind": "code", "prompt": CODE})
    if tokenizer.chat_template:
        cases.append({"id": "chat", "kind": "chat", "messages": CHAT})
        cases.append({"id": "chat-longer", "kind": "chat", "messages": CHAT_LONGER})
    settings = {"max_new_tokens": NEW_TOKENS, "ignore_eos": True}
    return settings, [with_prompt_ids(case, tokenizer) for case in cases]


def stops_suite(subject, tokenizer):
    """Prompts after which generation ends by itself (and one that is cut by the budget)."""
    prompts = LARGE_STOPS.get(subject.name, SMALL_STOPS)
    cases = []
    for name, prompt in prompts.items():
        text = isinstance(prompt, str)
        cases.append({"id": name, "kind": "text" if text else "chat", "prompt" if text else "messages": prompt})
    settings = {"max_new_tokens": 128 if subject.context > 512 else 240, "ignore_eos": False}
    return settings, [with_prompt_ids(case, tokenizer) for case in cases]


def ids_suite(subject, _tokenizer):
    """Seeded random ids for models without a tokenizer; prompts of 1 id up to well past one block."""
    rng = random.Random(20)
    cases = []
    for length in (1, 5, 17, 40, 63, 64, 65, 100, 150):
        ids = [rng.randrange(3, 256) for _ in range(length)]
        cases.append({"id": f"ids-{length}", "kind": "ids", "prompt_ids": ids})
    return {"max_new_tokens": NEW_TOKENS, "ignore_eos": True}, cases


def with_prompt_ids(case, tokenizer):
    """Tokenise the prompt as a user's request would be."""
    if case["kind"] == "chat":
        encoded = tokenizer.apply_chat_template(case["messages"], add_generation_prompt=True, return_dict=True)
        return {**case, "prompt_ids": list(encoded["input_ids"])}
    if case["kind"] == "ids":
        return case
    return {**case, "prompt_ids": list(tokenizer(case["prompt"]).input_ids)}


SUITES = {"core": core_suite, "stops": stops_suite, "ids": ids_suite}


def suites_of(subject):
    """Names of the suites that a subject answers."""
    if subject.name.startswith("tiny-gguf"):
        return ["core", "ids"]  # random weights: the text says nothing, and no prompt ends by itself
    return ["core", "stops"] if subject.has_tokenizer else ["ids"]
