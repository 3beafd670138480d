//! Taps: named intermediate values, for bisection. A forward pass without a tap pays one branch per operator.

/// Where in the model a value was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TapPoint {
    /// Step of the engine.
    pub step: u64,
    /// Layer of the whole model; the number of layers for what comes after the last one.
    pub layer: usize,
    /// Name of the operator whose result this is.
    pub op: &'static str,
    /// World rank that computed it.
    pub rank: usize,
}

/// Receives values as they are computed.
pub trait Tap: Send {
    /// `values` is `[rows, width]`, in the order of the step's rows. A slice of the logical width when the operator is
    /// sharded: `first` is the logical column of its first element.
    fn tap(&mut self, at: TapPoint, rows: usize, first: usize, values: &[f32]);
}
