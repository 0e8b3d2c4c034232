// The module, and the kernels in it: raw pointers in and out, the GIL released around work.
#include "bindings.h"

#include <string>

#include "cpu/isa.h"
#include "cpu/paged_kv.h"
#include "cpu/parallel.h"
#include "cpu/sampling.h"
#include "cpu/step_rewards.h"
#include "cpu/tree_attention.h"

using mstar::bindings::pointer;

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

// ---- tree attention, paged K/V ----

mstar::Dtype dtype_of(const std::string& name) {
  if (name == "float32") return mstar::Dtype::float32;
  if (name == "bfloat16") return mstar::Dtype::bfloat16;
  if (name == "float16") return mstar::Dtype::float16;
  throw py::value_error("dtype=" + name + "; allowed: float32, bfloat16, float16");
}

mstar::Isa isa_of(const std::string& name) {
  for (mstar::Isa isa : {mstar::Isa::portable, mstar::Isa::avx2, mstar::Isa::avx512}) {
    if (name == mstar::isa_name(isa)) return isa;
  }
  if (!name.empty()) throw py::value_error("isa=" + name + "; allowed: portable, avx2, avx512");
  return mstar::active_isa();
}

void bind_tree_attention(py::module_& m) {
  m.def(
      "tree_attention",
      [](std::uintptr_t q, std::uintptr_t k_cache, std::uintptr_t v_cache, std::uintptr_t out,
         const std::string& q_dtype, const std::string& kv_dtype, int rows, int heads, int kv_heads, int head_dim,
         int block_size, int nodes, std::uintptr_t row_begin, std::uintptr_t row_end, std::uintptr_t table,
         std::uintptr_t length, std::uintptr_t start, std::uintptr_t block_table, std::int64_t blocks_per_table,
         std::uintptr_t positions, float scale, int window, float softcap, const std::string& isa) {
        using Ints = const std::int32_t;
        const mstar::TreeAttention a{
            pointer<void>(q), pointer<void>(k_cache), pointer<void>(v_cache), pointer<void>(out), dtype_of(q_dtype),
            dtype_of(kv_dtype), rows, heads, kv_heads, head_dim, block_size, nodes, pointer<Ints>(row_begin),
            pointer<Ints>(row_end), pointer<Ints>(table), pointer<Ints>(length), pointer<Ints>(start),
            pointer<Ints>(block_table), blocks_per_table, pointer<Ints>(positions), scale, window, softcap};
        const mstar::Isa chosen = isa_of(isa);
        py::gil_scoped_release release;
        mstar::tree_attention(a, chosen);
      },
      "Unchecked; see mstar_kernels.tree_attention. window, softcap: 0 for none. isa: empty for the active one.");
}

void bind_paged_kv(py::module_& m) {
  m.def(
      "store_kv",
      [](std::uintptr_t k, std::uintptr_t v, std::uintptr_t k_cache, std::uintptr_t v_cache, int kv_heads,
         int block_size, int head_dim, std::size_t element_size, std::uintptr_t slots, std::int64_t tokens) {
        py::gil_scoped_release release;
        mstar::store_kv({pointer<void>(k_cache), pointer<void>(v_cache), kv_heads, block_size, head_dim, element_size},
                        pointer<void>(k), pointer<void>(v), pointer<const std::int32_t>(slots), tokens);
      },
      "Unchecked; see mstar_kernels.paged_kv.");
  m.def(
      "copy_blocks",
      [](std::uintptr_t k_cache, std::uintptr_t v_cache, int kv_heads, int block_size, int head_dim,
         std::size_t element_size, std::uintptr_t src, std::uintptr_t dst, std::int64_t copies) {
        py::gil_scoped_release release;
        mstar::copy_blocks(
            {pointer<void>(k_cache), pointer<void>(v_cache), kv_heads, block_size, head_dim, element_size},
            pointer<const std::int32_t>(src), pointer<const std::int32_t>(dst), copies);
      },
      "Unchecked; see mstar_kernels.paged_kv.");
}

// ---- step rewards ----

mstar::Head head_of(const std::string& name) {
  if (name == "softmax") return mstar::Head::softmax;
  if (name == "sigmoid") return mstar::Head::sigmoid;
  throw py::value_error("head=" + name + "; allowed: softmax, sigmoid");
}

mstar::Reduction reduction_of(const std::string& name) {
  if (name == "min") return mstar::Reduction::min;
  if (name == "mean") return mstar::Reduction::mean;
  if (name == "product") return mstar::Reduction::product;
  if (name == "last") return mstar::Reduction::last;
  throw py::value_error("reduction=" + name + "; allowed: min, mean, product, last");
}

void bind_step_rewards(py::module_& m) {
  m.def(
      "step_rewards",
      [](std::uintptr_t hidden, std::uintptr_t label_rows, std::uintptr_t bias, const std::string& hidden_dtype,
         const std::string& label_dtype, int dim, int labels, std::uintptr_t step_positions,
         std::uintptr_t response_steps, std::int64_t responses, const std::string& head, const std::string& reduction,
         std::uintptr_t scores, std::uintptr_t reduced, std::uintptr_t weakest, const std::string& isa) {
        using Ints = const std::int32_t;
        const mstar::StepRewards call{
            pointer<void>(hidden), pointer<void>(label_rows), pointer<const float>(bias), dtype_of(hidden_dtype),
            dtype_of(label_dtype), dim, labels, pointer<Ints>(step_positions), pointer<Ints>(response_steps), responses,
            head_of(head), reduction_of(reduction), pointer<float>(scores), pointer<float>(reduced),
            pointer<std::int32_t>(weakest)};
        const mstar::Isa chosen = isa_of(isa);
        py::gil_scoped_release release;
        mstar::step_rewards(call, chosen);
      },
      "Unchecked; see mstar_kernels.step_rewards. bias: 0 for none. isa: empty for the active one.");
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "C++ core: scheduler over the prefix tree, CPU kernels.";
  bind_runtime(m);
  bind_sampling(m);
  bind_tree_attention(m);
  bind_paged_kv(m);
  bind_step_rewards(m);
  mstar::bindings::bind_attention_work(m);
  mstar::bindings::bind_scheduler(m);
}
