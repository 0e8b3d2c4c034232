// The only file that knows Python: numpy views and raw pointers in and out, errors mapped, the GIL released around work.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "cpu/paged_kv.h"
#include "cpu/parallel.h"
#include "cpu/sampling.h"
#include "cpu/step_rewards.h"
#include "cpu/tree_attention.h"
#include "rollout/scheduler.h"

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

// ---- tree attention, paged K/V ----

// An address as an integer: tensor.data_ptr(). The caller has checked shape, dtype, contiguity and ranges.
template <typename T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

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

// --- rollout ------------------------------------------------------------------------------------------------------

// numpy views of one plan. They are made once and keep the scheduler's memory alive.
struct PlanView {
  std::shared_ptr<mstar::Scheduler> scheduler;
  py::dict arrays;
};

struct SchedulerView {
  std::shared_ptr<mstar::Scheduler> core;
  py::object plan;
};

template <typename T>
py::array_t<T> view_of(const std::shared_ptr<mstar::Scheduler>& owner, std::vector<T>& data,
                       std::vector<py::ssize_t> shape = {}) {
  if (shape.empty()) shape = {static_cast<py::ssize_t>(data.size())};
  py::capsule base(new std::shared_ptr<mstar::Scheduler>(owner),
                   [](void* held) { delete static_cast<std::shared_ptr<mstar::Scheduler>*>(held); });
  return py::array_t<T>(shape, data.data(), base);
}

using Ints = py::array_t<std::int32_t, py::array::c_style | py::array::forcecast>;
using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

template <typename T, int Flags>
std::vector<T> to_vector(const char* key, const py::array_t<T, Flags>& array) {
  if (array.ndim() != 1)
    throw py::value_error(std::string(key) + " has " + std::to_string(array.ndim()) + " dimensions; allowed: 1");
  return std::vector<T>(array.data(), array.data() + array.size());
}

mstar::Policy policy_from(const std::string& name) {
  if (name == "auto") return mstar::Policy::automatic;
  if (name == "no_evict") return mstar::Policy::no_evict;
  if (name == "watermark") return mstar::Policy::watermark;
  throw py::value_error("policy=" + name + "; allowed: auto, no_evict, watermark");
}

SchedulerView make_scheduler(std::int32_t num_blocks, std::int32_t block_size, std::int32_t max_rows,
                             std::int32_t max_prefill_tokens, std::int32_t max_sequence_length,
                             std::vector<std::int32_t> stop_ids, const std::string& policy, double watermark,
                             std::int32_t record_width, std::int32_t admit_rows, std::int32_t max_held_nodes) {
  auto core = std::make_shared<mstar::Scheduler>(
      mstar::SchedulerOptions{num_blocks, block_size, max_rows, max_prefill_tokens, max_sequence_length,
                              std::move(stop_ids), policy_from(policy), watermark, record_width, admit_rows,
                              max_held_nodes});
  PlanView plan{core, {}};
  mstar::Plan& arrays = core->plan();
#define MSTAR_VIEW(name) plan.arrays[#name] = view_of(core, arrays.name)
  MSTAR_VIEW(row_ids);
  MSTAR_VIEW(row_groups);
  MSTAR_VIEW(logit_rows);
  MSTAR_VIEW(seed);
  MSTAR_VIEW(problem);
  MSTAR_VIEW(sample);
  MSTAR_VIEW(position);
  MSTAR_VIEW(temperature);
  MSTAR_VIEW(top_k);
  MSTAR_VIEW(top_p);
  MSTAR_VIEW(min_p);
  MSTAR_VIEW(token_ids);
  MSTAR_VIEW(positions);
  MSTAR_VIEW(slots);
  MSTAR_VIEW(token_rows);
  MSTAR_VIEW(node_row_begin);
  MSTAR_VIEW(node_row_end);
  MSTAR_VIEW(node_table);
  MSTAR_VIEW(node_length);
  MSTAR_VIEW(node_start);
  MSTAR_VIEW(copy_src);
  MSTAR_VIEW(copy_dst);
  MSTAR_VIEW(group_ids);
  MSTAR_VIEW(token_begin);
#undef MSTAR_VIEW
  mstar::PrefixTree& tree = core->tree();
  plan.arrays["block_table"] = view_of(core, tree.block_table(), {tree.max_nodes(), tree.max_blocks_per_node()});
  return SchedulerView{core, py::cast(std::move(plan))};
}

