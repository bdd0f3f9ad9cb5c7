"""Sequences over two paged caches against plain lists: speculate, roll back, cancel, finish, fork, run out of pages, begin with what
others have left.

Pages, those kept for later and the rules of a cycle are the engine's own; KV rows are tags (writer, position, token). The client
between them is short and takes planted faults, each of which the machine must see.
"""

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

import paceline_testing as core
from machines import SCALE, SEED, seeded

MAX_LEN, TAU, SLOTS = 24, 4, 5
TARGET_POOL, DRAFT_POOL = 56, 40  # positions: about half of what the slots could hold, so that either pool runs short


class Sequence:
    def __init__(self, writer, tokens):
        self.writer, self.tokens = writer, list(tokens)
        self.target_cached = self.draft_cached = 0


class Client:
    """What a scheduler does with the caches of a target and a draft. A call returns False, and changes nothing, without pages."""

    def __init__(self, page_positions, draft_max_len, budget, fault=None):
        per_slot = -(-MAX_LEN // page_positions)
        self.draft_max_len, self.fault = draft_max_len, fault
        self.highest_target = self.highest_draft = -1
        self.target = core.TaggedPages(TARGET_POOL // page_positions, SLOTS, per_slot, page_positions)
        self.draft = core.TaggedPages(DRAFT_POOL // page_positions, SLOTS, per_slot, page_positions)
        self.page_positions, self.kept = page_positions, core.PrefixCache(self.target, self.draft, budget)

    def reserve_target(self, slot, positions):
        return self._reserve(self.target, self.kept.reserve_target, slot, positions)

    def reserve_draft(self, slot, positions):
        return self._reserve(self.draft, self.kept.reserve_draft, slot, positions)

    def _reserve(self, pages, reserve, slot, positions):
        """Pages that only wait for a later sequence are as good as free."""
        if self.fault == "what is kept is not given back" and pages is self.target:
            reserve = pages.reserve
        done = reserve(slot, positions)
        missing = -(-positions // self.page_positions) - len(pages.table(slot))
        taken = {page for other in range(SLOTS) for page in pages.table(other)}
        assert done or missing > pages.num_pages - len(taken), "refused although slots do not hold the rest"
        return done

    def begin(self, slot, sequence, with_draft):
        """A new sequence, with the pages that others have left for its first tokens."""
        tokens = sequence.tokens if self.fault == "a page that ends with the last token is taken" else sequence.tokens[:-1]
        found = self.kept.adopt(slot, tokens, with_draft)
        sequence.target_cached, sequence.draft_cached = found
        if self.fault == "draft believed to begin where the target does":
            sequence.draft_cached = sequence.target_cached
        if self.start(slot, sequence):
            return found
        self.finish(slot)
        return None

    def start(self, slot, sequence):
        if not self.reserve_target(slot, len(sequence.tokens) - 1):
            return False
        self.feed_target(slot, sequence, sequence.target_cached, sequence.tokens[:-1])
        sequence.target_cached = len(sequence.tokens) - 1
        return True

    def catch_up(self, slot, sequence):
        """The draft's prefill: everything but the last token."""
        goal = min(len(sequence.tokens) - 1, self.draft_max_len)
        if sequence.draft_cached >= goal or not self.reserve_draft(slot, goal):
            return
        self.feed_draft(slot, sequence, sequence.draft_cached, sequence.tokens[:goal])
        sequence.draft_cached = goal

    def cycle(self, slot, sequence, drafts, accepted, extra, cancel):
        length = len(sequence.tokens)
        tau = core.clamped_tau(len(drafts), length, MAX_LEN, sequence.draft_cached, self.draft_max_len)
        if self.fault == "no length clamp":
            tau = len(drafts) if sequence.draft_cached >= length - 2 else 0
        drafts, accepted = drafts[:tau], min(accepted, tau)
        reach = core.target_reach(length, 0 if self.fault == "lookahead not reserved" else tau)
        if not self.reserve_target(slot, reach):
            return False
        if not self.reserve_draft(slot, core.draft_reach(length, tau)):
            if self.fault != "target's pages kept when the draft has none":
                self.target.truncate(slot, length)
            return False

        fed = sequence.draft_cached
        if tau:
            self.feed_draft(slot, sequence, fed, sequence.tokens + drafts[:-1])
            fed = length + tau - 1
        self.feed_target(slot, sequence, length - 1, sequence.tokens + drafts)
        if cancel:
            self.leave(slot, sequence)
            self.finish(slot, kept=length if self.fault == "cancel gives back only the tail" else 0)
            return True

        sequence.tokens += drafts[:accepted] + [extra]
        new_length = len(sequence.tokens)
        sequence.target_cached = core.cached_after(length + tau, new_length)
        sequence.draft_cached = core.cached_after(fed, new_length)
        if self.fault == "target not rolled back":
            sequence.target_cached = length + tau
        if self.fault == "target rolled back one too far" and accepted < tau:
            sequence.target_cached -= 1
        if self.fault == "hole in the draft after full acceptance" and accepted == tau > 0:
            sequence.draft_cached = new_length - 1
        if self.fault == "draft not rolled back":
            sequence.draft_cached = fed
        if self.fault != "pages not freed":
            self.target.truncate(slot, new_length - (2 if self.fault == "page of the last row freed" else 0))
            self.draft.truncate(slot, new_length)
        return True

    def fork(self, slot, parent, to, child, positions):
        """The child starts with the first `positions` of what the parent cached, in both models."""
        own = min(positions, parent.draft_cached)
        if not self.target.share(slot, to, positions):
            return False
        if not self.draft.share(slot, to, own):
            if self.fault != "fork keeps the target's pages when the draft has none":
                self.target.truncate(to, 0)
            return False
        child.target_cached = positions
        child.draft_cached = parent.draft_cached if self.fault == "fork believes in the parent's draft" else own
        if not self.start(to, child):
            self.finish(to)
            return False
        return True

    def leave(self, slot, sequence):
        """What it has cached stays, in whole pages, for those that begin alike."""
        target, draft = sequence.target_cached, sequence.draft_cached
        if self.fault == "a page not yet full is kept":
            target = len(self.target.table(slot)) * self.page_positions
        if self.fault == "draft's pages kept as far as the target's":
            draft = min(target, len(self.draft.table(slot)) * self.page_positions)
        tokens = sequence.tokens + [0] * self.page_positions
        if self.fault == "kept under other tokens" and len(tokens) > 2:
            tokens[1] = (tokens[1] + 1) % 5
        self.kept.keep(slot, tokens, target, draft)

    def finish(self, slot, kept=0):
        self.target.truncate(slot, kept)
        if self.fault != "draft's pages kept at the end":
            self.draft.truncate(slot, 0)

    def feed_target(self, slot, sequence, first, tokens):
        for position in range(first, len(tokens)):
            self.highest_target = max(self.highest_target, position)
            self.target.write(slot, position, sequence.writer, tokens[position])

    def feed_draft(self, slot, sequence, first, tokens):
        for position in range(first, len(tokens)):
            self.highest_draft = max(self.highest_draft, position)
            self.draft.write(slot, position, sequence.writer, tokens[position])


TOKENS = st.integers(0, 4)
NEAR_THE_LIMIT = st.lists(TOKENS, min_size=MAX_LEN - TAU - 2, max_size=MAX_LEN - 1)


def machine(page_positions, draft_max_len, budget, fault=None):
    class Machine(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            self.client = Client(page_positions, draft_max_len, budget, fault)
            # slot: (sequence, transcript, [writers of the positions it has from others in target, in draft]); None: whoever it was
            self.model = {}
            self.texts = [[0]]   # of sequences so far: others begin like them
            self.writers = 0

        def free_slots(self):
            return [slot for slot in range(SLOTS) if slot not in self.model]

        def pick(self, index):
            slot = sorted(self.model)[index % len(self.model)]
            return slot, *self.model[slot]

        def new(self, tokens):
            self.writers += 1
            return Sequence(self.writers, tokens)

        @precondition(lambda self: self.free_slots())
        @rule(tokens=st.one_of(st.lists(TOKENS, min_size=1, max_size=9), NEAR_THE_LIMIT), like=st.none() | st.integers(0, 99) | st.just(-1),
              shared=st.integers(0, MAX_LEN) | st.just(MAX_LEN), with_draft=st.booleans())  # -1, MAX_LEN: all of the latest text
        def start(self, tokens, like, shared, with_draft):
            if like is not None:
                tokens = (self.texts[like % len(self.texts)][:shared] + tokens)[:MAX_LEN - 1]
            sequence, slot = self.new(tokens), self.free_slots()[0]
            found = self.client.begin(slot, sequence, with_draft)
            if found is not None:
                assert all(each % page_positions == 0 and each < len(tokens) for each in found) and found[0] >= found[1], "found"
                assert with_draft or found[1] == 0, "found"
                self.model[slot] = (sequence, list(tokens), ([None] * found[0], [None] * found[1]))

        @precondition(lambda self: self.model)
        @rule(index=st.integers(0, 99), drafts=st.lists(TOKENS, max_size=TAU), accepted=st.integers(0, TAU), extra=TOKENS,
              cancel=st.booleans())
        def speculate(self, index, drafts, accepted, extra, cancel):
            slot, sequence, transcript, _ = self.pick(index)
            length, cancel = len(transcript), cancel and index % 4 == 0
            if length >= MAX_LEN:
                return
            tau = max(0, min(len(drafts), MAX_LEN - length - 1, draft_max_len - length + 1))
            if sequence.draft_cached < length - 2:
                tau = 0
            if not self.client.cycle(slot, sequence, drafts, accepted, extra, cancel):
                return
            if cancel:
                self.ended(slot)
            else:
                transcript += drafts[:min(accepted, tau)] + [extra]

        @precondition(lambda self: self.model)
        @rule(index=st.integers(0, 99), tokens=st.lists(TOKENS, min_size=2, max_size=8))
        def decode_plainly(self, index, tokens):
            """The draft falls behind."""
            slot, sequence, transcript, _ = self.pick(index)
            for token in tokens[:MAX_LEN - len(transcript)]:
                if self.client.cycle(slot, sequence, [], 0, token, cancel=False):
                    transcript.append(token)

        @precondition(lambda self: self.model)
        @rule(index=st.integers(0, 99))
        def catch_up(self, index):
            slot, sequence, *_ = self.pick(index)
            self.client.catch_up(slot, sequence)

        @precondition(lambda self: self.model)
        @rule(index=st.integers(0, 99), error=st.booleans())
        def finish(self, index, error):
            slot, sequence, *_ = self.pick(index)
            if not (error and index % 3 == 0):
                self.client.leave(slot, sequence)
            self.client.finish(slot)
            self.ended(slot)

        def ended(self, slot):
            self.texts.append(self.model.pop(slot)[1])

        @precondition(lambda self: self.model and self.free_slots())
        @rule(index=st.integers(0, 99), positions=st.integers(0, MAX_LEN), suffix=st.lists(TOKENS, min_size=1, max_size=3),
              whole=st.booleans())
        def fork(self, index, positions, suffix, whole):
            slot, parent, transcript, inherited = self.pick(index)
            cached = len(transcript) - 1
            positions = cached if whole else min(positions, cached)
            tokens = transcript if whole else (transcript[:positions] + suffix)[:MAX_LEN]
            if len(tokens) <= positions:
                return
            child, to = self.new(tokens), self.free_slots()[0]
            own = min(positions, parent.draft_cached)
            if self.client.fork(slot, parent, to, child, positions):
                shares = zip(inherited, (positions, own), strict=True)
                writers = [(old + [parent.writer] * cached)[:shared] for old, shared in shares]
                self.model[to] = (child, list(tokens), writers)

        @invariant()
        def nothing_is_written_beyond_the_limit(self):
            assert self.client.highest_target < MAX_LEN - 1, "write trace"  # the last token is never fed
            assert self.client.highest_draft < min(draft_max_len, MAX_LEN - 1), "write trace of the draft"

        @invariant()
        def caches_hold_prefixes(self):
            for slot, (sequence, transcript, inherited) in self.model.items():
                assert sequence.tokens == transcript, "transcript"
                assert sequence.target_cached == len(transcript) - 1, "cached length"
                assert 0 <= sequence.draft_cached <= len(transcript) - 1, "cached length of the draft"
                caches = (self.client.target, sequence.target_cached), (self.client.draft, sequence.draft_cached)
                for (pages, cached), writers in zip(caches, inherited, strict=True):
                    for position in range(cached):
                        writer = writers[position] if position < len(writers) else sequence.writer
                        found = pages.read(slot, position)
                        assert found == (found[0] if writer is None else writer, position, transcript[position]), "content"

        @invariant()
        def pages_are_where_they_belong(self):
            nodes = self.client.kept.pages(self.client.target.num_pages)
            kept = [target for target, _, _ in nodes], [draft for _, draft, _ in nodes if draft >= 0]
            assert self.client.kept.bytes == len(kept[0]) + len(kept[1]) and (budget < 0 or self.client.kept.bytes <= budget), "bytes"
            assert {parent for _, _, parent in nodes} <= {-1, *kept[0]}, "a kept page whose beginning is gone"
            for pages, waiting in zip((self.client.target, self.client.draft), kept, strict=True):
                tables = {slot: pages.table(slot) for slot in range(SLOTS)}
                for slot, table in tables.items():
                    length = len(self.model[slot][1]) if slot in self.model else 0
                    assert len(table) <= -(-length // page_positions), "pages held"
                if pages is self.client.target:
                    for slot, (sequence, *_) in self.model.items():
                        assert len(tables[slot]) >= -(-sequence.target_cached // page_positions), "pages held"
                held = [page for table in tables.values() for page in table] + waiting
                for page in set(held):
                    assert pages.references(page) == held.count(page), "references"
                assert len(set(held)) + pages.num_free == pages.num_pages, "conservation"
                for slot, (sequence, *_) in self.model.items():  # where the next row goes
                    next_page = sequence.target_cached // page_positions
                    if pages is self.client.target and next_page < len(tables[slot]):
                        assert held.count(tables[slot][next_page]) == 1, "the page to be written belongs to two"

    return Machine


def run(page_positions, draft_max_len, budget=-1, fault=None, examples=400):
    phases = [Phase.generate] if fault else [Phase.generate, Phase.shrink]
    run_state_machine_as_test(seeded(machine(page_positions, draft_max_len, budget, fault)), settings=settings(
        max_examples=int(examples * SCALE), stateful_step_count=50, deadline=None, database=None, derandomize=SEED is None, phases=phases,
        print_blob=False, report_multiple_bugs=False, suppress_health_check=list(HealthCheck)))


@pytest.mark.parametrize("page_positions, draft_max_len, budget", [
    (1, MAX_LEN, -1), (4, 21, -1), (4, 21, 0), (4, MAX_LEN, 5), (8, 2 * MAX_LEN, -1), (16, MAX_LEN, -1)])
def test_sequences_are_lists(page_positions, draft_max_len, budget):
    run(page_positions, draft_max_len, budget)


# Which invariant complains first depends on the examples; that the client without a fault passes them all is the test above.
@pytest.mark.parametrize("fault", [
    "target not rolled back", "target rolled back one too far", "draft not rolled back",
    "hole in the draft after full acceptance", "lookahead not reserved", "no length clamp", "pages not freed",
    "page of the last row freed", "draft's pages kept at the end", "cancel gives back only the tail",
    "target's pages kept when the draft has none", "fork keeps the target's pages when the draft has none",
    "fork believes in the parent's draft", "what is kept is not given back", "a page that ends with the last token is taken",
    "draft believed to begin where the target does", "a page not yet full is kept", "draft's pages kept as far as the target's",
    "kept under other tokens",
])
def test_a_planted_fault_is_seen(fault):
    with pytest.raises((AssertionError, ValueError)):
        run(4, 21, -1, fault, examples=1000)
