//! The kernels by name, and their source as one program.

use super::args;

macro_rules! kernels {
    ($($variant:ident $name:literal $args:ident,)*) => {
        /// A kernel of `engine/kernels`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum Kernel { $(#[doc = concat!("`", $name, "`.")] $variant,)* }

        impl Kernel {
            /// All kernels, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Name of the C++ function.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Whether it runs in every step that decodes one request.
            pub fn in_decode(self) -> bool {
                matches!(
                    self,
                    Self::RmsNorm | Self::RopeAppend | Self::AttentionQ4P1 | Self::AttentionQ4P2
                        | Self::AttentionMerge | Self::PackRows | Self::Gated
                ) || self.dynamic_shared() > 0
            }

            /// Bytes of dynamic shared memory that it needs beyond what any kernel may have; 0: none.
            pub fn dynamic_shared(self) -> usize {
                if self.name().starts_with("linear_stream") {
                    super::linear::RING_BYTES
                } else {
                    super::mma::ring_bytes(self)
                }
            }

            /// Size of the argument struct in bytes.
            pub const fn argument_size(self) -> usize {
                match self { $(Self::$variant => size_of::<args::$args>(),)* }
            }
        }
    };
}

kernels! {
    RmsNorm "rms_norm" NormKernel,
    Rows1F32 "linear_rows1_f32" LinearKernel,
    Rows2F32 "linear_rows2_f32" LinearKernel,
    Rows4F32 "linear_rows4_f32" LinearKernel,
    Rows8F32 "linear_rows8_f32" LinearKernel,
    AnyF32 "linear_any_f32" LinearKernel,
    TileF32 "linear_tile_f32" LinearKernel,
    Rows1Bf16 "linear_rows1_bf16" LinearKernel,
    Rows2Bf16 "linear_rows2_bf16" LinearKernel,
    Rows4Bf16 "linear_rows4_bf16" LinearKernel,
    Rows8Bf16 "linear_rows8_bf16" LinearKernel,
    AnyBf16 "linear_any_bf16" LinearKernel,
    TileBf16 "linear_tile_bf16" LinearKernel,
    Rows1F16 "linear_rows1_f16" LinearKernel,
    Rows2F16 "linear_rows2_f16" LinearKernel,
    Rows4F16 "linear_rows4_f16" LinearKernel,
    Rows8F16 "linear_rows8_f16" LinearKernel,
    AnyF16 "linear_any_f16" LinearKernel,
    TileF16 "linear_tile_f16" LinearKernel,
    Stream1Bf16 "linear_stream1_bf16" LinearKernel,
    Stream2Bf16 "linear_stream2_bf16" LinearKernel,
    Stream1F16 "linear_stream1_f16" LinearKernel,
    Stream2F16 "linear_stream2_f16" LinearKernel,
    PackRows "pack_rows" PackRowsKernel,
    MmaAny "linear_mma_any" LinearKernel,
    Mma8 "linear_mma8" LinearKernel,
    Mma16 "linear_mma16" LinearKernel,
    Mma32 "linear_mma32" LinearKernel,
    Mma64 "linear_mma64" LinearKernel,
    Mma128 "linear_mma128" LinearKernel,
    Mma256 "linear_mma256" LinearKernel,
    Pack16 "pack_16" PackKernel,
    Pack32 "pack_32" PackKernel,
    RandomWeight "random_weight" RandomKernel,
    Add "add_into" PointKernel,
    AddBias "add_bias" PointKernel,
    Gated "gated" GatedKernel,
    Gather "gather" GatherKernel,
    Fold "fold" FoldKernel,
    Rope "rope" RopeKernel,
    AppendKv "append_kv" AppendKernel,
    RopeAppend "rope_append" RopeAppendKernel,
    AttentionQ4P4 "attention_q4_p4" AttentionKernel,
    AttentionQ4P2 "attention_q4_p2" AttentionKernel,
    AttentionQ4P1 "attention_q4_p1" AttentionKernel,
    AttentionQ16P16 "attention_q16_p16" AttentionKernel,
    AttentionQ16P8 "attention_q16_p8" AttentionKernel,
    AttentionQ16P4 "attention_q16_p4" AttentionKernel,
    AttentionMerge "attention_merge" MergeKernel,
    Route "route" RouteKernel,
    Combine "combine" CombineKernel,
    RowMax "row_max" RowMaxKernel,
    ExpSums "exp_sums" ExpSumsKernel,
}

/// The files of `engine/kernels`, by name.
pub const FILES: &[(&str, &str)] = &[
    ("all.cu", include_str!("../../../kernels/all.cu")),
    ("args.h", include_str!("../../../kernels/args.h")),
    ("attention.cu", include_str!("../../../kernels/attention.cu")),
    ("attention.cuh", include_str!("../../../kernels/attention.cuh")),
    ("canon.cuh", include_str!("../../../kernels/canon.cuh")),
    ("coefficients.h", include_str!("../../../kernels/coefficients.h")),
    ("head.cu", include_str!("../../../kernels/head.cu")),
    ("linear.cu", include_str!("../../../kernels/linear.cu")),
    ("linear.cuh", include_str!("../../../kernels/linear.cuh")),
    ("linear_mma.cu", include_str!("../../../kernels/linear_mma.cu")),
    ("linear_stream.cu", include_str!("../../../kernels/linear_stream.cu")),
    ("linear_tile.cu", include_str!("../../../kernels/linear_tile.cu")),
    ("moe.cu", include_str!("../../../kernels/moe.cu")),
    ("norm.cu", include_str!("../../../kernels/norm.cu")),
    ("pack.cu", include_str!("../../../kernels/pack.cu")),
    ("pipeline.cuh", include_str!("../../../kernels/pipeline.cuh")),
    ("platform.cuh", include_str!("../../../kernels/platform.cuh")),
    ("pointwise.cu", include_str!("../../../kernels/pointwise.cu")),
    ("weights.cuh", include_str!("../../../kernels/weights.cuh")),
    ("wgmma.cuh", include_str!("../../../kernels/wgmma.cuh")),
];
