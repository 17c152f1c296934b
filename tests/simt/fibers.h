// SPDX-License-Identifier: BSD-3-Clause
// Fibers: stacks between which a thread switches cooperatively.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) || defined(SIMT_UCONTEXT)
#define SIMT_UCONTEXT
#include <ucontext.h>
#endif

namespace linreg::simt {

// A suspended stack. The host's fiber has no stack from the pool.
struct Fiber {
  char* stack = nullptr;  // its lowest byte
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
#ifdef SIMT_UCONTEXT
  ucontext_t context;
#else
  void* stack_pointer = nullptr;
#endif
};

// Gives the fiber a stack from the pool. The first switch to it calls entry, which must not return. False if out of
// memory.
bool prepare_fiber(Fiber& fiber, void (*entry)());

// Returns the stack to the pool. Nothing may run on it; abandoned: its functions have not returned.
void release_fiber(Fiber& fiber, bool abandoned);

// Returns when another fiber switches back; never if `from` is done.
void switch_fiber(Fiber& from, Fiber& to, bool done = false);

// entry must call it first.
void enter_fiber();

}  // namespace linreg::simt
