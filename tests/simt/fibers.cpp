// SPDX-License-Identifier: BSD-3-Clause
#include "fibers.h"

#include <sys/mman.h>

#include <cstdint>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace linreg::simt {
namespace {

// AddressSanitizer's reports run on the stack of the fiber at fault.
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kStackBytes = 256 << 10;
#else
constexpr size_t kStackBytes = 64 << 10;
#endif
constexpr size_t kGuardBytes = 4096;
constexpr size_t kStride = kGuardBytes + kStackBytes;
constexpr size_t kStacksPerMap = 32;

// Unused stacks, the most recently used, which is still cached, on top. They are kept until the process ends.
std::vector<char*>& pool() {
  static std::vector<char*> stacks;
  return stacks;
}

bool refill_pool() {
  void* map = mmap(nullptr, kStacksPerMap * kStride, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
  if (map == MAP_FAILED) return false;
  for (size_t i = 0; i < kStacksPerMap; ++i) {
    char* guard = static_cast<char*>(map) + i * kStride;
    if (mprotect(guard, kGuardBytes, PROT_NONE) != 0) return i > 0;
    pool().push_back(guard + kGuardBytes);
  }
  return true;
}

#ifdef __SANITIZE_ADDRESS__
Fiber* left = nullptr;  // the fiber that the latest switch left
#endif

}  // namespace

#ifdef SIMT_UCONTEXT

static void swap(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

static void set_entry(Fiber& fiber, void (*entry)()) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}

#else

// swapcontext makes a system call for the signal mask at every switch: a sum over a warp takes 45 µs with it and 2.3
// without. The callee-saved registers are pushed; the compiler expects a call to overwrite the others.
extern "C" void linreg_simt_swap(void** from, void* to);
asm(R"(
    .text
    .p2align 4
    .hidden linreg_simt_swap
    .globl linreg_simt_swap
    .type linreg_simt_swap, @function
linreg_simt_swap:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size linreg_simt_swap, . - linreg_simt_swap
)");

static void swap(Fiber& from, Fiber& to) { linreg_simt_swap(&from.stack_pointer, to.stack_pointer); }

static void set_entry(Fiber& fiber, void (*entry)()) {
  // Stacks are whole pages apart. Shifting each by some cache lines keeps their ends from sharing a few sets of the
  // first-level cache: a sum over a warp, among 16 blocks of 256 threads, takes 2.8 µs instead of 4.3.
  const size_t shift = uintptr_t(fiber.stack) / kStride % 16 * 256;
  void** top = reinterpret_cast<void**>(fiber.stack + kStackBytes - shift);
  *--top = nullptr;  // entry's return address, which ends a backtrace; the stack is 16-byte aligned before it
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.stack_pointer = top;
}

#endif

bool prepare_fiber(Fiber& fiber, void (*entry)()) {
  if (pool().empty() && !refill_pool()) return false;
  fiber.stack = pool().back();
  fiber.stack_bytes = kStackBytes;
  pool().pop_back();
  set_entry(fiber, entry);
  return true;
}

void release_fiber(Fiber& fiber, bool abandoned) {
  if (!fiber.stack) return;
#ifdef __SANITIZE_ADDRESS__
  if (abandoned) __asan_unpoison_memory_region(fiber.stack, kStackBytes);
#endif
  (void)abandoned;
  pool().push_back(fiber.stack);
  fiber.stack = nullptr;
}

__attribute__((noinline)) void switch_fiber(Fiber& from, Fiber& to, bool done) {
#ifdef __SANITIZE_ADDRESS__
  left = &from;
  __sanitizer_start_switch_fiber(done ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);
  swap(from, to);
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#else
  (void)done;
  swap(from, to);
#endif
}

void enter_fiber() {
#ifdef __SANITIZE_ADDRESS__
  const void* bottom;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (!left->stack) {  // the host's fiber, whose stack becomes known here
    left->stack = const_cast<char*>(static_cast<const char*>(bottom));
    left->stack_bytes = bytes;
  }
#endif
}

}  // namespace linreg::simt
