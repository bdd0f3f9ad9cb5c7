// Rows in, what became of them out.
#include "decode/replay.h"

#include "python/bindings.h"
#include "python/trace.h"

namespace paceline {
namespace {

using FloatRows = py::array_t<float, py::array::c_style>;
using Doubles = py::array_t<double, py::array::c_style>;

Replay replay_rows(const BackendHandle& backend, const std::string& acceptance, const FloatRows& target, const FloatRows& draft,
                   const RequestParams& params, int cycles, const std::optional<Doubles>& uniforms) {
  require(target.ndim() == 2 && draft.ndim() == 2 && target.shape(0) == draft.shape(0) + 1,
          "[replay] target_rows must be [tau + 1, vocabulary] and draft_rows [tau, vocabulary]");
  require(!uniforms || uniforms->size() == py::ssize_t(cycles) * draft.shape(0), "[replay] uniforms must be [cycles, tau]");
  const ReplayRows rows{int(draft.shape(0)), int(target.shape(1)), int(draft.shape(1)), target.data(), draft.data()};
  const double* given = uniforms ? uniforms->data() : nullptr;
  const Unlocked unlocked;
  return replay(*backend.backend, acceptance_of(acceptance), rows, params, cycles, given);
}

template <class T>
py::array_t<T> array_of(const std::vector<T>& values, py::ssize_t rows) {
  return py::array_t<T>({rows, rows ? py::ssize_t(values.size()) / rows : 0}, values.data());
}

}  // namespace

void bind_replay(py::module_& m) {
  py::class_<Replay>(m, "Replay")
      .def_property_readonly("seed", [](const Replay& self) { return column(self.seed); })
      .def_property_readonly("position", [](const Replay& self) { return column(self.position); })
      .def_property_readonly("drafts", [](const Replay& self) { return array_of(self.drafts, py::ssize_t(self.seed.size())); })
      .def_property_readonly("accepted", [](const Replay& self) { return column(self.accepted); })
      .def_property_readonly("tokens", [](const Replay& self) { return array_of(self.tokens, py::ssize_t(self.seed.size())); });
  m.def("replay", &replay_rows, "backend"_a, "acceptance"_a, "target_rows"_a, "draft_rows"_a, "params"_a, "cycles"_a, "uniforms"_a = py::none());
}

}  // namespace paceline
