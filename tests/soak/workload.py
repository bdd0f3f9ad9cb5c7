"""What the long runs ask for, and what serial plain decoding answers."""

import dataclasses
import random

from paceline import Engine, SamplingParams, demo_pair

CONTEXT = 512  # of the bundled pair
HEADS = ["", "import os\nimport sys\n\n", "class Stack:\n    \"\"\"A stack of values.\"\"\"\n\n    def __init__(self):\n        self._values = []\n\n" * 2]
TAILS = ["def main(argv=None):\n    ", "x = [", "for i in range(", "try:\n    ", "return ", "    def push(self, value):\n", "# the ", "if __name__"]
SAMPLINGS = [
    {}, {"logprobs": 2}, {"temperature": 0.8}, {"temperature": 1.0, "top_p": 0.9, "logprobs": 0}, {"temperature": 1.2, "top_k": 40, "min_p": 0.02},
    {"temperature": 0.7, "repetition_penalty": 1.1, "frequency_penalty": 0.2}, {"stop": ["\n\n", "self"]}, {"temperature": 1.0, "stop": [" = "], "logprobs": 1},
    {"ignore_eos": True}, {"temperature": 1.0, "min_tokens": 1, "presence_penalty": 0.3}]


@dataclasses.dataclass(frozen=True)
class Item:
    """A prompt with its parameters, and all that plain decoding, alone, has to say to it."""

    prompt: tuple[int, ...]
    sampling: dict
    token_ids: tuple[int, ...]
    logprobs: tuple | None
    finish_reason: str

    def mistakes(self, token_ids, logprobs, finish_reason, max_tokens):
        """What is wrong with the answer of a request that asked for max_tokens and may have been cancelled: [] for nothing."""
        found, length = [], len(token_ids)
        if tuple(token_ids) != self.token_ids[:length]:
            found.append(f"tokens {token_ids} instead of {self.token_ids[:length]}")
        if self.logprobs is not None and tuple(logprobs) != self.logprobs[:length]:
            found.append("logprobs")
        if finish_reason != "cancelled":
            want = min(max_tokens, len(self.token_ids))
            if length != want:
                found.append(f"{length} tokens instead of {want}")
            if length == len(self.token_ids) and self.finish_reason == "stop" != finish_reason:
                found.append(f"ended by {finish_reason} where plain decoding stops")
            if finish_reason == "stop" and (self.finish_reason != "stop" or length != len(self.token_ids)):
                found.append("stopped where plain decoding does not")
        return found


def items(count, longest, seed):
    """Conversations of up to four turns over a few common beginnings, answered one after the other by the target alone."""
    choose, made = random.Random(seed), []
    with Engine(demo_pair()[0], prefix_cache_bytes=0) as plain:
        encode = plain._tokenizer.encode
        heads, tails = [encode(text) for text in HEADS], [encode(text) for text in TAILS]
        while len(made) < count:
            prompt = heads[choose.randrange(len(heads))] + tails[choose.randrange(len(tails))]
            for _ in range(choose.randint(1, 4)):
                sampling = dict(SAMPLINGS[choose.randrange(len(SAMPLINGS))], seed=choose.randrange(2**32))
                room = CONTEXT - len(prompt)
                if room < 8 or len(made) == count:
                    break
                answer = plain.generate(prompt, SamplingParams(**sampling), max_tokens=min(longest, room - 1))
                made.append(Item(tuple(prompt), sampling, answer.token_ids, answer.logprobs, answer.finish_reason))
                prompt = prompt + list(answer.token_ids[:choose.randint(1, 80)]) + tails[choose.randrange(len(tails))]
    return made
