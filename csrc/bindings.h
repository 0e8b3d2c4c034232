// What the files that know Python share: csrc/bindings*.cpp.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace py = pybind11;

namespace mstar::bindings {

// An address as an integer: tensor.data_ptr(). The caller has checked shape, dtype, contiguity and ranges.
template <typename T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void bind_attention_work(py::module_& m);
void bind_scheduler(py::module_& m);

}  // namespace mstar::bindings
