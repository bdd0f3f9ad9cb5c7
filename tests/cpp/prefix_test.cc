// A reused prefix gives the same bits as a cold one: 500 random conversations over small pools, on transformers that read every row they have
// cached, against plain decoding, one request after the other, by an engine that keeps nothing.
#include <algorithm>

#include "cpp/parity.h"

using namespace paceline;
using namespace paceline::test;

std::shared_ptr<Backend> paceline::test::backend() {
  static std::shared_ptr<Backend> shared = make_cpu_backend(1, "");
  return shared;
}

namespace {

constexpr int kContext = 320;

TinyShape small_shape() {
  TinyShape shape;
  shape.vocab = 61, shape.hidden = 32, shape.intermediate = 48, shape.heads = 2, shape.kv_heads = 1, shape.head_dim = 16;
  return shape;
}

EngineOptions options_of(const Weights& target, int tau, int batch, int kv_cache_tokens, int64_t budget) {
  EngineOptions options;
  options.num_speculative_tokens = tau;
  options.max_model_len = kContext;
  options.max_num_seqs = batch;
  options.kv_dtype = target.dtype() == DType::fp32 ? DType::fp32 : DType::bf16;
  options.kv_cache_tokens = kv_cache_tokens;
  options.debug_hash = true;
  options.cycles_in_flight = cycles_in_flight();
  options.prefix_cache_bytes = budget;
  return options;
}

int64_t page_bytes_of(const Weights& weights, DType kv) {
  const ModelConfig& c = weights.config();
  return int64_t(2) * c.num_layers * c.num_kv_heads * c.head_dim * kPagePositions * int64_t(size_of(kv));
}

// Users who talk to one engine at once: they begin with one of a few instructions or with none, take turns, go back to an earlier turn and
// say something else, and hang up, unless they are patient.
class Conversations {
 public:
  Conversations(Engine& engine, unsigned seed, int vocab, bool sampled, bool patient = false)
      : engine_(engine), random_(seed), vocab_(vocab), sampled_(sampled), patient_(patient) {
    for (int length : {40 + below(90), 64, 65 + below(80)}) instructions_.push_back(words(length));
    instructions_.push_back({});
  }

  void run(int conversations, int at_once) {
    for (int steps = 0; begun_ < conversations || !open_.empty(); ++steps) {
      CHECK(steps < 100000, "no end");
      while (begun_ < conversations && int(open_.size()) < at_once) begin();
      step();
    }
    CHECK(engine_.idle());
  }

  const std::vector<Job>& jobs() const { return jobs_; }
  const std::vector<Text>& texts() const { return texts_; }
  int64_t most_bytes = 0;
  RequestStats stats;

 private:
  struct Conversation {
    std::vector<std::vector<int32_t>> turns;  // the whole text at the end of each
    int left;                                 // turns to go
    size_t job = 0;
    int cancel_in = -1;                       // steps
  };

  int below(int n) { return int(random_() % unsigned(n)); }
  std::vector<int32_t> words(int count) {
    std::vector<int32_t> all;
    for (int i = 0; i < count; ++i) all.push_back(below(vocab_));
    return all;
  }

  void begin() {
    ++begun_;
    Conversation conversation{{instructions_[below(4)]}, 2 + below(4)};
    say(std::move(conversation));
  }

  void say(Conversation conversation) {
    if (below(4) == 0) conversation.turns.resize(1 + below(int(conversation.turns.size())));  // another branch
    std::vector<int32_t> prompt = conversation.turns.back();
    const std::vector<int32_t> more = words(1 + below(30));
    prompt.insert(prompt.end(), more.begin(), more.end());
    if (int(prompt.size()) > kContext - 20 || conversation.left-- == 0) return;
    Job job{prompt, {}};
    RequestParams& p = job.params;
    p.max_tokens = 1 + below(40);
    p.temperature = sampled_ ? 0.9 : 0;
    p.seed = random_();
    p.logprobs = 0;
    if (below(3) == 0) p.repetition_penalty = 1.2, p.top_k = 20;
    if (below(4) == 0) p.stop_token_ids = {below(vocab_), below(vocab_)};
    if (below(6) == 0) p.num_speculative_tokens = 0;
    conversation.job = jobs_.size();
    conversation.cancel_in = patient_ || below(6) ? -1 : below(12);
    jobs_.push_back(job);
    texts_.emplace_back();
    open_[engine_.add(prompt, p)] = std::move(conversation);
  }