py::dict rows_of(const mstar::Group& group, std::int32_t record_width) {
  py::ssize_t total = 0;
  for (const mstar::Row& row : group.rows) total += row.drawn();
  py::array_t<std::int32_t> lengths(group.num_rows()), reasons(group.num_rows()), tokens(total);
  py::array_t<float> records(std::vector<py::ssize_t>{total, record_width});
  std::int32_t* next_token = tokens.mutable_data();
  float* next_record = records.mutable_data();
  for (const mstar::Row& row : group.rows) {
    lengths.mutable_at(row.index) = row.drawn();
    reasons.mutable_at(row.index) = static_cast<std::int32_t>(row.reason);
    next_token = std::copy(row.tokens.begin(), row.tokens.end(), next_token);
    next_record = std::copy(row.records.begin(), row.records.end(), next_record);
  }
  py::dict result;
  result["lengths"] = lengths;
  result["tokens"] = tokens;
  result["records"] = records;
  result["reasons"] = reasons;
  return result;
}

py::dict stats_of(const mstar::SchedulerStats& stats) {
  py::dict result;
  result["prefill_tokens"] = stats.prefill_tokens;
  result["extend_tokens"] = stats.extend_tokens;
  result["decode_tokens"] = stats.decode_tokens;
  result["sampled_tokens"] = stats.sampled_tokens;
  result["preemptions"] = stats.preemptions;
  result["copies"] = stats.copies;
  result["free_blocks"] = stats.free_blocks;
  result["used_blocks"] = stats.used_blocks;
  result["waiting"] = stats.waiting;
  result["running"] = stats.running;
  result["preempted"] = stats.preempted;
  result["held"] = stats.held;
  return result;
}

