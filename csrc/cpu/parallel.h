// Threads for the CPU kernels: the OpenMP runtime that torch has loaded, where there is one, so that a process has one
// pool (two that spin on the same cores are slower than one thread); else a small pool whose workers sleep.
#pragma once

#include <cstdint>
#include <functional>

namespace mstar {

// Threads used by parallel_for, the caller included; at least 1. The default is 1.
void set_num_threads(int num_threads);
int num_threads();

// Runs task(i) for every i in [0, count), each exactly once, on the pool; returns when all are done.
// Tasks are handed out one at a time, so unequal tasks balance. The first exception is rethrown here.
void parallel_for(std::int64_t count, const std::function<void(std::int64_t)>& task);

}  // namespace mstar
