#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace mstar {
namespace {

bool runs_here(Isa isa) {
  switch (isa) {
    case Isa::portable:
      return true;
#if MSTAR_HAS_AVX2
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
#endif
#if MSTAR_HAS_AVX512
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512cd");
#endif
    default:
      return false;
  }
}

Isa choose() {
  constexpr Isa widest_first[] = {Isa::avx512, Isa::avx2, Isa::portable};
  const char* wanted = std::getenv("MSTAR_CPU");
  for (Isa isa : widest_first) {
    if (wanted != nullptr && *wanted != '\0' && std::string(wanted) != isa_name(isa)) continue;
    if (runs_here(isa)) return isa;
  }
  throw std::invalid_argument(std::string("MSTAR_CPU=") + wanted +
                              " cannot run here; allowed: portable, avx2, avx512 as far as this processor has them");
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "portable";
  }
}

Isa active_isa() {
  static const Isa isa = choose();
  return isa;
}

}  // namespace mstar
