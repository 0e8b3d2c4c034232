// The only file that knows Python: numpy views and raw pointers in and out, errors mapped, the GIL released around work.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace py = pybind11;

namespace {

void bind_runtime(py::module_& m) {
  m.def("active_isa", [] { return mstar::isa_name(mstar::active_isa()); }, "Instruction set the CPU kernels use.");
  m.def("num_threads", &mstar::num_threads, "Threads used by the CPU kernels, the caller included.");
  m.def(
      "set_num_threads",
      [](int n) {
        if (n < 1) throw py::value_error("set_num_threads: num_threads=" + std::to_string(n) + "; allowed: 1 or more");
        mstar::set_num_threads(n);
      },
      py::arg("num_threads"));
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "C++ core: scheduler over the prefix tree, CPU kernels.";
  bind_runtime(m);
}
