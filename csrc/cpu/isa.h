// Which instruction set the CPU kernels use. Each kernel source is compiled once per set, inside
// namespace mstar::MSTAR_ISA; a table of function pointers is picked here, once, at first use.
#pragma once

namespace mstar {

enum class Isa { portable, avx2, avx512 };

// The widest set that this build has and this processor runs, lowered by the environment variable
// MSTAR_CPU=portable|avx2|avx512. Throws std::invalid_argument when that names a set that cannot run here.
Isa active_isa();

const char* isa_name(Isa isa);

}  // namespace mstar
