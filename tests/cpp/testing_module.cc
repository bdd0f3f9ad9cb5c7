// The module `paceline_testing`: pages, those kept for later requests, the rules of a cycle and an engine over scripted models, for state machines in Python
// (tests/python/test_cache_machine.py). Built with the C++ tests, installed nowhere.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpp/scripted_model.h"
#include "decode/prefix_cache.h"
#include "math/cycle_rules.h"

namespace py = pybind11;
using namespace py::literals;
using namespace paceline;
using namespace paceline::test;

namespace {

// Pages with memory behind them, one tag (writer, position, token) per position, of any page size.
class TaggedPages {
 public:
  using Tag = std::tuple<int, int, int>;

  TaggedPages(int num_pages, int num_slots, int pages_per_slot, int page_positions)
      : pages_(num_pages, num_slots, pages_per_slot, page_positions),
        memory_(size_t(num_pages) * page_positions, Tag(-1, -1, -1)) {}

  bool share(int from, int to, int positions) {
    Pages::Copy copy;
    if (!pages_.share(from, to, positions, copy)) return false;
    const int size = pages_.page_positions();
    if (copy.from >= 0) std::copy_n(memory_.begin() + copy.from * size, size, memory_.begin() + copy.to * size);
    return true;
  }
  void write(int slot, int position, int writer, int token) {
    Tag& tag = memory_[index(slot, position)];
    require(pages_.references(pages_.table(slot)[position / pages_.page_positions()]) == 1, "write into a page of several slots");
    tag = {writer, position, token};
  }
  Tag read(int slot, int position) const { return memory_[index(slot, position)]; }
  Pages& pages() { return pages_; }

 private:
  size_t index(int slot, int position) const {
    const int size = pages_.page_positions();
    require(position >= 0 && position < pages_.held(slot) * size, "position ", position, " outside the ", pages_.held(slot),
            " pages of slot ", slot);
    return size_t(pages_.table(slot)[position / size]) * size + position % size;
  }

  Pages pages_;
  std::vector<Tag> memory_;
};

std::vector<int> table_of(const Pages& pages, int slot) { return {pages.table(slot), pages.table(slot) + pages.held(slot)}; }

class MachineEngine {
 public:
  MachineEngine(int num_slots, int tau, int max_model_len, int draft_max_len, int kv_cache_tokens, int prefill_chunk,
                int vocab_size)
      : scripts_(std::make_shared<Scripts>(vocab_size)), backend_(make_cpu_backend(1, "")) {
    EngineOptions options;
    options.num_speculative_tokens = tau;
    options.max_model_len = max_model_len;
    options.max_num_seqs = num_slots;
    options.kv_cache_tokens = kv_cache_tokens;
    options.prefill_chunk = options.prefill_chunk_beside = prefill_chunk;
    options.prefix_cache_bytes = 0;
    const auto model = [&](ScriptedModel::Role role, int max_len) {
      return std::make_unique<ScriptedModel>(*backend_, role, scripts_, vocab_size, Engine::limits_of(options, max_len));
    };
    auto first = model(ScriptedModel::Role::target, max_model_len), second = model(ScriptedModel::Role::draft, draft_max_len);
    target = first.get(), draft = second.get();
    engine_ = std::make_unique<Engine>(backend_, std::move(first), std::move(second), options);
  }

  // A request that reads script tokens[0], of which the first `prompt_length` tokens are the prompt.
  int64_t add(const std::vector<int32_t>& tokens, const std::vector<int32_t>& drafts, int prompt_length, int max_tokens,
              std::vector<int> stops) {
    Script script;
    script.tokens = tokens, script.drafts = drafts;
    scripts_->at(tokens.at(0)) = script;
    RequestParams params;
    params.max_tokens = max_tokens;
    params.stop_token_ids = std::move(stops);
    return engine_->add({tokens.begin(), tokens.begin() + prompt_length}, params);
  }
  void cancel(int64_t id) { engine_->cancel(id); }
  bool idle() { return engine_->idle(); }

  // (request, tokens, finish reason, tau, accepted) of everyone who got something.
  std::vector<std::tuple<int64_t, std::vector<int>, std::string, int, int>> step() {
    target->forget_trace(), draft->forget_trace();
    std::vector<std::tuple<int64_t, std::vector<int>, std::string, int, int>> all;
    for (const Output& output : engine_->step())
      all.emplace_back(output.request, output.tokens, name_of(output.finish), output.tau, output.accepted);
    return all;
  }

  ScriptedModel *target, *draft;

 private:
  std::shared_ptr<Scripts> scripts_;
  std::shared_ptr<Backend> backend_;
  std::unique_ptr<Engine> engine_;
};

// (slot, position, token) of the rows fed in the last step, in order.
std::vector<std::tuple<int, int, int>> trace_of(const ScriptedModel& model) {
  std::vector<std::tuple<int, int, int>> rows;
  for (const auto& row : model.trace()) rows.emplace_back(row.slot, row.position, row.token);
  return rows;
}

// (position, token) of [0, positions) of the slot; a row that somebody else wrote shows as (-1, -1).
std::vector<std::pair<int, int>> tags_of(const ScriptedModel& model, int slot, int positions) {
  std::vector<std::pair<int, int>> tags;
  for (int position = 0; position < positions; ++position) {
    const ScriptedModel::Tag tag = model.tag(slot, position);
    const bool own = tag.slot == slot && tag.generation == model.generation(slot);
    tags.emplace_back(own ? tag.position : -1, own ? tag.token : -1);
  }
  return tags;
}

}  // namespace

