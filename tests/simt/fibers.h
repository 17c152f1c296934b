// SPDX-License-Identifier: BSD-3-Clause
// Fibers: stacks that a thread switches between by itself.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) || defined(SIMT_UCONTEXT)
#define SIMT_UCONTEXT
#include <ucontext.h>
#endif

namespace linreg::simt {

// Where a suspended stack goes on. The fiber of whoever starts the others has no stack from the pool.
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

// Gives the fiber a stack from the pool; entry is called by the first switch to it, and must not return. False when
// there is no memory.
bool prepare_fiber(Fiber& fiber, void (*entry)());

// The stack goes back to the pool. Nothing may run on it; abandoned: its functions have not returned.
void release_fiber(Fiber& fiber, bool abandoned);

// Returns when somebody switches back; never when from is done.
void switch_fiber(Fiber& from, Fiber& to, bool done = false);

// The first thing that entry calls.
void enter_fiber();

}  // namespace linreg::simt
