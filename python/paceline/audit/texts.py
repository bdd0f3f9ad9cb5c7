"""Texts as evidence: what an engine emitted, cycle by cycle, and the rows of both models that it should have gone by, computed cold."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from paceline.audit.processors import Rows, history_counts, law, scaled, widened
from paceline.engine import Engine
from paceline.results import TokenLogprob
from paceline.sampling_params import SamplingParams

TEXT_TOKENS = 60  # of a text at most: an unread stream keeps 64 chunks apart, so every cycle of it is seen as one
_AT_ONCE = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """One request. Arrays have an entry per emitted token."""

    prompt: tuple[int, ...]
    params: SamplingParams
    tokens: NDArray[np.int64]
    cycle_start: NDArray[np.int64]
    """Index in the sequence of the first token of its cycle."""
    place: NDArray[np.int64]
    """Index in the cycle."""
    tau: NDArray[np.int64]
    """Drafts of the cycle."""
    accepted: NDArray[np.bool_]
    """A draft that was accepted, not the target's own token."""
    logprobs: tuple[TokenLogprob, ...]
    """Where they were asked for."""

    @property
    def position(self) -> NDArray[np.int64]:
        return self.cycle_start + self.place

    @property
    def num_rollbacks(self) -> int:
        return int(((self.place < self.tau) & ~self.accepted).sum())


def texts(engine: Engine, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> Iterator[Text]:
    """Of the requests, in their order, as many at a time as the engine runs."""
    at_once = min(_AT_ONCE, int(engine.info["max_num_seqs"]) + int(engine.info["max_queue"]))
    for first in range(0, len(prompts), at_once):
        asked = range(first, min(first + at_once, len(prompts)))
        for i, request in [(i, engine.submit(list(prompts[i]), params[i])) for i in asked]:
            emitted: list[int] = []
            logprobs: list[TokenLogprob] = []
            cycles: list[tuple[int, int, int, int]] = []
            for chunk in request:
                assert chunk.num_cycles == 1 or not chunk.token_ids, "a text is short enough for every cycle to be seen"
                start = len(prompts[i]) + len(emitted)
                cycles += [(start, place, chunk.num_draft_tokens, place < chunk.num_accepted_draft_tokens) for place in range(len(chunk.token_ids))]
                emitted += chunk.token_ids
                logprobs += chunk.logprobs or ()
            start_of, place_of, tau, accepted = np.array(cycles, np.int64).reshape(-1, 4).T
            yield Text(tuple(prompts[i]), params[i], np.array(emitted, np.int64), start_of, place_of, tau, accepted.astype(bool), tuple(logprobs))


def cold_rows(engine: Engine, text: Text, vocabulary: int) -> NDArray[np.float32]:
    """[tokens, vocabulary] log-softmax of the engine's target where it chose each token: one prefill of the finished text. Ids from
    `vocabulary` on, which the model does not know, are read as id 0, as a draft does."""
    prompt = [token if token < vocabulary else 0 for token in text.prompt]
    return engine.verify(prompt, [int(token) if token < vocabulary else 0 for token in text.tokens[:-1]]).logprobs


@dataclasses.dataclass(frozen=True, slots=True)
class ScaledRows:
    """(l - l_max) / T after all processors, [tokens, ids that exist]; -inf cannot be chosen."""

    target: Rows
    draft: Rows

    @property
    def laws(self) -> tuple[Rows, Rows]:
        return law(self.target), law(self.draft)


def scaled_rows(target: NDArray[np.float32], draft: NDArray[np.float32], text: Text, num_ids: int) -> ScaledRows:
    """Both models' rows as the cycle should have judged them: the history of a row is everything before it, drafts included."""
    counts = None
    if text.params.frequency_penalty or text.params.presence_penalty:
        sequence = np.concatenate([np.array(text.prompt, np.int64), text.tokens])
        counts = history_counts(sequence, text.position, len(text.prompt), num_ids)
    return ScaledRows(scaled(target[:, :num_ids], text.params, counts), scaled(widened(draft, num_ids), text.params, counts))
