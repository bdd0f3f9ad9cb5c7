// Python's lock: let go for whatever takes long, taken for every touch of its objects.
#pragma once

#include <cxxabi.h>
#include <pybind11/pybind11.h>
#include <unistd.h>

#include <memory>

namespace paceline {

// Once the interpreter is being finalised, Python ends every other thread that asks for the GIL: up to 3.13 by pthread_exit, whose
// unwinding would leave our guards' destructors (std::terminate), or run destructors of Python objects without the GIL. Such a thread
// stops here instead, with all it holds, until the process is gone: what Python 3.14 does itself.
template <class Take>
void take_gil(Take take) noexcept {
  try {
    take();
  } catch (abi::__forced_unwind&) {
    for (;;) pause();
  }
}

// The scope of a long call: other Python threads run meanwhile.
class Unlocked {
 public:
  Unlocked() : state_(PyEval_SaveThread()) {}
  ~Unlocked() { take_gil([this] { PyEval_RestoreThread(state_); }); }
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;

 private:
  PyThreadState* state_;
};

// The scope of a touch of Python's objects, by whoever does not know whether it has the GIL.
class Locked {
 public:
  Locked() {
    take_gil([this] { state_ = PyGILState_Ensure(); });
  }
  ~Locked() { PyGILState_Release(state_); }
  Locked(const Locked&) = delete;
  Locked& operator=(const Locked&) = delete;

 private:
  PyGILState_STATE state_;
};

// Whether this thread has the GIL. Not PyGILState_Check, which says yes to everybody once there has been a sub-interpreter.
inline bool has_gil() {
  PyThreadState* const mine = PyGILState_GetThisThreadState();
#if PY_VERSION_HEX >= 0x030D0000
  return mine && mine == PyThreadState_GetUnchecked();
#else
  return mine && mine == _PyThreadState_UncheckedGet();
#endif
}

// An object whose destructor joins threads or frees gigabytes lets other Python threads run meanwhile. The last reference
// may also go where the GIL is not held: inside another such destructor, or a call that outlived `close`.
template <class T>
struct UnlockedDelete {
  void operator()(T* object) const {
    if constexpr (requires { object->is_left_behind(); })
      if (object->is_left_behind()) return;  // a forked child's copy
    if (!has_gil()) {
      delete object;
      return;
    }
    const Unlocked unlocked;
    delete object;
  }
};
template <class T>
std::shared_ptr<T> shared(T* object) { return std::shared_ptr<T>(object, UnlockedDelete<T>()); }

}  // namespace paceline
