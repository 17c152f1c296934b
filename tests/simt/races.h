// SPDX-License-Identifier: BSD-3-Clause
// Detects races in any schedule: two accesses to one location, at least one of them a write, that nothing orders.
// Within a block, a barrier that both threads passed orders them. Between blocks, a fence orders them: one by the
// thread of the first access, or by another thread after a barrier. Whether the second block has observed the fence is
// not checked. A shuffle orders no memory.
//
// It works for kernels compiled with -fsanitize=thread, whose accesses call note_access.
#pragma once

#include <cstddef>

namespace linreg::simt {

struct Block;
struct Shape;
struct Thread;

bool detects_races();

// These do nothing unless races are detected.
void note_grid(const Shape& shape);
void note_access(const void* address, size_t bytes, bool write);  // of the current thread
void note_barrier(const Block& block);
void note_fence(const Thread& thread);
void note_freed(const void* address, size_t bytes);

}  // namespace linreg::simt
