//! The argument of each kernel: mirrors of the structs in `engine/kernels/args.h`. Device addresses are `u64`.

use bytemuck::{Pod, Zeroable};

/// Steps that one launch of `fold` takes.
pub const FOLD_STEPS: usize = 64;

macro_rules! arguments {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
        pub struct $name {
            $(#[doc = concat!("`", stringify!($field), "` of the C++ struct.")] pub $field: $kind,)*
        }
    )*};
}

arguments! {
    /// RMSNorm over segments.
    NormKernel { out: u64, x: u64, y: u64, weight: u64, stride: u32, offset: u32, width: u32, eps: f32 }
    /// One matrix product of a launch.
    Product { weight: u64, row: u32, rows: u32 }
    /// Linear products.
    LinearKernel {
        out: u64, x: u64, x_rows: u64, out_rows: u64, products: u64, x_stride: u64, out_stride: u64,
        single: Product, inputs: u32, outputs: u32, leaf: u32, warps_per_tile: u32,
        stages: u32, gated: u32,
    }
    /// Row-major weights into tiles.
    PackKernel { out: u64, raw: u64, stride: u64, outputs: u32, inputs: u32, first_output: u32, blocked: u32 }
    /// Activations as tiles of bf16.
    PackRowsKernel {
        out: u64, x: u64, x_stride: u64, rows: u32, inputs: u32, blocked: u32, unused: u32,
    }
    /// Seeded weights.
    RandomKernel { out: u64, elements: u64, seed: u64, scale: f32, dtype: u32 }
    /// Rotation of heads.
    RopeKernel { x: u64, positions: u64, cos: u64, sin: u64, rows: u32, stride: u32, heads: u32, half: u32 }
    /// Keys and values into the cache.
    AppendKernel {
        k: u64, v: u64, qkv: u64, positions: u64, tables: u64, blocks: u64,
        rows: u32, stride: u32, q_heads: u32, kv_heads: u32, head_dim: u32, block_size: u32,
    }
    /// Rotation and cache in one.
    RopeAppendKernel {
        qkv: u64, k: u64, v: u64, cos: u64, sin: u64, positions: u64, tables: u64, blocks: u64,
        rows: u32, stride: u32, q_heads: u32, kv_heads: u32, half: u32, block_size: u32,
    }
    /// Consecutive rows of one request.
    Tile { row: u32, rows: u32 }
    /// Consecutive query heads of one key head.
    HeadGroup { kv_head: u32, first_q: u32, count: u32, unused: u32 }
    /// Attention.
    AttentionKernel {
        out: u64, qkv: u64, k: u64, v: u64, partial: u64, positions: u64, tables: u64, blocks: u64, tiles: u64,
        groups: u64, stride: u32, q_heads: u32, kv_heads: u32, head_dim: u32, block_size: u32, window: u32,
        max_splits: u32, one_split: u32, scale: f32, unused: u32,
    }
    /// The tree over splits.
    MergeKernel {
        out: u64, partial: u64, positions: u64, tiles: u64, q_heads: u32, head_dim: u32, window: u32, max_splits: u32,
    }
    /// Elementwise operators.
    PointKernel { x: u64, y: u64, len: u64, width: u32, kind: u32 }
    /// Gated activation.
    GatedKernel { out: u64, gate_up: u64, len: u64, inner: u32, kind: u32 }
    /// Rows by index.
    GatherKernel { out: u64, x: u64, rows: u64, len: u64, width: u32, unused: u32 }
    /// The end of a reduction.
    FoldKernel { nodes: u64, len: u64, count: u32, unused: u32, left: [u32; FOLD_STEPS], right: [u32; FOLD_STEPS] }
    /// Choice of experts.
    RouteKernel { ids: u64, weights: u64, logits: u64, rows: u32, experts: u32, top_k: u32, normalise: u32 }
    /// Combination of experts.
    CombineKernel { out: u64, y: u64, ids: u64, weights: u64, len: u64, hidden: u32, top_k: u32 }
    /// Maximum of chunks of columns.
    RowMaxKernel { values: u64, columns: u64, logits: u64, width: u32, chunk: u32 }
    /// Sums of exponentials.
    ExpSumsKernel { out: u64, logits: u64, max: u64, rows: u32, width: u32, leaf: u32, leaves: u32 }
}