  void step() {
    for (auto& [id, conversation] : open_)
      if (conversation.cancel_in >= 0 && conversation.cancel_in-- == 0) engine_.cancel(id);
    for (const Output& output : engine_.step()) {
      Conversation& conversation = open_.at(output.request);
      Text& text = texts_[conversation.job];
      text.tokens.insert(text.tokens.end(), output.tokens.begin(), output.tokens.end());
      text.logprobs.insert(text.logprobs.end(), output.logprobs.begin(), output.logprobs.end());
      text.finish = output.finish;
      if (output.finish == FinishReason::none) continue;
      text.logits_hash = output.logits_hash;
      text.target_kv = output.target_kv_hashes;
      text.draft_kv = output.draft_kv_hashes;
      text.drafted = int(output.stats.num_draft_tokens), text.accepted = int(output.stats.num_accepted_draft_tokens);
      stats += output.stats;
      Conversation next = std::move(conversation);
      open_.erase(output.request);
      next.turns.push_back(jobs_[next.job].prompt);
      next.turns.back().insert(next.turns.back().end(), text.tokens.begin(), text.tokens.end());
      say(std::move(next));
    }
    most_bytes = std::max(most_bytes, engine_.prefix_cache_bytes());
  }

  Engine& engine_;
  std::mt19937 random_;
  int vocab_, begun_ = 0;
  bool sampled_, patient_;
  std::vector<std::vector<int32_t>> instructions_;
  std::map<int64_t, Conversation> open_;
  std::vector<Job> jobs_;
  std::vector<Text> texts_;
};

// What was cancelled is a beginning of what it would have been, its KV rows included.
void check_cold(const std::vector<Text>& got, const std::vector<Text>& want, const std::string& what) {
  std::vector<Text> ended, whole;
  for (size_t i = 0; i < want.size(); ++i) {
    if (got[i].finish != FinishReason::cancelled) {
      ended.push_back(got[i]), whole.push_back(want[i]);
      continue;
    }
    const auto begins = [](const auto& part, const auto& all) { return part.size() <= all.size() && std::equal(part.begin(), part.end(), all.begin()); };
    CHECK(begins(got[i].tokens, want[i].tokens) && begins(got[i].logprobs, want[i].logprobs) && begins(got[i].target_kv, want[i].target_kv), what,
          ", cancelled request ", i);
  }
  check_equal(ended, whole, what);
}

}  // namespace

TEST(five_hundred_conversations) {
  const TinyShape shape = small_shape();
  TinyShape brief = shape;
  brief.context = 150;
  int conversations = 0;
  long tokens = 0, cached = 0, prompts = 0, requests = 0, cancelled = 0, drafted = 0, accepted = 0;
  for (int world = 0; world < 36; ++world, conversations += 14) {
    const DType dtype = world % 3 == 0 ? DType::fp32 : world % 3 == 1 ? DType::bf16 : DType::int8;
    const auto target = tiny_weights(backend(), shape, dtype, 1);
    const auto long_draft = world % 5 == 4 ? target : tiny_weights(backend(), shape, dtype, 1, 0.05f);
    const auto draft = world % 5 == 3 ? tiny_weights(backend(), brief, dtype, 1, 0.05f) : long_draft;  // the same network
    const int tau = world % 9, batch = 1 + world % 4;
    const DType kv = dtype == DType::fp32 ? DType::fp32 : DType::bf16;
    const int64_t page = page_bytes_of(*target, kv);
    const int64_t budgets[] = {-1, -1, -1, 6 * page, 0, page, 13 * page};
    const int64_t budget = budgets[world % 7];
    EngineOptions options = options_of(*target, tau, batch, kContext * (1 + world % 3), budget);
    options.prefill_chunk = 16 << (world % 5);
    options.prefill_chunk_beside = world % 2 ? 23 : options.prefill_chunk;  // not what the machine's speed makes of it: a failure must come again
    if (world % 2) options.acceptance = Acceptance::rejection;
    const bool sampled = options.acceptance == Acceptance::coupled && world % 4 == 0;
    Engine engine(backend(), target, draft, options);
    Conversations users(engine, unsigned(world) + 1, shape.vocab, sampled);
    users.run(14, batch + world % 3);

    const std::string what = message("world ", world, ", ", name_of(dtype), ", tau ", tau, ", batch ", batch, ", budget ", budget);
    const std::vector<Text> cold = decode(target, nullptr, 0, 1, users.jobs());
    check_cold(users.texts(), cold, what);
    check_draft_kv(long_draft, users.jobs(), users.texts(), what);
    if (draft == target && tau)
      for (const Text& text : users.texts()) CHECK(text.accepted == text.drafted || text.finish == FinishReason::stop, what, ": ", text.accepted, " of ", text.drafted);
    if (budget >= 0) CHECK(users.most_bytes <= budget, what, ": ", users.most_bytes, " bytes kept");
    if (budget == 0) CHECK(users.stats.num_cached_prompt_tokens == 0, what);
    if (budget < 0) CHECK(users.stats.num_cached_prompt_tokens > 400, what, ": ", users.stats.num_cached_prompt_tokens, " prompt tokens found");
    for (size_t i = 0; i < cold.size(); ++i) {
      prompts += long(users.jobs()[i].prompt.size());
      cancelled += users.texts()[i].finish == FinishReason::cancelled;
      tokens += long(users.texts()[i].tokens.size());
    }
    requests += long(cold.size()), cached += users.stats.num_cached_prompt_tokens;
    drafted += users.stats.num_draft_tokens, accepted += users.stats.num_accepted_draft_tokens;
  }
  std::printf("%d conversations, %ld requests (%ld cancelled), %ld tokens, %ld of %ld prompt tokens found, %ld of %ld drafts accepted\n", conversations,
              requests, cancelled, tokens, cached, prompts, accepted, drafted);
  CHECK(conversations >= 500 && cancelled > 50 && cached > prompts / 8);
}

