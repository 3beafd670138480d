"""Check that the tokenizers used for the goldens agree with what the GGUF files themselves say.

usage: gguf_tokenizers.py smollm2-135m gemma3-270m tiny-gguf

The goldens of package models use tokenizers that transformers converted from GGUF metadata. Here the same
metadata is read a second time by two small tokenizers written from the format's definition, and every prompt of the
suites plus a list of awkward strings must give the same ids.
"""

import argparse
import heapq
import sys

import regex
from gguf import GGUFReader

from subjects import all_subjects
from suites import SUITES, suites_of

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
GPT2_WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
AWKWARD = [
    "  1   22    333",
    "a1b2 c3\t4\n\n5",
    "I'll we've DON'T can't 'tis",
    " \n \n\t  x",
    "x² ½ ٣ Ⅷ ①1",
    "naïve café Ångström ﬁ",
    "🙂👩‍👩‍👧 \u200b\ufeff ok",
    "def f(x):\n\treturn  x**2  # 100%\n",
    "ends with spaces   ",
    "\r\nwindows\r\n",
    "���  \x00\x01",
    "The<|im_end|>special<bos>",
    "~~~~~~~~~~~~~~~~ ======== --------",
    "한국어 텍스트 ไทย हिन्दी",
]


class SpecialTokens:
    """Cuts a text at the tokens that are never merged from smaller pieces, longest first."""

    def __init__(self, tokens, types):
        marks = [t for t, kind in zip(tokens, types) if kind in (CONTROL, USER_DEFINED) and t]
        marks.sort(key=len, reverse=True)
        self.pattern = regex.compile("|".join(regex.escape(t) for t in marks))

    def parts(self, text):
        """Yield (is_special, piece)."""
        at = 0
        for match in self.pattern.finditer(text):
            if match.start() > at:
                yield False, text[at : match.start()]
            yield True, match.group()
            at = match.end()
        if at < len(text):
            yield False, text[at:]


def bytes_to_unicode():
    """The GPT-2 table from bytes to printable characters."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, extra = {b: chr(b) for b in printable}, 0
    for byte in range(256):
        if byte not in table:
            table[byte] = chr(256 + extra)
            extra += 1
    return table


class Gpt2Tokenizer:
    """`tokenizer.ggml.model = gpt2`: GPT-2 words, then merges by rank; `pre = smollm` takes digits one by one first."""

    def __init__(self, fields):
        tokens = fields["tokenizer.ggml.tokens"]
        self.ids = {token: i for i, token in enumerate(tokens)}
        self.ranks = {tuple(m.split(" ")): i for i, m in enumerate(fields["tokenizer.ggml.merges"])}
        self.special = SpecialTokens(tokens, fields["tokenizer.ggml.token_type"])
        self.table = bytes_to_unicode()
        self.digits_alone = fields["tokenizer.ggml.pre"] == "smollm"

    def words(self, text):
        """The stretches that merges never cross."""
        for piece in regex.findall(r"\p{N}|\P{N}+", text) if self.digits_alone else [text]:
            yield from GPT2_WORDS.findall(piece)

    def merge(self, symbols):
        """Join the pair of lowest rank, leftmost first, until none is left."""
        while len(symbols) > 1:
            ranked = [(self.ranks.get(pair, 1 << 60), i) for i, pair in enumerate(zip(symbols, symbols[1:]))]
            rank, i = min(ranked)
            if rank == 1 << 60:
                break
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
        return symbols

    def encode(self, text):
        """Ids of a text; special tokens in it are recognised."""
        ids = []
        for special, piece in self.special.parts(text):
            if special:
                ids.append(self.ids[piece])
                continue
            for word in self.words(piece):
                ids += [self.ids[s] for s in self.merge([self.table[b] for b in word.encode()])]
        return ids


class SentencePieceTokenizer:
    """`tokenizer.ggml.model = llama`: join the neighbours whose piece has the best score; bytes for the rest."""

    def __init__(self, fields):
        tokens = fields["tokenizer.ggml.tokens"]
        self.ids = {token: i for i, token in enumerate(tokens)}
        self.scores = fields["tokenizer.ggml.scores"]
        self.special = SpecialTokens(tokens, fields["tokenizer.ggml.token_type"])
        self.bos = fields["tokenizer.ggml.bos_token_id"] if fields["tokenizer.ggml.add_bos_token"] else None
        self.prefix = fields.get("tokenizer.ggml.add_space_prefix", True)

    def merge(self, text):
        """A linked list of symbols and a heap of candidate joins (best score first, then leftmost)."""
        symbols, after, before = list(text), list(range(1, len(text) + 1)), list(range(-1, len(text) - 1))
        heap = []

        def offer(left, right):
            if left < 0 or right >= len(symbols):
                return
            joined = symbols[left] + symbols[right]
            if joined in self.ids:
                heapq.heappush(heap, (-self.scores[self.ids[joined]], left, right, joined))

        for i in range(len(symbols) - 1):
            offer(i, i + 1)
        while heap:
            _, left, right, joined = heapq.heappop(heap)
            if not symbols[left] or not symbols[right] or symbols[left] + symbols[right] != joined:
                continue
            symbols[left], symbols[right] = joined, ""
            after[left] = after[right]
            if after[right] < len(symbols):
                before[after[right]] = left
            offer(before[left], left)
            offer(left, after[left])
        return [s for s in symbols if s]

    def encode(self, text):
        """Ids of a text with BOS in front."""
        ids = [] if self.bos is None else [self.bos]
        for special, piece in self.special.parts(text):
            if special:
                ids.append(self.ids[piece])
                continue
            for symbol in self.merge((" " * self.prefix + piece).replace(" ", "▁")):
                known = self.ids.get(symbol)
                ids += [known] if known is not None else [self.ids[f"<0x{b:02X}>"] for b in symbol.encode()]
        return ids


def read_fields(path):
    """The tokenizer's metadata as plain Python values."""
    reader = GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items() if name.startswith("tokenizer.")}


def texts_of(subject, tokenizer):
    """All prompts of the suites as text (chats rendered), and the awkward ones."""
    for suite in suites_of(subject):
        for case in SUITES[suite](subject, tokenizer)[1]:
            if case["kind"] == "chat":
                yield tokenizer.apply_chat_template(case["messages"], add_generation_prompt=True, tokenize=False)
            elif case["kind"] != "ids":
                yield case["prompt"]
    yield from AWKWARD


def check(subject):
    """Compare on every text; return the number of disagreements."""
    tokenizer = subject.load_tokenizer()
    fields = read_fields(subject.gguf)
    own = (Gpt2Tokenizer if fields["tokenizer.ggml.model"] == "gpt2" else SentencePieceTokenizer)(fields)
    texts, differing = list(texts_of(subject, tokenizer)), 0
    for text in texts:
        used, expected = list(tokenizer(text).input_ids), own.encode(text)
        if used != expected:
            differing += 1
            first = next(i for i, (a, b) in enumerate(zip([*used, None], [*expected, None])) if a != b)
            print(f"  {text[:60]!r}: first difference at {first}: used {used[first:first + 6]}, GGUF {expected[first:first + 6]}")
    print(f"{subject.name}: {len(texts) - differing} of {len(texts)} texts give the same ids")
    return differing


def main():
    """Command line; exits with 1 when any text differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    subjects = all_subjects()
    sys.exit(1 if sum(check(subjects[name]) for name in parser.parse_args().models) else 0)


if __name__ == "__main__":
    main()
