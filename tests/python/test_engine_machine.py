"""The engine against plain lists: requests come, are cancelled and end in any order while pages are short.

Both models read scripts (tests/cpp/scripted_model.h), KV rows are tags, and after every step the whole state is looked at:
what was fed, what is cached, who holds which page. Pages have 64 positions here, so texts lie around that boundary.
"""

from dataclasses import dataclass, field

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

import paceline_testing as core
from machines import SCALE, SEED, seeded

PAGE, MAX_LEN, VOCAB, EOS = 64, 140, 64, 63


@dataclass
class Request:
    script: list[int]
    drafts: list[int]
    prompt_length: int
    end_length: int
    slot: int | None = None          # known from the first row it is fed
    length: int = 0                  # tokens so far, prompt included
    target_cached: int = 0
    draft_cached: int = 0
    cancelled: bool = False
    rows: list = field(default_factory=list)


def pages_for(positions):
    return -(-positions // PAGE)


class EngineMachine(RuleBasedStateMachine):
    @initialize(slots=st.integers(1, 4), tau=st.sampled_from([1, 2, 4, 8]), draft_max_len=st.sampled_from([MAX_LEN, 70, 30]),
                cache=st.sampled_from([66, 130, 200, 400]), chunk=st.sampled_from([7, 40, 256]))
    def build(self, slots, tau, draft_max_len, cache, chunk):
        self.slots, self.tau, self.draft_max_len, self.cache = slots, tau, draft_max_len, cache
        self.engine = core.Engine(num_slots=slots, tau=tau, max_model_len=MAX_LEN, draft_max_len=draft_max_len,
                                  kv_cache_tokens=cache, prefill_chunk=chunk, vocab_size=VOCAB)
        self.live, self.number = {}, 0

    @rule(near=st.sampled_from([1, PAGE, 2 * PAGE, MAX_LEN - 4]), offset=st.integers(-3, 3), wrong=st.sets(st.integers(0, 40)),
          max_tokens=st.integers(1, 40), stop_at=st.none() | st.integers(0, 30))
    def add(self, near, offset, wrong, max_tokens, stop_at):
        prompt_length = max(1, near + offset)
        self.number = (self.number + 1) % EOS
        if any(request.script[0] == self.number for request in self.live.values()):
            return
        script = [self.number] + [(self.number + 7 * i + i // 5) % EOS for i in range(1, MAX_LEN + 1)]
        if stop_at is not None and prompt_length + stop_at < MAX_LEN:
            script[prompt_length + stop_at] = EOS
        drafts = list(script)
        for index in wrong:
            if prompt_length + index <= MAX_LEN:
                drafts[prompt_length + index] = (script[prompt_length + index] + 1) % VOCAB
        end_length = min(MAX_LEN, prompt_length + max_tokens)
        try:
            request = self.engine.add(tokens=script, drafts=drafts, prompt_length=prompt_length, max_tokens=max_tokens,
                                      stop_token_ids=[EOS])
        except RuntimeError as error:
            assert end_length > self.cache and "raise kv_cache_tokens" in str(error)
            return
        assert end_length <= self.cache
        self.live[request] = Request(script, drafts, prompt_length, end_length, length=prompt_length)

    @precondition(lambda self: self.live)
    @rule(index=st.integers(0, 99))
    def cancel(self, index):
        request = sorted(self.live)[index % len(self.live)]
        self.engine.cancel(request)
        self.live[request].cancelled = True

    @rule(request=st.integers(-3, 9))  # ended, or not there yet
    def cancel_nobody(self, request):
        if request not in self.live:
            self.engine.cancel(request)

    @precondition(lambda self: self.live)
    @rule()
    def step(self):
        outputs = self.engine.step()
        assert len({request for request, *_ in outputs}) == len(outputs), "two outputs of one request"
        self.follow_rows()
        for request, state in self.live.items():
            if state.cancelled:
                assert (request, [], "cancelled", 0, 0) in outputs, "alive after cancel"
        for request, tokens, finish, tau, accepted in outputs:
            self.take(request, tokens, finish, tau, accepted)

    def follow_rows(self):
        """Every row fed goes where its request's cache ends, and holds its text."""
        self.by_slot = {state.slot: state for state in self.live.values() if state.slot is not None}
        for model, name, limit in ((self.engine.target, "target_cached", MAX_LEN),
                                   (self.engine.draft, "draft_cached", self.draft_max_len)):
            for state in self.live.values():
                state.rows = []
            for slot, position, token in model.trace:
                if position == 0 and (slot not in self.by_slot or self.by_slot[slot].script[0] != token):
                    self.by_slot[slot] = next(state for state in self.live.values() if state.script[0] == token)
                    self.by_slot[slot].slot = slot
                state = self.by_slot[slot]
                state.rows.append(position)
                assert position < min(limit, state.end_length - 1), "write trace"
                assert position >= state.length or token == state.script[position], "a committed position fed with another token"
            for state in self.live.values():
                if state.rows:
                    assert not state.cancelled, "rows of a cancelled request"
                    first = getattr(state, name)
                    assert state.rows == list(range(first, first + len(state.rows))), f"{name} = {first}, fed {state.rows}"
                    setattr(state, name, first + len(state.rows))

    def take(self, request, tokens, finish, tau, accepted):
        state = self.live[request]
        if finish != "cancelled":
            drafts = [state.drafts[position] == state.script[position] for position in range(state.length, state.length + tau)]
            right = (drafts + [False]).index(False)
            new_length = min(state.length + right + 1, state.end_length)
            expected = state.script[state.length:new_length]
            if EOS in expected:
                expected = expected[:expected.index(EOS) + 1]
            assert tokens == expected and accepted == min(right, len(tokens)), f"{tokens}, expected {expected}"
            state.length += len(tokens)
            over = "stop" if tokens[-1] == EOS else "length" if state.length == state.end_length else ""
            assert finish == over, f"finish {finish}, expected {over}"
            state.target_cached = min(state.target_cached, state.length - 1)
            state.draft_cached = min(state.draft_cached, state.length - 1)
            assert state.target_cached == state.length - 1, "the last token is pending, all others are cached"
        assert finish != "cancelled" or state.cancelled, "nobody cancelled it"
        if finish:
            del self.live[request]

    @invariant()
    def pages_are_where_they_belong(self):
        if not hasattr(self, "engine"):
            return
        for model in (self.engine.target, self.engine.draft):
            tables = {slot: model.table(slot) for slot in range(self.slots + 1)}
            held = [page for table in tables.values() for page in table]
            assert len(held) == len(set(held)), "a page in two tables"
            assert len(held) + model.num_free == model.num_pages, "conservation"
            used = {state.slot for state in self.live.values()}
            assert all(not table or slot in used for slot, table in tables.items()), "pages of an ended request"
            for state in self.live.values():
                if state.slot is None:
                    continue
                cached = state.target_cached if model is self.engine.target else state.draft_cached
                assert pages_for(cached) <= len(tables[state.slot]) <= pages_for(state.length), "pages held"
                assert model.tags(state.slot, cached) == list(enumerate(state.script[:cached])), "content"

    def teardown(self):
        """Whatever was going on, all requests end."""
        if not hasattr(self, "engine"):
            return
        for _ in range(len(self.live) * 2 * MAX_LEN + 10):
            if self.engine.idle:
                break
            self.step()
            self.pages_are_where_they_belong()
        assert self.engine.idle and not self.live, "requests that never end"
        for model in (self.engine.target, self.engine.draft):
            assert model.num_free == model.num_pages


def test_requests_are_lists():
    run_state_machine_as_test(seeded(EngineMachine), settings=settings(
        max_examples=int(300 * SCALE), stateful_step_count=40, deadline=None, database=None, derandomize=SEED is None,
        phases=[Phase.generate, Phase.shrink],
        print_blob=False, report_multiple_bugs=False, suppress_health_check=list(HealthCheck)))
