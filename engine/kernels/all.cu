// Every kernel, as one program.
#include "norm.cu"
#include "linear.cu"
#include "linear_tile.cu"
#include "pack.cu"
#include "pointwise.cu"
#include "attention.cu"
#include "moe.cu"
#include "head.cu"
