// SPDX-License-Identifier: BSD-3-Clause
// The steps of a run, as many in a launch as end soon; and what a run needs beside its steps, see run_steps.cuh.
#include "../math/losses.h"
#include "run_launch.cuh"
#include "run_steps.cuh"

namespace linreg::cuda {
namespace {

constexpr int kGatherBlocks = 8;  // of a multiprocessor, at most: 2048 threads, all that it holds

// Whether all rows, there and where they go, can be taken for rows of 16-byte words.
bool in_words(const View& from, const View& to, int64_t columns) {
  const int64_t size = int64_t(size_of(from.dtype));
  const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  return from.col_stride == 1 && columns * size % 16 == 0 && from.row_stride * size % 16 == 0 && aligned(from.data) &&
         aligned(to.data);
}

GatheredRows rows_of(const View& from, const View& to, int64_t columns) {
  if (!from.data) return {};
  if (from.col_stride == 0 && columns > 1) columns = 1;
  GatheredRows rows{from.data, const_cast<void*>(to.data), from.row_stride, from.col_stride,
                    columns,   int(size_of(from.dtype))};
  if (in_words(from, to, columns)) {
    const int numbers = 16 / rows.bytes;
    rows.row_stride /= numbers;
    rows.columns /= numbers;
    rows.bytes = 16;
  }
  return rows;
}

const char* plan_for(const Problem& problem, const Run& run, RunPlan& plan) {
  Limits device;
  if (const char* error = limits(device)) return error;
  plan = plan_of(problem, run, device);
  return nullptr;
}

const char* take_launches(ResidentRun call, int64_t most, void* stream) {
  const Run run = call.run;
  char* const losses = static_cast<char*>(call.losses);
  const int64_t size = int64_t(size_of(call.problem.w.dtype));
  for (int64_t begin = run.begin; begin < run.end; begin = call.run.end) {
    call.run.begin = begin;
    call.run.end = run.end - begin < most ? run.end : begin + most;
    if (run.lr) call.run.lr = run.lr + (begin - run.begin);
    call.losses = losses + (begin - run.begin) * size;
    if (const char* error = launch_steps(call, stream)) return error;
    call.weight.first_step = call.bias.first_step = false;
    call.before = losses + (call.run.end - 1 - run.begin) * size;
  }
  return nullptr;
}

}  // namespace

const char* many_steps_workspace(const Problem& problem, const Run& run, bool& yes, size_t& bytes) {
  RunPlan plan;
  if (const char* error = plan_for(problem, run, plan)) return error;
  const ResidentLayout& l = plan.resident;
  yes = plan.is_resident;
  bytes = plan.is_resident && l.blocks > 1 ? sizeof(double) * size_t(l.blocks) * size_t(2 * l.line + 1) : 0;
  return nullptr;
}

const char* take_many_steps(const Problem& problem, const Run& run, const Sgd& sgd, const Parameter& weight,
                            const Parameter& bias, bool stop_nonfinite, const void* before, void* losses,
                            void* workspace, void* stream) {
  RunPlan plan;
  if (const char* error = plan_for(problem, run, plan)) return error;
  if (!plan.is_resident) return "a run whose steps are to be launched one by one";
  ResidentRun call{problem, run, sgd, weight, bias, stop_nonfinite, before, losses, plan.resident, nullptr, nullptr};
  if (call.layout.blocks > 1) {
    call.signals = static_cast<double*>(workspace);
    call.lines = call.signals + call.layout.blocks;
    if (const char* error = clear_signals(call, stream)) return error;
  }
  return take_launches(call, plan.launch_steps, stream);
}

const char* gather(const Problem& problem, const int64_t* order, const Problem& batch, void* stream) {
  Limits device;
  if (const char* error = limits(device)) return error;
  Gather g{{rows_of(problem.x, batch.x, problem.d), rows_of(problem.y, batch.y, problem.k),
            rows_of(problem.v, batch.v, problem.k)},
           order,
           batch.n,
           problem.n,
           1};
  while (g.lanes < kWarp && g.lanes < g.operands[0].columns) g.lanes *= 2;
  const int64_t wanted = ceil_div(batch.n, kGatherThreads / g.lanes), most = device.multiprocessors * kGatherBlocks;
  const int blocks = int(wanted < 1 ? 1 : wanted < most ? wanted : most);
  return launch(gather_kernel, {blocks, kGatherThreads, 1, 0, stream}, g);
}

const char* end_run(const Run& run, bool stop_nonfinite, const Losses& losses, const Losses& validation_losses,
                    int64_t* taken, void* stream) {
  const RunEnd end{stop_nonfinite, run.begin, run.end - run.begin, run.epoch_steps, losses, validation_losses, taken};
  return launch(end_kernel, {1, kEndThreads, 1, kEndThreads * int(sizeof(int64_t)), stream}, end);
}

}  // namespace linreg::cuda
