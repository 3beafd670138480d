//! Rotary frequencies: the variants that are understood, evaluated in f64.

use crate::model::spec::Rope;

/// How frequencies are scaled.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Scaling {
    /// Not at all.
    None,
    /// All divided by a factor.
    Linear(f64),
    /// Llama 3: long wavelengths divided, short ones kept, a smooth passage between.
    Llama3 {
        /// Divisor of long wavelengths.
        factor: f64,
        /// `original / low` is the wavelength above which the factor applies in full.
        low: f64,
        /// `original / high` is the wavelength below which nothing changes.
        high: f64,
        /// Positions of the first training.
        original: f64,
    },
    /// Each frequency divided by its own factor (GGUF `rope_freqs.weight`).
    PerPair(Vec<f32>),
}

/// The frequencies of heads of width `head_dim`: `theta^(-2 i / head_dim)`, scaled.
pub(crate) fn rope(theta: f64, head_dim: usize, scaling: &Scaling) -> Rope {
    let plain = |i: usize| theta.powf(-((2 * i) as f64) / head_dim as f64);
    let inv_freq = (0..head_dim / 2)
        .map(|i| {
            let f = plain(i);
            match scaling {
                Scaling::None => f,
                Scaling::Linear(factor) => f / factor,
                Scaling::Llama3 { factor, low, high, original } => {
                    llama3(f, *factor, (*low, *high), *original)
                }
                Scaling::PerPair(factors) => f / f64::from(factors.get(i).copied().unwrap_or(1.0)),
            }
        })
        .collect();
    Rope { inv_freq }
}

fn llama3(f: f64, factor: f64, (low, high): (f64, f64), original: f64) -> f64 {
    let wavelength = 2.0 * std::f64::consts::PI / f;
    if wavelength < original / high {
        return f;
    }
    if wavelength > original / low {
        return f / factor;
    }
    let smooth = (original / wavelength - low) / (high - low);
    (1.0 - smooth) * f / factor + smooth * f
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values computed with transformers 5.23.0 (`_compute_llama3_parameters`, f32), head_dim 16: one frequency is
    /// kept, one lies in the passage, the others are divided.
    #[test]
    fn llama3_follows_transformers() {
        let scaling = Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 64.0 };
        let got = rope(500_000.0, 16, &scaling).inv_freq;
        let expected = [
            1.0,
            0.079_403_012_990_951_54,
            0.004_700_753_837_823_868,
            0.000_911_583_134_438_842_5,
            0.000_176_776_680_746_115_74,
            3.428_102_354_519_069e-5,
            6.647_869_668_086_059e-6,
            1.289_173_155_782_919e-6,
        ];
        assert_eq!(got.len(), expected.len());
        for (g, e) in got.iter().zip(expected) {
            assert!((g - e).abs() <= e * 1e-6, "{got:?}");
        }
    }

    #[test]
    fn linear_divides_and_default_starts_at_one() {
        let close = |scaling, expected: [f64; 2]| {
            let got = rope(10_000.0, 4, &scaling).inv_freq;
            assert!(
                got.iter().zip(expected).all(|(g, e)| (g - e).abs() <= e * 1e-15),
                "{scaling:?}: {got:?}"
            );
        };
        close(Scaling::None, [1.0, 0.01]);
        close(Scaling::Linear(4.0), [0.25, 0.0025]);
        close(Scaling::PerPair(vec![1.0, 2.0]), [1.0, 0.005]);
    }
}