// Under `rejection` the bits depend on the sequence of taus: warm and cold must draft in the same cycles.
TEST(rejection_is_cold_when_warm) {
  const TinyShape shape = small_shape();
  const auto target = tiny_weights(backend(), shape, DType::bf16, 1), draft = tiny_weights(backend(), shape, DType::bf16, 1, 0.05f);
  for (int tau : {1, 4}) {
    EngineOptions options = options_of(*target, tau, 1, 3 * kContext, -1), off = options;
    options.acceptance = off.acceptance = Acceptance::rejection;
    options.prefill_chunk = off.prefill_chunk = 32;  // a cold draft catches up while its sequence decodes, a cycle per piece
    off.prefix_cache_bytes = 0;
    Engine warm(backend(), target, draft, options), cold(backend(), target, draft, off);
    Conversations here(warm, 5, shape.vocab, true, true), there(cold, 5, shape.vocab, true, true);
    here.run(25, 1), there.run(25, 1);
    CHECK(here.stats.num_cached_prompt_tokens > 2000 && there.stats.num_cached_prompt_tokens == 0, here.stats.num_cached_prompt_tokens);
    CHECK(here.jobs().size() == there.jobs().size(), "other texts lead to other conversations");
    check_equal(here.texts(), there.texts(), message("rejection, tau ", tau));
    for (size_t i = 0; i < here.texts().size(); ++i)
      CHECK(here.texts()[i].accepted == there.texts()[i].accepted && here.texts()[i].drafted == there.texts()[i].drafted, "request ", i, " drafts otherwise");
  }
}

// What is kept is in nobody's way: beside a running request `verify` gets every page that was not promised, and says what it says cold.
TEST(verify_takes_the_pages_that_only_the_tree_holds) {
  const TinyShape shape = small_shape();
  const auto target = tiny_weights(backend(), shape, DType::bf16, 1);
  EngineOptions options = options_of(*target, 0, 1, kContext + kPagePositions, -1);
  Engine engine(backend(), target, nullptr, options);
  RequestParams params;
  params.max_tokens = 20;
  std::vector<int32_t> text(300);
  for (int i = 0; i < 300; ++i) text[i] = i * i % shape.vocab;
  engine.add(text, params);
  while (!engine.idle()) engine.step();
  CHECK(engine.prefix_cache_bytes() == 4 * page_bytes_of(*target, DType::bf16), engine.prefix_cache_bytes());

  params.max_tokens = 5;
  text.resize(80);
  engine.add(text, params);  // promised 2 of 6 pages, and the first is one of those kept
  engine.step();
  const std::vector<int32_t> prefix(200, 7), drafts = {1, 2, 3};
  const std::vector<float> warm = engine.verify(prefix, drafts);
  options.prefix_cache_bytes = 0;
  Engine cold(backend(), target, nullptr, options);
  CHECK(warm == cold.verify(prefix, drafts));
  {
    const auto first = engine.begin_verification({1, 2}, {});
    CHECK_THROWS(engine.begin_verification({1, 2}, {}), std::logic_error, "another one is under way");
  }
  while (!engine.idle()) engine.step();
  CHECK(engine.verify(std::vector<int32_t>(300, 7), {}) == cold.verify(std::vector<int32_t>(300, 7), {}));
}

TEST_MAIN()