PYBIND11_MODULE(paceline_testing, m) {
  m.def("clamped_tau", &clamped_tau, "wanted"_a, "length"_a, "end_length"_a, "draft_cached"_a, "draft_max_len"_a);
  m.def("target_reach", &target_reach, "length"_a, "tau"_a);
  m.def("draft_reach", &draft_reach, "length"_a, "tau"_a);
  m.def("cached_after", &cached_after, "fed"_a, "new_length"_a);

  py::class_<TaggedPages>(m, "TaggedPages")
      .def(py::init<int, int, int, int>(), "num_pages"_a, "num_slots"_a, "pages_per_slot"_a, "page_positions"_a)
      .def("reserve", [](TaggedPages& self, int slot, int positions) { return self.pages().reserve(slot, positions); })
      .def("truncate", [](TaggedPages& self, int slot, int positions) { self.pages().truncate(slot, positions); })
      .def("share", &TaggedPages::share, "from"_a, "to"_a, "positions"_a)
      .def("write", &TaggedPages::write, "slot"_a, "position"_a, "writer"_a, "token"_a)
      .def("read", &TaggedPages::read, "slot"_a, "position"_a)
      .def("table", [](TaggedPages& self, int slot) { return table_of(self.pages(), slot); })
      .def("references", [](TaggedPages& self, int page) { return self.pages().references(page); })
      .def_property_readonly("num_pages", [](TaggedPages& self) { return self.pages().num_pages(); })
      .def_property_readonly("num_free", [](TaggedPages& self) { return self.pages().num_free(); });

  py::class_<PrefixCache>(m, "PrefixCache")  // a page weighs 1
      .def(py::init([](TaggedPages& target, TaggedPages& draft, int64_t budget) {
             return std::make_unique<PrefixCache>(PrefixCache::Pool{&target.pages(), 1}, PrefixCache::Pool{&draft.pages(), 1}, budget);
           }), "target"_a, "draft"_a, "budget"_a, py::keep_alive<1, 2>(), py::keep_alive<1, 3>())
      .def("adopt", [](PrefixCache& self, int slot, const std::vector<int32_t>& tokens, bool with_draft) {
             const PrefixCache::Found found = self.adopt(slot, tokens, with_draft);
             return std::pair(found.target, found.draft);
           }, "slot"_a, "tokens"_a, "with_draft"_a)
      .def("keep", [](PrefixCache& self, int slot, const std::vector<int32_t>& tokens, int target_positions, int draft_positions) {
             self.keep(slot, tokens, target_positions, draft_positions);
           }, "slot"_a, "tokens"_a, "target_positions"_a, "draft_positions"_a)
      .def("reserve_target", &PrefixCache::reserve_target, "slot"_a, "positions"_a)
      .def("reserve_draft", &PrefixCache::reserve_draft, "slot"_a, "positions"_a)
      .def("pages", [](PrefixCache& self, int num_pages) {  // (target's page, draft's page or -1, parent or -1) of every node
             std::vector<std::tuple<int, int, int>> all;
             for (int page = 0; page < num_pages; ++page)
               if (self.node(page).parent != PrefixCache::kNobody) all.emplace_back(page, self.node(page).draft_page, self.node(page).parent);
             return all;
           }, "num_pages"_a)
      .def_property_readonly("bytes", &PrefixCache::bytes);

  py::class_<ScriptedModel>(m, "ScriptedModel")
      .def("table", [](ScriptedModel& self, int slot) { return table_of(self.cache().pages(), slot); })
      .def("fed", &ScriptedModel::fed, "slot"_a)
      .def("tags", &tags_of, "slot"_a, "positions"_a)
      .def_property_readonly("trace", &trace_of)
      .def_property_readonly("num_pages", [](ScriptedModel& self) { return self.cache().pages().num_pages(); })
      .def_property_readonly("num_free", [](ScriptedModel& self) { return self.cache().pages().num_free(); });

  py::class_<MachineEngine>(m, "Engine")
      .def(py::init<int, int, int, int, int, int, int>(), py::kw_only(), "num_slots"_a, "tau"_a, "max_model_len"_a,
           "draft_max_len"_a, "kv_cache_tokens"_a, "prefill_chunk"_a, "vocab_size"_a)
      .def("add", &MachineEngine::add, py::kw_only(), "tokens"_a, "drafts"_a, "prompt_length"_a, "max_tokens"_a, "stop_token_ids"_a)
      .def("cancel", &MachineEngine::cancel, "request"_a)
      .def("step", &MachineEngine::step)
      .def_property_readonly("idle", &MachineEngine::idle)
      .def_property_readonly("target", [](MachineEngine& self) { return self.target; }, py::return_value_policy::reference_internal)
      .def_property_readonly("draft", [](MachineEngine& self) { return self.draft; }, py::return_value_policy::reference_internal);
}
