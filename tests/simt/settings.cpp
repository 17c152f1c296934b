// SPDX-License-Identifier: BSD-3-Clause
// The device as the host sees it: its limits, its counters, and launches, which run one at a time.
#include <algorithm>
#include <cstdlib>
#include <exception>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "grid.h"

namespace linreg::simt {
namespace {

constexpr int kThreadsPerMultiprocessor = 1024;

std::mutex device;
uint64_t launches = 0, launches_since_seed = 0;
std::map<void*, std::vector<unsigned>> counters_of_streams;

uint64_t from_environment(const char* name, uint64_t otherwise) {
  const char* value = std::getenv(name);
  return value && *value ? std::strtoull(value, nullptr, 10) : otherwise;
}

std::string invalid(const Shape& s) {
  const auto is = [](int number) { return ", got " + std::to_string(number); };
  if (s.blocks < 1) return "at least 1 block" + is(s.blocks);
  if (s.threads < 32 || s.threads > 1024 || s.threads % 32) return "32, 64, ... or 1024 threads" + is(s.threads);
  if (s.shared_bytes < 0 || s.shared_bytes > kSharedBytes) return "at most 96 KB of shared memory" + is(s.shared_bytes);
  return "";
}

std::string check_counters() {
  std::string error;
  for (auto& [stream, counters] : counters_of_streams) {
    for (size_t i = 0; i < counters.size(); ++i)
      if (counters[i] != 0)
        error =
            "counter " + std::to_string(i) + " is " + std::to_string(counters[i]) + " at the end of the grid, not 0";
    std::fill(counters.begin(), counters.end(), 0);
  }
  return error;
}

// The finaliser of splitmix64.
uint64_t mixed(uint64_t x) {
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

}  // namespace

Settings& settings() {
  static Settings settings = {from_environment("SIMT_SEED", 0), int(from_environment("SIMT_MULTIPROCESSORS", 4))};
  return settings;
}

unsigned* counters(void* stream, int count) {
  const std::lock_guard lock(device);
  std::vector<unsigned>& counters = counters_of_streams[stream];
  if (counters.empty()) counters.resize(size_t(count));
  return counters.data();
}

int resident_blocks(const Shape& s) {
  const int by_threads = kThreadsPerMultiprocessor / s.threads;
  const int by_memory = kSharedBytes / std::max(1, s.shared_bytes);
  return std::max(1, settings().multiprocessors * std::min(by_threads, by_memory));
}

const char* run_grid(const Shape& shape, const std::function<void()>& thread) {
  static thread_local std::string error;
  const std::lock_guard lock(device);
  error = invalid(shape);
  if (!error.empty()) {
    error = "simt: a launch needs " + error;
    return error.c_str();
  }
  ++launches;
  const uint64_t seed = mixed(settings().seed + 0x9e3779b97f4a7c15u * ++launches_since_seed);
  error = Grid(shape, thread, seed).run();
  const std::string counters = check_counters();
  if (error.empty()) error = counters;
  if (error.empty()) return nullptr;
  const auto number = [](uint64_t n) { return std::to_string(n); };
  error = "simt: " + error + " [seed " + number(settings().seed) + ", launch " + number(launches_since_seed) + "]";
  return error.c_str();
}

}  // namespace linreg::simt

// For tests, by way of ctypes.
extern "C" {
__attribute__((visibility("default"))) void simt_seed(uint64_t seed) {
  linreg::simt::settings().seed = seed;
  linreg::simt::launches_since_seed = 0;
}
__attribute__((visibility("default"))) void simt_multiprocessors(int multiprocessors) {
  linreg::simt::settings().multiprocessors = multiprocessors;
}
__attribute__((visibility("default"))) uint64_t simt_launches() { return linreg::simt::launches; }
}
