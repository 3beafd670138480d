//! Faults that are planted in a rank's parts before it computes anything.

use crate::error::Result;
use crate::faults::Fault;
use crate::kernels::device::Device;
use crate::model::decoder::Parts;

/// Bits of a norm weight that another version of the weights has otherwise.
const OTHER_BITS: u32 = 1 << 13;

/// Plants what belongs to weights and heads.
pub(crate) fn in_parts<D: Device>(parts: &mut Parts<D>) -> Result<()> {
    match parts.fault {
        Some(Fault::RotatedKeyHeads) => {
            let heads = &mut parts.shard.heads;
            heads.kv_of_q.iter_mut().for_each(|kv| *kv = (*kv + 1) % heads.kv_heads);
        }
        Some(Fault::OtherWeights) => {
            let (rank, size) = (parts.links.transport.rank(), parts.links.transport.world());
            if let Some(layer) = parts.weights.layers.first_mut().filter(|_| size > 1 && rank + 1 == size) {
                let mut weight = [0.0];
                parts.dev.read(&layer.attn_norm, 0, &mut weight)?;
                let other = f32::from_bits(weight[0].to_bits() ^ OTHER_BITS);
                parts.dev.write(&mut layer.attn_norm, 0, &[other])?;
            }
        }
        _ => {}
    }
    Ok(())
}
