// The Python module: convert, release the GIL, map errors. No logic; python/paceline/_core.pyi is its contract.
#include "core/error.h"
#include "python/bindings.h"

using namespace paceline;

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled core of Paceline. Private: use paceline.Engine.";
  py::register_exception<ModelFileError>(m, "ModelFileError", PyExc_RuntimeError);
  py::register_exception<CapacityError>(m, "CapacityError", PyExc_RuntimeError);
  py::register_exception<DeviceError>(m, "DeviceError", PyExc_RuntimeError);
  py::register_exception<NumericError>(m, "NumericError", PyExc_RuntimeError);
  py::register_exception<EngineDead>(m, "EngineDead", PyExc_RuntimeError);
  bind_loading(m);
  bind_requests(m);
  bind_replay(m);
  bind_engine(m);
}
