// Element types of tensors that cross the border as raw pointers.
#pragma once

namespace mstar {

enum class Dtype { float32, bfloat16, float16 };

}  // namespace mstar
