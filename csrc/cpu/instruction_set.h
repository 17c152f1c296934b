// SPDX-License-Identifier: BSD-3-Clause
// Which of the instruction sets that loops are compiled for a machine has.
#pragma once

namespace linreg::cpu {

enum class InstructionSet { portable, avx2, avx512 };

// The widest of this machine that ATEN_CPU_CAPABILITY (default, avx2, avx512; as torch reads it) allows.
InstructionSet instruction_set();

}  // namespace linreg::cpu