void bind_scheduler(py::module_& m) {
  py::class_<PlanView> plan(m, "Plan", R"(One step as flat numpy views onto the scheduler's memory, rewritten in place.

Each array has its full capacity; slice it by the count of its kind (num_rows, num_tokens, num_nodes, num_groups,
num_copies; token_begin by num_groups + 1). The views stay valid as long as they are held.)");
  plan.def_property_readonly("kind",
                             [](const PlanView& view) { return static_cast<int>(view.scheduler->plan().kind); });
#define MSTAR_COUNT(name) \
  plan.def_property_readonly(#name, [](const PlanView& view) { return view.scheduler->plan().name; })
  MSTAR_COUNT(num_rows);
  MSTAR_COUNT(num_tokens);
  MSTAR_COUNT(num_nodes);
  MSTAR_COUNT(num_groups);
  MSTAR_COUNT(num_copies);
  MSTAR_COUNT(num_draws);
#undef MSTAR_COUNT
  for (const char* name :
       {"row_ids", "row_groups", "logit_rows", "seed", "problem", "sample", "position", "temperature", "top_k", "top_p",
        "min_p", "token_ids", "positions", "slots", "token_rows", "node_row_begin", "node_row_end", "node_table", "node_length",
        "node_start", "block_table", "copy_src", "copy_dst", "group_ids", "token_begin"})
    plan.def_property_readonly(name, [name](const PlanView& view) { return py::object(view.arrays[name]); });

  py::class_<SchedulerView>(m, "Scheduler", "Plans the steps of a rollout over a tree of shared prefixes.")
      .def(py::init(&make_scheduler), py::arg("num_blocks"), py::arg("block_size"), py::arg("max_rows"),
           py::arg("max_prefill_tokens"), py::arg("max_sequence_length"), py::arg("stop_ids"),
           py::arg("policy") = "auto", py::arg("watermark") = 0.05, py::arg("record_width") = 4,
           py::arg("admit_rows") = 1, py::arg("max_held_nodes") = 0)
      .def(
          "submit",
          [](SchedulerView& self, std::int32_t prompt_length, std::int32_t max_tokens, std::uint64_t seed,
             std::uint64_t problem, const Ints& samples, const Floats& temperature, const Ints& top_k,
             const Floats& top_p, const Floats& min_p) {
            return self.core->submit({prompt_length, max_tokens, seed, problem, to_vector("samples", samples),
                                      to_vector("temperature", temperature), to_vector("top_k", top_k),
                                      to_vector("top_p", top_p), to_vector("min_p", min_p)});
          },
          py::arg("prompt_length"), py::arg("max_tokens"), py::arg("seed"), py::arg("problem"), py::arg("samples"),
          py::arg("temperature"), py::arg("top_k"), py::arg("top_p"), py::arg("min_p"),
          "Queue a group of len(samples) rows below one prompt; its handle. ValueError when it can never run.")
      .def(
          "hold",
          [](SchedulerView& self, std::int32_t prompt_length, const std::vector<Ints>& stems,
             std::vector<std::vector<std::int32_t>> offsets, std::int32_t fork_rows, std::int32_t max_tokens) {
            mstar::HoldRequest request{prompt_length, {}, {}, std::move(offsets), fork_rows, max_tokens};
            for (const Ints& stem : stems) {
              const std::vector<std::int32_t> tokens = to_vector("a stem", stem);
              request.lengths.push_back(static_cast<std::int32_t>(tokens.size()));
              request.tokens.insert(request.tokens.end(), tokens.begin(), tokens.end());
            }
            return self.core->hold(std::move(request));
          },
          py::arg("prompt_length"), py::arg("stems"), py::arg("offsets"), py::arg("fork_rows"), py::arg("max_tokens"),
          R"(Queue a prompt and stems, given token ids int32 [length], that are computed once and stay; the handle.
offsets: for each stem, ascending, how many of its tokens may precede a fork. fork_rows: forked rows alive at one time,
at most. max_tokens: of a forked row, at most. ValueError when it can never be held.)")
      .def("ready", [](SchedulerView& self) { return self.core->ready(); },
           "Handles of the holds whose stems have all become resident since the last call.")
      .def(
          "fork",
          [](SchedulerView& self, std::int32_t hold, std::int32_t stem, std::int32_t offset, std::int32_t max_tokens,
             std::uint64_t seed, std::uint64_t problem, const Ints& samples, const Floats& temperature,
             const Ints& top_k, const Floats& top_p, const Floats& min_p) {
            return self.core->fork(hold, stem, offset,
                                   {0, max_tokens, seed, problem, to_vector("samples", samples),
                                    to_vector("temperature", temperature), to_vector("top_k", top_k),
                                    to_vector("top_p", top_p), to_vector("min_p", min_p)});
          },
          py::arg("hold"), py::arg("stem"), py::arg("offset"), py::arg("max_tokens"), py::arg("seed"),
          py::arg("problem"), py::arg("samples"), py::arg("temperature"), py::arg("top_k"), py::arg("top_p"),
          py::arg("min_p"),
          R"(Start a group of len(samples) rows after the first `offset` tokens of a stem of a ready hold; its handle.
The plan's position of its rows counts from `offset`. ValueError when it is beyond what the hold declared, RuntimeError
while a plan is outstanding.)")
      .def("release", [](SchedulerView& self, std::int32_t hold) { self.core->release(hold); }, py::arg("hold"),
           "Give the stems back; the handle is forgotten. ValueError while a forked row is alive.")
      .def(
          "next_plan",
          [](SchedulerView& self) {
            py::gil_scoped_release release;
            return static_cast<int>(self.core->next_plan());
          },
          "Plan a step: 0 idle, 1 prefill, 2 extend, 3 decode. RuntimeError while a plan is outstanding.")
      .def("plan_ahead", [](SchedulerView& self) { return self.core->plan_ahead(); },
           "Plan the decode step behind the outstanding one, as if no row of that one stopped; its rows feed what the\n"
           "outstanding step draws (token_rows). False when that is not sure to be the next plan. commit() then ends\n"
           "the older of the two, and what the newer draws for rows that had stopped is dropped.")
      .def_property_readonly("plan", [](const SchedulerView& self) { return self.plan; })
      .def(
          "commit",
          [](SchedulerView& self, const py::array_t<std::int32_t, py::array::c_style>& tokens,
             const py::array_t<float, py::array::c_style>& records) {
            const std::int32_t* token_data = tokens.data();
            const float* record_data = records.data();
            const py::ssize_t num_tokens = tokens.size(), num_records = records.size();
            py::gil_scoped_release release;
            self.core->commit(token_data, num_tokens, record_data, num_records);
          },
          py::arg("tokens"), py::arg("records"),
          "The step ran: tokens int32 [num_draws], records float32 [num_draws, record_width], in row order.")
      .def("rollback", [](SchedulerView& self) { self.core->rollback(); },
           "The step failed: undo its plan. The next plan is the same one.")
      .def("abort", [](SchedulerView& self, std::int32_t group) { self.core->abort(group); }, py::arg("group"),
           R"(End a group; its rows keep what they drew. A hold's forks end, and it is released. During a step it takes
effect when the step ends.)")
      .def("finished", [](SchedulerView& self) { return self.core->finished(); },
           "Handles of the groups that ended since the last call.")
      .def(
          "take",
          [](SchedulerView& self, std::int32_t group) {
            return rows_of(*self.core->take(group), self.core->options().record_width);
          },
          py::arg("group"),
          R"(What an ended group drew, which is then forgotten: lengths int32 [n], tokens int32 [sum of lengths],
records float32 [sum of lengths, record_width], reasons int32 [n] (0 stop, 1 length, 2 abort).)")
      .def("has_work", [](const SchedulerView& self) { return self.core->has_work(); })
      .def("stats", [](const SchedulerView& self) { return stats_of(self.core->stats()); },
           R"(Totals of committed steps; free_blocks, used_blocks, waiting (groups), running and preempted (rows), held
(stems of ready holds) now.)")
      .def("audit", [](const SchedulerView& self) { self.core->audit(); },
           "RuntimeError when an invariant is broken. For tests.");
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "C++ core: scheduler over the prefix tree, CPU kernels.";
  bind_runtime(m);
  bind_sampling(m);
  bind_tree_attention(m);
  bind_paged_kv(m);
  bind_step_rewards(m);
  bind_scheduler(m);
}
