// The scheduler as Python sees it: numpy views of its plans, errors mapped, the GIL released around work.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "bindings.h"
#include "rollout/attention_work.h"
#include "rollout/scheduler.h"

namespace {

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

}  // namespace

namespace mstar::bindings {

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
        "min_p", "token_ids", "positions", "slots", "token_rows", "node_row_begin", "node_row_end", "node_table",
        "node_length", "node_start", "block_table", "copy_src", "copy_dst", "group_ids", "token_begin"})
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

void bind_attention_work(py::module_& m) {
  m.def(
      "plan_attention_work",
      [](std::int32_t nodes, std::uintptr_t row_begin, std::uintptr_t row_end, std::uintptr_t table,
         std::uintptr_t length, std::uintptr_t start, std::int32_t tables, std::int32_t max_length,
         std::int32_t kv_heads, std::int32_t narrow_rows, std::int32_t wide_rows, std::int32_t narrow_programs,
         std::int32_t wide_programs, std::int32_t quantum, std::uintptr_t counts, std::uintptr_t items,
         std::int32_t max_items, std::uintptr_t row_slots, std::int32_t rows, std::uintptr_t slots,
         std::int32_t max_slots) {
        using In = const std::int32_t;
        using Out = std::int32_t;
        plan_attention_work({nodes, pointer<In>(row_begin), pointer<In>(row_end), pointer<In>(table),
                             pointer<In>(length), pointer<In>(start), tables, max_length},
                            {kv_heads, narrow_rows, wide_rows, narrow_programs, wide_programs, quantum},
                            {pointer<Out>(counts), pointer<Out>(items), pointer<Out>(row_slots), pointer<Out>(slots),
                             max_items, rows, max_slots});
      },
      "Pointers and sizes as in csrc/rollout/attention_work.h; see mstar_kernels.attention_work. ValueError when a node "
      "is out of range or the plan does not fit.",
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace mstar::bindings
