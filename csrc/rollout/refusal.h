// How a wrong argument is refused: its name, what was given, what is allowed.
#pragma once

#include <stdexcept>
#include <string>

namespace mstar {

template <typename T>
[[noreturn]] void refuse(const std::string& key, T given, const std::string& allowed) {
  throw std::invalid_argument(key + "=" + std::to_string(given) + "; allowed: " + allowed);
}

}  // namespace mstar
