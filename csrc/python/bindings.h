// What the files of the binding share. Each converts, releases the GIL and maps errors; python/paceline/_core.pyi is their contract.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "backend/backend.h"
#include "python/gil.h"

namespace paceline {

namespace py = pybind11;
using namespace py::literals;

struct BackendHandle {
  std::shared_ptr<Backend> backend;
};

Acceptance acceptance_of(const std::string& name);  // throws where it is none

void bind_loading(py::module_& m);   // backends, weights, what they would take
void bind_requests(py::module_& m);  // what is asked for, and what comes out
void bind_replay(py::module_& m);    // given rows through the cycle's own acceptance
void bind_engine(py::module_& m);    // the engine's thread and its submissions

}  // namespace paceline
