// The only file that knows Python: numpy views and raw pointers in and out, errors mapped, the GIL released around work.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/sampling.h"

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

void bind_sampling(py::module_& m) {
  py::enum_<mstar::LogitType>(m, "LogitType")
      .value("fp32", mstar::LogitType::fp32)
      .value("bf16", mstar::LogitType::bf16)
      .value("fp16", mstar::LogitType::fp16);
  m.def(
      "sample_tokens",
      [](std::uintptr_t logits, mstar::LogitType type, std::int64_t vocabulary, std::int64_t rows,
         std::uintptr_t logit_rows, std::uintptr_t temperature, std::uintptr_t top_k, std::uintptr_t top_p,
         std::uintptr_t min_p, std::uintptr_t seed, std::uintptr_t problem, std::uintptr_t sample,
         std::uintptr_t position, std::uintptr_t banned_ids, std::int64_t num_banned, std::uintptr_t tokens,
         std::uintptr_t records) {
        const auto ints = [](std::uintptr_t p) { return reinterpret_cast<const std::int32_t*>(p); };
        const auto longs = [](std::uintptr_t p) { return reinterpret_cast<const std::uint64_t*>(p); };
        const auto floats = [](std::uintptr_t p) { return reinterpret_cast<const float*>(p); };
        mstar::sample_tokens({reinterpret_cast<const void*>(logits), type, vocabulary, rows, ints(logit_rows),
                              floats(temperature), ints(top_k), floats(top_p), floats(min_p), longs(seed),
                              longs(problem), ints(sample), ints(position), ints(banned_ids), num_banned,
                              reinterpret_cast<std::int32_t*>(tokens), reinterpret_cast<float*>(records)});
      },
      "Pointers and sizes as in csrc/cpu/sampling.h; mstar_kernels.sampling checks them.",
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "C++ core: scheduler over the prefix tree, CPU kernels.";
  bind_runtime(m);
  bind_sampling(m);
}
