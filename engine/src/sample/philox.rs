//! Philox 4x32-10, the counter-based generator of Salmon et al. (SC'11): randomness as a pure function of
//! (seed, request, position), never of a batch row, a rank or the time.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Ten rounds of Philox on `counter` under `key`.
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let a = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
    }
    counter
}

/// The random numbers of one request: one for each position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RandomStream {
    seed: u64,
    key: u64,
}

impl RandomStream {
    /// The stream of request `key` under `seed`.
    pub fn new(seed: u64, key: u64) -> Self {
        Self { seed, key }
    }

    /// The stream of another request under the same seed.
    #[cfg(any(test, feature = "faults"))]
    pub(crate) fn keyed(self, key: u64) -> Self {
        Self { key, ..self }
    }

    /// Uniform in `[0, 1)`, a multiple of `2^-24`, for the token that is to stand at absolute `position`.
    pub fn uniform(&self, position: u64) -> f32 {
        let counter = [position as u32, (position >> 32) as u32, self.key as u32, (self.key >> 32) as u32];
        let word = philox4x32(counter, [self.seed as u32, (self.seed >> 32) as u32])[0];
        (word >> 8) as f32 * (1.0 / 16_777_216.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known-answer vectors that the authors publish with Random123 (`kat_vectors`, `philox4x32 10`).
    #[test]
    fn published_vectors() {
        let ones = 0xffff_ffff;
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([ones; 4], [ones; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn seed_key_and_position_each_matter_in_all_their_bits() {
        let base = RandomStream::new(1, 2).uniform(3);
        for other in [
            RandomStream::new(1 << 40, 2).uniform(3),
            RandomStream::new(1, 2 | 1 << 40).uniform(3),
            RandomStream::new(1, 2).uniform(3 | 1 << 40),
            RandomStream::new(1, 2).uniform(4),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn uniform_is_uniform_below_one() {
        let stream = RandomStream::new(7, 7);
        let mut bins = [0u32; 16];
        for position in 0..16_000 {
            let u = stream.uniform(position);
            assert!((0.0..1.0).contains(&u));
            bins[(u * 16.0) as usize] += 1;
        }
        let chi2: f64 = bins.iter().map(|&n| (f64::from(n) - 1000.0).powi(2) / 1000.0).sum();
        assert!(chi2 < 37.7, "chi-square {chi2} of 15 degrees of freedom exceeds the 0.1 % quantile");
    }
}
