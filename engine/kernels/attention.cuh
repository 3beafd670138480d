// The pieces of attention: what one split of 256 absolute positions contributes, and how splits merge.
// Twin of reference::attention. A thread block treats up to Q pairs (row, query head) that share one key head.
#pragma once
#include "args.h"
#include "canon.cuh"

// Enough for 2^13 splits: 2 million positions.
#define SPLIT_LEVELS 14

DEVICE u32 first_visible(u32 position, u32 window) { return window && position + 1 > window ? position + 1 - window : 0; }

// An inner node of the tree of splits: b joins a from the right (reference::merge).
DEVICE void merge_one(float& max, float& sum, float& acc, float bmax, float bsum, float bacc) {
    const float top = larger(max, bmax);
    const float ea = exp_(sub(max, top)), eb = exp_(sub(bmax, top));
    sum = fma_(sum, ea, mul(bsum, eb));
    acc = fma_(acc, ea, mul(bacc, eb));
    max = top;
}

// Streamed aligned tree over the consecutive splits first, first + 1, ... of one element. Absent splits pass through.
struct SplitTree {
    float max[SPLIT_LEVELS], sum[SPLIT_LEVELS], acc[SPLIT_LEVELS];
    u32 depth;

    DEVICE void push(u32 split, u32 first, float m, float s, float v) {
        // While this node is a right child: join the left sibling, if any leaf of it exists.
        for (u32 level = 0, index = split; index & 1u; index >>= 1, level++)
            if (index << level > first) {
                depth--;
                float lm = max[depth], ls = sum[depth], lv = acc[depth];
                merge_one(lm, ls, lv, m, s, v);
                m = lm;
                s = ls;
                v = lv;
            }
        max[depth] = m;
        sum[depth] = s;
        acc[depth++] = v;
    }

    // The attention output: the root's acc / sum.
    DEVICE float finish() {
        for (; depth > 1; depth--)
            merge_one(max[depth - 2], sum[depth - 2], acc[depth - 2], max[depth - 1], sum[depth - 1], acc[depth - 1]);
        return divide(acc[0], sum[0]);
    }
};
