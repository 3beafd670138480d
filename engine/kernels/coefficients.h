// Written from engine/src/numerics by `MEGATRON_WRITE_COEFFICIENTS=1 cargo test -p engine coefficients`.
// Do not edit: a test compares this file with the constants of the CPU code.
#pragma once
#define EXP_0 __uint_as_float(0x39506967u)  // 1.9875691e-4
#define EXP_1 __uint_as_float(0x3ab743ceu)  // 1.3981999e-3
#define EXP_2 __uint_as_float(0x3c088908u)  // 8.333452e-3
#define EXP_3 __uint_as_float(0x3d2aa9c1u)  // 4.1665796e-2
#define EXP_4 __uint_as_float(0x3e2aaaaau)  // 1.6666666e-1
#define EXP_5 __uint_as_float(0x3f000000u)  // 5e-1
#define LOG2E __uint_as_float(0x3fb8aa3bu)  // 1.442695e0
#define LN2_HI __uint_as_float(0x3f318000u)  // 6.933594e-1
#define LN2_LO __uint_as_float(0xb95e8083u)  // -2.1219444e-4
#define ROUND __uint_as_float(0x4b400000u)  // 1.2582912e7
#define EXP_MAX __uint_as_float(0x42b17217u)  // 8.872283e1
#define EXP_MIN __uint_as_float(0xc2cff1b4u)  // -1.0397208e2
#define GELU_SCALE __uint_as_float(0x3fcc4229u)  // 1.595769e0
#define GELU_CUBIC __uint_as_float(0x3d372713u)  // 4.4715e-2
#define ROW_LEAF 128
#define CHAINS 16
#define SPLIT 256
