// SPDX-License-Identifier: BSD-3-Clause
// Finds races in whatever order the threads ran: two accesses to one place, one of them to write, of which neither is
// known to come first. Known to come first is what lies before a barrier that both threads passed, and, between blocks,
// what lies before a fence of its thread, or of another thread after a barrier. (That the other
// block has heard of the fence is taken for granted.) A shuffle orders no memory.
//
// It works for kernels compiled with -fsanitize=thread: their accesses call note_access.
#pragma once

#include <cstddef>

namespace linreg::simt {

struct Block;
struct Shape;
struct Thread;

bool detects_races();

// All of these do nothing where races are not detected.
void note_grid(const Shape& shape);
void note_access(const void* address, size_t bytes, bool write);  // of the current thread
void note_barrier(const Block& block);
void note_fence(const Thread& thread);
void note_freed(const void* address, size_t bytes);

}  // namespace linreg::simt
