//! Elementary functions: one range reduction and one polynomial each, evaluated with fused multiply-add.
//!
//! These scalar forms are the definition. SIMD and CUDA twins evaluate the same operations in the same order from
//! the same coefficients ([`EXP`], [`LOG`]) and give the same bits. No libm is called: `mul_add`, `sqrt`, division
//! and rounding are IEEE operations.

/// Coefficients of `exp` on the reduced interval, highest power first (Cephes `expf`, S. Moshier).
pub const EXP: [f32; 6] =
    [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1];
/// `log2(e)`.
pub const LOG2E: f32 = std::f32::consts::LOG2_E;
/// Upper part of `ln 2`, exact in few bits so that `n * LN2_HI` is exact.
pub const LN2_HI: f32 = 0.693_359_4;
/// `ln 2 - LN2_HI`.
pub const LN2_LO: f32 = -2.121_944_4e-4;
/// Adding and subtracting this rounds to the nearest integer, ties to even (|x| < 2^22).
pub const ROUND: f32 = 12_582_912.0;
/// Above this `exp` is infinite.
pub const EXP_MAX: f32 = 88.722_83;
/// Below this `exp` is zero.
pub const EXP_MIN: f32 = -103.972_08;
/// Coefficients of `log(1 + x)`, highest power first (Cephes `logf`).
pub const LOG: [f32; 9] = [
    7.037_683_6e-2,
    -1.151_461e-1,
    1.167_699_9e-1,
    -1.242_014_1e-1,
    1.424_932_3e-1,
    -1.666_805_8e-1,
    2.000_071_5e-1,
    -2.499_999_4e-1,
    3.333_333e-1,
];
/// `2 * sqrt(2 / pi)`: twice the factor of the tanh form of GELU.
pub const GELU_SCALE: f32 = 1.595_769;
/// Cubic coefficient of the tanh form of GELU.
pub const GELU_CUBIC: f32 = 0.044_715;

/// `e^x`. NaN stays NaN; overflow is infinity, underflow goes through the subnormals to zero.
pub fn exp(x: f32) -> f32 {
    if x.is_nan() {
        return x;
    }
    if x > EXP_MAX {
        return f32::INFINITY;
    }
    if x < EXP_MIN {
        return 0.0;
    }
    let n = x.mul_add(LOG2E, ROUND) - ROUND;
    let r = n.mul_add(-LN2_LO, n.mul_add(-LN2_HI, x));
    let mut p = EXP[0];
    for c in &EXP[1..] {
        p = p.mul_add(r, *c);
    }
    let y = p.mul_add(r * r, r) + 1.0;
    // 2^n in two factors: each is a normal number, so only the last product rounds.
    let n = n as i32;
    let half = n >> 1;
    y * pow2(half) * pow2(n - half)
}

/// `2^n` for `-126 <= n <= 127`.
fn pow2(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

/// Natural logarithm of a positive normal number. Zero gives `-inf`, a negative number or NaN gives NaN.
pub fn log(x: f32) -> f32 {
    if x.is_nan() || x < 0.0 {
        return f32::NAN;
    }
    if x == 0.0 {
        return f32::NEG_INFINITY;
    }
    if x == f32::INFINITY {
        return x;
    }
    let (bits, shift) =
        if x < f32::MIN_POSITIVE { ((x * 8_388_608.0).to_bits(), 23) } else { (x.to_bits(), 0) };
    let mut e = (bits >> 23) as i32 - 126 - shift;
    let mut m = f32::from_bits((bits & 0x007f_ffff) | 0x3f00_0000);
    if m < std::f32::consts::FRAC_1_SQRT_2 {
        e -= 1;
        m += m;
    }
    let m = m - 1.0;
    let mut p = LOG[0];
    for c in &LOG[1..] {
        p = p.mul_add(m, *c);
    }
    let z = m * m;
    let e = e as f32;
    let mut y = (m * z) * p;
    y = e.mul_add(LN2_LO, y);
    y = z.mul_add(-0.5, y);
    e.mul_add(LN2_HI, m + y)
}

/// `x * sigmoid(x)`, as `x / (1 + exp(-x))`.
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// GELU in its tanh form, as `x * sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3))`.
pub fn gelu_tanh(x: f32) -> f32 {
    let inner = GELU_SCALE * ((GELU_CUBIC * x) * x).mul_add(x, x);
    x / (1.0 + exp(-inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest error in units of the last place of the f64 result, over `n` points of `[lo, hi]`.
    fn ulp(f: fn(f32) -> f32, exact: fn(f64) -> f64, lo: f32, hi: f32, n: u32) -> f64 {
        (0..=n)
            .map(|i| lo + (hi - lo) * (i as f32 / n as f32))
            .map(|x| {
                let want = exact(f64::from(x));
                let unit = f64::from(f32::from_bits((want.abs() as f32).to_bits() + 1))
                    - f64::from(want.abs() as f32);
                (f64::from(f(x)) - want).abs() / unit
            })
            .fold(0.0, f64::max)
    }

    #[test]
    fn errors_are_as_stated() {
        assert!(ulp(exp, f64::exp, -87.0, 88.0, 400_000) < 1.2);
        assert!(ulp(log, f64::ln, 1.0e-3, 300_000.0, 400_000) < 1.2);
        assert!(ulp(log, f64::ln, 1.5, 40.0, 400_000) < 1.2);
        assert!(ulp(silu, |x| x / (1.0 + (-x).exp()), 0.1, 20.0, 100_000) < 3.0);
    }

    #[test]
    fn edges() {
        assert!(exp(f32::NAN).is_nan() && log(f32::NAN).is_nan() && log(-1.0).is_nan());
        assert_eq!(
            (exp(0.0), exp(-0.0), exp(f32::NEG_INFINITY), exp(f32::INFINITY)),
            (1.0, 1.0, 0.0, f32::INFINITY)
        );
        assert_eq!((log(1.0), log(0.0), log(f32::INFINITY)), (0.0, f32::NEG_INFINITY, f32::INFINITY));
        assert!(exp(-100.0) > 0.0, "subnormals are kept");
        assert_eq!((silu(0.0), gelu_tanh(0.0)), (0.0, 0.0));
        assert!(exp(88.72).is_finite());
    }
}
