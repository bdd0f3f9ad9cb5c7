// The columns of a trace as NumPy arrays.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "decode/trace.h"

namespace paceline {

template <class T>
pybind11::array_t<T> column(const std::vector<T>& values) {
  return pybind11::array_t<T>(pybind11::ssize_t(values.size()), values.data());
}

template <class T>
pybind11::array_t<T> table(const std::vector<T>& values, size_t rows, int columns) {
  return pybind11::array_t<T>({pybind11::ssize_t(rows), pybind11::ssize_t(columns)}, values.data());
}

inline pybind11::dict as_dict(const TraceColumns& c) {
  pybind11::dict columns;
  columns["cycle"] = column(c.cycle), columns["request"] = column(c.request), columns["position"] = column(c.position);
  columns["wanted_tau"] = column(c.wanted_tau), columns["reason"] = column(c.reason), columns["tau"] = column(c.tau);
  columns["accepted"] = column(c.accepted), columns["emitted"] = column(c.emitted), columns["extra_token"] = column(c.extra_token);
  columns["extra_kind"] = column(c.extra_kind), columns["rows"] = column(c.rows), columns["sequences"] = column(c.sequences);
  columns["source"] = column(c.source), columns["start"] = column(c.start), columns["draft_time"] = column(c.draft_time);
  columns["verify_time"] = column(c.verify_time), columns["sample_time"] = column(c.sample_time), columns["host_time"] = column(c.host_time);
  columns["catch_up_agreement"] = column(c.catch_up_agreement), columns["drafted"] = table(c.drafted, c.cycle.size(), c.tau_max);
  columns["draft_logprob"] = table(c.draft_logprob, c.cycle.size(), c.tau_max), columns["target_logprob"] = table(c.target_logprob, c.cycle.size(), c.tau_max);
  columns["agreement"] = table(c.agreement, c.cycle.size(), c.tau_max);
  return columns;
}

// As a tuple of texts, so that Python has no second list.
template <size_t n>
pybind11::tuple names_of(const char* const (&names)[n]) {
  pybind11::tuple all(n);
  for (size_t i = 0; i < n; ++i) all[i] = pybind11::str(names[i]);
  return all;
}

}  // namespace paceline
